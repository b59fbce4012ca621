//! Whether the members that are named are one cluster: two of them would be two pools, and two holders.
//!
//! **Promise.** The first that answers says which cluster is ours; what another one says it is of is not used. Where more than half of those that are named are of one other
//! cluster, ours was made anew, and that is ours from then on: one that is named alone is always ours. One that says the same of itself as another one, and is the only member
//! of its cluster, is not used either: etcd makes its numbers from the addresses and the token of its members, so that all that were started with a distribution's settings, each for itself,
//! have the same. Pure.
//!
//! **Not promised.** That it is noticed before such a member is asked; and of two that are asked first after two starts, either may be the first.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) struct Membership(Mutex<Clusters>);

struct Clusters {
    /// Ours; none before anybody has answered.
    ours: Option<u64>,
    /// What each member has said last: of which cluster it is, and which of its members.
    said: Vec<Option<(u64, u64)>>,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    /// Of ours, which is another one than before.
    Renewed,
    Other {
        /// The number of ours.
        ours: u64,
    },
    /// Which the one at that place is already.
    Twice {
        at: usize,
    },
}

impl Membership {
    pub(super) fn new(members: usize) -> Self {
        Self(Mutex::new(Clusters {
            ours: None,
            said: vec![None; members],
        }))
    }

    /// The one at that place says that it is that member of that cluster.
    pub(super) fn told(&self, at: usize, cluster: u64, member: u64) -> Kind {
        self.clusters().told(at, cluster, member)
    }

    /// The same of one that knows of others: it is not by itself, and whoever has said this before says something else by now, or is another name of it.
    pub(super) fn is_one_of_several(&self, at: usize, cluster: u64, member: u64) -> Kind {
        let mut clusters = self.clusters();
        for said in &mut clusters.said {
            said.take_if(|said| *said == (cluster, member));
        }
        clusters.told(at, cluster, member)
    }

    /// Whether an answer is of our cluster; the first answer of all says which that is.
    pub(super) fn is_ours(&self, cluster: u64) -> bool {
        *self.clusters().ours.get_or_insert(cluster) == cluster
    }

    /// The number of our cluster; none before anybody has answered.
    pub(super) fn ours(&self) -> Option<u64> {
        self.clusters().ours
    }

    fn clusters(&self) -> MutexGuard<'_, Clusters> {
        // What is in there is whole at all times.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clusters {
    fn told(&mut self, at: usize, cluster: u64, member: u64) -> Kind {
        let says = Some((cluster, member));
        if let Some(other) = self.said.iter().position(|said| *said == says)
            && other != at
        {
            return Kind::Twice { at: other };
        }
        if let Some(said) = self.said.get_mut(at) {
            *said = says;
        }
        let ours = *self.ours.get_or_insert(cluster);
        if ours == cluster {
            return Kind::Ours;
        }
        let of_it = self.said.iter().flatten().filter(|said| said.0 == cluster);
        if of_it.count() * 2 > self.said.len() {
            self.ours = Some(cluster);
            return Kind::Renewed;
        }
        Kind::Other { ours }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_says_which_cluster_it_is_and_a_majority_that_it_is_another_one() {
        let clusters = Membership::new(3);
        assert_eq!(clusters.told(0, 7, 1), Kind::Ours);
        assert_eq!(clusters.told(1, 8, 2), Kind::Other { ours: 7 });
        assert_eq!(clusters.told(0, 7, 1), Kind::Ours);
        // Three that know nothing of each other.
        assert_eq!(clusters.told(2, 9, 3), Kind::Other { ours: 7 });
        // Made anew.
        assert_eq!(clusters.told(2, 8, 3), Kind::Renewed);
        assert_eq!(clusters.ours(), Some(8));
        assert_eq!(clusters.told(1, 8, 2), Kind::Ours);
        assert_eq!(clusters.told(0, 7, 1), Kind::Other { ours: 8 });
        assert_eq!(clusters.told(0, 8, 1), Kind::Ours);
    }

    #[test]
    fn three_that_were_each_started_for_itself_have_one_number() {
        let clusters = Membership::new(3);
        assert_eq!(clusters.told(1, 7, 1), Kind::Ours);
        assert_eq!(clusters.told(0, 7, 1), Kind::Twice { at: 1 });
        assert_eq!(clusters.told(2, 7, 1), Kind::Twice { at: 1 });
        assert_eq!(clusters.told(1, 7, 1), Kind::Ours);
        // One that knows of others has moved, or has two names.
        assert_eq!(clusters.is_one_of_several(2, 7, 1), Kind::Ours);
        assert_eq!(clusters.told(1, 7, 1), Kind::Twice { at: 2 });
        assert_eq!(clusters.is_one_of_several(1, 7, 1), Kind::Ours);
        // They were made one, and the first one asked has another number now.
        assert_eq!(clusters.told(1, 8, 2), Kind::Other { ours: 7 });
        assert_eq!(clusters.told(0, 8, 3), Kind::Renewed);
    }

    #[test]
    fn one_that_is_named_alone_is_ours() {
        let alone = Membership::new(1);
        assert_eq!(alone.told(0, 7, 1), Kind::Ours);
        assert_eq!(alone.told(0, 8, 1), Kind::Renewed);
    }
}
