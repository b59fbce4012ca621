use super::*;

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    times: TimeArgs,
    #[command(flatten)]
    monitor: MonitorArgs,
}

fn read(arguments: &[&str]) -> Result<Config, Failure> {
    let args = <Arguments as clap::Parser>::try_parse_from(["x"].iter().chain(arguments))
        .map_err(|error| Failure::usage(error.to_string()))?;
    Config::read(&args.file, &args.folder, &args.times, &args.monitor)
}

#[test]
fn the_flags_of_the_seed_mean_what_they_meant() {
    let config = read(&[
        "--monitor",
        "/var/lib/mysql/",
        "--ports",
        "3306,3307",
        "--sleep",
        "1",
        "--wait",
        "60",
        "--touchfile",
        ".x",
    ])
    .unwrap();
    let folder = &config.folders[0];
    assert_eq!(folder.path, "/var/lib/mysql");
    assert_eq!(folder.ports, Ports::new([3306, 3307], []));
    assert_eq!(
        (folder.sleep, folder.touchfile.as_str()),
        (Duration::from_secs(1), ".x")
    );
    let watch = config.defaults.watch(Some(folder), None);
    assert_eq!(
        (watch.heartbeat, watch.wait),
        (HEARTBEAT, Duration::from_secs(60))
    );
    assert_eq!(
        config.rules,
        Rules {
            new: true,
            established: true,
            allowed: Vec::new()
        }
    );
}

#[test]
fn sleep_follows_the_heartbeat_and_must_be_less_than_half_of_it() {
    let sleep = |heartbeat: &str| {
        let config = read(&["--monitor", "/data", "--ports", "1", "--heartbeat", heartbeat]).unwrap();
        config.folders[0].sleep
    };
    assert_eq!(sleep("20s"), Duration::from_secs(1));
    assert_eq!(sleep("500ms"), Duration::from_millis(100));
    assert_eq!(sleep("250ms"), Duration::from_millis(50));
    let error = read(&[
        "--monitor",
        "/data",
        "--ports",
        "1",
        "--heartbeat",
        "1s",
        "--sleep",
        "500ms",
    ])
    .unwrap_err();
    assert_eq!(error.code, crate::cli::EXIT_USAGE);
    for part in ["/data", "sleep (500ms)", "heartbeat (1s)"] {
        assert!(error.messages[0].contains(part), "{error:?}");
    }
}

#[test]
fn a_busy_disk_is_given_three_heartbeats_or_what_is_written_and_never_less_than_one() {
    let limit = |more: &[&str]| {
        let folder = ["--monitor", "/data", "--ports", "1", "--heartbeat", "2s"];
        read(&[&folder, more].concat()).map(|config| {
            let folder = config.folders.first();
            config.defaults.watch(folder, None).busy_limit
        })
    };
    assert_eq!(limit(&[]).unwrap(), Duration::from_secs(6));
    for (text, seconds) in [("2s", 2), ("1m", 60)] {
        assert_eq!(
            limit(&["--busy-limit", text]).unwrap(),
            Duration::from_secs(seconds)
        );
    }
    let error = limit(&["--busy-limit", "1s"]).unwrap_err();
    for part in ["/data", "busy-limit (1s)", "heartbeat (2s)"] {
        assert!(error.messages[0].contains(part), "{error:?}");
    }

    // What a reporter says, and one that has a longer heartbeat than this monitor's limit.
    let config = read(&["--busy-limit", "10s"]).unwrap();
    let said = |heartbeat_ms, busy_limit_ms| Registration {
        folder: "/data".to_owned(),
        ports: Ports::new([1], []),
        sleep_ms: 100,
        heartbeat_ms,
        busy_limit_ms,
        warn_latency_ms: None,
        on_error: None,
    };
    for (said, seconds) in [
        (said(None, None), 10),
        (said(Some(20_000), None), 20),
        (said(Some(2_000), Some(3_000)), 3),
    ] {
        assert_eq!(
            config.defaults.watch(None, Some(&said)).busy_limit,
            Duration::from_secs(seconds),
            "{said:?}"
        );
    }
    // An older reporter's words.
    let older = r#"{"beat":{"folder":"/data","took_us":830,"how":"direct"}}"#;
    let beat = serde_json::from_str(older).unwrap();
    assert!(matches!(
        beat,
        super::super::wire::Request::Beat { device: None, .. }
    ));
}

#[test]
fn a_file_is_read_whole_and_each_mistake_of_it_has_its_place() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("config.toml");
    let with = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read(&["--config", path.to_str().unwrap()])
    };
    let config = with(
        r#"
heartbeat = "3s"
wait = "0s"
cut = ["established"]
allow = ["10.0.0.9/32", "fd00::/8"]
on-fence-unit = "io-fence-drain.service"
metrics = "127.0.0.1:9878"
reporter-users = ["root", 7]
[[folder]]
path = "/data"
ports = [5432]
heartbeat = "2s"
busy-limit = "5s"
on-error = { enospc = "fence" }
warn-latency = "1s"
[[folder]]
path = "/more"
udp-ports = [53]
"#,
    )
    .unwrap();
    assert_eq!(config.reporter_users, BTreeSet::from([0, 7]));
    assert!(!config.rules.new && config.rules.allowed.len() == 2);
    let watch = config.defaults.watch(Some(&config.folders[0]), None);
    assert_eq!(
        (watch.heartbeat, watch.wait),
        (Duration::from_secs(2), Duration::from_secs(2))
    );
    assert_eq!(watch.busy_limit, Duration::from_secs(5));
    let other = config.defaults.watch(Some(&config.folders[1]), None);
    assert_eq!(other.busy_limit, Duration::from_secs(9));
    assert_eq!(watch.on_error.enospc, super::super::core::Verdict::Fence);
    assert_eq!(watch.on_error.eio, super::super::core::Verdict::Fence);
    assert_eq!(config.folders[1].ports, Ports::new([], [53]));
    assert_eq!(config.folders[1].sleep, Duration::from_millis(600));

    let error = with("heartbeat = \"3s\"\nheart-beat = 3\n").unwrap_err();
    assert_eq!(error.code, crate::cli::EXIT_CONFIG);
    assert!(
        error.messages[0].contains("config.toml:2: unknown field `heart-beat`"),
        "{error:?}"
    );
    let error = with("[[folder]]\npath = \"data\"\nports = [1]\n[[folder]]\npath = \"/a\"\n[[folder]]\npath = \"/a\"\nports = [0]\ntouchfile = \"a/b\"\n").unwrap_err();
    for part in [
        "\"data\": write the whole path",
        "/a: no ports",
        "named twice",
        "0 is no port",
        "\"a/b\" is no name",
    ] {
        assert!(
            error.messages.iter().any(|m| m.contains(part)),
            "{part}: {error:?}"
        );
    }
    for (text, part) in [
        ("cut = []", "cut is empty"),
        ("allow = [\"10.0.0.9/8\"]", "bits that its prefix does not cover"),
        ("on-fence-unit = \"drain\"", "write it with its suffix"),
        ("reporter-users = [\"nobody-has-this-name\"]", "there is no user"),
        ("heartbeat = 5", "with a unit"),
        (
            "busy-limit = \"4s\"\n[[folder]]\npath = \"/a\"\nports = [1]",
            "busy-limit (4s) is shorter than heartbeat (5s)",
        ),
        ("on-error = \"fence\"", "unknown field"),
        (
            "[[folder]]\npath = \"/a\"\nports = [1]\nheartbeat = \"10ms\"",
            "heartbeat (10ms)",
        ),
    ] {
        let error = with(text).unwrap_err();
        assert!(
            error.messages.iter().any(|m| m.contains(part)),
            "{text}: {error:?}"
        );
    }
}
