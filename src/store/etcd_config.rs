//! Where etcd is and who we are there: read, and held to what can be known without asking it.
//!
//! **Promise.** Every mistake at once; each names the value, the place and the remedy. No secret is in any message, and none in `Debug`.
//! This is there without the feature `etcd`, so that a configuration can be checked wherever it is written.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::cli::{HostPort, HostPortError};
use crate::probe::{Password, PasswordError};

/// Port of etcd's clients when none is named.
pub const ETCD_PORT: u16 = 2379;

/// Longest certificate or key file that is read, in bytes: a bundle of all public authorities is a quarter of it.
const PEM_MAX_BYTES: u64 = 1 << 20;

/// What an operator writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdSettings {
    /// The members: `HOST`, `HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The user, where etcd has authentication enabled.
    pub user: Option<String>,
    /// Its password, where there is no file with it.
    pub password: Option<Password>,
    /// The file with its password.
    pub password_file: Option<PathBuf>,
    /// The certificate of the authority that the members' certificates are checked by. With it the endpoints are TLS.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, where etcd asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
}

/// The same, read and whole. `Debug` shows no secret.
#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    pub(super) endpoints: Vec<HostPort>,
    pub(super) login: Option<Login>,
    pub(super) tls: Option<Tls>,
}

// Without the feature they are read and checked, and that is all.
#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Password,
}

#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) ca: Vec<u8>,
    pub(super) own: Option<Own>,
    /// For messages: what is wrong with them shows when they are used.
    pub(super) files: String,
}

#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
#[derive(Clone)]
pub(super) struct Own {
    pub(super) cert: Vec<u8>,
    pub(super) key: Zeroizing<Vec<u8>>,
}

/// What is wrong with what was written.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// There is none.
    #[error(
        "no etcd endpoint is named; write at least one, such as 10.0.0.1:{ETCD_PORT}, and best every member"
    )]
    NoEndpoint,
    /// One is no address.
    #[error("etcd endpoint: {0}, with http:// or https:// before it where that is to be said")]
    NoAddress(#[from] HostPortError),
    /// One is a URL of something else.
    #[error(
        "etcd endpoint {endpoint:?} is neither http:// nor https://; write HOST:PORT, http://HOST:PORT or https://HOST:PORT"
    )]
    Scheme {
        /// As it was written.
        endpoint: String,
    },
    /// One has a user or a path in it. It is not shown: there may be a password.
    #[error(
        "etcd endpoint number {number} has more in it than a host and a port; write HOST:PORT alone, the user and the password file by themselves"
    )]
    MoreThanAddress {
        /// Counted from one.
        number: usize,
    },
    /// One is named twice.
    #[error("etcd endpoint {endpoint} is named twice; remove one")]
    Twice {
        /// Which.
        endpoint: HostPort,
    },
    /// Half of the cluster would be spoken to in the clear.
    #[error("etcd endpoints mix http:// ({plain}) and https:// ({sealed}); write all of them with the same")]
    Mixed {
        /// One of these.
        plain: String,
        /// One of those.
        sealed: String,
    },
    /// Certificates for a connection that has none.
    #[error(
        "etcd endpoint {endpoint} is http://, but there is {file} for TLS; write https://, or remove the file from the configuration"
    )]
    PlainWithTls {
        /// Which.
        endpoint: String,
        /// The file.
        file: PathBuf,
    },
    /// Nothing to check members by.
    #[error(
        "etcd over TLS needs the certificate of the authority that signed the members' (the CA file); name it, or the system's own bundle (/etc/ssl/certs/ca-certificates.crt)"
    )]
    NoCa,
    /// A certificate without its key, or a key without its certificate.
    #[error("etcd: {is} {} is of no use without {lacks}; name both, or neither", path.display())]
    Half {
        /// What there is.
        is: &'static str,
        /// Its file.
        path: PathBuf,
        /// What there is not.
        lacks: &'static str,
    },
    /// A password without its user.
    #[error("etcd: the password file {} is of no use without a user; name both, or neither", path.display())]
    NoUser {
        /// The file.
        path: PathBuf,
    },
    /// A user without a password.
    #[error(
        "etcd: the user {user:?} needs a password file; name both, or neither (a client certificate can be the user, too: its common name)"
    )]
    NoPassword {
        /// Who.
        user: String,
    },
    /// The password cannot be read.
    #[error("etcd: {0}")]
    Password(#[from] PasswordError),
    /// The password is no text.
    #[error("etcd: the password in {} is no UTF-8, and etcd takes no other; change it", path.display())]
    PasswordText {
        /// Its file.
        path: PathBuf,
    },
    /// A certificate or key cannot be read.
    #[error("etcd: cannot read {what} {}: {source}; check the path, and that this user may read it", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is of another kind.
    #[error("etcd: {} holds no {wanted}, and is to be {what}; is it the right file?", path.display())]
    Pem {
        /// What it is for.
        what: &'static str,
        /// Its file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
    },
    /// The key has a passphrase, and nobody is there to be asked.
    #[error("etcd: the key in {} is encrypted; write it without a passphrase, readable by this user alone", path.display())]
    Encrypted {
        /// Its file.
        path: PathBuf,
    },
    /// TLS itself does not take them.
    #[error(
        "etcd: TLS cannot be set up with {files}: {why}; check that the certificates are whole and that the key belongs to the certificate"
    )]
    Tls {
        /// The files.
        files: String,
        /// What it said.
        why: String,
    },
}

impl EtcdConfigError {
    /// Whether it is only that a file cannot be read here: elsewhere it may be there.
    pub fn is_unread(&self) -> bool {
        matches!(
            self,
            Self::Read { .. } | Self::Password(PasswordError::Read { .. })
        )
    }
}

const CA: &str = "the CA file";
const CERT: &str = "the certificate file";
const KEY: &str = "the key file";

impl EtcdConfig {
    /// Reads the files and checks everything.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn new(settings: &EtcdSettings) -> Result<Self, Vec<EtcdConfigError>> {
        let mut wrong = Vec::new();
        let (endpoints, schemes) = endpoints(&settings.endpoints, &mut wrong);
        let login = login(settings, &mut wrong);
        let tls = tls(settings, schemes, &mut wrong);
        if wrong.is_empty() {
            return Ok(Self {
                endpoints,
                login,
                tls,
            });
        }
        Err(wrong)
    }

    /// The members, each with its port.
    pub fn endpoints(&self) -> &[HostPort] {
        &self.endpoints
    }
}

/// The first endpoint that was written with `http://`, and the first with `https://`.
#[derive(Default)]
struct Schemes {
    plain: Option<String>,
    sealed: Option<String>,
}

fn endpoints(written: &[String], wrong: &mut Vec<EtcdConfigError>) -> (Vec<HostPort>, Schemes) {
    let (mut found, mut schemes) = (Vec::new(), Schemes::default());
    if written.is_empty() {
        wrong.push(EtcdConfigError::NoEndpoint);
    }
    for (at, text) in written.iter().enumerate() {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['@', '/', '?', '#']) {
            wrong.push(EtcdConfigError::MoreThanAddress { number: at + 1 });
            continue;
        }
        let endpoint = match HostPort::parse(rest) {
            Ok(address) => address.with_default_port(ETCD_PORT),
            Err(error) => {
                wrong.push(error.into());
                continue;
            }
        };
        let slot = match scheme.as_deref() {
            None => None,
            Some("http") => Some(&mut schemes.plain),
            Some("https") => Some(&mut schemes.sealed),
            Some(_) => {
                let endpoint = text.to_owned();
                wrong.push(EtcdConfigError::Scheme { endpoint });
                continue;
            }
        };
        if let Some(slot) = slot {
            slot.get_or_insert_with(|| text.to_owned());
        }
        found.push(endpoint);
    }
    let mut seen = BTreeSet::new();
    for endpoint in &found {
        if !seen.insert(endpoint.to_string()) {
            let endpoint = endpoint.clone();
            wrong.push(EtcdConfigError::Twice { endpoint });
        }
    }
    (found, schemes)
}

fn login(settings: &EtcdSettings, wrong: &mut Vec<EtcdConfigError>) -> Option<Login> {
    if let (Some(user), Some(password), None) = (&settings.user, &settings.password, &settings.password_file)
        && !user.is_empty()
    {
        let (user, password) = (user.clone(), password.clone());
        return Some(Login { user, password });
    }
    let (user, path) = match (&settings.user, &settings.password_file) {
        (None, None) => return None,
        (Some(user), Some(path)) if !user.is_empty() => (user.clone(), path),
        (Some(user), None) if !user.is_empty() => {
            let user = user.clone();
            wrong.push(EtcdConfigError::NoPassword { user });
            return None;
        }
        (_, Some(path)) => {
            let path = path.clone();
            wrong.push(EtcdConfigError::NoUser { path });
            return None;
        }
        // A user that is empty, and no password: none is meant.
        (Some(_), None) => return None,
    };
    match Password::read(path) {
        Ok(password) if std::str::from_utf8(password.expose()).is_err() => {
            let path = path.clone();
            wrong.push(EtcdConfigError::PasswordText { path });
            None
        }
        Ok(password) => Some(Login { user, password }),
        Err(error) => {
            wrong.push(error.into());
            None
        }
    }
}

fn tls(settings: &EtcdSettings, schemes: Schemes, wrong: &mut Vec<EtcdConfigError>) -> Option<Tls> {
    let EtcdSettings {
        ca_file,
        cert_file,
        key_file,
        ..
    } = settings;
    let any = ca_file.as_ref().or(cert_file.as_ref()).or(key_file.as_ref());
    match (schemes, any) {
        (
            Schemes {
                plain: Some(plain),
                sealed: Some(sealed),
            },
            _,
        ) => {
            wrong.push(EtcdConfigError::Mixed { plain, sealed });
            return None;
        }
        (
            Schemes {
                plain: Some(endpoint),
                ..
            },
            Some(file),
        ) => {
            let file = file.clone();
            wrong.push(EtcdConfigError::PlainWithTls { endpoint, file });
            return None;
        }
        // Bare addresses are TLS where there is something to do it with.
        (Schemes { sealed: None, .. }, None) => return None,
        (Schemes { sealed: Some(_), .. }, _) | (_, Some(_)) => {}
    }
    let before = wrong.len();
    let mut take = |result: Result<Vec<u8>, EtcdConfigError>| {
        result.map_err(|error| wrong.push(error)).ok().unwrap_or_default()
    };
    let ca = take(
        ca_file
            .as_ref()
            .ok_or(EtcdConfigError::NoCa)
            .and_then(|path| certificates(CA, path)),
    );
    let own = match (cert_file, key_file) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(Own {
            cert: take(certificates(CERT, cert)),
            key: Zeroizing::new(take(private_key(key))),
        }),
        (Some(path), None) => {
            take(Err(half(CERT, path, KEY)));
            None
        }
        (None, Some(path)) => {
            take(Err(half(KEY, path, CERT)));
            None
        }
    };
    let files: Vec<_> = [ca_file, cert_file, key_file]
        .into_iter()
        .flatten()
        .map(|path| path.display().to_string())
        .collect();
    let files = files.join(", ");
    (wrong.len() == before).then_some(Tls { ca, own, files })
}

fn half(is: &'static str, path: &Path, lacks: &'static str) -> EtcdConfigError {
    let path = path.to_owned();
    EtcdConfigError::Half { is, path, lacks }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<u8>, EtcdConfigError> {
    let bytes = read(what, path)?;
    if !holds(&bytes, "-----BEGIN CERTIFICATE-----") {
        let wanted = "certificate (-----BEGIN CERTIFICATE-----)";
        let path = path.to_owned();
        return Err(EtcdConfigError::Pem { what, path, wanted });
    }
    Ok(bytes)
}

fn private_key(path: &Path) -> Result<Vec<u8>, EtcdConfigError> {
    let bytes = read(KEY, path)?;
    let owned = || path.to_owned();
    if holds(&bytes, "-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds(&bytes, "Proc-Type: 4,ENCRYPTED") {
        return Err(EtcdConfigError::Encrypted { path: owned() });
    }
    if !holds(&bytes, "PRIVATE KEY-----") {
        return Err(EtcdConfigError::Pem {
            what: KEY,
            path: owned(),
            wanted: "private key (-----BEGIN PRIVATE KEY-----)",
        });
    }
    Ok(bytes)
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, EtcdConfigError> {
    let fault = |source| EtcdConfigError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fault)?;
    let mut bytes = Vec::new();
    file.take(PEM_MAX_BYTES).read_to_end(&mut bytes).map_err(fault)?;
    Ok(bytes)
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.files).finish()
    }
}

#[cfg(test)]
#[path = "etcd_config_tests.rs"]
mod tests;
