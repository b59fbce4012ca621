//! The lease that the kernel enforces: an address of ours answers while its element in a set is alive, and not a moment longer.
//!
//! **Promise.** While an address is managed and not live, this host answers no ARP and no neighbour solicitation for it, takes nothing that is sent
//! to it, sends nothing from it and claims it from nobody, whether this process runs, is stopped, or is dead. What makes it live says until
//! when; from then on the kernel keeps it shut by itself, a little early rather than late: by 20 ms and two ticks of the kernel's. A process
//! that is stopped after it has looked at its clock, and before the kernel has done what it asked for, opens nothing when it goes on. Each change is one
//! transaction; an extension leaves no gap. No rule of others is touched: what we accept, they decide on as if we were not there.
//!
//! Local clients are no exception, those through the loopback interface included: an address that this host must not answer for may be answered
//! for by another host, and a client here is served by that one, as soon as the address is off the interface, or by nobody. Nothing is
//! refused, all is dropped: a refusal would be a packet of the address, and another host sends those.
//!
//! **Not promised.** The kernel counts the timeouts in its ticks, which stand still while the host is suspended: after a resume the process has to shut by its
//! own clock ([`super::boottime`]), which it does as soon as it runs. A machine that its hypervisor pauses is told no time at all. What passes by nftables
//! (XDP, `tc`, IPVS, flow tables) is not seen. ARP is understood for hardware addresses of six bytes. Before
//! Linux 6.9 a table can be flushed by others: [`Door::verify`] finds that. Before 5.16 a claim that this process sends while it is not entitled to is
//! not held back, because packet sockets pass by the tables for ARP ([`Door::holds_claims`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::clock::boottime;
use super::door_rules::{AT_ONCE, Frame};
use super::nft_socket::Nftables;

/// The name of its tables, in the families `inet`, `arp` and `netdev`.
pub const DOOR_TABLE: &str = "io_vip";

/// How long after the clock was read the kernel may have done what is asked for. It lies within the lease: whoever is slower tries again with a longer one.
pub(super) const FUSES: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(200),
];
/// What is shorter is over: kernels before 6.12 take a timeout below one of their ticks (10 ms at most) for none at all.
pub(super) const LEAST: Duration = Duration::from_millis(50);
/// Why the kernel's tables are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// We may not.
    #[error(
        "not allowed to use nftables: run as root, or with CAP_NET_ADMIN (AmbientCapabilities= in the unit)"
    )]
    NotAllowed,
    /// Another process has them.
    #[error(
        "the nftables table inet {0} belongs to another process; is another io-vip running? `nft list tables` shows the owner"
    )]
    Owned(String),
    /// The lease is over, or will be before the kernel can be told of it.
    #[error("the lease ends too soon to open for it: in {0:?}")]
    Over(Duration),
    /// The process was stopped, or got no time of a processor, each time between its look at the clock and the kernel.
    #[error("the kernel was told too late each time, {} times: this host is overloaded", FUSES.len())]
    Late,
    /// The kernel said no.
    #[error("nftables: cannot {doing} the tables {table}: {source}")]
    Refused {
        /// What we wanted.
        doing: &'static str,
        /// Their name.
        table: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The tables, and what they hold as far as we know.
pub struct Door {
    pub(super) nftables: Nftables,
    pub(super) frame: Frame,
    pub(super) interface: String,
    /// The number of the interface whose claims are held.
    pub(super) index: Option<u32>,
    pub(super) installed: bool,
    pub(super) managed: BTreeSet<IpAddr>,
    /// Until when each is live.
    pub(super) live: BTreeMap<IpAddr, Duration>,
    mark: u32,
    pub(super) owned: bool,
}

fn canonical(addresses: impl IntoIterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
    addresses
        .into_iter()
        .map(|address| address.to_canonical())
        .collect()
}

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}

/// What became of a transaction that was only to happen in time.
enum Told {
    InTime,
    /// It did not happen.
    TooLate,
    /// It has happened, but perhaps not in time.
    DoneLate,
}

/// In parts: what need not be done at once.
fn few(addresses: &BTreeSet<IpAddr>) -> Vec<BTreeSet<IpAddr>> {
    let all: Vec<IpAddr> = addresses.iter().copied().collect();
    all.chunks(AT_ONCE)
        .map(|some| some.iter().copied().collect())
        .collect()
}

impl Door {
    /// Opens the way to the kernel; nothing is changed. The table is [`DOOR_TABLE`], where a host has only one door.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(table: &str, interface: &str) -> Result<Self, DoorError> {
        let nftables = Nftables::open().map_err(|source| DoorError::Refused {
            doing: "reach",
            table: table.to_owned(),
            source,
        })?;
        Ok(Self {
            nftables,
            frame: Frame {
                table: table.to_owned(),
                egress_of: None,
            },
            interface: interface.to_owned(),
            index: None,
            installed: false,
            managed: BTreeSet::new(),
            live: BTreeMap::new(),
            mark: 0,
            owned: false,
        })
    }

    /// Whether the kernel keeps others away from the tables, and keeps them when this process ends.
    pub fn is_owned(&self) -> bool {
        self.owned
    }

    /// Whether claims that packet sockets send are held, too (Linux 5.16, and an interface that is there).
    pub fn holds_claims(&self) -> bool {
        self.frame.egress_of.is_some()
    }

    /// What is shut unless it is live.
    pub fn managed(&self) -> &BTreeSet<IpAddr> {
        &self.managed
    }

    /// What is live in the kernel, and for how long; none where there are no tables.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn found(&mut self) -> Result<BTreeMap<IpAddr, Duration>, DoorError> {
        Ok(self.look()?.unwrap_or_default().live)
    }

    /// Lets the kernel answer for these until then, whatever was open for how long. They are ours to shut from now on. It is one transaction.
    ///
    /// # Errors
    /// When it was not done: of those for which it was not, none is open for longer than before.
    pub fn admit(
        &mut self,
        addresses: impl IntoIterator<Item = IpAddr>,
        until: Duration,
    ) -> Result<(), DoorError> {
        let addresses = canonical(addresses);
        if addresses.is_empty() {
            return Ok(());
        }
        if !self.installed {
            self.install()?;
        }
        let mut may_last_too_long = false;
        for fuse in FUSES {
            match self.try_admit(&addresses, until, fuse) {
                Ok(Told::TooLate) => {}
                Ok(Told::DoneLate) => may_last_too_long = true,
                Err(error) => {
                    if may_last_too_long {
                        self.close(addresses)?;
                    }
                    return Err(error);
                }
                Ok(Told::InTime) => {
                    self.managed.extend(&addresses);
                    self.live
                        .extend(addresses.iter().map(|address| (*address, until)));
                    return Ok(());
                }
            }
        }
        if may_last_too_long {
            self.close(addresses)?;
        }
        Err(DoorError::Late)
    }

    fn try_admit(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        until: Duration,
        fuse: Duration,
    ) -> Result<Told, DoorError> {
        let mark = match self.arm(fuse) {
            Err(error) if errno(&error) == libc::ENOENT => {
                // Somebody has taken the tables away.
                self.install()?;
                self.arm(fuse)
            }
            result => result,
        };
        let mark = mark.map_err(|error| self.fault("change", error))?;
        // The fuse was lit before this, and the transaction happens while it burns: so not later than then.
        let latest = boottime().saturating_add(fuse);
        let left = until.saturating_sub(latest);
        if left < LEAST {
            return Err(DoorError::Over(left));
        }
        let mut packets = vec![self.frame.defuse(mark)];
        packets.extend(self.frame.admit(addresses, left));
        match self.nftables.commit(packets) {
            // The fuse was put out in time, and then the kernel itself was held up in the middle of it.
            Ok(()) if boottime() > latest => Ok(Told::DoneLate),
            Ok(()) => Ok(Told::InTime),
            Err(error) if errno(&error) == libc::ENOENT => Ok(Told::TooLate),
            Err(error) => Err(self.fault("change", error)),
        }
    }

    /// Shuts these at once. They stay ours to shut: until [`Door::forget`] nobody answers for them here, also when they are on an interface.
    ///
    /// # Errors
    /// When the kernel did not do it: then they are live for as long as they were to be, and no longer.
    pub fn close(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), DoorError> {
        let addresses = canonical(addresses);
        if addresses.is_empty() {
            return Ok(());
        }
        self.managed.extend(&addresses);
        self.live.retain(|address, _| !addresses.contains(address));
        let packets = self.frame.close(&addresses);
        match self.nftables.commit(packets) {
            Ok(()) => Ok(()),
            // Somebody has changed the tables. They are made anew first.
            Err(_) => {
                self.install()?;
                let packets = self.frame.close(&addresses);
                self.nftables
                    .commit(packets)
                    .map_err(|error| self.fault("change", error))
            }
        }
    }

    /// Has nothing to do with these any more: they are off the interface, or are somebody else's.
    ///
    /// # Errors
    /// When the kernel did not do it.
    pub fn forget(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), DoorError> {
        let addresses = canonical(addresses);
        if addresses.is_empty() {
            return Ok(());
        }
        self.managed.retain(|address| !addresses.contains(address));
        self.live.retain(|address, _| !addresses.contains(address));
        for some in few(&addresses) {
            match self.nftables.commit(self.frame.forget(&some)) {
                Err(error) if errno(&error) != libc::ENOENT => return Err(self.fault("change", error)),
                // Where there are no tables, nothing is in them.
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the tables away: nothing is held any more, so nothing of ours may be on an interface.
    ///
    /// # Errors
    /// When they are still there.
    pub fn remove(&mut self) -> Result<(), DoorError> {
        let frame = self.frame.clone();
        let _ = self.nftables.commit(frame.delete(&[frame.egress()]));
        self.nftables
            .commit(frame.delete(&[frame.main(), frame.arp()]))
            .map_err(|error| self.fault("delete", error))?;
        self.managed.clear();
        self.live.clear();
        self.installed = false;
        Ok(())
    }

    /// Lights a fuse, and says how to put it out.
    pub(super) fn arm(&mut self, fuse: Duration) -> io::Result<u32> {
        self.mark = self.mark.wrapping_add(1);
        self.nftables.commit(vec![self.frame.arm(self.mark, fuse)])?;
        Ok(self.mark)
    }

    pub(super) fn fault(&self, doing: &'static str, source: io::Error) -> DoorError {
        let table = self.frame.table.clone();
        match errno(&source) {
            libc::EPERM => DoorError::Owned(table),
            _ => DoorError::Refused { doing, table, source },
        }
    }
}
