//! Each wrong argument or file: one message with the place and the remedy, and the exit code.

use super::*;

#[tokio::test]
async fn each_wrong_argument_has_its_message_and_exit_code() {
    let place = Place::new();
    let key = place.path("key");
    let key = shown(&key);
    let short = place.write("short", "too short\n");
    let hosts = place.write("hosts", "app1\nbad host\n\n# fine\n[::1\n");
    let comments = place.write("comments", "# nobody\n");
    let missing = place.path("missing");
    let (short, hosts, comments, missing) = (shown(&short), shown(&hosts), shown(&comments), shown(&missing));
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[], 64, &["Usage:"]),
        (&["explode"], 64, &["explode"]),
        (&["ping"], 64, &["no hosts", "--hosts", "--hosts-file"]),
        (
            &["ping", "--hosts", " , ,"],
            64,
            &["names no host", "write for example --hosts"],
        ),
        (
            &["ping", "--hosts", "a:0,b,c d"],
            64,
            &["\"a:0\"", "\"c d\"", "write HOST"],
        ),
        (
            &["ping", "--hosts", "a", "--hosts-file", hosts],
            64,
            &["cannot be used with"],
        ),
        (
            &["ping", "--hosts", "a"],
            64,
            &["no key", "--psk-file", "GUARDIAN_PSK_FILE"],
        ),
        (
            &["ping", "--hosts", "a", "--psk-file", missing],
            78,
            &["cannot read the key file", missing, "/run/secrets"],
        ),
        (
            &["ping", "--hosts", "a", "--psk-file", short],
            78,
            &["9 characters", short, "openssl rand"],
        ),
        (
            &["ping", "--hosts-file", hosts],
            78,
            &[":2: \"bad host\"", ":5: \"[::1\"", "bracket"],
        ),
        (
            &["ping", "--hosts-file", comments],
            78,
            &["names no host", comments],
        ),
        (
            &["ping", "--hosts-file", missing],
            78,
            &["cannot read the hosts file", missing],
        ),
        (&["ping", "--hosts", "a", "--port", "0"], 64, &["--port"]),
        (&["ping", "--hosts", "a", "--port", "65536"], 64, &["--port"]),
        (
            &["ping", "--hosts", "a", "--timeout", "soon"],
            64,
            &["--timeout", "5s"],
        ),
        (
            &["ping", "--hosts", "a", "--timeout", "0"],
            64,
            &["longer than zero"],
        ),
        (
            &["ping", "--hosts", "a", "--max-parallel", "0"],
            64,
            &["--max-parallel"],
        ),
        (
            &["ping", "--hosts", "a", "--retry-for", "0s"],
            64,
            &["longer than zero"],
        ),
        (
            &["ping", "--hosts", "a", "--output", "xml"],
            64,
            &["text", "json"],
        ),
        (
            &["ping", "--hosts", "a", "--generation", "1"],
            64,
            &["--generation"],
        ),
        (&["drain", "--hosts", "a", "--generation", "-1"], 64, &["-1"]),
        (
            &[
                "drain",
                "--hosts",
                "a",
                "--psk-file",
                key,
                "--generation",
                "1",
                "--generation-file",
                "x",
            ],
            64,
            &["cannot be used with"],
        ),
    ];
    for (arguments, code, parts) in cases {
        let ended = end(bare(arguments)).await;
        assert_eq!(ended.code, Some(*code), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
        for part in *parts {
            assert!(
                ended.stderr.contains(part),
                "{arguments:?} lacks {part:?}: {}",
                ended.stderr
            );
        }
    }
}

#[tokio::test]
async fn the_environment_stands_behind_the_flags() {
    let place = Place::new();
    let server = Server::answering(&[r#"{"type": "response", "action": "ACTION", "status": "ok"}"#]).await;
    let port = server.address.port().to_string();
    let mut command = place.command(&["ping", "--hosts", "127.0.0.1"]);
    command.env("GUARDIAN_PORT", &port).env("GUARDIAN_TIMEOUT", "60");
    let ended = end(command).await;
    assert!(ended.stdout.contains("1 of 1 hosts ok"), "{ended:?}");

    let closed = closed_port().await;
    let (_, closed_port) = closed.rsplit_once(':').unwrap();
    let mut command = place.command(&[
        "ping",
        "--hosts",
        "127.0.0.1",
        "--port",
        closed_port,
        "--output",
        "json",
    ]);
    command.env("GUARDIAN_PORT", &port);
    assert_eq!(
        end(command).await.only_host().message,
        format!("connection refused by {closed}")
    );

    let mut command = place.command(&["ping", "--hosts", "127.0.0.1"]);
    command.env("GUARDIAN_TIMEOUT", "never");
    let ended = end(command).await;
    assert_eq!(ended.code, Some(64));
}

#[tokio::test]
async fn a_corrupt_generation_file_is_named_and_nothing_is_sent() {
    let place = Place::new();
    let server = Server::answering(&[]).await;
    let file = place.write("generation", "yesterday\n");
    let ended = place
        .run(&[
            "drain",
            "--hosts",
            &server.host(),
            "--generation-file",
            shown(&file),
        ])
        .await;
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stderr.contains(shown(&file)) && ended.stderr.contains("remove it"));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_disk_that_remembers_nothing_stops_an_undrain_and_not_a_drain() {
    let place = Place::new();
    let server = Server::answering(&[]).await;
    let file = "/nonexistent/folder/generation";
    let host = server.host();
    let undrain = place
        .run(&[
            "undrain",
            "--hosts",
            &host,
            "--timeout",
            "300ms",
            "--generation-file",
            file,
        ])
        .await;
    assert_eq!(undrain.code, Some(78), "{undrain:?}");
    assert!(undrain.stderr.contains("nothing was sent"), "{undrain:?}");
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    let drain = place
        .run(&[
            "drain",
            "--hosts",
            &host,
            "--timeout",
            "300ms",
            "--generation-file",
            file,
        ])
        .await;
    assert!(
        drain.stderr.contains("draining with one from the clock"),
        "{drain:?}"
    );
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn pages_are_printed() {
    let ended = end(bare(&["completions", "bash"])).await;
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.contains("io-coordinator"));
    let ended = end(bare(&["man"])).await;
    assert_eq!(ended.code, Some(0));
    for part in ["undrain", "fail\\-fast", "even if hosts failed"] {
        assert!(ended.stdout.contains(part), "{part}");
    }
}
