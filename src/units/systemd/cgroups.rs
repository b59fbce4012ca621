//! Processes that a stopped unit left behind (`KillMode=process` or `none`), read from the control groups.
//!
//! systemd calls such a unit inactive; "no dependent process is running" would be untrue. systemd removes the
//! group of a unit that is really empty, so a group that is still there and still has processes is the proof.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the groups of systemd's units are: `/sys/fs/cgroup` with cgroup v2, a folder of it before that.
fn root() -> PathBuf {
    let top = Path::new("/sys/fs/cgroup");
    ["unified", "systemd"]
        .into_iter()
        .map(|name| top.join(name))
        .find(|path| path.join("system.slice").is_dir())
        .unwrap_or_else(|| top.to_owned())
}

/// Those of `units` that still have processes, with how many.
pub(super) fn left_behind<'a>(units: impl Iterator<Item = &'a str>) -> Vec<(String, usize)> {
    let wanted: std::collections::HashSet<&str> = units.collect();
    let mut found = BTreeMap::new();
    search(&root(), &wanted, &mut found);
    found.into_iter().collect()
}

/// Walks the slices. Groups of other units are not entered: a container in one of them may have units of the
/// same names, which are not ours.
fn search(group: &Path, wanted: &std::collections::HashSet<&str>, found: &mut BTreeMap<String, usize>) {
    let Ok(entries) = std::fs::read_dir(group) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".slice") {
            search(&entry.path(), wanted, found);
        } else if wanted.contains(name) {
            let count = processes(&entry.path());
            if count > 0 {
                found.insert(name.to_owned(), count);
            }
        }
    }
}

/// How many processes a group and all groups inside it have.
fn processes(group: &Path) -> usize {
    let own = std::fs::read_to_string(group.join("cgroup.procs")).map_or(0, |text| text.lines().count());
    let Ok(entries) = std::fs::read_dir(group) else {
        return own;
    };
    let inner = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    own + inner.map(|e| processes(&e.path())).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_in_a_wanted_unit_is_found_and_a_containers_own_unit_is_not() {
        let top = tempfile::tempdir().unwrap();
        let write = |path: &str, pids: &str| {
            let folder = top.path().join(path);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("cgroup.procs"), pids).unwrap();
        };
        write("system.slice/app.service", "17\n18\n");
        write("system.slice/app.service/worker", "19\n");
        write("apps.slice/apps-db.slice/other.service", "20\n");
        write("system.slice/empty.service", "");
        write("machine.slice/box.service/system.slice/inner.service", "21\n");
        let wanted = ["app.service", "other.service", "empty.service", "inner.service"]
            .into_iter()
            .collect();
        let mut found = BTreeMap::new();
        search(top.path(), &wanted, &mut found);
        assert_eq!(
            found,
            BTreeMap::from([("app.service".to_owned(), 3), ("other.service".to_owned(), 1)])
        );
    }
}
