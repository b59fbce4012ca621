//! The pre-shared keys: read from files, never shown, compared in constant time, zeroed when dropped.
//!
//! A fleet has one key, except while it changes: then it has the old one and the new one ([`Keyring`]).

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use blake2::{Blake2s256, Digest};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use super::limits::{KEY_MAX_BYTES, KEY_MIN_CHARS, KEYS_MAX};

/// What a key file may hold besides its keys: white space around them. More than this is no key file.
const FILE_MAX_BYTES: usize = 4 * KEY_MAX_BYTES * KEYS_MAX;

/// The key that all hosts of a fleet share.
///
/// `Debug` and `Display` print `[redacted]`. The memory is zeroed when the key is dropped. What this does not
/// give: copies that the kernel or the allocator made of the file or of a received frame are not zeroed.
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<String>);

/// Why a key cannot be used. The messages never hold the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read.
    #[error("cannot read the key file {}: {source}; sops writes it to /run/secrets/IO_GUARDIAN_PSK, systemd's LoadCredential= to $CREDENTIALS_DIRECTORY: name that file, and check that this user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not text.
    #[error("the key file {} is not UTF-8 text; make a key with `openssl rand -base64 32`", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// More than [`KEYS_MAX`] keys.
    #[error("there are more than {KEYS_MAX} keys, the last of them in {}: remove those that no host speaks any more", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
    /// Fewer than [`KEY_MIN_CHARS`] characters after trimming.
    #[error("the key in {}, line {line}, has {chars} characters after trimming, but needs at least {KEY_MIN_CHARS}; make one with `openssl rand -base64 32`", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// The line of it, from 1.
        line: usize,
        /// Its length in characters.
        chars: usize,
    },
    /// More than [`KEY_MAX_BYTES`] bytes.
    #[error("the key in {}, line {line}, has more than {KEY_MAX_BYTES} bytes: is it the right file? make a key with `openssl rand -base64 32`", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The line of it, from 1.
        line: usize,
    },
}

impl KeyError {
    /// Whether the file may be there, or readable, a moment later.
    pub fn may_pass(&self) -> bool {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        matches!(self, Self::Read { source, .. } if matches!(source.kind(), NotFound | PermissionDenied))
    }
}

impl PresharedKey {
    /// Takes the key from `text`, which came from `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, KeyError> {
        Self::parse_line(text, path, 1)
    }

    fn parse_line(text: &str, path: &Path, line: usize) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.len() > KEY_MAX_BYTES {
            return Err(KeyError::TooLong {
                path: path.to_owned(),
                line,
            });
        }
        let chars = text.chars().count();
        if chars < KEY_MIN_CHARS {
            return Err(KeyError::TooShort {
                path: path.to_owned(),
                line,
                chars,
            });
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Whether `offered` is this key. The time that it takes depends on the lengths only.
    fn matches(&self, offered: &str) -> Choice {
        self.0.as_bytes().ct_eq(offered.as_bytes())
    }

    /// A name for the key that people can compare: 8 hexadecimal digits. It is a hash, cut to 32 bits: of a random key it tells
    /// nothing; of one that is a sentence it tells a guess from another. It is in journals and in the answers to peers.
    pub fn fingerprint(&self) -> String {
        let hash = self.hash(b"io-guardian fingerprint");
        hex(&hash[..4])
    }

    /// 32 bytes that stand for the key in one use of it: BLAKE2s-256 of the use, a zero byte, and the key.
    pub(super) fn hash(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut hash = Blake2s256::new();
        hash.update(purpose);
        hash.update([0]);
        hash.update(self.0.as_bytes());
        Zeroizing::new(hash.finalize().into())
    }

    /// The key itself, for the one place that must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// The keys that are valid now: at least one. The first is the one to speak with; all are accepted.
#[derive(Clone, Debug)]
pub struct Keyring {
    first: PresharedKey,
    others: Vec<PresharedKey>,
}

impl Keyring {
    /// Reads the keys of all `paths`: the files that sops or systemd's credentials put there, with one key on each line.
    ///
    /// White space around a key and empty lines are dropped; a key that is there twice counts once. At most a few KiB are
    /// read, whatever a file is.
    ///
    /// # Errors
    /// When a file cannot be read, holds no key, or one that cannot be used.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self, KeyError> {
        let mut found: Vec<PresharedKey> = Vec::new();
        let mut last = Path::new("");
        for path in paths {
            last = path.as_ref();
            let text = read_text(last)?;
            let mut lines: Vec<_> = (1..)
                .zip(text.lines().map(str::trim))
                .filter(|(_, line)| !line.is_empty())
                .collect();
            // An empty file is a key that is too short, and told as one.
            if lines.is_empty() {
                lines.push((1, ""));
            }
            for (number, line) in lines {
                let key = PresharedKey::parse_line(line, last, number)?;
                if !found.iter().any(|known| known.matches(&key.0).into()) {
                    found.push(key);
                }
                if found.len() > KEYS_MAX {
                    return Err(KeyError::TooMany {
                        path: last.to_owned(),
                    });
                }
            }
        }
        let mut found = found.into_iter();
        match found.next() {
            Some(first) => Ok(Self {
                first,
                others: found.collect(),
            }),
            None => PresharedKey::parse("", last).map(Self::from),
        }
    }

    /// The key to speak with.
    pub fn first(&self) -> &PresharedKey {
        &self.first
    }

    /// All of them, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &PresharedKey> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The one that `offered` is. All are looked at, so that the time does not tell which it is.
    pub fn find(&self, offered: &str) -> Option<&PresharedKey> {
        let looked_at: Vec<_> = self.iter().map(|key| (key, key.matches(offered))).collect();
        let found = looked_at.into_iter().find(|(_, matches)| (*matches).into());
        found.map(|(key, _)| key)
    }

    /// Whether the key with this fingerprint is one of them.
    pub fn knows(&self, fingerprint: &str) -> bool {
        self.iter().any(|key| key.fingerprint() == fingerprint)
    }

    /// [`PresharedKey::fingerprint`] of each.
    pub fn fingerprints(&self) -> Vec<String> {
        self.iter().map(PresharedKey::fingerprint).collect()
    }
}

/// `bytes` in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<PresharedKey> for Keyring {
    fn from(first: PresharedKey) -> Self {
        Self {
            first,
            others: Vec::new(),
        }
    }
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let fault = |source| KeyError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fault)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX_BYTES + 1));
    file.take(FILE_MAX_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(fault)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(KeyError::NotText {
            path: path.to_owned(),
        }),
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PresharedKey, KeyError> {
        PresharedKey::parse(text, Path::new("/run/secrets/IO_GUARDIAN_PSK"))
    }

    #[test]
    fn thirty_two_characters_are_enough_and_one_less_is_not() {
        assert!(parse(&"k".repeat(32)).is_ok());
        assert!(matches!(
            parse(&"k".repeat(31)),
            Err(KeyError::TooShort { chars: 31, .. })
        ));
        // Characters, not bytes; and white space around the key does not count.
        assert!(parse(&"ä".repeat(32)).is_ok());
        assert!(matches!(
            parse(&format!("  {}\n", "k".repeat(31))),
            Err(KeyError::TooShort { .. })
        ));
        assert!(matches!(
            parse(&"k".repeat(KEY_MAX_BYTES + 1)),
            Err(KeyError::TooLong { .. })
        ));
    }

    #[test]
    fn a_key_matches_itself_trimmed_and_nothing_else() {
        let keys = Keyring::from(parse(&format!("\t{}\r\n", "k".repeat(40))).unwrap());
        assert!(keys.find(&"k".repeat(40)).is_some());
        assert!(keys.find(&"k".repeat(39)).is_none());
        assert!(keys.find(&format!("{}j", "k".repeat(39))).is_none());
        assert!(keys.find("").is_none());
    }

    fn read(files: &[&str]) -> Result<Keyring, KeyError> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..files.len())
            .map(|n| folder.path().join(n.to_string()))
            .collect();
        for (path, text) in paths.iter().zip(files) {
            std::fs::write(path, text).unwrap();
        }
        Keyring::read(&paths)
    }

    #[test]
    fn each_line_of_each_file_is_a_key_and_the_first_is_the_one_to_speak_with() {
        let (old, new, other) = ("o".repeat(32), "n".repeat(32), "x".repeat(32));
        let keys = read(&[&format!("\n {new}\r\n\n{old}\n"), &format!("{old}\n{other}")]).unwrap();
        assert_eq!(keys.first().expose(), new);
        assert_eq!(keys.iter().count(), 3, "the one that is there twice counts once");
        for key in [&old, &new, &other] {
            assert!(keys.find(key).is_some());
        }
        assert!(keys.find(&format!("{new}\n{old}")).is_none());
        assert_eq!(keys.fingerprints().first(), Some(&keys.first().fingerprint()));
    }

    #[test]
    fn a_key_that_cannot_be_used_names_its_file() {
        for text in ["", "\n \n", "short", &format!("{}\nshort", "k".repeat(32))] {
            assert!(
                matches!(read(&[text]), Err(KeyError::TooShort { .. })),
                "{text:?}"
            );
        }
        let second = read(&[&format!("{}\n\nshort", "k".repeat(32))]).unwrap_err();
        assert!(
            second.to_string().contains(", line 3, has 5 characters"),
            "{second}"
        );
        let line = |n| format!("{}{n}\n", "k".repeat(32));
        let many = |n| (0..n).map(line).collect::<String>();
        assert!(read(&[&many(KEYS_MAX)]).is_ok());
        assert!(matches!(
            read(&[&many(KEYS_MAX), &line(99)]),
            Err(KeyError::TooMany { .. })
        ));
        assert!(matches!(Keyring::read(&["/nowhere"]), Err(KeyError::Read { .. })));
        assert!(Keyring::read::<&str>(&[]).is_err());
    }

    #[test]
    fn a_fingerprint_is_that_of_the_key_alone() {
        let key = parse(&"k".repeat(32)).unwrap();
        // Written down in docs/PROTOCOL.md: other programs may compute it.
        assert_eq!(key.fingerprint(), "92b1ddb6");
        assert_ne!(key.fingerprint(), parse(&"j".repeat(32)).unwrap().fingerprint());
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = parse(&"hunter2!".repeat(5)).unwrap();
        assert_eq!(
            format!("{key} {key:?} {:?}", Some(&key)),
            "[redacted] [redacted] Some([redacted])"
        );
        let error = parse("hunter2!").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
