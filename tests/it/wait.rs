//! `io-guardian wait` against real databases.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::databases::{Cluster, Logged, POSTGRES_IS_UP, REDIS_IS_UP, Redis, free_port};

fn wait(args: &[&str]) -> Logged {
    let mut command = Command::new(env!("CARGO_BIN_EXE_io-guardian"));
    command
        .arg("wait")
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET");
    Logged::spawn(&mut command, false)
}

/// Exit code and standard error of one attempt.
fn once(args: &[&str]) -> (Option<i32>, String) {
    wait(&[args, &["--attempts", "1", "--timeout", "30s"]].concat()).end()
}

#[track_caller]
fn ready(args: &[&str]) {
    let (code, said) = once(args);
    assert_eq!(code, Some(0), "{said}");
}

#[track_caller]
fn not_ready(args: &[&str], why: &str) {
    let (code, said) = once(args);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("is not ready after 1 attempt in") && said.contains(why),
        "{said}"
    );
}

/// A file that holds `text`, in a folder that goes with it.
fn file(text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn a_wrong_command_line_or_password_file_is_told_by_exit_code_and_message() {
    let (_folder, empty) = file("\n");
    for (args, code, text) in [
        (&[][..], 64, "--postgres HOST[:PORT] or --redis HOST[:PORT]"),
        (&["--postgres", "db", "--require-primary"], 64, "--user"),
        (&["--postgres", "db:x"], 64, "is no port"),
        (
            &["--redis", "db", "--redis-password-file", "/no/such/file"],
            78,
            "/no/such/file",
        ),
        (
            &["--redis", "db", "--redis-password-file", &empty],
            78,
            "is empty",
        ),
    ] {
        let (found, said) = wait(args).end();
        assert_eq!(found, Some(code), "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn nobody_there_is_named_with_the_cause_and_each_change_is_one_line() {
    let address = format!("127.0.0.1:{}", free_port());
    let (code, said) = wait(&["--redis", &address, "--attempts", "3", "--interval", "10ms"]).end();
    assert_eq!(code, Some(1));
    assert_eq!(said.matches("not ready yet").count(), 1, "{said}");
    let end = format!("redis {address} is not ready after 3 attempts in ");
    assert!(
        said.contains(&end) && said.contains("connection refused"),
        "{said}"
    );
}

#[test]
fn a_signal_ends_it_at_once_and_says_who_was_missing() {
    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT")] {
        let address = format!("127.0.0.1:{}", free_port());
        let waiter = wait(&["--redis", &address, "--interval", "1h"]);
        waiter.wait_for(&["connection refused"]).unwrap();
        waiter.signal(signal);
        let (code, said) = waiter.end();
        assert_eq!(code, Some(1));
        assert!(said.contains(&format!("ended by {name}")), "{said}");
        assert!(
            said.contains(&format!("redis {address} is not ready after 1 attempt")),
            "{said}"
        );
    }
}

#[test]
fn the_service_manager_is_told_how_long_it_may_take_and_when_it_is_ready() {
    let Some(redis) = Redis::start("wait::service_manager", &[], REDIS_IS_UP) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_io-guardian"));
    command
        .args(["wait", "--redis", &redis.address()])
        .env("NOTIFY_SOCKET", &path);
    assert_eq!(Logged::spawn(&mut command, false).end().0, Some(0));
    socket.set_nonblocking(true).unwrap();
    let mut told = String::new();
    let mut datagram = [0; 4096];
    while let Ok(length) = socket.recv(&mut datagram) {
        told.push_str(std::str::from_utf8(&datagram[..length]).unwrap());
    }
    assert!(told.contains("EXTEND_TIMEOUT_USEC=20000000"), "{told}");
    assert!(told.contains("READY=1"), "{told}");
}

#[test]
fn postgres_is_asked_by_its_own_protocol() {
    let Some(cluster) = Cluster::new("wait::postgres_is_asked_by_its_own_protocol") else {
        return;
    };
    let postgres = cluster.start(&[], POSTGRES_IS_UP);
    postgres.execute(&[
        "CREATE ROLE app LOGIN PASSWORD 'right'",
        "CREATE ROLE idle NOLOGIN",
        "CREATE DATABASE app",
    ]);
    drop(postgres);
    cluster.hba(
        "host all postgres,idle,nobody 127.0.0.1/32 trust\n\
         hostssl all secure 127.0.0.1/32 trust\n\
         host all stranger 127.0.0.1/32 reject\n\
         host all app,idle,io_guardian_probe 127.0.0.1/32 scram-sha-256\n",
    );
    let postgres = cluster.start(&[], POSTGRES_IS_UP);
    let address = postgres.address();
    let with = |more: &[&'static str]| [&["--postgres", address.as_str()], more].concat();
    let (_right, right) = file("right\n");
    let (_wrong, wrong) = file("wrong\n");

    ready(&with(&[]));
    assert!(
        !postgres.log().contains("io_guardian_probe"),
        "{}",
        postgres.log()
    );
    ready(&with(&["--user", "postgres", "--require-primary"]));
    let login = with(&["--user", "app", "--require-primary", "--password-file"]);
    ready(&[&login[..], &[&right]].concat());
    not_ready(&[&login[..], &[&wrong]].concat(), "it refuses the password");
    not_ready(&with(&["--user", "app"]), "it asks for a password");
    not_ready(
        &with(&["--user", "nobody"]),
        "the role cannot log in: role \"nobody\" does not exist",
    );
    not_ready(
        &with(&["--user", "idle", "--database", "app"]),
        "is not permitted to log in",
    );
    not_ready(
        &with(&["--user", "postgres", "--database", "nowhere"]),
        "the database is missing",
    );
    not_ready(&with(&["--user", "stranger"]), "it does not let this client in");
    not_ready(
        &with(&["--user", "secure"]),
        "it does not let this client in without TLS",
    );
}

#[test]
fn a_postgres_that_is_full_is_not_ready() {
    let Some(cluster) = Cluster::new("wait::a_postgres_that_is_full_is_not_ready") else {
        return;
    };
    let settings = [
        "max_connections=2",
        "superuser_reserved_connections=0",
        "max_wal_senders=0",
        "autovacuum=off",
    ];
    let postgres = cluster.start(&settings, POSTGRES_IS_UP);
    let held = [postgres.connect(), postgres.connect()];
    let address = postgres.address();
    not_ready(&["--postgres", &address], "all its connections are taken");
    not_ready(
        &["--postgres", &address, "--user", "postgres"],
        "all its connections are taken",
    );
    drop(held);
    let more = ["--interval", "100ms", "--user", "postgres"];
    let (code, said) = wait(&[&["--postgres", address.as_str()], &more[..]].concat()).end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_standby_is_refused_where_a_primary_is_required() {
    let Some(cluster) = Cluster::new("wait::a_standby_is_refused_where_a_primary_is_required") else {
        return;
    };
    cluster.standby();
    let standby = cluster.start(&[], POSTGRES_IS_UP);
    let address = standby.address();
    ready(&["--postgres", &address]);
    ready(&["--postgres", &address, "--user", "postgres"]);
    let strict = ["--postgres", &address, "--user", "postgres", "--require-primary"];
    not_ready(&strict, "it is a standby");
    let (client, runtime) = standby.connect();
    runtime
        .block_on(client.batch_execute("SELECT pg_promote()"))
        .unwrap();
    ready(&strict);
    drop(standby);

    cluster.standby();
    let cold = cluster.start(&["hot_standby=off"], &["entering standby mode"]);
    let waiter = wait(&[
        "--postgres",
        &cold.address(),
        "--interval",
        "50ms",
        "--attempts",
        "1200",
    ]);
    waiter.wait_for(&["Hot standby mode is disabled"]).unwrap();
}

#[test]
fn a_postgres_that_comes_up_late_is_awaited() {
    let Some(cluster) = Cluster::new("wait::a_postgres_that_comes_up_late_is_awaited") else {
        return;
    };
    let port = free_port();
    let waiter = wait(&[
        "--postgres",
        &format!("127.0.0.1:{port}"),
        "--interval",
        "50ms",
        "--attempts",
        "1200",
    ]);
    waiter.wait_for(&["connection refused"]).unwrap();
    let _postgres = cluster.start_on(port, &[], POSTGRES_IS_UP).unwrap();
    let (code, said) = waiter.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ready") && said.contains("elapsed="), "{said}");
}

#[test]
fn redis_is_asked_by_its_own_protocol() {
    let test = "wait::redis_is_asked_by_its_own_protocol";
    let Some(open) = Redis::start(test, &[], REDIS_IS_UP) else {
        return;
    };
    let (_right, right) = file("right\n");
    let (_wrong, wrong) = file("wrong\n");
    let address = open.address();
    ready(&["--redis", &address]);
    not_ready(
        &["--redis", &address, "--redis-password-file", &right],
        "it has no password set",
    );
    open.command(&["ACL", "SETUSER", "app", "on", ">right", "+ping"]);
    open.command(&["ACL", "SETUSER", "mute", "on", ">right"]);
    let login = [
        "--redis",
        &address,
        "--redis-password-file",
        &right,
        "--redis-user",
    ];
    ready(&[&login[..], &["app"]].concat());
    not_ready(
        &[&login[..], &["mute"]].concat(),
        "it does not let this client in: NOPERM",
    );
    let held = open.command(&["CONFIG", "SET", "maxclients", "1"]);
    not_ready(&["--redis", &address], "all its connections are taken");
    drop(held);

    let locked = Redis::start(test, &["--requirepass", "right"], REDIS_IS_UP).unwrap();
    let address = locked.address();
    not_ready(&["--redis", &address], "give --redis-password-file");
    ready(&["--redis", &address, "--redis-password-file", &right]);
    not_ready(
        &["--redis", &address, "--redis-password-file", &wrong],
        "it refuses the password",
    );
}

#[test]
fn a_redis_that_loads_or_lost_its_primary_is_not_ready() {
    let test = "wait::a_redis_that_loads_or_lost_its_primary_is_not_ready";
    let nobody = free_port().to_string();
    let replica = [
        "--replicaof",
        &format!("127.0.0.1 {nobody}"),
        "--replica-serve-stale-data",
        "no",
    ];
    let Some(orphan) = Redis::start(test, &replica, REDIS_IS_UP) else {
        return;
    };
    not_ready(&["--redis", &orphan.address()], "(MASTERDOWN)");
    drop(orphan);

    let folder = Arc::new(tempfile::tempdir().unwrap());
    let debug = ["--enable-debug-command", "yes"];
    let full = Redis::start_in(test, &folder, &debug, REDIS_IS_UP).unwrap();
    full.command(&["DEBUG", "POPULATE", "10000"]);
    full.command(&["SAVE"]);
    drop(full);
    // A delay for each key (in microseconds), as Redis' own tests use.
    let slow = [
        "--key-load-delay",
        "10000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let loading = Redis::start_in(test, &folder, &slow, &["Loading RDB", "RDB memory usage"]).unwrap();
    not_ready(&["--redis", &loading.address()], "(LOADING)");
}

#[test]
fn one_that_was_ready_often_and_then_goes_away_is_not_taken_for_ready() {
    let pong = |stream: &mut TcpStream| {
        let mut question = [0; 256];
        let _ = stream.read(&mut question);
        let _ = stream.write_all(b"+PONG\r\n");
    };
    let (first, second) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let (goes, comes) = (first.local_addr().unwrap(), second.local_addr().unwrap());
    // The first answers more often than there are attempts, and is gone then.
    let (gone, is_gone) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..6 {
            pong(&mut first.accept().unwrap().0);
        }
        drop(first);
        let _ = gone.send(());
    });
    let (goes, comes) = (goes.to_string(), comes.to_string());
    let pace = ["--attempts", "3", "--interval", "20ms", "--timeout", "60s"];
    let waiter = wait(&[&["--redis", goes.as_str(), "--redis", &comes], &pace[..]].concat());
    let (mut silent, _) = second.accept().unwrap();
    let asked_on = is_gone.recv_timeout(std::time::Duration::from_secs(30));
    assert!(
        asked_on.is_ok(),
        "a ready one is not asked any more: {}",
        waiter.log()
    );
    waiter.wait_for(&["connection refused"]).unwrap();
    pong(&mut silent);
    // It is asked on while the first has attempts left.
    std::thread::spawn(move || {
        second
            .incoming()
            .flatten()
            .for_each(|mut stream| pong(&mut stream))
    });
    let (code, said) = waiter.end();
    assert_eq!(code, Some(1), "{said}");
    let end = format!("redis {goes} is not ready after 3 attempts in ");
    assert!(
        said.contains(&end) && said.contains("(6 others found it ready): connection refused"),
        "{said}"
    );
    assert!(
        !said.contains(&format!("redis {comes} is not ready after")),
        "{said}"
    );
}

#[test]
fn databases_are_asked_in_parallel_and_only_the_missing_one_is_named() {
    let test = "wait::databases_are_asked_in_parallel_and_only_the_missing_one_is_named";
    let Some(redis) = Redis::start(test, &[], REDIS_IS_UP) else {
        return;
    };
    let (there, missing) = (redis.address(), format!("127.0.0.1:{}", free_port()));
    let (code, said) = once(&["--redis", &there, "--postgres", &missing]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&format!("postgres {missing} is not ready")),
        "{said}"
    );
    assert!(!said.contains(&format!("redis {there} is not ready")), "{said}");
}
