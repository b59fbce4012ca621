//! The kernel's nftables: one transaction, or one question, at a time.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};

use super::netlink::{NLMSG_ERROR, Netlink, error_of, messages};
use super::nft_messages::{Message, batch, single};

const NETLINK_NETFILTER: isize = 12;

pub(super) struct Nftables {
    netlink: Netlink,
}

impl Nftables {
    pub(super) fn open() -> io::Result<Self> {
        let netlink = Netlink::open(NETLINK_NETFILTER)?;
        Ok(Self { netlink })
    }

    /// Sends one transaction, and hears what became of it. One of no messages has happened.
    pub(super) fn commit(&mut self, packets: Vec<Message>) -> io::Result<()> {
        if packets.is_empty() {
            // What has nothing to acknowledge is not acknowledged.
            return Ok(());
        }
        let bytes = batch(packets, || self.netlink.next());
        self.netlink.drain();
        self.netlink.send(&bytes)?;
        let mut acknowledged = false;
        let mut fault = None;
        while let Some(answer) = self.netlink.receive()? {
            for (kind, _, body, _) in messages(answer) {
                match (kind, error_of(body)) {
                    (NLMSG_ERROR, Some(0)) => acknowledged = true,
                    (NLMSG_ERROR, Some(code)) => {
                        fault.get_or_insert(code);
                    }
                    _ => {}
                }
            }
        }
        match fault {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None if acknowledged => Ok(()),
            None => Err(io::Error::other("the kernel did not acknowledge it")),
        }
    }

    /// Sends one question, and gives each message of the answer to `take`.
    pub(super) fn ask(&mut self, question: Message, take: impl FnMut(&[u8])) -> io::Result<()> {
        let bytes = single(question, self.netlink.next());
        self.netlink.ask(&bytes, take).map(|_| ())
    }
}

/// An element of a set, as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) key: Vec<u8>,
    /// How long it lives, where it does not live for ever.
    pub(super) left: Option<Duration>,
}

/// The elements in a message of them.
pub(super) fn members(message: &[u8]) -> Vec<Member> {
    let Ok(packet) = NetlinkMessage::<NetfilterMessage>::deserialize(message) else {
        return Vec::new();
    };
    let NetlinkPayload::InnerMessage(NetfilterMessage {
        inner: NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(list)),
        ..
    }) = packet.payload
    else {
        return Vec::new();
    };
    let elements = list
        .attributes
        .into_iter()
        .filter_map(|attribute| match attribute {
            SetElementList::Elements(elements) => Some(elements),
            _ => None,
        });
    let attributes = elements.flatten().filter_map(|element| match element {
        ListAttribute::Element(attributes) => Some(attributes),
        _ => None,
    });
    attributes.filter_map(member).collect()
}

fn member(attributes: Vec<SetElementAttribute>) -> Option<Member> {
    let (mut key, mut left) = (None, None);
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(value)) => key = Some(value),
            SetElementAttribute::Expiration(value) => left = Some(Duration::from_millis(value)),
            _ => {}
        }
    }
    Some(Member { key: key?, left })
}
