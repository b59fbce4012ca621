//! The rule of the house, read from the source itself: a role may use the shared rooms, no role uses another role,
//! and a shared room uses no role.

// The whole file is a test; clippy.toml's permission covers only what is inside of one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Roles meet only through the wire, the store and systemd.
const ROLES: [&str; 4] = ["guardian", "coordinator", "fence", "vip"];
/// What nobody may use: it puts roles together, as the binaries do.
const COMPOSITIONS: [&str; 1] = ["demo"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn room(src: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(src).unwrap();
    inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_owned()
}

/// The rooms that a file names. Every way to reach another room begins at the crate's root, or climbs there.
fn used(text: &str, depth: usize, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    // Comments may speak of anything; a link in one is no use.
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect();
    let code = code.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let mut used = BTreeSet::new();
    let climb = format!("{}::", vec!["super"; depth].join("::"));
    for root in ["crate::", "io_guardian::", climb.as_str()] {
        for (at, _) in code.match_indices(root) {
            // A module inside of the file climbs one higher: the name comes after the last step, and each climb is looked at once.
            if root == climb && code[..at].ends_with("super::") {
                continue;
            }
            let rest = code[at + root.len()..].trim_start_matches("super::");
            let names: Vec<&str> = match rest.strip_prefix('{') {
                // `use crate::{a::b, c};`: the names at the first level of the braces.
                Some(group) => first_level(group),
                None => vec![
                    rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                        .next()
                        .unwrap_or(""),
                ],
            };
            used.extend(
                names
                    .into_iter()
                    .filter(|n| rooms.contains(*n))
                    .map(str::to_owned),
            );
        }
    }
    used
}

fn first_level(group: &str) -> Vec<&str> {
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let end = |c: char| !c.is_alphanumeric() && c != '_';
    names
        .into_iter()
        .map(|n| n.trim().split(end).next().unwrap_or(""))
        .collect()
}

#[test]
fn no_role_uses_another_role_and_no_shared_room_uses_a_role() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&src);
    let rooms: BTreeSet<String> = files
        .iter()
        .filter(|f| f.parent() != Some(&src) && !f.starts_with(src.join("bin")))
        .map(|f| room(&src, f))
        .collect();
    for known in ROLES.iter().chain(&COMPOSITIONS) {
        assert!(
            rooms.contains(*known),
            "{known} is no room any more: correct this test"
        );
    }
    let is_role = |room: &str| ROLES.contains(&room) || COMPOSITIONS.contains(&room);
    let mut broken = Vec::new();
    for file in &files {
        let from = room(&src, file);
        // The map, the binaries and the compositions put rooms together.
        if !rooms.contains(&from) || COMPOSITIONS.contains(&from.as_str()) {
            continue;
        }
        let inside = file.strip_prefix(&src).unwrap();
        let is_mod = inside.file_name().is_some_and(|n| n == "mod.rs");
        let depth = inside.components().count() - usize::from(is_mod);
        let text = std::fs::read_to_string(file).unwrap();
        for to in used(&text, depth, &rooms) {
            if to != from && is_role(&to) {
                broken.push(format!("{}: {from} uses {to}", inside.display()));
            }
        }
    }
    assert!(broken.is_empty(), "the rule is broken:\n{}", broken.join("\n"));
}

#[test]
fn every_way_to_name_a_room_is_seen() {
    let rooms: BTreeSet<String> = ["guardian", "coordinator", "units"].map(str::to_owned).into();
    let sees = |text: &str, depth| used(text, depth, &rooms).into_iter().collect::<Vec<_>>();
    assert_eq!(sees("use crate::guardian::x;", 2), ["guardian"]);
    assert_eq!(
        sees("use crate::{cli,\n    units::{a, b}, coordinator as c};", 2),
        ["coordinator", "units"]
    );
    assert_eq!(sees("fn f() { crate::coordinator::run() }", 2), ["coordinator"]);
    assert_eq!(sees("use super::super::coordinator::x;", 2), ["coordinator"]);
    // From a module inside of a file.
    assert_eq!(
        sees("use super::super::super::coordinator::x;", 2),
        ["coordinator"]
    );
    assert_eq!(sees("use super::super::super::{units, cli};", 2), ["units"]);
    assert_eq!(
        sees("use super::coordinator::x; // crate::guardian", 2),
        Vec::<String>::new()
    );
    assert_eq!(
        sees("/// [`crate::guardian`]\nuse super::x;", 1),
        Vec::<String>::new()
    );
}
