//! Many hosts, later attempts, generations, signals.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Mutex;

use io_guardian::coordinator::Verdict;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;

const OK: &[&str] = &[r#"{"type": "response", "action": "ACTION", "status": "ok", "message": "done"}"#];

async fn silent() -> Server {
    Server::start(|stream, _| async move {
        pending::<()>().await;
        drop(stream);
    })
    .await
}

#[tokio::test]
async fn one_host_that_swallows_everything_costs_only_itself() {
    let place = Place::new();
    let silent = silent().await;
    let mut servers = Vec::new();
    for _ in 0..49 {
        servers.push(Server::answering(OK).await);
    }
    let mut hosts: Vec<String> = servers.iter().map(Server::host).collect();
    hosts.insert(7, silent.host());
    let file = place.write("hosts", &hosts.join("\n"));
    let ended = place
        .run(&[
            "undrain",
            "--hosts-file",
            shown(&file),
            "--timeout",
            "3s",
            "--output",
            "json",
        ])
        .await;
    let report = ended.report();
    assert_eq!(
        (report.summary.hosts, report.summary.ok, report.summary.failed),
        (50, 49, 1)
    );
    let names: Vec<&String> = report.hosts.iter().map(|host| &host.host).collect();
    assert_eq!(
        names,
        hosts.iter().collect::<Vec<_>>(),
        "in the order of the file"
    );
    assert_eq!(report.hosts[7].result, Verdict::TimedOut);
    // The others did not wait for it: its line is the last one.
    let lines: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| line.contains("host is done") || line.contains("host has failed"))
        .collect();
    assert_eq!(lines.len(), 50);
    assert!(lines[49].contains(&silent.host()), "{}", lines[49]);
}

#[tokio::test]
async fn a_host_that_is_named_twice_is_contacted_once() {
    let server = Server::answering(OK).await;
    let port = server.address.port();
    let hosts = format!("127.0.0.1:{port},127.0.0.1 , 127.0.0.1:{port}");
    let port = port.to_string();
    let ended = Place::new().json("ping", &hosts, &["--port", &port]).await;
    assert_eq!(ended.report().summary.hosts, 1);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(
        ended.stderr.matches("named more than once").count(),
        1,
        "{ended:?}"
    );
}

#[tokio::test]
async fn failed_hosts_fail_the_command_only_with_fail_fast() {
    let place = Place::new();
    let server = Server::answering(OK).await;
    let hosts = format!("{},{}", closed_port().await, server.host());
    assert_eq!(place.json("ping", &hosts, &[]).await.code, Some(0));
    let ended = place
        .json("ping", &hosts, &["--fail-fast", "--max-parallel", "1"])
        .await;
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.report().summary.ok,
        1,
        "it did not stop at the first failure"
    );
    let host = server.host();
    assert_eq!(place.json("ping", &host, &["--fail-fast"]).await.code, Some(0));
}

#[tokio::test]
async fn a_guardian_that_comes_late_is_told_all_the_same() {
    let server = Server::start(|stream, number| async move {
        match number {
            0 => drop(stream),
            1 => {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                let frame = CloseFrame {
                    code: 1013.into(),
                    reason: "full".into(),
                };
                let _ = socket.close(Some(frame)).await;
                wait_for_end(&mut socket).await;
            }
            _ => {
                let (mut socket, action) = command_on(stream).await.unwrap();
                send(&mut socket, &OK[0].replace("ACTION", &action)).await;
                wait_for_end(&mut socket).await;
            }
        }
    })
    .await;
    let ended = Place::new()
        .json("undrain", &server.host(), &["--retry-for", "60s"])
        .await;
    let host = ended.only_host();
    assert_eq!((host.result, host.attempts), (Verdict::Ok, 3), "{ended:?}");
    assert_eq!(
        ended.stderr.matches("trying again").count(),
        1,
        "told once: {ended:?}"
    );
}

#[tokio::test]
async fn a_host_that_is_frozen_is_given_up_soon_enough_to_be_tried_again() {
    // Its kernel accepts connections for it; the second one finds it thawed.
    let server = Server::start(|stream, number| async move {
        if number == 0 {
            pending::<()>().await;
        }
        let Some((mut socket, action)) = command_on(stream).await else {
            return;
        };
        send(&mut socket, &OK[0].replace("ACTION", &action)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    // Had the first attempt the whole minute, no second one would begin.
    let arguments = [
        "--timeout",
        "60s",
        "--connect-timeout",
        "1s",
        "--retry-for",
        "50s",
    ];
    let ended = Place::new().json("drain", &server.host(), &arguments).await;
    let host = ended.only_host();
    assert_eq!((host.result, host.attempts), (Verdict::Ok, 2), "{ended:?}");
    let told = "timed out after 1.0 s while waiting for the WebSocket handshake";
    assert!(ended.stderr.contains(told), "{ended:?}");
}

#[tokio::test]
async fn a_guardian_may_take_longer_for_its_answer_than_to_be_reached() {
    let server = Server::start(|stream, _| async move {
        let Some((mut socket, action)) = command_on(stream).await else {
            return;
        };
        // A drain that takes its time, to a coordinator whose deadline for the line has passed long ago.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        send(&mut socket, &OK[0].replace("ACTION", &action)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    let host = Place::new()
        .json("drain", &server.host(), &["--connect-timeout", "500ms"])
        .await
        .only_host();
    assert_eq!((host.result, host.attempts), (Verdict::Ok, 1), "{host:?}");
}

#[tokio::test]
async fn a_command_that_may_have_arrived_is_repeated_only_with_a_generation() {
    let server = Server::start(|stream, number| async move {
        let Some((mut socket, action)) = command_on(stream).await else {
            return;
        };
        // Every second command is lost with its connection.
        if number % 2 == 1 {
            send(&mut socket, &OK[0].replace("ACTION", &action)).await;
            wait_for_end(&mut socket).await;
        }
    })
    .await;
    let place = Place::new();
    let retry = ["--retry-for", "60s"];
    let host = place
        .json(
            "drain",
            &server.host(),
            &[&retry[..], &["--generation", "5"]].concat(),
        )
        .await
        .only_host();
    assert_eq!((host.result, host.attempts), (Verdict::Ok, 2));
    let host = place.json("ping", &server.host(), &retry).await.only_host();
    assert_eq!((host.result, host.attempts), (Verdict::Ok, 2));
    let host = place.json("drain", &server.host(), &retry).await.only_host();
    assert_eq!((host.result, host.attempts), (Verdict::Unreachable, 1));
}

/// A fleet in which one host takes its time to drain; the other one answers at once with each of `answers` in turn.
async fn drained_with_one_that_is_slow(answers: [&'static str; 2], arguments: &[&str]) -> (Ended, usize) {
    let quick = Server::start(move |stream, number| async move {
        if number > 0 && answers[1] == "silence" {
            pending::<()>().await;
        }
        let Some((mut socket, action)) = command_on(stream).await else {
            return;
        };
        send(&mut socket, &answers[number.min(1)].replace("ACTION", &action)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    let slow = Server::start(|stream, _| async move {
        let Some((mut socket, action)) = command_on(stream).await else {
            return;
        };
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
        send(&mut socket, &OK[0].replace("ACTION", &action)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    let hosts = format!("{},{}", quick.host(), slow.host());
    let ended = Place::new().json("drain", &hosts, arguments).await;
    (ended, quick.connections.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_host_that_was_drained_long_before_the_last_one_is_drained_again_at_the_end() {
    let generation = ["--generation", "5"];
    let (ended, drains) = drained_with_one_that_is_slow([OK[0], OK[0]], &generation).await;
    assert_eq!((ended.report().summary.ok, drains), (2, 2), "{ended:?}");
    // The same within a wave.
    let wave = ["--generation", "5", "--wave-size", "2"];
    let (ended, drains) = drained_with_one_that_is_slow([OK[0], OK[0]], &wave).await;
    assert_eq!((ended.report().summary.ok, drains), (2, 2), "{ended:?}");
    assert!(ended.report().hosts.iter().all(|host| host.wave == Some(1)));
    // It has booted since, and cannot be drained now: the run says so, and not that all is well.
    let failed =
        r#"{"type": "response", "action": "ACTION", "status": "error", "message": "still stopping"}"#;
    let (ended, _) = drained_with_one_that_is_slow([OK[0], failed], &generation).await;
    let report = ended.report();
    assert_eq!((report.summary.ok, report.summary.failed), (1, 1), "{ended:?}");
    assert_eq!(report.hosts[0].message, "still stopping");
    // Its kernel accepts, and nobody serves: what runs there may run again.
    let (ended, _) = drained_with_one_that_is_slow([OK[0], "silence"], &generation).await;
    let report = ended.report();
    assert_eq!((report.summary.ok, report.summary.failed), (1, 1), "{ended:?}");
    assert!(report.hosts[0].message.contains("handshake"), "{ended:?}");
    // Without a generation it might override what somebody else has said since.
    let (_, drains) = drained_with_one_that_is_slow([OK[0], OK[0]], &[]).await;
    assert_eq!(drains, 1);
}

/// A guardian that reports every generation that it is sent.
async fn listening() -> (Server, mpsc::UnboundedReceiver<serde_json::Value>) {
    let (heard, received) = mpsc::unbounded_channel();
    let server = Server::start(move |stream, _| {
        let heard = heard.clone();
        async move {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            text(&mut socket).await;
            send(&mut socket, AUTH_OK).await;
            let Some(command) = text(&mut socket).await else {
                return;
            };
            let command: serde_json::Value = serde_json::from_str(&command).unwrap();
            let action = command["action"].as_str().unwrap();
            send(&mut socket, &OK[0].replace("ACTION", action)).await;
            heard
                .send(command.get("generation").cloned().unwrap_or_default())
                .unwrap();
            wait_for_end(&mut socket).await;
        }
    })
    .await;
    (server, received)
}

#[tokio::test]
async fn generations_grow_and_coordinators_at_once_take_different_ones() {
    let place = Place::new();
    let (server, mut heard) = listening().await;
    let file = place.path("generation");
    let host = server.host();
    let arguments = ["--generation-file", shown(&file)];
    let runs = (0..8).map(|_| place.json("drain", &host, &arguments));
    let ended = futures_util::future::join_all(runs).await;
    let reported: HashSet<u64> = ended
        .iter()
        .map(|ended| ended.report().generation.unwrap())
        .collect();
    assert_eq!(reported.len(), 8, "{reported:?}");
    let mut sent = HashSet::new();
    for _ in 0..8 {
        sent.insert(heard.recv().await.unwrap().as_u64().unwrap());
    }
    assert_eq!(sent, reported);
    let stored = std::fs::read_to_string(&file).unwrap();
    assert_eq!(stored.trim().parse().ok(), sent.iter().max().copied());

    // The clock of this machine is far behind this number: the file decides.
    place.write("generation", "9000000000000000\n");
    let ended = place.json("undrain", &host, &arguments).await;
    assert_eq!(ended.report().generation, Some(9_000_000_000_000_001));
    assert_eq!(heard.recv().await.unwrap(), 9_000_000_000_000_001_u64);
}

#[tokio::test]
async fn without_a_generation_none_is_sent() {
    let place = Place::new();
    let (server, mut heard) = listening().await;
    let ended = place.json("drain", &server.host(), &[]).await;
    assert_eq!(ended.report().generation, None);
    assert!(heard.recv().await.unwrap().is_null());
    let ended = place
        .json("drain", &server.host(), &["--generation", "18446744073709551615"])
        .await;
    assert_eq!(ended.report().generation, Some(u64::MAX));
    assert_eq!(heard.recv().await.unwrap(), u64::MAX);
}

#[tokio::test]
async fn told_to_end_it_reports_what_it_has() {
    let place = Place::new();
    for how in [Signal::SIGINT, Signal::SIGTERM] {
        let good = Server::answering(OK).await;
        let (reached, mut arrived) = mpsc::unbounded_channel();
        let reached = Mutex::new(reached);
        let silent = Server::start(move |stream, _| {
            let reached = reached.lock().unwrap().clone();
            async move {
                let Some((socket, _)) = command_on(stream).await else {
                    return;
                };
                reached.send(()).unwrap();
                pending::<()>().await;
                drop(socket);
            }
        })
        .await;
        let hosts = format!("{},{}", good.host(), silent.host());
        let mut command = place.command(&[
            "drain",
            "--hosts",
            &hosts,
            "--max-parallel",
            "1",
            "--output",
            "json",
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed());
        // With one host at a time, the second is reached when the first has answered.
        arrived.recv().await.unwrap();
        kill(pid, how).unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report: Report = serde_json::from_slice(&output.stdout).unwrap();
        let results: Vec<_> = report.hosts.iter().map(|host| host.result).collect();
        assert_eq!(results, [Verdict::Ok, Verdict::Failed]);
        assert!(report.hosts[1].message.contains("interrupted"), "{report:?}");
    }
}

/// A supervised drain of a host that answers the second time only: its process, and the one that it has begun.
async fn supervised(place: &Place) -> (tokio::process::Child, Server, Pid) {
    let (reached, mut arrived) = mpsc::unbounded_channel();
    let reached = Mutex::new(reached);
    let server = Server::start(move |stream, number| {
        let reached = reached.lock().unwrap().clone();
        async move {
            let Some((mut socket, action)) = command_on(stream).await else {
                return;
            };
            let _ = reached.send(());
            if number == 0 {
                pending::<()>().await;
            }
            send(&mut socket, &OK[0].replace("ACTION", &action)).await;
            wait_for_end(&mut socket).await;
        }
    })
    .await;
    let host = server.host();
    let mut command = place.command(&["drain", "--supervised", "--hosts", &host, "--generation", "5"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    arrived.recv().await.unwrap();
    let id = child.id().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    (child, server, Pid::from_raw(children.trim().parse().unwrap()))
}

#[tokio::test]
async fn a_supervised_drain_that_is_killed_is_begun_again() {
    let place = Place::new();
    let (child, server, drain) = supervised(&place).await;
    kill(drain, Signal::SIGKILL).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("drain: 1 of 1 hosts ok"), "{printed}");
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_supervised_drain_that_is_told_to_end_names_who_has_not_answered() {
    let place = Place::new();
    let (child, server, _) = supervised(&place).await;
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains(&server.host()) && printed.contains("interrupted before it answered"),
        "{printed}"
    );
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn told_twice_it_ends_although_nobody_reads_what_it_prints() {
    let place = Place::new();
    let closed = closed_port().await;
    let (_, port) = closed.rsplit_once(':').unwrap();
    // More than a pipe holds.
    let hosts: Vec<String> = (0..1_000)
        .map(|n| format!("127.1.{}.{}", n / 250, n % 250 + 1))
        .collect();
    let file = place.write("hosts", &hosts.join("\n"));
    let mut command = place.command(&[
        "ping",
        "--hosts-file",
        shown(&file),
        "--port",
        port,
        "--output",
        "json",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log_until = async |part: &str| {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains(part) {
                return;
            }
        }
        panic!("the log ends without {part:?}");
    };
    log_until("ping is done").await;
    kill(pid, Signal::SIGTERM).unwrap();
    log_until("told to end").await;
    kill(pid, Signal::SIGTERM).unwrap();
    log_until("ended at once").await;
    let status = child.wait().await.unwrap();
    assert_eq!(status.code(), Some(1));
}
