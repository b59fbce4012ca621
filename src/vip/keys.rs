//! The keys of a cluster in the store: how they are written, and what somebody else has written there.
//!
//! ```text
//! /<namespace>/<cluster>/
//!   ips/<ip>                 the pool; also ips/<ip>/
//!   ips/<ip>/marked          who holds it, under its lease; its modification revision is the fencing token
//!   ips/<ip>/preferred       where an operator wants it
//!   nodes/<node>             "healthy", under the node's lease; put again with each sign of life
//!   ttl/<lease>              how long whoever has this lease must be waited for, in milliseconds; under that lease
//!   cannot/<node>/<ip>       why it could not be put on that node's interface, under the node's lease; "not tried since: " and why: it may work
//!                            by now, and nobody who has it should give it up for that
//!   paused/<node>            why that node is to hold nothing
//! ```

use std::net::{IpAddr, Ipv4Addr};

use crate::store::LeaseId;

/// How `cannot/<node>/<ip>` begins once that is over as far as the node knows, and it has not held the address since.
const UNTRIED: &str = "not tried since: ";

/// What a node says of an address that it could not hold, once it would try again.
#[must_use]
pub fn untried(why: &str) -> String {
    format!("{UNTRIED}{why}")
}

/// Whether a node that has said this would try again.
#[must_use]
pub fn is_untried(why: &str) -> bool {
    why.starts_with(UNTRIED)
}

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// An address of the pool.
    Pool(IpAddr),
    /// Who holds it.
    Marked(IpAddr),
    /// Where an operator wants it.
    Preferred(IpAddr),
    /// A node's sign of life.
    Node(String),
    /// How long a holder must be waited for.
    Ttl(LeaseId),
    /// What could not be put on a node's interface.
    Cannot(String, IpAddr),
    /// A node that is to hold nothing.
    Paused(String),
}

/// Writes and reads them.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// `/<namespace>/<cluster>/`, with both slashes.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// What all of them begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// As we write it.
    #[must_use]
    pub fn of(&self, key: &Key) -> String {
        let prefix = &self.prefix;
        match key {
            Key::Pool(address) => format!("{prefix}ips/{address}"),
            Key::Marked(address) => format!("{prefix}ips/{address}/marked"),
            Key::Preferred(address) => format!("{prefix}ips/{address}/preferred"),
            Key::Node(node) => format!("{prefix}nodes/{node}"),
            Key::Ttl(lease) => format!("{prefix}ttl/{lease}"),
            Key::Cannot(node, address) => format!("{prefix}cannot/{node}/{address}"),
            Key::Paused(node) => format!("{prefix}paused/{node}"),
        }
    }

    /// What a key is about. None: nothing of ours.
    ///
    /// # Errors
    /// When it should be about an address, and is not: why.
    pub fn read(&self, key: &str) -> Result<Option<Key>, String> {
        let Some(rest) = key.strip_prefix(&self.prefix) else {
            return Ok(None);
        };
        let Some((room, rest)) = rest.split_once('/') else {
            return Ok(None);
        };
        let name = |rest: &str| (!rest.is_empty() && !rest.contains('/')).then(|| rest.to_owned());
        Ok(match room {
            "nodes" => name(rest).map(Key::Node),
            "paused" => name(rest).map(Key::Paused),
            "ttl" => i64::from_str_radix(rest, 16)
                .ok()
                .map(|lease| Key::Ttl(LeaseId(lease))),
            "cannot" => match rest.split_once('/') {
                Some((node, text)) => Some(Key::Cannot(node.to_owned(), exactly(text)?)),
                None => None,
            },
            "ips" => match rest.split_once('/') {
                None | Some((_, "")) => Some(Key::Pool(address(rest.trim_end_matches('/'))?)),
                Some((text, "marked")) => Some(Key::Marked(exactly(text)?)),
                Some((text, "preferred")) => Some(Key::Preferred(exactly(text)?)),
                Some(_) => {
                    return Err("is neither ips/ADDRESS nor its marked or preferred; an address goes without a prefix length".to_owned());
                }
            },
            _ => None,
        })
    }
}

/// An address that a host can hold for its neighbours.
///
/// # Errors
/// Why it is none.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no address"))?;
    let wrong = match address {
        _ if address.is_unspecified() => "stands for no address",
        _ if address.is_loopback() => "never leaves a host",
        _ if address.is_multicast() => "is a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "is the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "is an IPv4 address in disguise; write that one",
        _ => return Ok(address),
    };
    Err(format!("{text} {wrong}"))
}

/// The one spelling of an address that all nodes look at.
fn exactly(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    if address.to_string() == text {
        Ok(address)
    } else {
        Err(format!("{text} is looked at as {address} only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let keys = Keys::new("/service/yaim/");
        let (four, six): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for key in [
            Key::Pool(four),
            Key::Pool(six),
            Key::Marked(four),
            Key::Preferred(six),
            Key::Node("app1".to_owned()),
            Key::Ttl(LeaseId(0x6f0a)),
            Key::Cannot("app1".to_owned(), six),
            Key::Paused("app1".to_owned()),
        ] {
            assert_eq!(keys.read(&keys.of(&key)), Ok(Some(key)));
        }
        assert_eq!(keys.of(&Key::Pool(four)), "/service/yaim/ips/10.0.0.1");
    }

    #[test]
    fn what_users_write_is_read() {
        let keys = Keys::new("/service/yaim/");
        let four = Key::Pool("123.0.0.1".parse().unwrap());
        assert_eq!(keys.read("/service/yaim/ips/123.0.0.1/"), Ok(Some(four)));
        let six = Key::Pool("2001:db8::1".parse().unwrap());
        assert_eq!(keys.read("/service/yaim/ips/2001:DB8:0::1"), Ok(Some(six)));
    }

    #[test]
    fn what_is_no_address_is_named() {
        let keys = Keys::new("/service/yaim/");
        for (text, why) in [
            ("ips/app1", "\"app1\" is no address"),
            ("ips/", "\"\" is no address"),
            ("ips/10.0.0.1/24", "is neither"),
            ("ips/::ffff:10.0.0.1", "disguise"),
            ("ips/127.0.0.1", "never leaves"),
            ("ips/224.0.0.5", "multicast"),
            ("ips/2001:DB8::1/marked", "looked at as 2001:db8::1 only"),
        ] {
            let error = keys.read(&format!("/service/yaim/{text}")).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_somebody_elses_is_nothing_to_us() {
        let keys = Keys::new("/service/yaim/");
        for key in [
            "/service/other/ips/x",
            "/service/yaim/history",
            "/service/yaim/x/y",
            "/service/yaim/nodes/a/b",
            "/service/yaim/nodes/",
        ] {
            assert_eq!(keys.read(key), Ok(None), "{key}");
        }
    }
}
