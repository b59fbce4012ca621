//! Health checks against real databases, and against an HTTP server that is ours.

use std::time::Duration;

use io_guardian::cli::HostPort;
use io_guardian::probe::{Check, HttpCheck, Password, PostgresCheck, RedisCheck, RedisLogin, RedisRole};
use io_guardian::telemetry::http;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::databases::{Cluster, POSTGRES_IS_UP, Postgres, REDIS_IS_UP, Redis, free_port};

/// One attempt, with a deadline that is far.
pub(crate) fn attempt(check: &mut Check) -> Result<(), String> {
    attempt_within(check, Duration::from_secs(60))
}

fn attempt_within(check: &mut Check, time: Duration) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { check.attempt(Instant::now() + time).await })
}

#[track_caller]
pub(crate) fn healthy(check: PostgresCheck) {
    attempt(&mut Check::postgres(check).unwrap()).unwrap();
}

#[track_caller]
pub(crate) fn unhealthy(check: PostgresCheck, why: &str) {
    let line = attempt(&mut Check::postgres(check).unwrap()).unwrap_err();
    assert!(line.contains(why) && !line.contains('\n'), "{line}");
}

fn url(postgres: &Postgres) -> String {
    format!("postgres://postgres@{}/postgres", postgres.address())
}

fn asks(url: &str, query: &str, expected: Option<&str>) -> PostgresCheck {
    PostgresCheck {
        query: Some(query.to_owned()),
        expected_response: expected.map(str::to_owned),
        ..PostgresCheck::new(url)
    }
}

#[test]
fn a_query_tells_whether_a_postgres_is_healthy() {
    let test = "a_query_tells_whether_a_postgres_is_healthy";
    let Some(cluster) = Cluster::new(test) else {
        return;
    };
    cluster.hba(
        "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\nlocal all all trust\n",
    );
    let sockets = cluster.folder().to_str().unwrap().to_owned();
    let postgres = cluster.start(
        &[&format!("unix_socket_directories={sockets}"), "log_statement=all"],
        POSTGRES_IS_UP,
    );
    postgres.execute(&[
        "CREATE ROLE app LOGIN PASSWORD 'sec ret'",
        "CREATE TABLE t (id int)",
    ]);
    let url = url(&postgres);

    healthy(PostgresCheck::new(&url));
    healthy(asks(&url, PostgresCheck::IS_IN_RECOVERY, Some("f")));
    healthy(asks(&url, "SELECT NULL", None));
    healthy(asks(&url, "SELECT * FROM t", None));
    healthy(asks(
        &url,
        "SELECT 'a', 'b' UNION ALL SELECT 'c', 'd' ORDER BY 1;",
        Some("a"),
    ));
    healthy(asks(&url, "BEGIN; SELECT 'in'; COMMIT", Some("in")));
    for (query, expected, why) in [
        (
            PostgresCheck::IS_IN_RECOVERY,
            "t",
            "the query gives \"f\", and \"t\" is expected",
        ),
        ("SELECT NULL", "", "the query gives NULL"),
        ("SELECT * FROM t", "1", "the query gives no row"),
        ("SELECT", "1", "the query gives no column"),
        ("SELECT E'a\\nb'", "a", "the query gives \"a b\""),
        ("SELEC 1", "1", "syntax error"),
        ("SELECT 1/0", "1", "division by zero"),
        ("SELECT repeat('x', 100000)", "x", "it says more than 64 KiB"),
        ("COPY t TO STDOUT", "1", "the query gets no answer"),
        ("COPY t FROM STDIN", "1", "the query gets no answer"),
    ] {
        unhealthy(asks(&url, query, Some(expected)), why);
    }

    // The library drops the server's last words where the end of the connection overtakes them.
    let ended = asks(&url, "SELECT pg_terminate_backend(pg_backend_pid())", Some("t"));
    let line = attempt(&mut Check::postgres(ended).unwrap()).unwrap_err();
    assert!(
        line.contains("it is shutting down") || line.contains("the query gets no answer"),
        "{line}"
    );

    let app = |password: &str| {
        let password = Some(Password::given(password.to_owned()).unwrap());
        PostgresCheck {
            user: Some("app".to_owned()),
            password,
            ..PostgresCheck::new(&url)
        }
    };
    healthy(app("sec ret"));
    unhealthy(app("wrong"), "it refuses the password");
    let in_url =
        |login: &str| PostgresCheck::new(format!("postgres://{login}@{}/postgres", postgres.address()));
    healthy(in_url("app:sec%20ret"));
    unhealthy(in_url("app:wrong"), "it refuses the password");
    unhealthy(in_url("app"), "it asks for a password: give one");
    // What is given beside the URL goes before what is in it.
    healthy(PostgresCheck {
        password: Some(Password::given("sec ret".to_owned()).unwrap()),
        ..in_url("app:wrong")
    });
    unhealthy(
        PostgresCheck::new(format!("{url}x")),
        "or name another in the URL",
    );

    let socket = format!(
        "postgres:///postgres?user=postgres&port={}&host={sockets}",
        postgres.port
    );
    healthy(PostgresCheck::new(&socket));
    let encoded = sockets.replace('/', "%2F");
    healthy(PostgresCheck::new(format!(
        "postgres://app@{encoded}:{}/postgres",
        postgres.port
    )));
    healthy(PostgresCheck::new(format!(
        "host={sockets} port={} user=app dbname=postgres",
        postgres.port
    )));
    let shown = Check::postgres(PostgresCheck::new(&socket)).unwrap().to_string();
    assert_eq!(
        shown,
        format!("postgres {sockets}/.s.PGSQL.{}/postgres", postgres.port)
    );
    unhealthy(
        PostgresCheck::new("host=/nowhere user=app"),
        "its socket \"/nowhere/.s.PGSQL.5432\" cannot be connected to",
    );

    // The server is told when to give up, and with each query only.
    assert!(
        postgres.log().contains("SET LOCAL statement_timeout = "),
        "{}",
        postgres.log()
    );
    a_query_that_waits_costs_no_session(&postgres, &url);
}

fn a_query_that_waits_costs_no_session(postgres: &Postgres, url: &str) {
    let (holder, holding) = postgres.connect();
    holding
        .block_on(holder.batch_execute("BEGIN; LOCK TABLE t"))
        .unwrap();
    let mut check = Check::postgres(asks(url, "SELECT * FROM t", None)).unwrap();
    for _ in 0..3 {
        let line = attempt_within(&mut check, Duration::from_millis(500)).unwrap_err();
        // On a busy machine our own deadline may be the first.
        assert!(
            line.contains("statement timeout") || line.contains("timed out"),
            "{line}"
        );
    }
    // By another one: a transaction sees the sessions as they were when it first looked.
    let (watcher, runtime) = postgres.connect();
    let count = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'io_guardian_probe'";
    for _ in 0..10_000 {
        let rows = runtime.block_on(watcher.simple_query(count)).unwrap();
        let left = rows.iter().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        if left.as_deref() == Some("0") {
            return;
        }
    }
    panic!("a query that nobody waits for any more goes on");
}

#[test]
fn a_standby_is_told_from_a_primary_by_the_query() {
    let Some(cluster) = Cluster::new("a_standby_is_told_from_a_primary_by_the_query") else {
        return;
    };
    cluster.standby();
    let postgres = cluster.start(&[], POSTGRES_IS_UP);
    let url = url(&postgres);
    healthy(PostgresCheck::new(&url));
    healthy(asks(&url, PostgresCheck::IS_IN_RECOVERY, Some("t")));
    unhealthy(
        asks(&url, PostgresCheck::IS_IN_RECOVERY, Some("f")),
        "the query gives \"t\", and \"f\" is expected",
    );
}

#[test]
fn a_connection_url_that_cannot_be_used_says_why_and_no_password() {
    for (url, text) in [
        ("", "names no user"),
        ("db", "cannot be used"),
        ("postgres://db/app", "names no user"),
        ("postgres://app:secret@/app", "the host is missing"),
        ("postgres://app:secret@a,b/app", "it names several servers"),
        ("postgres://app:secret@db:0/app", "its port is none"),
        ("postgres://app:secret@db:x/app", "port"),
        ("postgres://app:secret@db/app?sslmode=sometimes", "sslmode"),
        ("postgres://app:secret@db/app?secre=t", "unknown option"),
        (
            "postgres://app:secret@db/app?sslrootcert=/ca",
            "files of TLS are given beside it",
        ),
        (
            "postgres://app:secret@db/app?target_session_attrs=read-write",
            "SELECT pg_is_in_recovery()",
        ),
        (
            "postgres://app:secret@db/app?channel_binding=require",
            "cannot be met",
        ),
        (
            "host=/run hostaddr=127.0.0.1 user=app password=secret",
            "a socket and an address",
        ),
        ("host=db user=app password='secret", "cannot be used"),
        #[cfg(not(feature = "tls"))]
        (
            "postgres://app:secret@db/app?sslmode=require",
            "built without TLS",
        ),
        #[cfg(not(feature = "tls"))]
        (
            "postgres://app:secret@db/app?sslmode=verify-full",
            "built without TLS",
        ),
    ] {
        let line = Check::postgres(PostgresCheck::new(url)).unwrap_err().to_string();
        assert!(line.contains(text) && !line.contains("secret"), "{url}: {line}");
    }
    let line = Check::postgres(asks("postgres://app@db", " ", None))
        .unwrap_err()
        .to_string();
    assert!(line.contains("the query is empty"), "{line}");
    let shown = |url: &str| Check::postgres(PostgresCheck::new(url)).unwrap().to_string();
    assert_eq!(shown("postgres://app:secret@db/x"), "postgres db:5432/x");
    assert_eq!(
        shown("postgres://app:secret@[::1]:5433"),
        "postgres [::1]:5433/app"
    );
    assert_eq!(
        shown("host=db hostaddr=192.0.2.1 user=app"),
        "postgres db:5432/app"
    );
    let debug = format!("{:?}", PostgresCheck::new("postgres://app:secret@db/x"));
    assert!(!debug.contains("secret"), "{debug}");
}

fn redis(address: &str, password: Option<&str>, expected_role: Option<RedisRole>) -> Check {
    Check::redis(RedisCheck {
        address: HostPort::parse(address).unwrap(),
        login: password.map(|password| RedisLogin {
            user: None,
            password: Password::given(password.to_owned()).unwrap(),
        }),
        expected_role,
    })
}

#[test]
fn a_redis_is_healthy_by_its_word_and_its_role() {
    let test = "a_redis_is_healthy_by_its_word_and_its_role";
    let Some(master) = Redis::start(test, &["--requirepass", "secret"], REDIS_IS_UP) else {
        return;
    };
    let port = master.port.to_string();
    let follows = ["--replicaof", "127.0.0.1", &port, "--masterauth", "secret"];
    let Some(replica) = Redis::start(test, &follows, &["MASTER <-> REPLICA sync: Finished"]) else {
        return;
    };
    let (master, replica) = (master.address(), replica.address());
    for role in [None, Some(RedisRole::Master)] {
        attempt(&mut redis(&master, Some("secret"), role)).unwrap();
    }
    for role in [None, Some(RedisRole::Replica)] {
        attempt(&mut redis(&replica, None, role)).unwrap();
    }
    for (mut check, why) in [
        (
            redis(&master, Some("secret"), Some(RedisRole::Replica)),
            "its role is \"master\", and \"replica\" is expected",
        ),
        (
            redis(&replica, None, Some(RedisRole::Master)),
            "its role is \"replica\", and \"master\" is expected",
        ),
        (
            redis(&master, None, Some(RedisRole::Master)),
            "it wants a password (NOAUTH), and without one cannot be asked whether it is ready: give one",
        ),
        (redis(&master, Some("wrong"), None), "it refuses the password"),
    ] {
        let line = attempt(&mut check).unwrap_err();
        assert!(line.contains(why), "{line}");
    }
}

#[test]
fn our_own_server_is_healthy_by_http() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let closing = CancellationToken::new();
        let server = tokio::spawn(http::serve(listener, http::Limits::FEW, closing.clone(), answer));
        for (path, healthy) in [("health", true), ("health?lag=1", true), ("other", false)] {
            let check = HttpCheck {
                expected_response_contains: Some("up and well".to_owned()),
                ..HttpCheck::new(format!("http://localhost:{port}/{path}"))
            };
            let deadline = Instant::now() + Duration::from_secs(60);
            let found = Check::http(check).unwrap().attempt(deadline).await;
            assert_eq!(found.is_ok(), healthy, "{found:?}");
        }
        closing.cancel();
        server.await.unwrap();
    });
}

async fn answer(request: http::Request) -> http::Response {
    match request.uri().path() {
        "/health" => http::text(http::StatusCode::OK, "it is up and well"),
        _ => http::not_found("/health"),
    }
}

#[test]
fn a_connection_is_enough_for_tcp() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let check = |address: &str| Check::tcp(HostPort::parse(address).unwrap());
    let mut tcp = check(&address).unwrap();
    assert_eq!(tcp.to_string(), format!("tcp {address}"));
    attempt(&mut tcp).unwrap();
    drop(listener);
    let line = attempt(&mut check(&format!("127.0.0.1:{}", free_port())).unwrap()).unwrap_err();
    assert!(line.starts_with("connection refused: "), "{line}");
    let line = check("db").unwrap_err().to_string();
    assert!(line.contains("names no port"), "{line}");
}
