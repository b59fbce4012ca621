//! A password: read from a file or given, never shown, zeroed when dropped.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The longest password that is taken, in bytes.
const PASSWORD_MAX_BYTES: usize = 4096;

/// A password. `Debug` prints `[redacted]`. The memory is zeroed when it is dropped. What this does not give:
/// copies that the database clients make while they log in are not zeroed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<Vec<u8>>);

/// Why a password file cannot be used. The messages never hold the password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file could not be read.
    #[error("cannot read the password file {}: {source}; check the path, and that this user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is nothing in the file but the end of a line.
    #[error("the password file {} is empty; write the password into it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// More than 4096 bytes, or a NUL byte, which no database takes.
    #[error("the password file {} holds no password: it is longer than 4096 bytes or has a NUL byte in it; is it the right file?", path.display())]
    NoPassword {
        /// The file.
        path: PathBuf,
    },
    /// The same of a password that did not come from a file.
    #[error(
        "the password that was given is none: it is empty, longer than 4096 bytes or has a NUL byte in it"
    )]
    Given,
}

impl Password {
    /// Reads the password from `path`. Ends of lines after it are dropped, other white space is part of it.
    /// At most a few KiB are read, whatever the file is.
    pub fn read(path: &Path) -> Result<Self, PasswordError> {
        let fault = |source| PasswordError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(fault)?;
        // Room for all that is read: a vector that grows would leave a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(PASSWORD_MAX_BYTES + 64));
        file.take(PASSWORD_MAX_BYTES as u64 + 3)
            .read_to_end(&mut bytes)
            .map_err(fault)?;
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        let path = path.to_owned();
        if bytes.is_empty() {
            return Err(PasswordError::Empty { path });
        }
        if bytes.len() > PASSWORD_MAX_BYTES || bytes.contains(&0) {
            return Err(PasswordError::NoPassword { path });
        }
        Ok(Self(bytes))
    }

    /// A password that is here already, as a value of a setting.
    pub fn given(text: String) -> Result<Self, PasswordError> {
        let bytes = Zeroizing::new(text.into_bytes());
        if bytes.is_empty() || bytes.len() > PASSWORD_MAX_BYTES || bytes.contains(&0) {
            return Err(PasswordError::Given);
        }
        Ok(Self(bytes))
    }

    /// The password itself, for the place that must send it.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.as_bytes().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_read_without_its_end_of_line_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            Password::read(&file)
        };
        assert_eq!(read(b" se cret \r\n").unwrap().expose(), b" se cret ");
        assert_eq!(format!("{:?}", read(b"secret").unwrap()), "[redacted]");
        assert_eq!(read(&[b'x'; 4096]).unwrap().expose().len(), 4096);
        for wrong in [&b""[..], b"\n", b"se\0cret", &[b'x'; 5000]] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(file.to_str().unwrap()), "{error}");
            assert!(!error.contains("cret"), "{error}");
        }
        assert_eq!(Password::given("secret".to_owned()).unwrap().expose(), b"secret");
        for wrong in [String::new(), "x\0".to_owned(), "x".repeat(5000)] {
            Password::given(wrong).unwrap_err();
        }
        let error = Password::read(Path::new("/nowhere/at/all"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
