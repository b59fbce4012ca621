//! What the core decides, done to this host: the kernel's own lease on an address, the address itself, and what the neighbours are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::core::At;
use crate::cli::Failure;
use crate::host::{
    AddressError, AddressEvent, AddressSettings, AddressWatch, Addresses, Announcer, DOOR_TABLE, Door,
    Holder, Link, LinkState, boottime,
};

/// How often the kernel's tables are compared with what they should be.
pub(super) const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// What was seen of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Somebody has taken this address off.
    Lost(IpAddr),
    /// It is up.
    Up,
    /// It is down, or not there.
    Down,
    /// More has happened than was told.
    Missed,
    Nothing,
}

/// This host's kernel. When it is dropped, in a panic for example, it lets go of everything.
pub(super) struct Hands {
    interface: String,
    door: Door,
    addresses: Addresses,
    announcer: Announcer,
    watch: AddressWatch,
    held: BTreeMap<IpAddr, At>,
    /// Those that are on this host all the same, and why. The kernel answers for none of them.
    stuck: BTreeMap<IpAddr, String>,
    /// Since when those of them that are of the pool no more are not.
    left: BTreeMap<IpAddr, At>,
    keep: bool,
    /// Whether nothing is told of the interface any more.
    is_blind: bool,
}

impl Hands {
    /// Opens the ways to the kernel, and cleans up what is nobody's: of what an earlier start has left only `inherited` stays.
    pub(super) fn open(settings: AddressSettings) -> Result<Self, Failure> {
        let interface = settings.interface.clone();
        let watch = AddressWatch::open(&settings)
            .map_err(|error| Failure::failed(format!("cannot watch the network's changes: {error}")))?;
        let addresses = Addresses::open(settings).map_err(|error| match error {
            AddressError::Refused { .. } | AddressError::NotAllowed => Failure::failed(error),
            error => Failure::config(error),
        })?;
        let interface = interface.as_str();
        let mut addresses = addresses;
        if let Ok(link) = addresses.link()
            && link.name() != interface
        {
            return Err(Failure::config(format!(
                "interface: {interface} is another name of {}; write that one, which is the kernel's",
                link.name()
            )));
        }
        if let Err(error) = addresses.check_secondaries() {
            tracing::warn!(%error, "no IPv4 address can be put on the interface as it is now");
        }
        let mut door = Door::open(DOOR_TABLE, interface).map_err(Failure::failed)?;
        door.install().map_err(Failure::failed)?;
        if !door.is_owned() {
            tracing::warn!(
                "this kernel does not keep others from changing our nftables tables (owner, persist: since 6.9); what a flush takes is made again within 5 s"
            );
        }
        Ok(Self {
            interface: interface.to_owned(),
            door,
            addresses,
            announcer: Announcer::open().map_err(|error| {
                Failure::failed(format!(
                    "cannot open a packet socket: {error}; run as root, or with CAP_NET_RAW (AmbientCapabilities= in the unit)"
                ))
            })?,
            watch,
            held: BTreeMap::new(),
            stuck: BTreeMap::new(),
            left: BTreeMap::new(),
            keep: false,
            is_blind: false,
        })
    }

    /// What an earlier start has left on the interface and the kernel still answers for, and until when it does at least.
    pub(super) fn found(&mut self) -> Result<(BTreeSet<IpAddr>, At), Failure> {
        let now = boottime();
        let live = self.door.found().map_err(Failure::failed)?;
        let ours = self.addresses.ours().map_err(Failure::failed)?;
        let both: BTreeMap<_, _> = live
            .into_iter()
            .filter(|(address, _)| ours.contains(address))
            .collect();
        let left = both.values().min().copied().unwrap_or_default();
        Ok((both.into_keys().collect(), At(now.saturating_add(left))))
    }

    /// Holds what was found, and lets go of all else that is ours.
    pub(super) fn adopt(&mut self, inherited: &BTreeSet<IpAddr>, until: At) {
        self.held = inherited.iter().map(|address| (*address, until)).collect();
        let ours = self.addresses.ours().unwrap_or_default();
        let managed: BTreeSet<IpAddr> = self.door.managed().union(&ours).copied().collect();
        for address in managed.difference(inherited) {
            tracing::info!(%address, "an earlier start has left this address; it is taken off");
            if let Err(error) = self.drop(*address) {
                tracing::warn!(%address, error, "an address of an earlier start stays");
            }
        }
    }

    pub(super) fn take(&mut self, address: IpAddr, until: At) -> Result<(), String> {
        // Somebody else's stays as it is, and is not shut even for a moment.
        if let Ok(Holder::Other(index)) = self.addresses.holder(address) {
            return Err(AddressError::NotOurs { address, index }.to_string());
        }
        self.door
            .admit([address], until.0)
            .map_err(|error| error.to_string())?;
        self.held.insert(address, until);
        if let Err(error) = self.addresses.add(address, until.0.saturating_sub(boottime())) {
            let error = error.to_string();
            // Nothing of it stays.
            let _ = self.drop(address);
            return Err(error);
        }
        // What was in its way has gone.
        self.stuck.remove(&address);
        self.announce(address);
        Ok(())
    }

    /// All that is held may be held until then.
    pub(super) fn extend(&mut self, until: At) {
        let all: Vec<IpAddr> = self.held.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        if let Err(error) = self.door.admit(all.iter().copied(), until.0) {
            // It ends as it was to end: the kernel shuts, and the core will be told by its own clock.
            tracing::warn!(%error, "the kernel does not extend its lease on the addresses");
            return;
        }
        self.held.extend(all.iter().map(|address| (*address, until)));
        if let Err(error) = self.addresses.extend(all, until.0.saturating_sub(boottime())) {
            // One that is gone is told by the watch, too.
            tracing::debug!(%error, "an address keeps its lifetime");
        }
    }

    /// The kernel answers for it no more, when this is ok. What is on this host all the same (somebody has put it beside ours; the interface has another name now)
    /// stays shut: another host may take it. What somebody else has here and we never had is not touched.
    pub(super) fn drop(&mut self, address: IpAddr) -> Result<(), String> {
        let had = self.held.remove(&address).is_some() || self.door.managed().contains(&address);
        if !had && matches!(self.addresses.is_left(address), Ok(false)) {
            self.stuck.remove(&address);
            return Ok(());
        }
        let shut = self.door.close([address]);
        let removed = self.addresses.remove(address);
        let gone = removed
            .and_then(|()| self.addresses.holder(address))
            .map_err(|error| error.to_string())
            .and_then(|holder| match (holder, self.addresses.is_left(address)) {
                (Holder::Nobody, _) => Ok(()),
                (Holder::Other(index), Ok(false)) => Err(format!(
                    "somebody else has put it on the interface of number {index} of this host: take it off there, or out of the pool (`io-vip remove`); a ttl after that it is theirs again"
                )),
                _ => Err(format!("it is still on an interface of this host, under another name or label: `ip address show to {address}`, and take it off there")),
            });
        match (shut, gone) {
            (_, Ok(())) => {
                self.forget(address);
                Ok(())
            }
            (Ok(()), Err(error)) => {
                // Shut, and that is what counts; `verify` tries again.
                if self.stuck.get(&address) != Some(&error) {
                    tracing::warn!(%address, error, "the address stays on this host; the kernel answers for it no more");
                    self.stuck.insert(address, error);
                }
                Ok(())
            }
            (Err(shut), Err(removed)) => {
                self.stuck.insert(address, removed.clone());
                Err(format!("{shut}; {removed}"))
            }
        }
    }

    fn forget(&mut self, address: IpAddr) {
        self.stuck.remove(&address);
        if let Err(error) = self.door.forget([address]) {
            tracing::debug!(%address, %error, "the kernel's tables still name the address");
        }
    }

    /// What is on this host and shut, and why.
    pub(super) fn stuck(&self) -> &BTreeMap<IpAddr, String> {
        &self.stuck
    }

    /// Of what stays on this host because it is somebody else's: that which no host can have any more is opened again. One that did not hear that it is
    /// of the pool no more may have it for a `ttl`.
    pub(super) fn give_back(&mut self, ttl: Duration, is_of_the_pool: impl Fn(&IpAddr) -> bool) {
        let now = At(boottime());
        let stuck = &self.stuck;
        self.left
            .retain(|address, _| stuck.contains_key(address) && !is_of_the_pool(address));
        let all: Vec<IpAddr> = stuck
            .keys()
            .copied()
            .filter(|address| !is_of_the_pool(address))
            .collect();
        for address in all {
            let since = *self.left.entry(address).or_insert(now);
            if now.since(since) >= ttl
                && !self.held.contains_key(&address)
                && matches!(self.addresses.is_left(address), Ok(false))
            {
                tracing::info!(%address, "the address is of the pool no more; it is left to whoever has put it on this host");
                self.forget(address);
            }
        }
    }

    /// Which of these somebody else on this host has, and where to ask the neighbours for the others.
    pub(super) fn strangers(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> (BTreeMap<IpAddr, String>, Result<Link, String>) {
        let mut found = BTreeMap::new();
        for address in addresses {
            if let Ok(Holder::Other(index)) = self.addresses.holder(*address) {
                found.insert(*address, format!("the interface of number {index} of this host"));
            }
        }
        (found, self.addresses.link().map_err(|error| error.to_string()))
    }

    pub(super) fn announce(&mut self, address: IpAddr) {
        let told = match self.addresses.link() {
            Ok(link) => self
                .announcer
                .announce(&link, [address])
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = told {
            tracing::warn!(%address, %error, "the neighbours are not told; they may ask for the old holder for a while");
        }
    }

    /// Compares the kernel with what it should be, every [`VERIFY_EVERY`].
    pub(super) fn verify(&mut self) {
        match self.door.verify() {
            Ok(true) => {}
            Ok(false) => tracing::warn!("somebody has changed our nftables tables; they are made again"),
            Err(error) => tracing::error!(%error, "our nftables tables are not what they should be"),
        }
        let stuck: Vec<IpAddr> = self.stuck.keys().copied().collect();
        for address in stuck {
            if !self.held.contains_key(&address) {
                let _ = self.drop(address);
            }
        }
    }

    /// What happens to the interface next.
    pub(super) async fn next(&mut self) -> Seen {
        match self.watch.next().await {
            Ok(AddressEvent::Removed(address)) if self.held.contains_key(&address) => Seen::Lost(address),
            Ok(AddressEvent::Removed(_)) => Seen::Nothing,
            Ok(AddressEvent::PeersChanged) => Seen::Up,
            Ok(AddressEvent::Link(state)) => {
                // An interface that was made anew needs the tables' part of it anew.
                self.verify();
                if state == LinkState::Up {
                    Seen::Up
                } else {
                    Seen::Down
                }
            }
            Ok(AddressEvent::LookAgain) => Seen::Missed,
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    tracing::error!(%error, "the network's changes cannot be watched; each look every 5 s must do");
                }
                std::future::pending().await
            }
        }
    }

    /// What is missing on the interface, whatever was told of it. How the interface is, is looked at anew.
    pub(super) fn missing(&mut self) -> Vec<IpAddr> {
        self.watch.look_again();
        let Ok(ours) = self.addresses.ours() else {
            return Vec::new();
        };
        let all = self.held.keys().copied();
        all.filter(|address| !ours.contains(address)).collect()
    }

    /// Whether the interface can be used, or why not.
    pub(super) fn interface(&self) -> Result<(), String> {
        match self.watch.state() {
            LinkState::Up => Ok(()),
            LinkState::Down => Err(format!(
                "the interface {} is down, or has no carrier",
                self.interface
            )),
            LinkState::Gone => Err(format!("there is no interface {}", self.interface)),
        }
    }

    /// The daemon ends, and another one follows: all stays as it is, until the kernel's lease on it ends.
    pub(super) fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let all: Vec<IpAddr> = self.held.keys().copied().collect();
        let mut left = false;
        for address in all {
            left |= self.drop(address).is_err();
        }
        // One of them may have gone since the last look.
        for address in self.stuck.clone().into_keys() {
            left |= self.drop(address).is_err();
        }
        // Another host may have them, and whoever starts next goes on with them.
        for address in self.stuck.keys() {
            tracing::warn!(
                %address,
                "the address is on this host and stays shut; when io-vip does not come back: nft delete table inet io_vip, and the same of arp and netdev"
            );
        }
        if !left && self.stuck.is_empty() && self.door.remove().is_err() {
            tracing::debug!("an empty table stays");
        }
    }
}
