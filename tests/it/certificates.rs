//! Certificates for tests, made by openssl in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::databases::skip;

/// What openssl needs to know to sign; a serial number is drawn each time.
const CONFIGURATION: &str = "
[ca]
default_ca = one
[one]
database = index
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
";

/// An authority, whose certificate is `authority.crt`.
pub(crate) struct Authority {
    folder: TempDir,
}

/// Two files.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// `name` is what others know it by.
    pub(crate) fn new(test: &str, name: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            return skip(test, "openssl is not installed");
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.cnf"), CONFIGURATION).unwrap();
        std::fs::write(folder.path().join("index"), "").unwrap();
        let authority = Self { folder };
        let made = authority.self_signed(name, None, "CA:TRUE");
        std::fs::rename(made.certificate, authority.certificate()).unwrap();
        std::fs::rename(made.key, authority.path("authority.key")).unwrap();
        Some(authority)
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.path("authority.crt")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate that its own key has signed. `names` are such as `DNS:localhost,IP:127.0.0.1`.
    pub(crate) fn self_signed(&self, name: &str, names: Option<&str>, constraint: &str) -> Pair {
        let mut extensions = vec![
            "-addext".to_owned(),
            format!("basicConstraints=critical,{constraint}"),
        ];
        if let Some(names) = names {
            extensions.extend(["-addext".to_owned(), format!("subjectAltName={names}")]);
        }
        let extensions: Vec<&str> = extensions.iter().map(String::as_str).collect();
        let subject = format!("/CN={name}");
        let pair = self.pair(name);
        let ask = [
            "req",
            "-x509",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-out",
            text(&pair.certificate),
        ];
        self.openssl(&[&ask[..], &new_key(&pair.key), &extensions].concat());
        pair
    }

    /// A certificate for a server or a client, valid today.
    pub(crate) fn signed(&self, name: &str, names: &str) -> Pair {
        self.signed_for(name, names, &["-days", "2"])
    }

    /// One that was valid on one day of 2020.
    pub(crate) fn expired(&self, name: &str, names: &str) -> Pair {
        self.signed_for(
            name,
            names,
            &["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"],
        )
    }

    /// One that will be valid in 2048.
    pub(crate) fn early(&self, name: &str, names: &str) -> Pair {
        self.signed_for(
            name,
            names,
            &["-startdate", "20480101000000Z", "-enddate", "20480102000000Z"],
        )
    }

    fn signed_for(&self, name: &str, names: &str, time: &[&str]) -> Pair {
        let pair = self.pair(name);
        let request = self.path(&format!("{name}.csr"));
        let subject = format!("/CN={name}");
        let names = format!("subjectAltName={names}");
        let ask = [
            "req",
            "-nodes",
            "-subj",
            &subject,
            "-addext",
            &names,
            "-out",
            text(&request),
        ];
        self.openssl(&[&ask[..], &new_key(&pair.key)].concat());
        let sign = [
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-in",
            text(&request),
        ];
        let by = ["-cert", "authority.crt", "-keyfile", "authority.key"];
        let into = ["-out", text(&pair.certificate)];
        self.openssl(&[&sign[..], &by, &into, time].concat());
        pair
    }

    fn pair(&self, name: &str) -> Pair {
        Pair {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        }
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Options for a new key, quick to make.
fn new_key(file: &Path) -> [&str; 6] {
    [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-keyout",
        text(file),
    ]
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
