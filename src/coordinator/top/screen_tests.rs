use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::coordinator::fault::Fault;
use crate::coordinator::fleet::Event;
use crate::protocol::{Action, LastCommand, Response};

fn fleet() -> Fleet {
    let mut fleet = Fleet::new(["app1", "app2", "app3"].map(str::to_owned), 0);
    for at in 0..2 {
        let address = None;
        fleet.on(0, at, Event::Opened { address, wire: None });
        let mut told = Response::new(Action::Status, Status::Ok, "");
        told.target = Some("io-databases.target".into());
        told.target_state = Some("active".into());
        told.units = Some(vec![UnitReport::new("web.service", "active")]);
        fleet.on(0, at, Event::Told(told.into()));
    }
    fleet.on(
        0,
        2,
        Event::Lost(Fault::Lookup {
            reason: "no such name".into(),
        }),
    );
    fleet
}

fn drain(fleet: &mut Fleet, at: usize, status: Option<Status>, target: &str, unit: &str) {
    let mut told = Response::new(Action::Status, Status::Ok, "");
    told.target = Some("io-databases.target".into());
    told.target_state = Some(target.into());
    told.units = Some(vec![UnitReport::new("web.service", unit)]);
    told.last_command = Some(LastCommand {
        action: Action::Drain,
        by: Some("192.0.2.1 v2:00".into()),
        status,
        message: "words".into(),
        elapsed_ms: 0,
        age_ms: 0,
    });
    fleet.on(1_000, at, Event::Told(told.into()));
}

fn drawn(screen: &Screen, fleet: &Fleet) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(110, 24)).unwrap();
    terminal.draw(|frame| screen.draw(frame, fleet, 4_000)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| {
        (0..110)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
            .trim_end()
            .to_owned()
    };
    (0..24).map(line).collect()
}

fn press(screen: &mut Screen, fleet: &Fleet, code: KeyCode) -> Done {
    screen.on_key(KeyEvent::new(code, KeyModifiers::NONE), fleet)
}

#[test]
fn a_drain_is_on_the_screen_and_what_needs_attention_is_on_top() {
    let mut fleet = fleet();
    drain(&mut fleet, 1, None, "inactive", "deactivating");
    let lines = drawn(&Screen::new(true), &fleet);
    assert_eq!(lines[0], "3 hosts: 1 undrained, 1 draining, 1 lost");
    assert!(
        lines[2].starts_with("app3") && lines[2].contains("lost") && lines[2].contains("was not found"),
        "{lines:#?}"
    );
    assert!(
        lines[3].starts_with("app2") && lines[3].contains("draining") && lines[3].contains("1 deactivating")
    );
    assert!(lines[3].contains("drain under way, 3 s ago by 192"), "{lines:#?}");
    assert!(lines[4].starts_with("app1") && lines[4].contains("undrained"));
    assert!(
        lines
            .iter()
            .any(|line| line.contains("app2: drain begun by 192.0.2.1")),
        "{lines:#?}"
    );
    drain(&mut fleet, 1, Some(Status::Ok), "inactive", "inactive");
    let lines = drawn(&Screen::new(true), &fleet);
    assert!(
        lines[3].contains("drained") && lines[3].contains("drain ok"),
        "{lines:#?}"
    );
}

#[test]
fn keys_choose_open_filter_and_quit() {
    let mut fleet = fleet();
    let mut screen = Screen::new(false);
    assert_eq!(press(&mut screen, &fleet, KeyCode::Down), Done::No);
    assert_eq!(screen.chosen.as_deref(), Some("app1"));
    press(&mut screen, &fleet, KeyCode::Enter);
    let lines = drawn(&screen, &fleet);
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("unit      web.service active")),
        "{lines:#?}"
    );
    // The chosen one stays chosen when others come before it.
    drain(&mut fleet, 1, None, "inactive", "deactivating");
    assert!(
        drawn(&screen, &fleet)
            .iter()
            .any(|line| line.starts_with("app1─"))
    );
    press(&mut screen, &fleet, KeyCode::End);
    press(&mut screen, &fleet, KeyCode::PageDown);
    assert_eq!(
        screen.chosen.as_deref(),
        Some("app1"),
        "nothing is below the last"
    );
    press(&mut screen, &fleet, KeyCode::Esc);
    for letter in "/lost".chars() {
        press(&mut screen, &fleet, KeyCode::Char(letter));
    }
    let lines = drawn(&screen, &fleet);
    assert!(
        lines[2].starts_with("app3") && !lines.iter().any(|line| line.starts_with("app2")),
        "{lines:#?}"
    );
    assert_eq!(
        press(&mut screen, &fleet, KeyCode::Char('q')),
        Done::No,
        "a letter of the filter"
    );
    assert_eq!(press(&mut screen, &fleet, KeyCode::Esc), Done::No);
    assert_eq!(screen.filter, "");
    assert_eq!(press(&mut screen, &fleet, KeyCode::Char('q')), Done::Yes);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(screen.on_key(control_c, &fleet), Done::Yes);
}

#[test]
fn without_a_terminal_it_is_a_table() {
    let expected = "\
HOST  STATE       UNITS     LAST COMMAND
app3  lost                  the name was not found: no such name
app1  undrained   1 active
app2  undrained   1 active
3 hosts: 2 undrained, 1 lost
";
    assert_eq!(plain(&fleet(), 0), expected);
}
