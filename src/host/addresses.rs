//! Addresses that we put on an interface, and that the kernel takes off again when nobody says for long enough that they are to stay.
//!
//! **Promise.** Only what bears our mark is changed or taken away: the protocol of the address (`IFA_PROTO`, which `ip address` shows as `proto`), and for
//! IPv4 the label, too. Before Linux 5.18 there is no such protocol: there the label alone is the mark, and of IPv6 only what this very process has put
//! there. What an administrator put there is never adopted, changed or removed, whatever its address. No process is spawned; each call is a
//! message to the kernel (route netlink, as the rest of this room speaks it) that is answered before the call returns, so there is no task that could be late.
//!
//! IPv6 addresses are put there deprecated (with no time to be preferred): the kernel answers on them, and does not choose them as the source of what
//! this host begins. It would prefer one of 128 bits over the host's own, and connections that have nothing to do with it would end
//! when it moves. They are used without a look whether somebody has them (`nodad`): the store says that nobody may.
//!
//! **Not promised.** That an address is answered for: that is the door's matter ([`super::Door`]), which shuts on time. The kernel looks for what has
//! expired in whole seconds and a little late, so it gets a second more. Between a look at the interface and a change of it somebody else may have
//! changed it, too.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::utsname::uname;

use super::netlink::Netlink;
use super::route::{self, Address, IFA_F_NODAD, IFA_F_NOPREFIXROUTE, Link, Told, get_link, list_addresses};

pub(super) const NETLINK_ROUTE: isize = 0;
/// IFNAMSIZ without the zero at its end.
const LABEL_MAX: usize = 15;
/// A list that was changed while it was read is read again.
const READS: usize = 8;

/// Where addresses are put, and how ours are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSettings {
    /// The interface.
    pub interface: String,
    /// IPv4 addresses get the label `interface:label`.
    pub label: String,
    /// The protocol of our addresses, above 3: others are the kernel's own. Two instances on one interface need two.
    pub protocol: u8,
    /// The length of the prefix of IPv4 addresses: 32, unless they are to make a route to their network.
    pub prefix4: u8,
    /// The same for IPv6, where it is 128.
    pub prefix6: u8,
}

impl AddressSettings {
    /// The protocol that we use where nobody says otherwise.
    pub const PROTOCOL: u8 = 118;

    fn label(&self) -> String {
        format!("{}:{}", self.interface, self.label)
    }

    /// Whether it was put there by us under whatever settings: the interface may have another name now, or we had another label.
    fn may_mark(&self, found: &Address) -> bool {
        match found.protocol {
            Some(protocol) => protocol == self.protocol,
            None => {
                let label = found.label.as_deref().unwrap_or_default();
                !knows_protocol()
                    && label
                        .rsplit_once(':')
                        .is_some_and(|(_, label)| label == self.label)
            }
        }
    }

    /// Whether it has our mark, as far as this kernel keeps it: IPv6 addresses have none before 5.18.
    pub(super) fn marks(&self, found: &Address) -> bool {
        let has_label = found.label.as_deref() == Some(self.label().as_str());
        match found.protocol {
            Some(protocol) => protocol == self.protocol && (has_label || found.address.is_ipv6()),
            None => !knows_protocol() && (has_label || found.address.is_ipv6()),
        }
    }
}

/// Why an address is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel has no room for it.
    #[error(
        "the label \"{0}\" has {length} characters and the kernel takes {LABEL_MAX}: choose a shorter label, the interface's name stays", length = .0.len()
    )]
    LongLabel(String),
    /// Not one that could be found again.
    #[error("the label \"{0}\" has something else than letters, digits, '-', '_' and '.' after the colon")]
    Label(String),
    /// Longer than an address, or nothing.
    #[error("there is no prefix of {0} bits: 1 to 32 of IPv4 and 1 to 128 of IPv6")]
    Prefix(u8),
    /// Those of the kernel.
    #[error("the protocol {0} is the kernel's own: choose one from 4 to 255")]
    Protocol(u8),
    /// With this, to take ours away would take away others of the same network.
    #[error(
        "with a prefix of {prefix} bits, the kernel takes away all addresses of a network on {interface} with its first one: set net.ipv4.conf.{interface}.promote_secondaries=1, or use 32 bits"
    )]
    Secondaries {
        /// Of which length.
        prefix: u8,
        /// Where.
        interface: String,
    },
    /// There is none of this name.
    #[error("there is no interface {0}: `ip link` lists those that there are")]
    NoInterface(String),
    /// Nobody would be reached through it.
    #[error("the interface {0} is down, or has no carrier: `ip link show {0}`")]
    Down(String),
    /// Somebody else has put it there.
    #[error(
        "{address} is there already and is not ours (interface number {index}): take it away (`ip address show to {address}`), or take it out of the pool"
    )]
    NotOurs {
        /// Which.
        address: IpAddr,
        /// Where it is.
        index: u32,
    },
    /// Somebody has taken it away.
    #[error("{address} is not on {interface} any more")]
    Gone {
        /// Which.
        address: IpAddr,
        /// Where it was.
        interface: String,
    },
    /// The kernel has it off.
    #[error("IPv6 is disabled on {0}: net.ipv6.conf.{0}.disable_ipv6")]
    NoIpv6(String),
    /// We may not.
    #[error(
        "not allowed to change addresses: run as root, or with CAP_NET_ADMIN (AmbientCapabilities= in the unit)"
    )]
    NotAllowed,
    /// The kernel said no.
    #[error("cannot {doing} on {interface}: {source}")]
    Refused {
        /// What we wanted.
        doing: &'static str,
        /// Where.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who has an address on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// It is on none of its interfaces.
    Nobody,
    /// We do, on our interface.
    Us,
    /// Somebody else, on the interface of this number.
    Other(u32),
}

/// The addresses of ours on an interface. It may come and go: it is looked up by its name each time.
pub struct Addresses {
    settings: AddressSettings,
    netlink: Netlink,
    /// IPv6 addresses that this process has put there, for a kernel that does not.
    put: BTreeSet<Ipv6Addr>,
}

#[cfg(test)]
thread_local! {
    /// Whether this thread's kernel is to be one that does not.
    pub(crate) static IS_OLD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether this kernel keeps `IFA_PROTO`.
fn knows_protocol() -> bool {
    const SINCE: (u32, u32) = (5, 18);
    #[cfg(test)]
    if IS_OLD.get() {
        return false;
    }
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= SINCE,
        _ => false,
    }
}

/// Whole seconds, rounded up and one more: the kernel rounds, too.
fn seconds(duration: Duration) -> u32 {
    let whole = duration
        .as_secs()
        .saturating_add(u64::from(duration.subsec_nanos() > 0));
    // The greatest number is for ever.
    u32::try_from(whole.saturating_add(1)).map_or(u32::MAX - 1, |seconds| seconds.min(u32::MAX - 1))
}

impl Addresses {
    /// Opens the way to the kernel; nothing is changed. The interface need not be there yet.
    ///
    /// # Errors
    /// When the settings cannot be followed, or there is no way.
    pub fn open(settings: AddressSettings) -> Result<Self, AddressError> {
        let label = settings.label();
        if label.len() > LABEL_MAX {
            return Err(AddressError::LongLabel(label));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if settings.label.is_empty() || !settings.label.chars().all(is_plain) {
            return Err(AddressError::Label(label));
        }
        for (prefix, most) in [(settings.prefix4, 32), (settings.prefix6, 128)] {
            if prefix == 0 || prefix > most {
                return Err(AddressError::Prefix(prefix));
            }
        }
        if settings.protocol < 4 {
            return Err(AddressError::Protocol(settings.protocol));
        }
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(|source| AddressError::Refused {
            doing: "reach the kernel's addresses",
            interface: settings.interface.clone(),
            source,
        })?;
        Ok(Self {
            settings,
            netlink,
            put: BTreeSet::new(),
        })
    }

    /// The interface, as it is now.
    ///
    /// # Errors
    /// When there is none, or the kernel does not say.
    pub fn link(&mut self) -> Result<Link, AddressError> {
        link(&mut self.netlink, &self.settings.interface)
            .map_err(|error| self.fault("look at the interface", error))?
            .ok_or_else(|| AddressError::NoInterface(self.settings.interface.clone()))
    }

    /// Which of the addresses on the interface are ours; none where there is no interface.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ours(&mut self) -> Result<BTreeSet<IpAddr>, AddressError> {
        let Some(index) = self.index() else {
            return Ok(BTreeSet::new());
        };
        let all = self.list()?;
        let ours = all
            .iter()
            .filter(|found| found.index == index && self.is_ours(found));
        Ok(ours.map(|found| found.address).collect())
    }

    /// Who has it on this host now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn holder(&mut self, address: IpAddr) -> Result<Holder, AddressError> {
        let index = self.index();
        let all = self.list()?;
        let with = || all.iter().filter(|found| found.address == address.to_canonical());
        let foreign = with().find(|found| Some(found.index) != index || !self.is_ours(found));
        Ok(match (foreign, with().next()) {
            (Some(foreign), _) => Holder::Other(foreign.index),
            (None, Some(_)) => Holder::Us,
            (None, None) => Holder::Nobody,
        })
    }

    /// Whether something that bears our mark has it still on this host, wherever and under whatever label.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_left(&mut self, address: IpAddr) -> Result<bool, AddressError> {
        let address = address.to_canonical();
        let all = self.list()?;
        let mut with = all.iter().filter(|found| found.address == address);
        Ok(with.any(|found| self.is_ours(found) || self.settings.may_mark(found)))
    }

    /// What is wrong with the prefix on this host as it is now: nothing of IPv4 can be put there so.
    ///
    /// # Errors
    /// When to take one of ours away would take away others.
    pub fn check_secondaries(&self) -> Result<(), AddressError> {
        // Without `promote_secondaries`, the first address of a network takes all others of it along when it goes.
        let (prefix, interface) = (self.settings.prefix4, self.settings.interface.clone());
        let promotes = |interface: &str| {
            let place = format!("/proc/sys/net/ipv4/conf/{interface}/promote_secondaries");
            std::fs::read_to_string(place).is_ok_and(|text| text.trim() != "0")
        };
        if prefix == 32 || promotes("all") || promotes(&interface) {
            return Ok(());
        }
        Err(AddressError::Secondaries { prefix, interface })
    }

    /// Puts it on the interface, for `valid_for` and not more than two seconds longer. One of ours that is there already is given that time.
    ///
    /// # Errors
    /// When it is not there, or is there and not ours.
    pub fn add(&mut self, address: IpAddr, valid_for: Duration) -> Result<(), AddressError> {
        let address = address.to_canonical();
        let link = self.link()?;
        if !link.is_up {
            return Err(AddressError::Down(self.settings.interface.clone()));
        }
        match self.holder(address)? {
            Holder::Nobody => {}
            Holder::Us => return self.extend([address], valid_for),
            Holder::Other(index) => return Err(AddressError::NotOurs { address, index }),
        }
        if address.is_ipv4() {
            self.check_secondaries()?;
        }
        let entry = self.entry(link.index, address, valid_for);
        let message = entry.add(self.netlink.next());
        self.netlink
            .ask(&message, |_| ())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EEXIST) => AddressError::NotOurs {
                    address,
                    index: link.index,
                },
                Some(libc::EACCES) => AddressError::NoIpv6(self.settings.interface.clone()),
                _ => self.fault("put an address", error),
            })?;
        if let IpAddr::V6(address) = address {
            self.put.insert(address);
        }
        Ok(())
    }

    /// Lets these stay for `valid_for` and not more than two seconds longer, from now on.
    ///
    /// # Errors
    /// When one of them is not there any more, or is not ours: all others stay.
    pub fn extend(
        &mut self,
        addresses: impl IntoIterator<Item = IpAddr>,
        valid_for: Duration,
    ) -> Result<(), AddressError> {
        let index = self.index();
        let all = self.list()?;
        let mut result = Ok(());
        for address in addresses {
            let address = address.to_canonical();
            let mut with = all
                .iter()
                .filter(|found| Some(found.index) == index && found.address == address);
            let extended = match with.find(|found| self.is_ours(found)) {
                Some(found) => self.extend_one(found, valid_for),
                None => Err(AddressError::Gone {
                    address,
                    interface: self.settings.interface.clone(),
                }),
            };
            if result.is_ok() {
                result = extended;
            }
        }
        result
    }

    fn extend_one(&mut self, found: &Address, valid_for: Duration) -> Result<(), AddressError> {
        let entry = Address {
            // What somebody may have configured otherwise since stays: it would be another address.
            prefix: found.prefix,
            ..self.entry(found.index, found.address, valid_for)
        };
        let message = entry.replace(self.netlink.next());
        self.netlink
            .ask(&message, |_| ())
            .map_err(|error| self.fault("extend an address", error))?;
        Ok(())
    }

    /// Takes it off the interface. When it is not there, or there and not ours, nothing is to be done.
    ///
    /// # Errors
    /// When it is still there.
    pub fn remove(&mut self, address: IpAddr) -> Result<(), AddressError> {
        let address = address.to_canonical();
        let Some(index) = self.index() else {
            return Ok(());
        };
        let all = self.list()?;
        let with = || all.iter().filter(|found| found.address == address);
        let mut is_off = with().next().is_none();
        for found in with().filter(|found| found.index == index) {
            if !self.is_ours(found) {
                continue;
            }
            let message = found.delete(self.netlink.next());
            match self.netlink.ask(&message, |_| ()) {
                Ok(_) => is_off = true,
                // It has gone by itself, or with the interface.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => {
                    is_off = true
                }
                Err(error) => return Err(self.fault("take an address", error)),
            }
        }
        if let IpAddr::V6(address) = address
            && is_off
        {
            self.put.remove(&address);
        }
        Ok(())
    }

    fn index(&self) -> Option<u32> {
        if_nametoindex(self.settings.interface.as_str()).ok()
    }

    fn entry(&self, index: u32, address: IpAddr, valid_for: Duration) -> Address {
        let valid = seconds(valid_for);
        let v4 = address.is_ipv4();
        let (prefix, whole) = if v4 {
            (self.settings.prefix4, 32)
        } else {
            (self.settings.prefix6, 128)
        };
        // A prefix of one address leads nowhere: it needs no route.
        let route = if prefix == whole { IFA_F_NOPREFIXROUTE } else { 0 };
        Address {
            index,
            address,
            prefix,
            flags: route | if v4 { 0 } else { IFA_F_NODAD },
            label: v4.then(|| self.settings.label()),
            protocol: Some(self.settings.protocol),
            valid,
            preferred: if v4 { valid } else { 0 },
        }
    }

    fn is_ours(&self, found: &Address) -> bool {
        self.settings.marks(found)
            && match found.address {
                IpAddr::V6(address) => found.protocol.is_some() || self.put.contains(&address),
                IpAddr::V4(_) => true,
            }
    }

    /// All addresses of this host.
    fn list(&mut self) -> Result<Vec<Address>, AddressError> {
        let all = list(&mut self.netlink).map_err(|error| self.fault("list addresses", error))?;
        #[cfg(test)]
        let all = all
            .into_iter()
            .map(|found| Address {
                protocol: found.protocol.filter(|_| knows_protocol()),
                ..found
            })
            .collect();
        Ok(all)
    }

    fn fault(&self, doing: &'static str, source: io::Error) -> AddressError {
        let interface = self.settings.interface.clone();
        match source.raw_os_error() {
            Some(libc::EPERM) => AddressError::NotAllowed,
            Some(libc::ENODEV) => AddressError::NoInterface(interface),
            _ => AddressError::Refused {
                doing,
                interface,
                source,
            },
        }
    }
}

fn list(netlink: &mut Netlink) -> io::Result<Vec<Address>> {
    for _ in 0..READS {
        let mut all = Vec::new();
        let question = list_addresses(netlink.next());
        let whole = netlink.ask(&question, |message| {
            if let Some(Told::Address(address)) = route::told(message) {
                all.push(address);
            }
        })?;
        if whole {
            return Ok(all);
        }
    }
    Err(io::Error::other("they change faster than they can be listed"))
}

/// The interface of that name, if there is one.
pub(super) fn link(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    let mut found = None;
    let question = get_link(name, netlink.next());
    match netlink.ask(&question, |message| {
        if let Some(Told::Link(link)) = route::told(message) {
            found = Some(link);
        }
    }) {
        Ok(_) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}
