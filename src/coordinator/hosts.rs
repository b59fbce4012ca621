//! Which hosts: the list of the command line, or a file. Pure.

use std::collections::HashSet;
use std::path::Path;

use super::waves::{Tier, parse_tier};
use crate::cli::HostPort;

/// A guardian to contact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was written; the name in all results.
    pub name: String,
    /// Name or address, without brackets.
    pub host: String,
    /// The port, always known.
    pub port: u16,
    /// When it is told, in a plan of waves.
    pub tier: Option<Tier>,
}

impl Target {
    /// `written`, with `port` where it names none.
    pub fn new(written: &HostPort, port: u16) -> Self {
        Self {
            name: written.to_string(),
            port: written.port.unwrap_or(port),
            host: written.host.clone(),
            tier: None,
        }
    }

    /// Two names for this are the same to us: the address, or the name in lower case, and the port.
    fn identity(&self) -> (String, u16) {
        let host = match self.host.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => self.host.trim_end_matches('.').to_lowercase(),
        };
        (host, self.port)
    }
}

/// The hosts to contact, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// In the order in which they were written.
    pub targets: Vec<Target>,
    /// Those that were written more than once, each as it was written the second time.
    pub duplicates: Vec<String>,
}

/// Reads a list with commas between the hosts. Blanks and empty items are dropped.
///
/// # Errors
/// Every item that is no address, one message each; or that there is no host at all.
pub fn parse_list(list: &str, port: u16) -> Result<Targets, Vec<String>> {
    let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
    let targets = collect(items.map(|item| ("--hosts".to_owned(), item)), port)?;
    if targets.targets.is_empty() {
        return Err(vec![
            "--hosts names no host: write for example --hosts app1,app2:9999,[2001:db8::7]".to_owned(),
        ]);
    }
    Ok(targets)
}

/// Reads a file with one host on a line, and its tier after it where it has one (`app1 tier=2`); `#` starts a comment, blank lines
/// are dropped.
///
/// # Errors
/// Every line that is no address, one message each with its number; or that there is no host at all.
pub fn parse_file(text: &str, path: &Path, port: u16) -> Result<Targets, Vec<String>> {
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let items = lines.filter_map(|(number, line)| {
        let item = line.split('#').next().unwrap_or_default().trim();
        (!item.is_empty()).then(|| (format!("{}:{}", path.display(), number + 1), item))
    });
    let targets = collect(items, port)?;
    if targets.targets.is_empty() {
        return Err(vec![format!(
            "{} names no host: write one on each line, HOST, HOST:PORT, [IPV6] or [IPV6]:PORT",
            path.display()
        )]);
    }
    Ok(targets)
}

fn collect<'a>(items: impl Iterator<Item = (String, &'a str)>, port: u16) -> Result<Targets, Vec<String>> {
    let mut seen = HashSet::new();
    let mut named = HashSet::new();
    let mut found = Targets::default();
    let mut mistakes = Vec::new();
    for (place, item) in items {
        match read(item, port) {
            Err(error) => mistakes.push(format!("{place}: {error}")),
            Ok(target) => {
                let identity = target.identity();
                if seen.insert(identity.clone()) {
                    found.targets.push(target);
                } else if named.insert(identity) {
                    found.duplicates.push(target.name);
                }
            }
        }
    }
    if mistakes.is_empty() {
        Ok(found)
    } else {
        Err(mistakes)
    }
}

/// `HOST[:PORT]`, and perhaps `tier=N`.
fn read(item: &str, port: u16) -> Result<Target, String> {
    let (host, tier) = match item.rsplit_once(char::is_whitespace) {
        Some((host, word)) if word.starts_with("tier=") => (
            host.trim_end(),
            Some(parse_tier(word.trim_start_matches("tier="))?),
        ),
        _ => (item, None),
    };
    let written = HostPort::parse(host).map_err(|error| error.to_string())?;
    Ok(Target {
        tier,
        ..Target::new(&written, port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(targets: &Targets) -> Vec<(&str, u16)> {
        targets
            .targets
            .iter()
            .map(|t| (t.name.as_str(), t.port))
            .collect()
    }

    #[test]
    fn blanks_and_empty_items_of_a_list_are_dropped() {
        let found = parse_list(" a ,, b:9999,[::1] ,", 9876).unwrap();
        assert_eq!(names(&found), [("a", 9876), ("b:9999", 9999), ("[::1]", 9876)]);
        for empty in ["", " ", ",, ,"] {
            let errors = parse_list(empty, 9876).unwrap_err();
            assert!(errors[0].contains("write for example --hosts"), "{errors:?}");
        }
    }

    #[test]
    fn a_host_that_is_named_twice_is_contacted_once() {
        let found = parse_list("App1,app1:9876,app1.,app1:1,[::1],0:0:0:0:0:0:0:1,::1", 9876).unwrap();
        assert_eq!(names(&found), [("App1", 9876), ("app1:1", 1), ("[::1]", 9876)]);
        assert_eq!(found.duplicates, ["app1:9876", "[0:0:0:0:0:0:0:1]"]);
    }

    #[test]
    fn a_host_may_have_a_tier() {
        let path = Path::new("/etc/hosts.list");
        let found = parse_file("a tier=0\nb:1\ttier=7 # last\nc\n", path, 9876).unwrap();
        let tiers: Vec<_> = found
            .targets
            .iter()
            .map(|target| (target.name.as_str(), target.tier))
            .collect();
        assert_eq!(tiers, [("a", Some(0)), ("b:1", Some(7)), ("c", None)]);
        let errors = parse_file("a tier=x\nb teir=1\n", path, 9876).unwrap_err();
        assert!(errors[0].contains("hosts.list:1: \"x\" is no tier"), "{errors:?}");
        assert!(errors[1].contains("hosts.list:2"), "{errors:?}");
    }

    #[test]
    fn all_mistakes_of_a_file_are_told_at_once_with_their_lines() {
        let path = Path::new("/etc/hosts.list");
        let good = "# clients\r\n\r\napp1 # first\r\n\tapp2:1\n";
        assert_eq!(
            names(&parse_file(good, path, 7).unwrap()),
            [("app1", 7), ("app2:1", 1)]
        );
        let errors = parse_file("a:0\nb\n\nc d\n", path, 7).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert!(errors[0].starts_with("/etc/hosts.list:1: \"a:0\""), "{errors:?}");
        assert!(errors[1].starts_with("/etc/hosts.list:4: \"c d\""), "{errors:?}");
        assert!(parse_file("# nothing\n", path, 7).unwrap_err()[0].contains("names no host"));
    }
}
