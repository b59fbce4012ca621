//! The table of ours in nftables: which ports are fenced, as the kernel has it.
//!
//! **Promise.** Each change is one transaction: there is no moment in which half of it is true, or in which a fence that stays is down. Where
//! the kernel knows it (6.9), the table is owned by this process (no `nft flush ruleset` of others touches it) and outlives it.

use std::io;

use netlink_packet_netfilter::nftables::TableFlags;

use super::network::Network;
use super::nft_rules::{self, FENCED_TCP, FENCED_UDP, HERE};
use super::nft_socket::{Member, Nftables, members};
use super::ports::Ports;

/// Its name, in the family `inet`.
pub const TABLE: &str = "io_fence";

/// What the table does to the ports in its sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// New connections are refused.
    pub new: bool,
    /// With `new`: packets of connections that exist are refused, and none leaves. Alone it is not the table's matter.
    pub established: bool,
    /// Sources that all this does not concern.
    pub allowed: Vec<Network>,
}

/// Why the kernel's table is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// We may not.
    #[error(
        "not allowed to use nftables: run as root, or with CAP_NET_ADMIN (AmbientCapabilities= in the unit)"
    )]
    NotAllowed,
    /// Another process has it.
    #[error(
        "the nftables table inet {TABLE} belongs to another process; is another io-fence running? `nft list tables` shows the owner"
    )]
    Owned,
    /// The kernel said no.
    #[error("nftables: cannot {doing} the table inet {TABLE}: {source}")]
    Refused {
        /// What we wanted.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn refused(doing: &'static str) -> impl Fn(io::Error) -> TableError {
    move |source| TableError::Refused { doing, source }
}

/// The table, and what its sets hold as far as we know.
pub struct Table {
    nftables: Nftables,
    rules: Rules,
    holds: Ports,
    owned: bool,
}

impl Table {
    /// Opens the way to the kernel; nothing is changed.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(rules: Rules) -> Result<Self, TableError> {
        Ok(Self {
            nftables: Nftables::open().map_err(refused("reach"))?,
            rules,
            holds: Ports::default(),
            owned: false,
        })
    }

    /// Whether the kernel keeps others away from it, and keeps it when this process ends.
    pub fn is_owned(&self) -> bool {
        self.owned
    }

    /// What the kernel's sets hold now; none where there is no table.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn found(&mut self) -> Result<Option<Ports>, TableError> {
        match self.nftables.ask(HERE.get(), |_| ()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(TableError::NotAllowed),
            Err(error) => return Err(refused("read")(error)),
        }
        let mut ports = Ports::default();
        for (name, into) in [(FENCED_TCP, &mut ports.tcp), (FENCED_UDP, &mut ports.udp)] {
            let port = |member: Member| Some(u16::from_be_bytes(*member.key.first_chunk()?));
            let asked = self.nftables.ask(HERE.get_elements(name), |message| {
                into.extend(members(message).into_iter().filter_map(port));
            });
            match asked {
                Ok(()) => {}
                // A table of this name without our sets: it is replaced.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(refused("read")(error)),
            }
        }
        Ok(Some(ports))
    }

    /// Makes the table what it should be, with these ports fenced, whatever was there.
    ///
    /// # Errors
    /// When it is not; then it is what it was.
    pub fn install(&mut self, ports: &Ports) -> Result<(), TableError> {
        let replaces = self.found()?.is_some();
        let kept = TableFlags::Owner | TableFlags::Persisent;
        let (owned, result) = match self.build(ports, kept, replaces) {
            // Before 6.9 nobody knows `persist`, and before 5.12 nobody knows `owner`.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                (false, self.build(ports, TableFlags::empty(), replaces))
            }
            result => (true, result),
        };
        result.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => TableError::Owned,
            _ => refused("make")(error),
        })?;
        self.owned = owned;
        self.holds = ports.clone();
        Ok(())
    }

    fn build(&mut self, ports: &Ports, flags: TableFlags, replaces: bool) -> io::Result<()> {
        self.nftables
            .commit(nft_rules::table(&self.rules, ports, flags, replaces))
    }

    /// Makes the sets hold these ports. Where they do not hold what we know of, the table is made anew.
    ///
    /// # Errors
    /// When they do not.
    pub fn set(&mut self, ports: &Ports) -> Result<(), TableError> {
        let packets = nft_rules::change(&self.holds, ports);
        if packets.is_empty() {
            return Ok(());
        }
        match self.nftables.commit(packets) {
            Ok(()) => {
                self.holds = ports.clone();
                Ok(())
            }
            // Somebody has changed it.
            Err(_) => self.install(ports),
        }
    }

    /// Whether the kernel's table holds what we put there. Makes it so where it does not.
    ///
    /// # Errors
    /// When it does not and cannot be made to.
    pub fn verify(&mut self) -> Result<bool, TableError> {
        let holds = self.holds.clone();
        let whole = self.found()?.as_ref() == Some(&holds);
        // Where others can change it they may have taken its rules and left its sets: it is made anew without a look, in one transaction.
        if !whole || !self.owned {
            self.install(&holds)?;
        }
        Ok(whole)
    }

    /// Takes the table away.
    ///
    /// # Errors
    /// When it is still there.
    pub fn remove(&mut self) -> Result<(), TableError> {
        self.nftables
            .commit(vec![HERE.delete()])
            .map_err(refused("delete"))
    }
}
