//! TLS for checks: rustls with ring, and the certificates that the files held when the check was made.
//!
//! **Promise.** Without a word about it, a server is believed only when a trusted authority vouches for its certificate, for
//! this name, now. An authority's file names whom to trust; without one it is whom the system trusts: the file in
//! `SSL_CERT_FILE`, else the first of [`SYSTEM_ROOTS`] that is there. A server's own self-signed certificate may be given as
//! authority, too: then that very certificate is believed, for its names and its time.
//!
//! **Not guaranteed.** Revocation is not looked up. The files are read once: whoever renews them makes the check anew.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError,
    RootCertStore, SignatureScheme, client::verify_server_name,
};
use zeroize::Zeroizing;

use super::check::{CheckError, TlsFiles, Verify};
use super::fault::Fault;
use super::stream::Heard;
use super::verdict::quoted;

/// Where systems keep whom they trust: Debian, NixOS, Arch and Alpine; Fedora and RHEL; openSUSE.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];
/// The longest file that is read. A system's authorities are a quarter of that.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// A client of TLS, for one server.
pub(super) struct Tls {
    connector: TlsConnector,
    server: ServerName<'static>,
}

impl Tls {
    /// For the server that `host` names: its certificate must be for that. Reads the files.
    pub(super) fn new(
        host: &str,
        files: &TlsFiles,
        verify: Verify,
        protocol: Option<&str>,
    ) -> Result<Self, CheckError> {
        let server =
            ServerName::try_from(host.to_owned()).map_err(|_| CheckError::ServerName(host.to_owned()))?;
        let provider = Arc::new(ring::default_provider());
        let verifier = Verifier::new(&provider, files, verify)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| CheckError::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &files.certificate {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let certificates = certificates(path)?;
                let key_path = files.key.as_ref().unwrap_or(path);
                let key = PrivateKeyDer::from_pem_slice(&read(key_path)?)
                    .map_err(|error| unusable(key_path, &error, "a private key without a passphrase"))?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .map_err(|error| CheckError::ClientKey {
                        certificate: path.clone(),
                        key: key_path.clone(),
                        why: quoted(&error.to_string()),
                    })?
            }
        };
        config.alpn_protocols = protocol
            .map(|name| name.as_bytes().to_vec())
            .into_iter()
            .collect();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            server,
        })
    }

    /// The same connection, with TLS. The caller holds the deadline; `heard` is what the peer says below TLS.
    pub(super) async fn wrap<S>(&self, stream: S, heard: &Heard) -> Result<TlsStream<S>, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = self.connector.connect(self.server.clone(), stream);
        handshake.await.map_err(|error| match fault(&error) {
            Some(TlsError::InvalidMessage(_)) => not_tls(heard),
            Some(error) => told(error),
            None if heard.is_flood() => not_tls(heard),
            None => Fault::said(
                "it closed the connection during the TLS handshake: check the port, and see its log",
            ),
        })
    }
}

fn not_tls(heard: &Heard) -> Fault {
    let said = heard.beginning().unwrap_or_else(|| "nothing".to_owned());
    Fault::said(format!(
        "what answers there does not speak TLS: it says {said}: check the port, or ask it without TLS"
    ))
}

/// What TLS has to say in an error of a stream, or of whoever uses one.
pub(super) fn fault_in(error: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    let mut error = Some(error);
    while let Some(this) = error {
        let found = match this.downcast_ref::<std::io::Error>() {
            Some(io) => fault(io),
            None => this.downcast_ref::<TlsError>(),
        };
        if let Some(found) = found {
            return Some(told(found));
        }
        error = this.source();
    }
    None
}

fn fault(error: &std::io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

fn told(error: &TlsError) -> Fault {
    use CertificateError as Wrong;
    let said = |text: fmt::Arguments<'_>| Fault::said(text.to_string());
    match error {
        TlsError::InvalidCertificate(wrong) => match wrong {
            Wrong::UnknownIssuer => said(format_args!(
                "its certificate is by nobody who is trusted here: give the CA file of the authority that signed it"
            )),
            Wrong::BadSignature => said(format_args!(
                "another authority of the same name has signed its certificate: give that one's CA file"
            )),
            Wrong::Expired | Wrong::ExpiredContext { .. } => said(format_args!(
                "its certificate has expired: renew it, or set the clock of this host"
            )),
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => said(format_args!(
                "its certificate is not valid yet: set the clocks of both hosts"
            )),
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => said(format_args!(
                "its certificate is for another name: {}: ask it by a name that is in it, or have that name put into it",
                quoted(&wrong.to_string())
            )),
            wrong => said(format_args!(
                "its certificate cannot be accepted: {}: see how it was made",
                quoted(&wrong.to_string())
            )),
        },
        TlsError::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => said(format_args!(
                "it wants a client certificate: give a certificate file and a key file"
            )),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            // So it says where another authority of the same name has signed ours.
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => said(format_args!(
                "it refuses our client certificate, or wants one ({alert:?}): give one that its authority has signed"
            )),
            alert => said(format_args!("it ends the TLS handshake ({alert:?}): see its log")),
        },
        TlsError::PeerIncompatible(why) => said(format_args!(
            "it speaks no TLS that we do ({why:?}): TLS 1.2 or 1.3 is needed"
        )),
        error => said(format_args!(
            "TLS with it fails: {}: see its log",
            quoted(&error.to_string())
        )),
    }
}

/// Believes a server.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    /// Missing where nothing is verified.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of the authority's file: one that is presented itself is believed, though it is no authority's work.
    given: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(provider: &Arc<CryptoProvider>, files: &TlsFiles, verify: Verify) -> Result<Self, CheckError> {
        let (mut chain, mut given) = (None, Vec::new());
        if verify != Verify::Nothing {
            let roots = match &files.ca {
                Some(path) => {
                    given = certificates(path)?;
                    let mut roots = RootCertStore::empty();
                    for certificate in &given {
                        roots
                            .add(certificate.clone())
                            .map_err(|error| unusable(path, &error, "the certificate of an authority"))?;
                    }
                    roots
                }
                None => system_roots()?,
            };
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
            chain = Some(verifier.map_err(|error| CheckError::Tls(error.to_string()))?);
        }
        Ok(Self {
            verify,
            chain,
            given,
            provider: Arc::clone(provider),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        use CertificateError::{NotValidForName, NotValidForNameContext, Other, UnknownIssuer};
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let error = match chain.verify_server_cert(certificate, intermediates, server, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        match &error {
            // The name is looked at last: all else is in order.
            TlsError::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })
                if self.verify == Verify::Chain =>
            {
                Ok(ServerCertVerified::assertion())
            }
            // Self-signed, as an authority ("CA used as end entity") or not. The time is looked at before both.
            TlsError::InvalidCertificate(UnknownIssuer | Other(_)) if self.given.contains(certificate) => {
                if self.verify == Verify::Full {
                    verify_server_name(&ParsedCertificate::try_from(certificate)?, server)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            _ => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn system_roots() -> Result<RootCertStore, CheckError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists());
    let path = named.or_else(usual).ok_or(CheckError::NoSystemRoots)?;
    let mut roots = RootCertStore::empty();
    // A system's file may hold some that nobody can read any more.
    let (taken, _) = roots.add_parsable_certificates(certificates(&path)?);
    if taken == 0 {
        return Err(unusable(
            &path,
            &PemError::NoItemsFound,
            "the certificate of an authority",
        ));
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CheckError> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(unusable(path, &PemError::NoItemsFound, "a certificate")),
        Ok(all) => Ok(all),
        Err(error) => Err(unusable(path, &error, "a certificate")),
    }
}

fn unusable(path: &Path, error: &dyn fmt::Display, needed: &'static str) -> CheckError {
    CheckError::Pem {
        path: path.to_owned(),
        why: quoted(&error.to_string()),
        needed,
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CheckError> {
    let fault = |source| CheckError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fault)?;
    // Room for all that is read: a vector that grows would leave copies of a key behind.
    let length = file.metadata().map_or(0, |about| about.len()).min(FILE_MAX_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(length).unwrap_or_default() + 64,
    ));
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).map_err(fault)?;
    Ok(bytes)
}
