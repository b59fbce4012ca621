//! Health checks over TLS: whom they believe and whom they do not, and what they say then.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use io_guardian::probe::{Check, CheckError, HttpCheck, PostgresCheck, TlsFiles};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::certificates::{Authority, Pair};
use crate::checks::{healthy, unhealthy};
use crate::databases::{Cluster, POSTGRES_IS_UP, Postgres};

/// Answers each request over TLS, and wants a client certificate of `clients` where there is one.
async fn serve(pair: &Pair, clients: Option<&Path>, version: &'static SupportedProtocolVersion) -> u16 {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(path).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                answer(stream).await;
            }
        }
    });
    port
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        request.push(byte);
    }
    let _ = stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nup")
        .await;
    let _ = stream.shutdown().await;
}

fn trusts(ca: &Path) -> TlsFiles {
    TlsFiles {
        ca: Some(ca.to_owned()),
        ..TlsFiles::default()
    }
}

fn shows(ca: &Path, certificate: &Path, key: Option<&Path>) -> TlsFiles {
    TlsFiles {
        certificate: Some(certificate.to_owned()),
        key: key.map(Path::to_owned),
        ..trusts(ca)
    }
}

fn https(host: &str, port: u16, tls: TlsFiles) -> Result<Check, CheckError> {
    Check::http(HttpCheck {
        tls,
        expected_response: Some("up".to_owned()),
        ..HttpCheck::new(format!("https://{host}:{port}/"))
    })
}

async fn ask(host: &str, port: u16, tls: TlsFiles) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    https(host, port, tls).unwrap().attempt(deadline).await
}

#[track_caller]
fn told(found: Result<(), String>, why: &str) {
    let line = found.unwrap_err();
    assert!(line.contains(why) && !line.contains('\n'), "{line}");
}

#[tokio::test]
async fn a_server_is_believed_for_its_name_its_time_and_by_its_authority_only() {
    let test = "a_server_is_believed_for_its_name_its_time_and_by_its_authority_only";
    let (Some(ours), Some(other)) = (Authority::new(test, "ours"), Authority::new(test, "other")) else {
        return;
    };
    let namesake = Authority::new(test, "ours").unwrap();
    let ca = ours.certificate();
    for version in [&TLS12, &TLS13] {
        let good = ours.signed("good", "DNS:localhost,IP:127.0.0.1");
        let port = serve(&good, None, version).await;
        ask("localhost", port, trusts(&ca)).await.unwrap();
        ask("127.0.0.1", port, trusts(&ca)).await.unwrap();
        told(
            ask("localhost", port, trusts(&other.certificate())).await,
            "its certificate is by nobody who is trusted here: give the CA file",
        );
        told(
            ask("localhost", port, trusts(&namesake.certificate())).await,
            "another authority of the same name has signed its certificate",
        );
        // Whom the system trusts does not know us.
        match https("localhost", port, TlsFiles::default()) {
            Ok(mut check) => {
                let found = check.attempt(Instant::now() + Duration::from_secs(60)).await;
                told(found, "its certificate is by nobody who is trusted here");
            }
            Err(error) => assert!(matches!(error, CheckError::NoSystemRoots), "{error}"),
        }
        let plain = format!("http://localhost:{port}/");
        let mut check = Check::http(HttpCheck::new(plain)).unwrap();
        let found = check.attempt(Instant::now() + Duration::from_secs(60)).await;
        told(
            found,
            "what answers there speaks TLS: write https:// into the URL",
        );
    }
    for (pair, why) in [
        (
            ours.signed("elsewhere", "DNS:db.example,IP:192.0.2.1"),
            "its certificate is for another name: ",
        ),
        (
            ours.expired("expired", "DNS:localhost"),
            "its certificate has expired: renew it",
        ),
        (
            ours.early("early", "DNS:localhost"),
            "its certificate is not valid yet",
        ),
    ] {
        let port = serve(&pair, None, &TLS13).await;
        told(ask("localhost", port, trusts(&ca)).await, why);
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_believed_where_it_is_given() {
    let test = "a_self_signed_certificate_is_believed_where_it_is_given";
    let Some(authority) = Authority::new(test, "ours") else {
        return;
    };
    for (name, constraint) in [("as-ca", "CA:TRUE"), ("as-server", "CA:FALSE")] {
        let pair = authority.self_signed(name, Some("DNS:localhost"), constraint);
        let port = serve(&pair, None, &TLS13).await;
        ask("localhost", port, trusts(&pair.certificate)).await.unwrap();
        told(
            ask("127.0.0.1", port, trusts(&pair.certificate)).await,
            "is for another name",
        );
        told(
            ask("localhost", port, trusts(&authority.certificate())).await,
            "its certificate ",
        );
    }
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_gets_it() {
    let test = "a_server_that_wants_a_client_certificate_gets_it";
    let (Some(ours), Some(other)) = (Authority::new(test, "ours"), Authority::new(test, "other")) else {
        return;
    };
    let (ca, clients) = (ours.certificate(), ours.certificate());
    let server = ours.signed("server", "DNS:localhost");
    let client = ours.signed("client", "DNS:client");
    let stranger = other.signed("stranger", "DNS:stranger");
    let both = ours.path("both.pem");
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    std::fs::write(&both, read(&client.certificate) + &read(&client.key)).unwrap();
    for version in [&TLS12, &TLS13] {
        let port = serve(&server, Some(&clients), version).await;
        ask(
            "localhost",
            port,
            shows(&ca, &client.certificate, Some(&client.key)),
        )
        .await
        .unwrap();
        ask("localhost", port, shows(&ca, &both, None)).await.unwrap();
        told(
            ask(
                "localhost",
                port,
                shows(&ca, &stranger.certificate, Some(&stranger.key)),
            )
            .await,
            "it refuses our client certificate",
        );
        told(ask("localhost", port, trusts(&ca)).await, "client certificate");
    }
    let mixed = https(
        "localhost",
        1,
        shows(&ca, &client.certificate, Some(&stranger.key)),
    );
    assert!(
        mixed
            .unwrap_err()
            .to_string()
            .contains("give the key that the certificate was made for")
    );
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_told_and_ends_at_the_deadline() {
    let test = "a_peer_that_does_not_speak_tls_is_told_and_ends_at_the_deadline";
    let Some(authority) = Authority::new(test, "ours") else {
        return;
    };
    let tls = trusts(&authority.certificate());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // A handshake that goes on and on: a message of 16 MiB, 16 KiB at a time.
    let record = [&[22, 3, 3, 64, 0][..], &[11, 255, 255, 255], &[0; 16380]].concat();
    for (says, again, why) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            false,
            "what answers there does not speak TLS: it says \"HTTP/1.1 400 Bad Request\"",
        ),
        (b"", false, "it closed the connection during the TLS handshake"),
        (
            b"\x16\x03\x03",
            false,
            "it closed the connection during the TLS handshake",
        ),
        (
            b"\x15\x03\x03\0\x02\x02\x28",
            false,
            "it ends the TLS handshake (HandshakeFailure)",
        ),
        (&[0; 4096], true, "does not speak TLS"),
        (&record, true, ""),
    ] {
        let mut check = https("127.0.0.1", port, tls.clone()).unwrap();
        let played = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            while stream.write_all(says).await.is_ok() && again {}
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let (found, ()) = tokio::join!(check.attempt(deadline), played);
        told(found, why);
    }
    let mut check = https("127.0.0.1", port, tls).unwrap();
    let found = check.attempt(Instant::now() + Duration::from_millis(100)).await;
    told(found, "timed out in the TLS handshake");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let Some(authority) = Authority::new("files_that_cannot_be_used_are_named", "ours") else {
        return;
    };
    let (ca, pair) = (
        authority.certificate(),
        authority.signed("server", "DNS:localhost"),
    );
    let missing = authority.path("missing.crt");
    let empty = authority.path("empty.crt");
    std::fs::write(&empty, "").unwrap();
    let broken = authority.path("broken.crt");
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let locked = authority.path("locked.key");
    let output = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-passout", "pass:secret", "-in"])
        .args([&pair.key, Path::new("-out"), &locked])
        .output()
        .unwrap();
    assert!(output.status.success());
    let key_only = TlsFiles {
        key: Some(pair.key.clone()),
        ..TlsFiles::default()
    };
    for (files, why) in [
        (trusts(&missing), "missing.crt: No such file"),
        (trusts(&empty), "empty.crt cannot be used"),
        (trusts(&broken), "broken.crt cannot be used"),
        (trusts(&pair.key), "must hold a certificate"),
        (
            shows(&ca, &pair.certificate, Some(&missing)),
            "missing.crt: No such file",
        ),
        (
            shows(&ca, &pair.certificate, Some(&locked)),
            "a private key without a passphrase",
        ),
        (
            shows(&ca, &pair.certificate, None),
            "a private key without a passphrase",
        ),
        (key_only, "but no certificate file"),
    ] {
        let line = https("localhost", 1, files).unwrap_err().to_string();
        assert!(line.contains(why), "{line}");
    }
}

fn to(postgres: &Postgres, host: &str, mode: &str, tls: TlsFiles) -> PostgresCheck {
    PostgresCheck {
        tls,
        ..PostgresCheck::new(format!(
            "postgres://postgres@{host}:{}/postgres?sslmode={mode}",
            postgres.port
        ))
    }
}

#[test]
fn a_postgres_is_asked_over_tls_as_far_as_sslmode_says() {
    let test = "a_postgres_is_asked_over_tls_as_far_as_sslmode_says";
    let (Some(ours), Some(other)) = (Authority::new(test, "ours"), Authority::new(test, "other")) else {
        return;
    };
    let Some(cluster) = Cluster::new(test) else {
        return;
    };
    let (ca, others) = (ours.certificate(), other.certificate());
    let server = ours.signed("server", "DNS:localhost");
    let client = ours.signed("postgres", "DNS:client");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    cluster.put("server.crt", &read(&server.certificate));
    cluster.put("server.key", &read(&server.key));
    cluster.put("clients.crt", &read(&ca));
    cluster.hba("hostssl all all 127.0.0.1/32 trust\n");
    let none = TlsFiles::default;
    {
        let postgres = cluster.start(&["ssl=on"], POSTGRES_IS_UP);
        for (host, mode, files) in [
            ("localhost", "verify-full", trusts(&ca)),
            // libpq's: without a CA file nothing is verified, with one the authority is.
            ("127.0.0.1", "prefer", none()),
            ("127.0.0.1", "require", none()),
            ("127.0.0.1", "require", trusts(&ca)),
            ("127.0.0.1", "verify-ca", trusts(&ca)),
        ] {
            healthy(to(&postgres, host, mode, files));
        }
        let by_words = format!(
            "host=localhost port={} user=postgres sslmode=verify-full dbname=postgres",
            postgres.port
        );
        healthy(PostgresCheck {
            tls: trusts(&ca),
            ..PostgresCheck::new(by_words)
        });
        for (host, mode, files, why) in [
            (
                "127.0.0.1",
                "verify-full",
                trusts(&ca),
                "its certificate is for another name",
            ),
            (
                "localhost",
                "verify-full",
                trusts(&others),
                "by nobody who is trusted here",
            ),
            (
                "localhost",
                "verify-ca",
                trusts(&others),
                "by nobody who is trusted here",
            ),
            (
                "localhost",
                "require",
                trusts(&others),
                "by nobody who is trusted here",
            ),
            ("localhost", "disable", none(), "or sslmode=require to the URL"),
            (
                "localhost",
                "require&sslnegotiation=direct",
                none(),
                "TLS handshake",
            ),
        ] {
            unhealthy(to(&postgres, host, mode, files), why);
        }
        let refused = |mode: &str, files| {
            Check::postgres(to(&postgres, "db", mode, files))
                .unwrap_err()
                .to_string()
        };
        assert!(refused("disable", trusts(&ca)).contains("files for TLS are given"));
    }
    cluster.hba("hostssl all all 127.0.0.1/32 cert\n");
    {
        let postgres = cluster.start(&["ssl=on", "ssl_ca_file=clients.crt"], POSTGRES_IS_UP);
        let full = |files| to(&postgres, "localhost", "verify-full", files);
        healthy(full(shows(&ca, &client.certificate, Some(&client.key))));
        unhealthy(full(trusts(&ca)), "certificate");
        let stranger = other.signed("postgres", "DNS:client");
        unhealthy(
            full(shows(&ca, &stranger.certificate, Some(&stranger.key))),
            "it refuses our client certificate",
        );
    }
    cluster.hba("host all all 127.0.0.1/32 trust\n");
    let postgres = cluster.start(&["ssl=off"], POSTGRES_IS_UP);
    healthy(to(&postgres, "localhost", "prefer", none()));
    for (mode, files) in [("require", none()), ("verify-full", trusts(&ca))] {
        unhealthy(
            to(&postgres, "localhost", mode, files),
            "it does not speak TLS, and sslmode asks for it",
        );
    }
}
