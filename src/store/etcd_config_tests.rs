//! What an operator may write, and what is said of the rest.

use std::path::Path;

use super::*;

const CERT_PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const KEY_PEM: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

fn of(endpoints: &[&str]) -> EtcdSettings {
    EtcdSettings {
        endpoints: endpoints.iter().map(|&text| text.to_owned()).collect(),
        ..EtcdSettings::default()
    }
}

/// All that is wrong, a line each.
fn wrong(settings: &EtcdSettings) -> String {
    let errors = EtcdConfig::new(settings).unwrap_err();
    errors.iter().map(|error| format!("{error}\n")).collect()
}

fn written(folder: &Path, name: &str, text: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    Some(path)
}

#[test]
fn endpoints_are_read_as_people_write_them() {
    let settings = of(&["a", " b:1 ", "HTTP://c:2/", "[fd00::1]", "192.0.2.7:2379"]);
    let config = EtcdConfig::new(&settings).unwrap();
    let shown: Vec<_> = config.endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["a:2379", "b:1", "c:2", "[fd00::1]:2379", "192.0.2.7:2379"]
    );
    assert!(config.tls.is_none() && config.login.is_none());
}

#[test]
fn what_is_no_endpoint_is_named_with_its_remedy() {
    for (endpoints, says) in [
        (&[][..], "name"),
        (&["a:0"], "\"0\" is no port"),
        (&["unix:///run/etcd"], "more in it"),
        (&["ftp://a"], "\"ftp://a\" is neither http:// nor https://"),
        (&["a/b"], "number 1"),
        (&["x", "a:1", "a:1"], "a:1 is named twice"),
        (&["a", "a:2379"], "a:2379 is named twice"),
        (
            &["http://a", "https://b"],
            "mix http:// (http://a) and https:// (https://b)",
        ),
        (&["https://a"], "CA file"),
    ] {
        let said = wrong(&of(endpoints));
        assert!(said.contains(says), "{endpoints:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{endpoints:?}: {said}");
    }
    // Where a password may be, nothing is shown.
    let said = wrong(&of(&["a", "http://vip:sesame@b:2379"]));
    assert!(said.contains("number 2") && !said.contains("sesame"), "{said}");
}

#[test]
fn bare_endpoints_are_tls_where_there_is_something_to_do_it_with() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let whole = EtcdSettings {
        ca_file: written(here, "ca.pem", CERT_PEM),
        cert_file: written(here, "cert.pem", CERT_PEM),
        key_file: written(here, "key.pem", KEY_PEM),
        ..of(&["a", "b"])
    };
    for endpoints in [["a", "b"], ["https://a", "b"], ["https://a", "https://b"]] {
        let settings = EtcdSettings {
            endpoints: endpoints.map(str::to_owned).to_vec(),
            ..whole.clone()
        };
        let tls = EtcdConfig::new(&settings).unwrap().tls.unwrap();
        assert_eq!(tls.own.unwrap().key.as_slice(), KEY_PEM.as_bytes());
    }
    let shown = format!("{:?}", EtcdConfig::new(&whole).unwrap());
    assert!(
        shown.contains("key.pem") && !shown.contains("BEGIN") && !shown.contains("65, 65"),
        "{shown}"
    );

    let said = |change: &dyn Fn(&mut EtcdSettings)| {
        let mut settings = whole.clone();
        change(&mut settings);
        wrong(&settings)
    };
    let swapped = said(&|settings| std::mem::swap(&mut settings.cert_file, &mut settings.key_file));
    assert!(swapped.contains("key.pem holds no certificate"), "{swapped}");
    assert!(swapped.contains("cert.pem holds no private key"), "{swapped}");
    for (change, says) in [
        (
            &(|settings: &mut EtcdSettings| settings.endpoints = vec!["http://a".to_owned()])
                as &dyn Fn(&mut _),
            "http://a is http://, but there is",
        ),
        (&|settings: &mut EtcdSettings| settings.ca_file = None, "CA file"),
        (
            &|settings: &mut EtcdSettings| settings.key_file = None,
            "cert.pem is of no use without the key file",
        ),
        (
            &|settings: &mut EtcdSettings| settings.cert_file = None,
            "key.pem is of no use without the certificate file",
        ),
        (
            &|settings: &mut EtcdSettings| settings.ca_file = Some("/nowhere/ca.pem".into()),
            "cannot read the CA file /nowhere/ca.pem",
        ),
    ] {
        let said = said(change);
        assert!(said.contains(says) && said.lines().count() == 1, "{says}: {said}");
    }
    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
    ] {
        let said = said(&|settings| settings.key_file = written(here, "encrypted.pem", encrypted));
        assert!(said.contains("encrypted.pem is encrypted"), "{said}");
    }
}

#[test]
fn a_login_is_whole_and_its_password_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let login = |user: Option<&str>, password: Option<&[u8]>| EtcdSettings {
        user: user.map(str::to_owned),
        password_file: password.map(|bytes| {
            let path = folder.path().join(format!("password-{}", bytes.len()));
            std::fs::write(&path, bytes).unwrap();
            path
        }),
        ..of(&["a"])
    };
    let config = EtcdConfig::new(&login(Some("vip"), Some(b"sesame\n"))).unwrap();
    assert_eq!(config.login.as_ref().unwrap().password.expose(), b"sesame");
    assert!(!format!("{config:?}").contains("sesame"));
    assert!(EtcdConfig::new(&login(Some(""), None)).unwrap().login.is_none());
    for (settings, says) in [
        (login(Some("vip"), None), "user \"vip\" needs a password file"),
        (login(None, Some(b"sesame")), "without a user"),
        (login(Some(""), Some(b"sesame")), "without a user"),
        (login(Some("vip"), Some(b"\n")), "empty"),
        (login(Some("vip"), Some(b"sesame\xff")), "no UTF-8"),
    ] {
        let said = wrong(&settings);
        assert!(said.contains(says) && !said.contains("sesame"), "{says}: {said}");
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let settings = EtcdSettings {
        user: Some("vip".to_owned()),
        ca_file: Some("/nowhere/ca.pem".into()),
        key_file: Some("/nowhere/key.pem".into()),
        ..of(&["a:x", "b@c", "d"])
    };
    assert_eq!(wrong(&settings).lines().count(), 5, "{}", wrong(&settings));
}
