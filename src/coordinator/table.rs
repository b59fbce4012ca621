//! The summary for people. Pure: a report in, text out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::fault::{Verdict, seconds};
use super::report::{HostReport, Report};
use crate::protocol::{Action, Status, UnitReport};

/// Most units that one line of the table names.
const MAX_NAMED: usize = 8;
/// Most hosts that one line of remedies names; the table has them all.
const MAX_HOSTS_NAMED: usize = 5;

/// The whole summary: a table (for `status` a paragraph for each host), what to do about each kind of failure,
/// and a last line with the counts.
pub fn render(report: &Report, colors: bool) -> String {
    let mut out = String::with_capacity(64 * report.hosts.len() + 256);
    if report.action == Action::Status {
        for host in &report.hosts {
            paragraph(&mut out, host, colors);
        }
    } else {
        table(&mut out, report, colors);
    }
    remedies(&mut out, &report.hosts);
    if let Some(stopped) = report
        .rollout
        .as_ref()
        .and_then(|rollout| rollout.stopped.as_ref())
    {
        let _ = writeln!(out, "{}: {stopped}", report.action);
    }
    out.push_str(&last_line(report));
    out.push('\n');
    out
}

/// `drain: 3 of 4 hosts ok, 1 failed in 1.2 s`.
pub fn last_line(report: &Report) -> String {
    let summary = report.summary;
    let failed = match summary.failed {
        0 => String::new(),
        n => format!(", {n} failed"),
    };
    format!(
        "{}: {} of {} hosts ok{failed} in {}",
        report.action,
        summary.ok,
        summary.hosts,
        seconds(Duration::from_millis(report.elapsed_ms))
    )
}

/// `3 stopped`, `2 stopped, 1 deactivating`; `-` when the guardian named no units.
pub fn count_units(host: &HostReport) -> String {
    let mut counts: BTreeMap<(u8, &str), usize> = BTreeMap::new();
    for unit in &host.units {
        let (order, word) = match unit.state.as_str() {
            "inactive" => (0, "stopped"),
            "active" => (1, "active"),
            other => (2, other),
        };
        *counts.entry((order, word)).or_default() += 1;
    }
    let mut parts: Vec<String> = counts
        .iter()
        .map(|((_, word), n)| format!("{n} {word}"))
        .collect();
    if let Some(omitted) = host.units_omitted {
        parts.push(format!("{omitted} not named"));
    }
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(", ")
    }
}

fn table(out: &mut String, report: &Report, colors: bool) {
    let rows: Vec<[String; 4]> = report
        .hosts
        .iter()
        .map(|host| {
            [
                count_units(host),
                seconds(Duration::from_millis(host.elapsed_ms)),
                detail(host, report.action),
                host.result.to_string(),
            ]
        })
        .collect();
    let widest = |least: usize, texts: &mut dyn Iterator<Item = &str>| {
        texts.map(|text| text.chars().count()).fold(least, usize::max)
    };
    let host_width = widest(4, &mut report.hosts.iter().map(|h| h.host.as_str()));
    let result_width = widest(6, &mut rows.iter().map(|row| row[3].as_str()));
    let units_width = widest(5, &mut rows.iter().map(|row| row[0].as_str()));
    let time_width = widest(4, &mut rows.iter().map(|row| row[1].as_str()));
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:host_width$}  {:result_width$}  {:units_width$}  TIME",
        "HOST", "RESULT", "UNITS"
    );
    for (host, [units, time, detail, word]) in report.hosts.iter().zip(&rows) {
        let word = painted(&format!("{word:result_width$}"), host.result, colors);
        let line = format!(
            "{:host_width$}  {word}  {units:units_width$}  {time:time_width$}  {detail}",
            host.host
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// What a row has to say beyond its numbers: the message of a failure, and the units that are not as they should
/// be.
fn detail(host: &HostReport, action: Action) -> String {
    let wanted: &[&str] = match action {
        Action::Drain | Action::Hold => &["inactive"],
        Action::Undrain | Action::Release | Action::Ping | Action::Status | Action::Watch => {
            &["active", "inactive"]
        }
    };
    let odd: Vec<&UnitReport> = host
        .units
        .iter()
        .filter(|unit| !wanted.contains(&unit.state.as_str()))
        .collect();
    let mut parts = Vec::new();
    if host.result != Verdict::Ok {
        parts.push(host.message.clone());
    }
    if !odd.is_empty() {
        let mut named: Vec<String> = odd.iter().take(MAX_NAMED).map(|unit| describe(unit)).collect();
        if odd.len() > MAX_NAMED {
            named.push(format!("{} more", odd.len() - MAX_NAMED));
        }
        parts.push(format!("[{}]", named.join(", ")));
    }
    parts.join(" ")
}

/// `app.service failed (exit-code)`.
fn describe(unit: &UnitReport) -> String {
    match &unit.result {
        Some(result) => format!("{} {} ({result})", unit.name, unit.state),
        None => format!("{} {}", unit.name, unit.state),
    }
}

fn paragraph(out: &mut String, host: &HostReport, colors: bool) {
    let time = seconds(Duration::from_millis(host.elapsed_ms));
    let word = painted(host.result.as_str(), host.result, colors);
    let _ = writeln!(out, "{}: {word}, {time}: {}", host.host, host.message);
    if let Some(target) = &host.target {
        let state = host.target_state.as_deref().unwrap_or("in an unknown state");
        let _ = writeln!(out, "  target   {target} {state}");
    }
    if let Some(standing) = &host.standing {
        let _ = writeln!(out, "  wanted   {standing}");
    }
    for database in host.databases.iter().flatten() {
        let state = match (&database.why, database.ready) {
            (_, true) => "answers",
            (Some(why), false) => why.as_str(),
            (None, false) => "does not answer",
        };
        let since = seconds(Duration::from_millis(database.age_ms));
        let _ = writeln!(out, "  sees     {}, for {since}: {state}", database.name);
    }
    if let Some(version) = &host.guardian_version {
        let _ = writeln!(out, "  version  {version}");
    }
    if let Some(last) = &host.last_command {
        let state = match last.status {
            Some(Status::Ok) => "ok",
            Some(Status::Error) => "error",
            None => "under way",
        };
        let _ = write!(
            out,
            "  last     {} {state}, {} ago, took {}",
            last.action,
            seconds(Duration::from_millis(last.age_ms)),
            seconds(Duration::from_millis(last.elapsed_ms))
        );
        if let Some(by) = &last.by {
            let _ = write!(out, ", by {by}");
        }
        out.push_str(&if last.message.is_empty() {
            "\n".to_owned()
        } else {
            format!(": {}\n", last.message)
        });
    } else if host.target.is_some() {
        out.push_str("  last     no command since the guardian started\n");
    }
    for (index, unit) in host.units.iter().enumerate() {
        let heading = if index == 0 { "units" } else { "" };
        let _ = writeln!(out, "  {heading:7}  {}", describe(unit));
    }
    if let Some(omitted) = host.units_omitted {
        let _ = writeln!(out, "           {omitted} more");
    }
}

/// One line for each kind of failure, however many hosts have it.
fn remedies(out: &mut String, hosts: &[HostReport]) {
    let mut kinds: BTreeMap<(Verdict, &str), Vec<&str>> = BTreeMap::new();
    for host in hosts {
        if let Some(remedy) = &host.remedy {
            kinds.entry((host.result, remedy)).or_default().push(&host.host);
        }
    }
    if kinds.is_empty() {
        return;
    }
    out.push_str("\nWhat to do:\n");
    for ((verdict, remedy), names) in kinds {
        let more = match names.len().saturating_sub(MAX_HOSTS_NAMED) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let named = names[..names.len().min(MAX_HOSTS_NAMED)].join(", ");
        let _ = writeln!(out, "- {verdict} ({named}{more}): {remedy}");
    }
    out.push('\n');
}

fn painted(text: &str, verdict: Verdict, colors: bool) -> String {
    match (colors, verdict) {
        (false, _) => text.to_owned(),
        (true, Verdict::Ok) => format!("\u{1b}[32m{text}\u{1b}[0m"),
        (true, _) => format!("\u{1b}[1;31m{text}\u{1b}[0m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{Fault, Summary};
    use crate::protocol::DatabaseReport;
    use crate::protocol::{LastCommand, Response};

    fn answered(host: &str, status: Status, message: &str, units: &[(&str, &str)]) -> HostReport {
        let mut response = Response::new(Action::Drain, status, message);
        response.units = Some(units.iter().map(|(n, s)| UnitReport::new(*n, *s)).collect());
        HostReport::answered(host.into(), None, response, 1, 812)
    }

    fn refused(host: &str) -> HostReport {
        let fault = Fault::Refused {
            addresses: "192.0.2.1:9876".into(),
        };
        HostReport::failed(host.into(), None, &fault, 1, 0)
    }

    fn report(action: Action, hosts: Vec<HostReport>) -> Report {
        Report {
            version: 1,
            action,
            generation: None,
            summary: Summary::of(&hosts),
            hosts,
            rollout: None,
            elapsed_ms: 1_234,
        }
    }

    #[test]
    fn the_table_of_a_drain() {
        let hosts = vec![
            answered(
                "app1",
                Status::Ok,
                "drained",
                &[("a", "inactive"), ("b", "failed")],
            ),
            answered(
                "application2:9999",
                Status::Error,
                "still stopping: c",
                &[("c", "deactivating")],
            ),
            refused("app3"),
            refused("app4"),
        ];
        let expected = "\
HOST               RESULT   UNITS                TIME
app1               ok       1 stopped, 1 failed  812 ms  [b failed]
application2:9999  failed   1 deactivating       812 ms  still stopping: c [c deactivating]
app3               refused  -                    0 ms    connection refused by 192.0.2.1:9876
app4               refused  -                    0 ms    connection refused by 192.0.2.1:9876

What to do:
- refused (app3, app4): nothing listens there: start the guardian (`systemctl status io-guardian` on that host), or correct the port
- failed (application2:9999): see `systemctl status` of the units named, and `journalctl -u io-guardian`, on that host

drain: 1 of 4 hosts ok, 3 failed in 1.2 s
";
        assert_eq!(render(&report(Action::Drain, hosts), false), expected);
    }

    #[test]
    fn when_all_is_well_nothing_but_the_table_and_the_counts_is_said() {
        let hosts = vec![answered("a", Status::Ok, "m", &[])];
        assert_eq!(
            render(&report(Action::Ping, hosts), true),
            "HOST  RESULT  UNITS  TIME\na     \u{1b}[32mok    \u{1b}[0m  -      812 ms\nping: 1 of 1 hosts ok in 1.2 s\n"
        );
    }

    #[test]
    fn remedies_are_told_once_for_all_hosts() {
        let hosts = (0..5_000).map(|n| refused(&format!("h{n}"))).collect();
        let text = render(&report(Action::Drain, hosts), false);
        assert_eq!(text.matches("nothing listens there").count(), 1);
        assert!(text.contains("(h0, h1, h2, h3, h4 and 4995 more)"));
        assert!(text.contains("h4999 "), "the table has every host");
    }

    #[test]
    fn status_is_a_paragraph_for_each_host() {
        let mut response = Response::new(Action::Status, Status::Ok, "all is well");
        response.target = Some("io-databases.target".into());
        response.target_state = Some("active".into());
        response.version = Some("0.1.0".into());
        response.standing = Some("undrained by command".into());
        response.databases = Some(vec![DatabaseReport {
            name: "postgres db:5432".into(),
            ready: true,
            why: None,
            age_ms: 90_000,
        }]);
        response.last_command = Some(LastCommand {
            action: Action::Undrain,
            by: Some("192.0.2.1 v2:92b1ddb6".into()),
            status: None,
            message: String::new(),
            elapsed_ms: 1_500,
            age_ms: 90_000,
        });
        response.units = Some(vec![
            UnitReport::new("a.service", "active"),
            UnitReport::new("b.service", "inactive"),
        ]);
        let host = HostReport::answered("app1".into(), None, response, 1, 3);
        let expected = "\
app1: ok, 3 ms: all is well
  target   io-databases.target active
  wanted   undrained by command
  sees     postgres db:5432, for 90 s: answers
  version  0.1.0
  last     undrain under way, 90 s ago, took 1.5 s, by 192.0.2.1 v2:92b1ddb6
  units    a.service active
           b.service inactive
status: 1 of 1 hosts ok in 1.2 s
";
        assert_eq!(render(&report(Action::Status, vec![host]), false), expected);
    }
}
