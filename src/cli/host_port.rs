//! An address as people write it: `db`, `db:5433`, `192.0.2.7`, `[::1]`, `[::1]:9999`, `::1`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A host name or IP address, and a port where one was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The name, or the address without brackets.
    pub host: String,
    /// The port, where one was written.
    pub port: Option<u16>,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address: {why}; write HOST, HOST:PORT, [IPV6] or [IPV6]:PORT")]
pub struct HostPortError {
    text: String,
    why: String,
}

impl HostPort {
    /// Reads an address. Nothing is looked up.
    pub fn parse(text: &str) -> Result<Self, HostPortError> {
        let fault = |why: &str| HostPortError {
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let text = text.trim();
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| fault("the bracket is not closed"))?;
            // A zone (`fe80::1%eth0`) belongs to the resolver, not to the address.
            let address = host.split_once('%').map_or(host, |(address, _)| address);
            address
                .parse::<Ipv6Addr>()
                .map_err(|_| fault("what is in brackets is no IPv6 address"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(fault("after the bracket only a colon and a port may follow")),
            }
        } else if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) if port.contains(':') => {
                    let _ = host;
                    return Err(fault(
                        "it has more than one colon; an IPv6 address with a port needs brackets",
                    ));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.is_empty() {
            return Err(fault("the host is missing"));
        }
        if host.len() > 253 {
            return Err(fault("the host is longer than a name can be (253 characters)"));
        }
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if let Some(wrong) = host.chars().find(|&c| !allowed(c)) {
            return Err(fault(&format!("a host cannot hold {wrong:?}")));
        }
        let port = match port {
            None => None,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err(fault(&format!("{port:?} is no port from 1 to 65535"))),
            },
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Whether the host is an address already, so that no name needs to be looked up.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The same, with `port` where none was written.
    #[must_use]
    pub fn with_default_port(mut self, port: u16) -> Self {
        self.port.get_or_insert(port);
        self
    }
}

impl std::str::FromStr for HostPort {
    type Err = HostPortError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (true, None) => write!(f, "[{}]", self.host),
            (false, None) => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_as_people_do() {
        for (text, host, port, shown) in [
            ("db", "db", None, "db"),
            (" db.example:5433 ", "db.example", Some(5433), "db.example:5433"),
            ("192.0.2.7:1", "192.0.2.7", Some(1), "192.0.2.7:1"),
            ("[::1]", "::1", None, "[::1]"),
            ("::1", "::1", None, "[::1]"),
            (
                "[fe80::1%eth0]:9999",
                "fe80::1%eth0",
                Some(9999),
                "[fe80::1%eth0]:9999",
            ),
        ] {
            let read = HostPort::parse(text).unwrap();
            assert_eq!(
                (read.host.as_str(), read.port, read.to_string().as_str()),
                (host, port, shown)
            );
        }
    }

    #[test]
    fn what_is_no_address_is_named_with_its_remedy() {
        for wrong in [
            "", ":5", "db:", "db:0", "db:65536", "db:x", "[::1", "[db]", "[::1]5", "a:b:c", "a b", "a/b",
            "ws://a",
        ] {
            let error = HostPort::parse(wrong).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{wrong:?}")) && error.contains("write HOST"),
                "{wrong:?}: {error}"
            );
        }
    }
}
