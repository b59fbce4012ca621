//! How the tables of a [`Door`] are made, looked at and repaired.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_netfilter::nftables::TableFlags;
use nix::net::if_::if_nametoindex;

use super::clock::boottime;
use super::door::{Door, DoorError, FUSES, LEAST, errno};
use super::door_rules::{Frame, Holds, sets};
use super::nft_messages::Place;
use super::nft_socket::{Member, members};

/// By how much an element may have less, or more, than we know of, without somebody having changed it.
const SLACK: Duration = Duration::from_millis(500);

impl Door {
    /// Makes the tables what they should be, whatever was there. What is managed stays so. What is live stays so until it was to end, or an earlier
    /// end that we know of; where the tables were gone, it is shut.
    ///
    /// # Errors
    /// When they are not; then they are what they were.
    pub fn install(&mut self) -> Result<(), DoorError> {
        // Whether we may at all.
        self.look()?;
        let (kept, plain) = (TableFlags::Owner | TableFlags::Persisent, TableFlags::empty());
        let index = if_nametoindex(self.interface.as_str()).ok();
        let mut result = Ok(());
        // Before 6.9 nobody knows `persist`, before 5.12 nobody knows `owner`, and before 5.16 there is no egress.
        for (flags, claims) in [(kept, true), (kept, false), (plain, true), (plain, false)] {
            let device = claims.then(|| self.interface.clone());
            if claims && index.is_none() {
                continue;
            }
            let frame = Frame {
                table: self.frame.table.clone(),
                egress_of: device,
            };
            result = self.rebuild(&frame, flags);
            match &result {
                Ok(()) => {
                    if !claims {
                        // One that an earlier process has left would never be opened again.
                        let _ = self.nftables.commit(frame.delete(&[frame.egress()]));
                    }
                    self.frame = frame;
                    self.index = index;
                    self.owned = flags == kept;
                    self.installed = true;
                    break;
                }
                Err(error) => match errno(error) {
                    libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT => {}
                    _ => break,
                },
            }
        }
        match result {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == libc::ENOENT => Err(DoorError::Late),
            Err(error) => Err(self.fault("make", error)),
        }
    }

    pub(super) fn rebuild(&mut self, frame: &Frame, flags: TableFlags) -> io::Result<()> {
        let mut may_last_too_long = None;
        let result = self.try_rebuild(frame, flags, &mut may_last_too_long);
        if let (Err(_), Some(holds)) = (&result, may_last_too_long) {
            self.nftables
                .commit(frame.close(&holds.live.into_keys().collect()))?;
        }
        result
    }

    fn try_rebuild(
        &mut self,
        frame: &Frame,
        flags: TableFlags,
        may_last_too_long: &mut Option<Holds>,
    ) -> io::Result<()> {
        // Until when each may be live at most: by what we know, or by what is there when somebody comes first.
        let mut ends = self.installed.then(|| self.live.clone());
        for fuse in FUSES {
            let mark = match self.arm(fuse) {
                Ok(mark) => Some(mark),
                // There are no tables of ours, so nothing is live in them.
                Err(error) if matches!(errno(&error), libc::ENOENT | libc::EINVAL) => None,
                Err(error) => return Err(error),
            };
            let now = boottime();
            let latest = now.saturating_add(fuse);
            let seen = self.read(frame.main(), true)?.unwrap_or_default();
            let seen_live = if mark.is_some() {
                seen.live
            } else {
                BTreeMap::new()
            };
            let ends = ends.get_or_insert_with(|| {
                let until = |(address, left): (&IpAddr, &Duration)| (*address, now.saturating_add(*left));
                seen_live.iter().map(until).collect()
            });
            let mut holds = Holds {
                managed: self.managed.clone(),
                live: BTreeMap::new(),
            };
            if !self.installed {
                holds.managed.extend(seen.managed);
            }
            for (address, left) in seen_live {
                let end = ends.get(&address).copied().unwrap_or_default();
                let left = end.min(now.saturating_add(left)).saturating_sub(latest);
                if left >= LEAST && holds.managed.contains(&address) {
                    holds.live.insert(address, left);
                }
            }
            let mut packets: Vec<_> = mark.map(|mark| frame.defuse(mark)).into_iter().collect();
            packets.extend(frame.build(flags, &holds));
            match self.nftables.commit(packets) {
                Ok(()) if boottime() <= latest => {
                    ends.retain(|address, _| holds.managed.contains(address));
                    self.live = std::mem::take(ends);
                    self.managed = holds.managed;
                    return Ok(());
                }
                Ok(()) => *may_last_too_long = Some(holds),
                Err(error) if mark.is_some() && errno(&error) == libc::ENOENT => {}
                Err(error) => return Err(error),
            }
        }
        let Some(holds) = may_last_too_long.take() else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        // It is there, and shut. What we know to be live is opened again by `verify`.
        let live = holds.live.into_keys().collect();
        self.nftables.commit(frame.close(&live))?;
        self.live = ends.unwrap_or_default();
        self.managed = holds.managed;
        Ok(())
    }

    /// Whether the kernel has what we put there. Makes it so where it has not: what others took away is shut first, and opened again for what is left of it.
    ///
    /// # Errors
    /// When it has not and cannot be made to.
    pub fn verify(&mut self) -> Result<bool, DoorError> {
        let whole = self.is_whole()?;
        // Where others can change them they may have taken the rules and left the sets: they are made anew without a look, in one transaction.
        if whole && self.owned && self.index == if_nametoindex(self.interface.as_str()).ok() {
            return Ok(true);
        }
        self.install()?;
        if !whole {
            let now = boottime();
            for (address, until) in self.live.clone() {
                if until.saturating_sub(now) > SLACK {
                    self.admit([address], until)?;
                }
            }
        }
        Ok(whole)
    }

    fn is_whole(&mut self) -> Result<bool, DoorError> {
        let frame = self.frame.clone();
        for (place, v6) in frame.places() {
            let before = boottime();
            let seen = self.read(place, v6).map_err(|error| self.fault("read", error))?;
            let Some(seen) = seen else { return Ok(false) };
            let ours = |address: &IpAddr| v6 || address.is_ipv4();
            let managed = self.managed.iter().copied().filter(ours);
            let lives_too_long = |(address, left): (&IpAddr, &Duration)| {
                let until = self.live.get(address).copied().unwrap_or_default();
                before.saturating_add(*left) > until.saturating_add(SLACK)
            };
            let is_missing = |(address, until): (&IpAddr, &Duration)| {
                let left = until.saturating_sub(before);
                let has = seen.live.get(address).copied().unwrap_or_default();
                ours(address) && left > has.saturating_add(SLACK)
            };
            if !managed.eq(seen.managed.iter().copied())
                || seen.live.iter().any(lives_too_long)
                || self.live.iter().any(is_missing)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn look(&mut self) -> Result<Option<Holds>, DoorError> {
        let frame = self.frame.clone();
        self.read(frame.main(), true)
            .map_err(|error| match errno(&error) {
                // To look at what another process has is allowed.
                libc::EPERM => DoorError::NotAllowed,
                _ => self.fault("read", error),
            })
    }

    /// What a table holds; none where there is no such table.
    fn read(&mut self, place: Place<'_>, v6: bool) -> io::Result<Option<Holds>> {
        match self.nftables.ask(place.get(), |_| ()) {
            Ok(()) => {}
            Err(error) if errno(&error) == libc::ENOENT => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut holds = Holds::default();
        for v4 in [true, false].into_iter().filter(|v4| *v4 || v6) {
            let (managed, live) = sets(v4);
            for member in self.list(place, managed)? {
                holds.managed.extend(address(&member));
            }
            for member in self.list(place, live)? {
                let left = member.left.unwrap_or(Duration::MAX);
                holds.live.extend(address(&member).map(|address| (address, left)));
            }
        }
        Ok(Some(holds))
    }

    fn list(&mut self, place: Place<'_>, set: &str) -> io::Result<Vec<Member>> {
        let mut all = Vec::new();
        match self
            .nftables
            .ask(place.get_elements(set), |message| all.extend(members(message)))
        {
            // A table of this name without our sets: it is replaced.
            Err(error) if errno(&error) != libc::ENOENT => Err(error),
            _ => Ok(all),
        }
    }
}

fn address(member: &Member) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(member.key.as_slice()).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(member.key.as_slice()).map(IpAddr::from);
    v4().or_else(|_| v6()).ok()
}
