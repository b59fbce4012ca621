//! `undrain` and `drain` in waves, beside guardians that really run.

use super::seed::Seed;
use super::serve::{guardian_of, start_guardian};
use super::*;
use tokio::io::{AsyncBufReadExt, BufReader};

/// Starts at once, and stays.
const STAYS: &str = "exec sleep 1000";
/// Starts, and is gone a moment later.
const DIES: &str = "sleep 0.3; exit 1";

/// The order in which hosts had their results, by the log.
fn order(ended: &Ended, hosts: &[String]) -> Vec<usize> {
    let done = |line: &&str| line.contains("host is done") || line.contains("host has failed");
    let number = |line: &str| hosts.iter().position(|host| line.contains(host.as_str()));
    ended.stderr.lines().filter(done).filter_map(number).collect()
}

#[tokio::test]
async fn waves_go_up_the_tiers_stop_at_a_failure_and_can_be_gone_on_with() {
    let place = Place::new();
    let mut guardians = Vec::new();
    for script in [STAYS, STAYS, STAYS] {
        guardians.push(guardian_of(&place, 0, script).await);
    }
    let mut hosts: Vec<String> = guardians
        .iter()
        .map(|guardian| guardian.addresses[0].clone())
        .collect();
    // Nobody listens there.
    hosts.insert(1, "127.0.0.1:1".to_owned());
    let [web, absent, queue, other] = [0, 1, 2, 3].map(|at| hosts[at].as_str());
    let list = format!("{web} tier=2\n{absent} tier=1\n{queue} tier=0\n{other}\n");
    let list = place.write("hosts", &list);
    let list = list.to_str().unwrap();
    let undrain = [
        "undrain",
        "--hosts-file",
        list,
        "--settle",
        "1ms",
        "--output",
        "json",
    ];

    let stopped = place.run(&undrain).await;
    assert_eq!(stopped.code, Some(2), "{stopped:?}");
    assert_eq!(order(&stopped, &hosts)[..2], [2, 1]);
    let report = stopped.report();
    let rollout = report.rollout.clone().unwrap();
    assert_eq!((rollout.waves, rollout.done), (4, 2));
    let why = rollout.stopped.unwrap();
    assert!(
        why.contains("wave 2 of 4") && why.contains("--from-wave 2") && why.contains("--from-wave 3"),
        "{why}"
    );
    let of = |report: &Report, at: usize| (report.hosts[at].wave, report.hosts[at].message.clone());
    assert!(
        of(&report, 0)
            .1
            .contains("not told: the plan stopped before wave 3"),
        "{report:?}"
    );
    assert_eq!((of(&report, 2).0, of(&report, 3).0), (Some(1), Some(4)));
    let states = place
        .run(&["status", "--hosts", &hosts.join(","), "--output", "json"])
        .await
        .report();
    let active = |report: &Report| -> Vec<bool> {
        let target = |host: &HostReport| host.target_state.as_deref() == Some("active");
        report.hosts.iter().map(target).collect()
    };
    assert!(
        active(&states)[2] && !active(&states)[0] && !active(&states)[3],
        "{states:?}"
    );

    // Stopped once more: the wave that was left out is no result.
    let again = place.run(&[&undrain[..], &["--from-wave", "2"]].concat()).await;
    assert_eq!(again.code, Some(2));
    let names: Vec<_> = again.report().hosts.into_iter().map(|host| host.host).collect();
    assert_eq!(names, [web, absent, other]);

    let from = [&undrain[..], &["--from-wave", "3"]].concat();
    let gone_on = place.run(&from).await;
    assert_eq!(order(&gone_on, &hosts)[..2], [0, 3], "{gone_on:?}");
    // Those that were left out are no result, and no failure.
    assert_eq!(
        (
            gone_on.code,
            gone_on.report().summary.hosts,
            gone_on.report().summary.failed
        ),
        (Some(0), 2, 0)
    );
    let too_far = place.run(&[&undrain[..], &["--from-wave", "5"]].concat()).await;
    assert_eq!(too_far.code, Some(2));
    assert!(
        too_far
            .report()
            .rollout
            .unwrap()
            .stopped
            .unwrap()
            .contains("there are 4 waves")
    );
    let tolerated = place.run(&[&undrain[..], &["--tolerate", "1"]].concat()).await;
    assert_eq!((tolerated.code, tolerated.report().summary.ok), (Some(0), 3));

    // Down the same way, whatever fails.
    let drain = [
        "drain",
        "--hosts-file",
        list,
        "--go-on",
        "--generation",
        "7",
        "--output",
        "json",
    ];
    let drained = place.run(&drain).await;
    assert_eq!(order(&drained, &hosts), [3, 0, 1, 2], "{drained:?}");
    assert_eq!(drained.report().summary.failed, 1);
}

#[tokio::test]
async fn a_guardian_that_knows_only_the_documentation_stops_no_plan() {
    let Some(seed) = Seed::start("a_guardian_that_knows_only_the_documentation_stops_no_plan").await else {
        return;
    };
    let place = Place::new();
    let next = guardian_of(&place, 0, STAYS).await;
    let hosts = format!("{},{}", seed.host, next.addresses[0]);
    let undrain = [
        "undrain",
        "--hosts",
        &hosts,
        "--wave-size",
        "1",
        "--settle",
        "1ms",
    ];
    let dry = place
        .run(&[&undrain[..], &["--dry-run", "--fail-fast"]].concat())
        .await;
    assert_eq!(dry.code, Some(0), "{dry:?}");
    assert!(dry.stdout.contains("too old to say more"), "{}", dry.stdout);
    let report = place
        .run(&[&undrain[..], &["--output", "json"]].concat())
        .await
        .report();
    assert_eq!((report.summary.ok, report.rollout.unwrap().stopped), (2, None));
}

#[tokio::test]
async fn a_host_that_is_only_late_does_not_stop_the_plan() {
    let place = Place::new();
    let next = guardian_of(&place, 0, STAYS).await;
    let late = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let hosts = format!("{late},{}", next.addresses[0]);
    let waves = ["--wave-size", "1", "--settle", "1ms", "--generation", "5"];
    let retry = ["--retry-for", "2m", "--output", "json"];
    let arguments = [&["undrain", "--hosts", &hosts][..], &waves, &retry].concat();
    let mut undrain = place.command(&arguments);
    let mut running = undrain
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(running.stderr.take().unwrap()).lines();
    while !log.next_line().await.unwrap().unwrap().contains("not up yet") {}
    let _late = guardian_of(&place, late.port(), STAYS).await;
    let output = running.wait_with_output().await.unwrap();
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.summary.ok, report.rollout.unwrap().stopped), (2, None));
}

#[tokio::test]
async fn a_wave_that_does_not_stay_well_stops_the_plan() {
    let place = Place::new();
    let dies = guardian_of(&place, 0, DIES).await;
    let next = guardian_of(&place, 0, STAYS).await;
    let hosts = format!("{},{}", dies.addresses[0], next.addresses[0]);
    let undrain = [
        "undrain",
        "--hosts",
        &hosts,
        "--wave-size",
        "1",
        "--settle",
        "1s",
        "--output",
        "json",
    ];
    let stopped = place.run(&undrain).await;
    assert_eq!(stopped.code, Some(2), "{stopped:?}");
    let report = stopped.report();
    assert!(
        report.hosts[0]
            .message
            .contains("is not well: not running any more: app"),
        "{report:?}"
    );
    assert!(report.hosts[1].message.contains("not told"), "{report:?}");
}

#[tokio::test]
async fn units_choose_tiers_and_who_does_not_say_what_it_runs_is_not_guessed_at() {
    let place = Place::new();
    let web = guardian_of(&place, 0, STAYS).await;
    let process = "[[process]]\nname = 'queue-1'\ncommand = ['sleep', '1000']\n";
    let queue = start_guardian(&place, 0, process).await;
    let hosts = [&web, &queue].map(|guardian| guardian.addresses[0].as_str());
    let both = hosts.join(",");
    let plan = |action, hosts, more: &[&'static str]| {
        let mut arguments = vec![
            action,
            "--hosts",
            hosts,
            "--tier",
            "0=queue-?",
            "--output",
            "json",
        ];
        arguments.extend(more);
        arguments
    };
    let waves = |ended: &Ended| {
        ended
            .report()
            .hosts
            .iter()
            .map(|host| host.wave)
            .collect::<Vec<_>>()
    };
    let undrained = place
        .run(&plan("undrain", both.as_str(), &["--settle", "1ms"]))
        .await;
    assert_eq!(waves(&undrained), [Some(2), Some(1)], "{undrained:?}");
    let drained = place.run(&plan("drain", both.as_str(), &[])).await;
    assert_eq!(waves(&drained), [Some(1), Some(2)], "{drained:?}");
    assert_eq!(drained.report().summary.ok, 2);

    let with_absent = format!("{both},127.0.0.1:1");
    let refused = place
        .run(&plan("drain", with_absent.as_str(), &["--retry-for", "1ms"]))
        .await;
    assert_eq!(refused.code, Some(2));
    let why = refused.report().rollout.unwrap().stopped.unwrap();
    assert!(
        why.contains("127.0.0.1:1") && why.contains("nothing was sent"),
        "{why}"
    );
    let more = ["--retry-for", "1ms", "--tolerate", "1", "--settle", "1ms"];
    let tolerated = place.run(&plan("undrain", with_absent.as_str(), &more)).await;
    assert_eq!(waves(&tolerated), [Some(2), Some(1), Some(2)], "{tolerated:?}");
}

#[tokio::test]
async fn a_host_that_somebody_holds_stops_nobody() {
    let place = Place::new();
    let held = guardian_of(&place, 0, STAYS).await;
    let other = guardian_of(&place, 0, STAYS).await;
    let names = [held, other].map(|guardian| (guardian.addresses[0].clone(), guardian));
    let [held, other] = names.each_ref().map(|(name, _)| name.as_str());
    place.run(&["hold", "--hosts", held, "--reason", "a move"]).await;
    let both = format!("{held},{other}");
    let undrain = [
        "undrain",
        "--hosts",
        &both,
        "--wave-size",
        "1",
        "--settle",
        "1ms",
        "--output",
        "json",
    ];
    let report = place.run(&undrain).await.report();
    assert_eq!(
        (report.hosts[0].held, report.summary.ok),
        (Some(true), 1),
        "{report:?}"
    );
    assert_eq!(report.rollout.unwrap().stopped, None);
}

#[tokio::test]
async fn a_host_that_is_off_holds_no_wave_back_and_is_told_when_it_comes() {
    let place = Place::new();
    let next = guardian_of(&place, 0, STAYS).await;
    let host = next.addresses[0].clone();
    // Taken and given back: nobody listens there, for now.
    let late = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let hosts = format!("{late},{host}");
    let mut undrain = place.command(&[
        "undrain",
        "--hosts",
        &hosts,
        "--generation",
        "5",
        "--wave-size",
        "1",
        "--settle",
        "1ms",
        "--go-on",
        "--retry-for",
        "2m",
        "--output",
        "json",
    ]);
    let mut running = undrain
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(running.stderr.take().unwrap()).lines();
    // It is told while the first one is still away.
    let told = format!("host is done host={host} ");
    while !log.next_line().await.unwrap().unwrap().contains(&told) {}
    let _late = guardian_of(&place, late.port(), STAYS).await;
    let output = running.wait_with_output().await.unwrap();
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.summary.ok, report.summary.failed), (2, 0), "{report:?}");
    assert_eq!(report.hosts[0].wave, Some(1));
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let place = Place::new();
    let guardian = guardian_of(&place, 0, STAYS).await;
    let host = guardian.addresses[0].clone();
    let list = place.write("hosts", &format!("{host} tier=4\n127.0.0.1:1\n"));
    let generation = place.path("generation");
    let shared = [
        "--hosts-file",
        list.to_str().unwrap(),
        "--generation-file",
        generation.to_str().unwrap(),
        "--dry-run",
    ];
    let undrain = place.run(&[&["undrain"][..], &shared].concat()).await;
    assert_eq!(undrain.code, Some(0));
    let expected = format!("wave 1 of 2, tier 4:\n  {host}  would start app\n");
    assert!(undrain.stdout.starts_with(&expected), "{}", undrain.stdout);
    assert!(
        undrain.stdout.contains("127.0.0.1:1") && undrain.stdout.contains("would fail: connection refused")
    );
    assert!(
        undrain
            .stdout
            .ends_with("it would fail on 1; nothing was changed\n"),
        "{}",
        undrain.stdout
    );
    let drain = place
        .run(&[&["drain", "--fail-fast", "--output", "json"][..], &shared].concat())
        .await;
    assert_eq!(drain.code, Some(1));
    let shown: serde_json::Value = serde_json::from_str(&drain.stdout).unwrap();
    assert_eq!(
        shown["waves"][1]["hosts"][0]["would"],
        "nothing to stop: nothing runs"
    );
    assert!(!generation.exists());
    let status = place
        .run(&["status", "--hosts", &host, "--output", "json"])
        .await
        .only_host();
    assert_eq!(status.last_command, None);
}
