//! What others do to the interface of our addresses, as the kernel tells it.
//!
//! **Promise.** What has happened since [`AddressWatch::open`] is told, in order; where it was more than the kernel could keep for us, that is told
//! ([`AddressEvent::LookAgain`]), and the state of the interface is looked at anew. Our own changes are told as well.
//!
//! **Not promised.** That it is still so when it is told.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::addresses::{AddressSettings, NETLINK_ROUTE, link};
use super::netlink::{MESSAGES_MAX_BYTES, Netlink, messages};
use super::readable::{Steady, readable};
use super::route::{self, Link, Told};

// linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressEvent {
    /// One with our mark is off the interface, whoever took it: we, somebody else, the kernel.
    Removed(IpAddr),
    /// The interface is another way now. One that was made anew is gone first.
    Link(LinkState),
    /// The neighbours may know us by something that is not so any more: another hardware address, another port of a bond, a host that a virtual machine has moved to.
    PeersChanged,
    /// More has happened than could be told.
    LookAgain,
}

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There is none of this name.
    Gone,
    /// It is down, or has no carrier.
    Down,
    /// It can be used.
    Up,
}

/// Tells what happens. Nothing is lost between two calls.
pub struct AddressWatch {
    socket: AsyncFd<Steady<Socket>>,
    settings: AddressSettings,
    link: Option<Link>,
    told: VecDeque<AddressEvent>,
    buffer: Vec<u8>,
}

fn state(link: Option<&Link>) -> LinkState {
    match link {
        None => LinkState::Gone,
        Some(link) if link.is_up => LinkState::Up,
        Some(_) => LinkState::Down,
    }
}

impl AddressWatch {
    /// Listens from now on. To be called within a runtime of tokio.
    ///
    /// # Errors
    /// When there is no way to the kernel.
    pub fn open(settings: &AddressSettings) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR] {
            socket.add_membership(group)?;
        }
        let mut watch = Self {
            socket: readable(socket)?,
            settings: settings.clone(),
            link: None,
            told: VecDeque::new(),
            buffer: Vec::with_capacity(MESSAGES_MAX_BYTES),
        };
        // After it listens: what changes now is told.
        watch.link = watch.look()?;
        Ok(watch)
    }

    /// How the interface is, by all that was told.
    pub fn state(&self) -> LinkState {
        state(self.link.as_ref())
    }

    /// The next thing that happens. May be dropped before it is done, and asked again.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub async fn next(&mut self) -> io::Result<AddressEvent> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return Ok(event);
            }
            let buffer = &mut self.buffer;
            buffer.clear();
            let read = self.socket.async_io(Interest::READABLE, |socket| {
                socket.get().recv(buffer, libc::MSG_DONTWAIT)
            });
            match read.await {
                Ok(_) => self.take(),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.look_again();
                    self.told.push_back(AddressEvent::LookAgain);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn look(&self) -> io::Result<Option<Link>> {
        link(&mut Netlink::open(NETLINK_ROUTE)?, &self.settings.interface)
    }

    /// Looks at how the interface is, whatever was told of it. Where the kernel does not say it stays what it was: to be asked again.
    pub fn look_again(&mut self) {
        if let Ok(now) = self.look() {
            self.link_is(now);
        }
    }

    fn take(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        for (_, _, _, message) in messages(&buffer) {
            let index = self.link.as_ref().map(|link| link.index);
            match route::told(message) {
                Some(Told::AddressGone(gone)) if Some(gone.index) == index && self.settings.marks(&gone) => {
                    self.told.push_back(AddressEvent::Removed(gone.address));
                }
                Some(Told::Link(now)) if now.name == self.settings.interface => self.link_is(Some(now)),
                // It has another name now.
                Some(Told::Link(now)) if Some(now.index) == index => self.link_is(None),
                Some(Told::LinkGone(gone)) if Some(gone.index) == index => self.link_is(None),
                _ => {}
            }
        }
        self.buffer = buffer;
    }

    fn link_is(&mut self, now: Option<Link>) {
        let is_new = match (&self.link, &now) {
            (Some(before), Some(now)) => before.index != now.index,
            _ => false,
        };
        if is_new {
            self.link = None;
            self.told.push_back(AddressEvent::Link(LinkState::Gone));
        }
        let (before, after) = (state(self.link.as_ref()), state(now.as_ref()));
        let moved = match (&self.link, &now) {
            (Some(before), Some(now)) => now.peers_changed || before.hardware != now.hardware,
            _ => false,
        };
        self.link = now;
        if before != after {
            self.told.push_back(AddressEvent::Link(after));
        } else if moved {
            self.told.push_back(AddressEvent::PeersChanged);
        }
    }
}
