//! TLS, and users: who is who, and what becomes of who is not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission};
use io_guardian::store::{
    Etcd, EtcdConfig, EtcdSettings, LeaseId, Outcome, Revision, Store, StoreError, Transaction,
};

use crate::cluster::{Cluster, Options, folder, has, skip, store, write};
use crate::conformance::{self, PATIENCE, done, grant, list, next, watch};

const PUT: &str = "/pool/a";

fn put() -> Transaction {
    Transaction::default().put(PUT, "", None)
}

/// The error of a request that must not be done, and where it is from.
async fn refusal(store: &Etcd) -> StoreError {
    let list = store.list("/", PATIENCE).await.unwrap_err();
    let commit = store.commit(put(), PATIENCE).await.unwrap_err();
    assert_eq!(
        std::mem::discriminant(&list),
        std::mem::discriminant(&commit),
        "{list:?}, {commit:?}"
    );
    commit
}

/// What the first one has is not looked for in the second one, nor put there.
async fn only_the_first_is_asked(mut first: Cluster, second: Cluster, why: &str) {
    let both = store(&EtcdSettings {
        endpoints: [first.endpoints(), second.endpoints()].concat(),
        ..EtcdSettings::default()
    });
    done(&both, put()).await;
    let lease = grant(&both, conformance::PATIENCE).await;
    first.kill(0);
    let gone = |error: StoreError| {
        let said = format!("{error:?}");
        assert!(said.contains(why) && error != StoreError::LeaseGone, "{said}");
    };
    gone(both.list("/", PATIENCE).await.unwrap_err());
    gone(both.keep_alive(lease, PATIENCE).await.unwrap_err());
    gone(both.commit(put(), PATIENCE).await.unwrap_err());
    assert!(list(&second.store(), "/").await.entries.is_empty());
    first.restart(0);
    first.await_up(0);
    assert_eq!(list(&both, "/").await.entries.len(), 1);
}

/// One that was of ours comes back as another one, at the same address.
#[tokio::test]
async fn a_member_that_has_become_a_cluster_of_its_own_is_not_asked_again() {
    let name = "a_member_that_has_become_a_cluster_of_its_own";
    let Some(mut cluster) = Cluster::start(name, 3) else {
        return;
    };
    // Not the leader: to that one the others pass questions on, by its address, whoever is there.
    let leader = cluster.leader(0).await;
    let (wiped, killed) = ((leader + 1) % 3, (leader + 2) % 3);
    let all = cluster.store_of(&[wiped, leader, killed]);
    done(&all, put()).await;
    // One that outlasts all of this.
    let lease = grant(&all, Duration::from_secs(600)).await;
    cluster.wipe(wiped);
    cluster.kill(killed);
    for _ in 0..3 {
        // The leader is left, which is no majority. What becomes of the lease is its own word.
        let _ = all.keep_alive(lease, PATIENCE).await;
        if let Ok(snapshot) = all.list("/", PATIENCE).await {
            assert_eq!(snapshot.entries.len(), 1);
        }
        all.commit(put(), PATIENCE).await.unwrap_err();
    }
    assert!(list(&cluster.store_of(&[wiped]), "/").await.entries.is_empty());
}

#[tokio::test]
async fn a_member_of_another_cluster_is_not_asked() {
    let name = "a_member_of_another_cluster_is_not_asked";
    if let (Some(first), Some(second)) = (Cluster::start(name, 1), Cluster::start(name, 1)) {
        only_the_first_is_asked(first, second, "of another etcd cluster").await;
    }
}

/// As Debian's package starts them, each for itself: they have the same numbers.
#[tokio::test]
async fn a_member_that_is_a_cluster_of_its_own_is_not_asked() {
    let name = "a_member_that_is_a_cluster_of_its_own_is_not_asked";
    let arguments = [
        "--name=same",
        "--initial-advertise-peer-urls=http://127.0.0.1:1",
        "--initial-cluster=same=http://127.0.0.1:1",
        "--initial-cluster-token=same",
    ];
    let options = Options {
        arguments: arguments.map(str::to_owned).to_vec(),
        tls: false,
    };
    let start = || Cluster::start_with(name, 1, &options);
    if let (Some(first), Some(second)) = (start(), start()) {
        only_the_first_is_asked(first, second, "the same member").await;
    }
}

struct Certificates(tempfile::TempDir);

impl Certificates {
    /// An authority, a server and a client of it, and an authority and a client that nobody knows. None where there is no openssl.
    fn new(test: &str) -> Option<Self> {
        if !has("openssl") {
            skip(test, "openssl is not installed");
            return None;
        }
        let certificates = Self(folder());
        let here = certificates.0.path();
        for authority in ["ca", "other-ca"] {
            openssl(
                here,
                &format!(
                    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
                ),
            );
        }
        for (name, authority, subject) in [
            ("server", "ca", "IP:127.0.0.1"),
            ("misnamed", "ca", "DNS:elsewhere.example"),
            ("client", "ca", "DNS:client.example"),
            ("stranger", "other-ca", "DNS:stranger.example"),
        ] {
            let extensions = format!(
                "subjectAltName={subject}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
            );
            write(here, "extensions", &extensions);
            openssl(
                here,
                &format!(
                    "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
                ),
            );
            openssl(
                here,
                &format!(
                    "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
                ),
            );
        }
        Some(certificates)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self, name: &str) -> Options {
        let argument = |flag: &str, file: String| format!("--{flag}={}", self.path(&file).display());
        Options {
            arguments: vec![
                argument("cert-file", format!("{name}.pem")),
                argument("key-file", format!("{name}.key")),
                argument("trusted-ca-file", "ca.pem".to_owned()),
                "--client-cert-auth".to_owned(),
            ],
            tls: true,
        }
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn tls_holds_both_to_their_certificates() {
    const TEST: &str = "tls_holds_both_to_their_certificates";
    let Some(certificates) = Certificates::new(TEST) else {
        return;
    };
    let Some(mut cluster) = Cluster::start_with(TEST, 1, &certificates.server("server")) else {
        return;
    };
    let settings = |ca: &str, own: Option<&str>| EtcdSettings {
        endpoints: cluster.endpoints(),
        ca_file: Some(certificates.path(ca)),
        cert_file: own.map(|own| certificates.path(&format!("{own}.pem"))),
        key_file: own.map(|own| certificates.path(&format!("{own}.key"))),
        ..EtcdSettings::default()
    };
    let ours = store(&settings("ca.pem", Some("client")));
    conformance::all(&ours, Duration::from_secs(2)).await;

    let refused = async |settings: EtcdSettings, says: &str| {
        let error = refusal(&store(&settings)).await;
        let StoreError::Unavailable(said) = &error else {
            panic!("{error:?}")
        };
        assert!(
            said.contains(&cluster.endpoints()[0]) && said.contains(says),
            "{says} is not in: {said}"
        );
        println!("{said}");
    };
    refused(settings("other-ca.pem", Some("client")), "has not signed").await;
    // A server of TLS 1.3 looks at our certificate after it has taken the connection: when it hangs up, not every client is told why.
    refused(settings("ca.pem", None), "name the certificate file").await;
    refused(settings("ca.pem", Some("stranger")), "authority").await;
    let plain = EtcdSettings {
        endpoints: cluster.endpoints(),
        ..EtcdSettings::default()
    };
    refused(plain, "https://").await;

    // A connection that breaks is made again.
    cluster.kill(0);
    cluster.restart(0);
    cluster.await_up(0);
    list(&ours, "/").await;
}

#[tokio::test]
async fn a_server_that_is_another_is_named() {
    const TEST: &str = "a_server_that_is_another_is_named";
    let Some(certificates) = Certificates::new(TEST) else {
        return;
    };
    let Some(cluster) = Cluster::start_with(TEST, 1, &certificates.server("misnamed")) else {
        return;
    };
    let misnamed = EtcdSettings {
        endpoints: cluster.endpoints(),
        ca_file: Some(certificates.path("ca.pem")),
        cert_file: Some(certificates.path("client.pem")),
        key_file: Some(certificates.path("client.key")),
        ..EtcdSettings::default()
    };
    let error = refusal(&store(&misnamed)).await.to_string();
    assert!(error.contains("another name"), "{error}");
    // What TLS takes apart is refused before anybody is asked.
    let mut mismatched = misnamed.clone();
    mismatched.key_file = Some(certificates.path("stranger.key"));
    let error = Etcd::new(&EtcdConfig::new(&mismatched).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("stranger.key") && error.contains("belongs to"),
        "{error}"
    );

    // TLS to who speaks none.
    let Some(plain) = Cluster::start(TEST, 1) else {
        return;
    };
    let sealed = EtcdSettings {
        endpoints: plain.endpoints(),
        ..misnamed
    };
    let error = refusal(&store(&sealed)).await.to_string();
    assert!(error.contains("does not speak TLS"), "{error}");
}

/// Authentication, with a user who may use `/pool/`; tokens are forgotten after a second without a request.
async fn with_users(test: &str) -> Option<Cluster> {
    let arguments = ["--auth-token-ttl=1", "--bcrypt-cost=4"]
        .map(str::to_owned)
        .to_vec();
    let cluster = Cluster::start_with(
        test,
        1,
        &Options {
            arguments,
            tls: false,
        },
    )?;
    let mut root = cluster.client(0).await;
    root.user_add("root", "root's", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("vip", "vip's", None).await.unwrap();
    root.role_add("pool").await.unwrap();
    let range_end = "/pool0";
    let permission = Permission::read_write("/pool/").with_range_end(range_end);
    root.role_grant_permission("pool", permission).await.unwrap();
    root.user_grant_role("vip", "pool").await.unwrap();
    Some(cluster)
}

async fn root(cluster: &Cluster) -> Client {
    let options = ConnectOptions::new()
        .with_user("root", "root's")
        .with_auto_token_refresh(true);
    Client::connect(cluster.endpoints(), Some(options)).await.unwrap()
}

#[tokio::test]
async fn users_do_what_they_may_and_are_told_what_they_may_not() {
    const TEST: &str = "users_do_what_they_may";
    let Some(mut cluster) = with_users(TEST).await else {
        return;
    };
    let folder = folder();
    let settings = |user: &str, password: &str| EtcdSettings {
        endpoints: cluster.endpoints(),
        user: Some(user.to_owned()),
        password_file: Some(write(folder.path(), password, &format!("{password}\n"))),
        ..EtcdSettings::default()
    };
    let (ours, wrong) = (
        store(&settings("vip", "vip's")),
        store(&settings("vip", "sesame")),
    );
    let nobody = store(&EtcdSettings {
        endpoints: cluster.endpoints(),
        ..EtcdSettings::default()
    });
    // Before authentication is enabled a login is of no use, and no harm.
    for store in [&ours, &wrong, &nobody] {
        done(store, put()).await;
    }
    cluster.client(0).await.auth_enable().await.unwrap();

    // The same connections are taken up with a login now; and one that is new is, too.
    let late = store(&settings("vip", "vip's"));
    for store in [&ours, &late] {
        let lease = grant(store, Duration::from_secs(30)).await;
        let revision = done(store, Transaction::default().put(PUT, "", Some(lease))).await;
        assert_eq!(list(store, "/pool/").await.entries.len(), 1);
        store.keep_alive(lease, PATIENCE).await.unwrap();
        let mut watch = watch(store, "/pool/", Revision(revision.0 - 1)).await;
        assert_eq!(next(&mut watch).await.revision, revision);
    }
    // What is not theirs.
    let elsewhere = Transaction::default().put("/elsewhere", "", None);
    let errors = [
        late.commit(elsewhere, PATIENCE).await.unwrap_err(),
        late.list("/", PATIENCE).await.unwrap_err(),
        late.watch("/", Revision(1), PATIENCE).await.err().unwrap(),
    ];
    for error in errors {
        let StoreError::NotAllowed(said) = &error else {
            panic!("{error:?}")
        };
        assert!(
            said.contains(&cluster.endpoints()[0]) && said.contains("permission denied"),
            "{said}"
        );
        assert!(said.contains("grant-permission"), "{said}");
    }
    let late_wrong = store(&settings("vip", "sesame"));
    for wrong in [&wrong, &late_wrong, &store(&settings("who", "vip's"))] {
        let error = refusal(wrong).await;
        let StoreError::NotAllowed(said) = &error else {
            panic!("{error:?}")
        };
        assert!(said.contains("correct the user, or the password"), "{said}");
        assert!(!said.contains("sesame"), "{said}");
        assert!(!format!("{wrong:?}").contains("sesame"));
    }
    let StoreError::NotAllowed(said) = refusal(&nobody).await else {
        panic!()
    };
    assert!(said.contains("name a user"), "{said}");

    // A role that changes makes all that was known of users old.
    let mut root = root(&cluster).await;
    root.role_add("more").await.unwrap();
    done(&late, put()).await;
    root.user_change_password("vip", "new").await.unwrap();
    let error = refusal(&late).await;
    assert!(matches!(error, StoreError::NotAllowed(_)), "{error:?}");
    done(&store(&settings("vip", "new")), put()).await;

    // A member that starts again has forgotten all tokens.
    let kept = store(&settings("vip", "new"));
    done(&kept, put()).await;
    cluster.kill(0);
    cluster.restart(0);
    cluster.await_up(0);
    list(&kept, "/pool/").await;
    assert!(matches!(kept.commit(put(), PATIENCE).await, Ok(Outcome::Done(_))));
}

#[tokio::test]
async fn a_token_that_has_expired_is_renewed() {
    const TEST: &str = "a_token_that_has_expired_is_renewed";
    let Some(cluster) = with_users(TEST).await else {
        return;
    };
    cluster.client(0).await.auth_enable().await.unwrap();
    let folder = folder();
    let ours = store(&EtcdSettings {
        endpoints: cluster.endpoints(),
        user: Some("vip".to_owned()),
        password_file: Some(write(folder.path(), "password", "vip's")),
        ..EtcdSettings::default()
    });
    let lease: LeaseId = grant(&ours, Duration::from_secs(60)).await;
    let mut revision = done(&ours, put()).await;
    let mut there = watch(&ours, "/pool/", revision).await;
    // Nobody tells when a token is forgotten, and to ask makes it young again: it lasts a second, and etcd looks once a second.
    let expired = async || tokio::time::sleep(Duration::from_millis(3_500)).await;
    expired().await;
    revision = done(&ours, put()).await;
    assert_eq!(next(&mut there).await.revision, revision, "the watch goes on");
    expired().await;
    ours.keep_alive(lease, PATIENCE).await.unwrap();
    expired().await;
    let mut here = watch(&ours, "/pool/", Revision(revision.0 - 1)).await;
    assert_eq!(next(&mut here).await.revision, revision);
    expired().await;
    list(&ours, "/pool/").await;
}
