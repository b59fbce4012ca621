//! Whether the members that are named are one cluster: two of them would be two pools, and two holders.
//!
//! **Promise.** The first that answers says which cluster is ours; what another one says it is of is not used. Where more than half of those that are named are of one other
//! cluster, ours was made anew, and that is ours from then on. Pure.
//!
//! **Not promised.** That it is noticed before a member of another cluster is asked; and of two that are asked first after two starts, either may be the first.

use std::sync::{Mutex, PoisonError};

pub(super) struct Membership(Mutex<Clusters>);

struct Clusters {
    /// Ours; none before anybody has answered.
    ours: Option<u64>,
    /// What each member has said last.
    said: Vec<Option<u64>>,
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
        /// Whether that was known of it.
        is_new: bool,
    },
}

impl Membership {
    pub(super) fn new(members: usize) -> Self {
        Self(Mutex::new(Clusters {
            ours: None,
            said: vec![None; members],
        }))
    }

    /// The member at that place says that it is of that cluster.
    pub(super) fn told(&self, member: usize, cluster: u64) -> Kind {
        // What is in there is whole at all times.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .told(member, cluster)
    }
}

impl Clusters {
    fn told(&mut self, member: usize, cluster: u64) -> Kind {
        let before = self.said.get_mut(member).and_then(|said| said.replace(cluster));
        let ours = *self.ours.get_or_insert(cluster);
        if ours == cluster {
            return Kind::Ours;
        }
        let of_it = self.said.iter().filter(|said| **said == Some(cluster)).count();
        if of_it * 2 > self.said.len() {
            self.ours = Some(cluster);
            return Kind::Renewed;
        }
        Kind::Other {
            ours,
            is_new: before != Some(cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_says_which_cluster_it_is_and_a_majority_that_it_is_another_one() {
        let clusters = Membership::new(3);
        assert_eq!(clusters.told(0, 7), Kind::Ours);
        assert_eq!(
            clusters.told(1, 8),
            Kind::Other {
                ours: 7,
                is_new: true
            }
        );
        assert_eq!(
            clusters.told(1, 8),
            Kind::Other {
                ours: 7,
                is_new: false
            }
        );
        assert_eq!(clusters.told(0, 7), Kind::Ours);
        // Three that know nothing of each other.
        assert_eq!(
            clusters.told(2, 9),
            Kind::Other {
                ours: 7,
                is_new: true
            }
        );
        // Made anew.
        assert_eq!(clusters.told(2, 8), Kind::Renewed);
        assert_eq!(clusters.told(1, 8), Kind::Ours);
        assert_eq!(
            clusters.told(0, 7),
            Kind::Other {
                ours: 8,
                is_new: false
            }
        );
        assert_eq!(clusters.told(0, 8), Kind::Ours);
        let alone = Membership::new(1);
        assert_eq!(alone.told(0, 7), Kind::Ours);
        assert_eq!(alone.told(0, 8), Kind::Renewed);
    }
}
