//! The pre-shared key: read from a file, never shown, compared in constant time, zeroed when dropped.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::limits::{KEY_MAX_BYTES, KEY_MIN_CHARS};

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
    /// Fewer than [`KEY_MIN_CHARS`] characters after trimming.
    #[error("the key in {} has {chars} characters after trimming, but needs at least {KEY_MIN_CHARS}; make one with `openssl rand -base64 32`", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length in characters.
        chars: usize,
    },
    /// More than [`KEY_MAX_BYTES`] bytes.
    #[error("the key in {} has more than {KEY_MAX_BYTES} bytes: is it the right file? make a key with `openssl rand -base64 32`", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

impl PresharedKey {
    /// Reads the key from `path`, the file that sops or systemd's credentials put there.
    ///
    /// White space around the key is dropped. At most a few KiB are read, whatever the file is.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let fault = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(fault)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(4 * KEY_MAX_BYTES + 1));
        file.take(4 * KEY_MAX_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(fault)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::NotText {
            path: path.to_owned(),
        })?;
        Self::parse(text, path)
    }

    /// Takes the key from `text`, which came from `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.len() > KEY_MAX_BYTES {
            return Err(KeyError::TooLong {
                path: path.to_owned(),
            });
        }
        let chars = text.chars().count();
        if chars < KEY_MIN_CHARS {
            return Err(KeyError::TooShort {
                path: path.to_owned(),
                chars,
            });
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Whether `offered` is this key. The time that it takes depends on the lengths only.
    pub fn matches(&self, offered: &str) -> bool {
        self.0.as_bytes().ct_eq(offered.as_bytes()).into()
    }

    /// The key itself, for the one place that must send it.
    pub fn expose(&self) -> &str {
        &self.0
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
        let key = parse(&format!("\t{}\r\n", "k".repeat(40))).unwrap();
        assert!(key.matches(&"k".repeat(40)));
        assert!(!key.matches(&"k".repeat(39)));
        assert!(!key.matches(&format!("{}j", "k".repeat(39))));
        assert!(!key.matches(""));
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
