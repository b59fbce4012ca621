use std::fs;
use std::time::Duration;

use super::*;

const LONG: &str = "  255082    11856 12893154  3697999  3336029   109143 6849737424 28051967        0  1044816 32656728    77787       49 22022016   141257   742895   765503\n";

#[test]
fn rows_of_all_kernels_are_read_and_what_is_none_is_not() {
    let read = |row: &str| Counted::read(row.as_bytes());
    assert_eq!(
        read(LONG),
        Some(Counted {
            writes: 3_336_029,
            write_ms: 28_051_967,
            flushes: 742_895
        })
    );
    // Before discards were counted (4.18), and before flushes were (5.5).
    for row in ["1 2 3 4 5 6 7 8 9 10 11\n", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"] {
        let counted = Counted {
            writes: 5,
            write_ms: 8,
            flushes: 0,
        };
        assert_eq!(read(row), Some(counted), "{row:?}");
    }
    // Of a kernel that counts more.
    assert_eq!(
        read(&format!("{} 1 2 3", LONG.trim_end())),
        read(LONG),
        "what comes after"
    );
    for row in [
        "",
        "\n",
        "1 2 3 4 5 6 7",
        "a b c d e f g h",
        "1 2 3 4 -5 6 7 8",
        "\u{0}",
    ] {
        assert_eq!(read(row), None, "{row:?}");
    }
    assert_eq!(Counted::read(&[0xff; 512]), None);
    // Cut where the buffer ends.
    assert_eq!(Counted::read(&[b'1'; ROW_MAX_BYTES]), None);
}

#[test]
fn writes_and_flushes_that_were_completed_are_work_and_nothing_else_is() {
    let row = |writes: u64, write_ms: u64, flushes: u64| Counted {
        writes,
        write_ms,
        flushes,
    };
    let before = row(100, 50, 7);
    for (now, works) in [
        (before, false),
        (row(101, 51, 7), true),
        (row(100, 50, 8), true),
        // Begun, and not completed: older kernels count so for disks that are made of others.
        (row(140, 50, 7), false),
        // Wrapped.
        (row(3, 2, 7), true),
    ] {
        assert_eq!(now.works_since(before), works, "{now:?}");
    }
    let reads = |reads: u64, discards: u64| {
        Counted::read(format!("{reads} 0 9 9 100 0 8 50 3 9 9 {discards} 0 0 0 7 1").as_bytes()).unwrap()
    };
    assert!(!reads(9, 9).works_since(reads(1, 1)), "reads and discards");
}

#[test]
fn devices_are_named_as_the_kernel_names_them() {
    let device = Device::of(nix::sys::stat::makedev(259, 1_000_000));
    let text = serde_json::to_string(&device).unwrap();
    assert_eq!(text, r#""259:1000000""#);
    assert_eq!(serde_json::from_str::<Device>(&text).unwrap(), device);
    for wrong in [r#""8""#, r#""8:x""#, r#""../8:1""#, r#""8:1/..""#, "8"] {
        assert!(serde_json::from_str::<Device>(wrong).is_err(), "{wrong}");
    }
}

/// A host with devices that count what it is told.
struct Host {
    place: tempfile::TempDir,
    looks: Looks,
    start: Instant,
}

impl Host {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let looks = Looks::at(place.path().to_owned());
        let start = Instant::now();
        Self { place, looks, start }
    }

    fn counts(&self, device: &str, writes: u64) {
        fs::create_dir_all(self.place.path().join(device)).unwrap();
        let row = format!("1 1 1 1 {writes} 1 1 {writes} 1 1 1 1 1 1 1 1 1");
        fs::write(self.place.path().join(device).join("stat"), row).unwrap();
    }

    /// Looks at this time, with the last beat at that one.
    fn works(&mut self, folder: &str, beat: u64, now: u64) -> bool {
        let at = |ms| self.start + Duration::from_millis(ms);
        self.looks.works(folder, at(beat), at(now))
    }
}

fn device(text: &str) -> Option<Device> {
    Some(Device::try_from(text.to_owned()).unwrap())
}

#[test]
fn a_disk_works_when_it_was_seen_to_count_between_two_looks_after_the_beat() {
    let mut host = Host::new();
    host.counts("8:1", 10);
    host.looks.on("/a", device("8:1"));
    assert!(!host.works("/a", 0, 100), "the first look");
    assert!(!host.works("/a", 0, 200), "nothing since");
    host.counts("8:1", 11);
    assert!(host.works("/a", 0, 300));
    assert!(!host.works("/a", 0, 400), "once");
    // What it did before the next beat proves nothing after it.
    host.counts("8:1", 12);
    assert!(!host.works("/a", 500, 600));
    host.counts("8:1", 13);
    assert!(host.works("/a", 500, 700));
}

#[test]
fn each_folder_has_a_device_of_its_own_and_another_one_after_it_was_mounted_anew() {
    let mut host = Host::new();
    host.counts("8:1", 1);
    host.counts("8:2", 1);
    host.looks.on("/a", device("8:1"));
    host.looks.on("/b", device("8:2"));
    host.looks.on("/c", device("8:2"));
    for folder in ["/a", "/b", "/c"] {
        assert!(!host.works(folder, 0, 1));
    }
    // Beside it on the same disk, all is well.
    host.counts("8:2", 2);
    let mut all = |now| ["/a", "/b", "/c"].map(|folder| host.works(folder, 0, now));
    assert_eq!(all(2), [false, true, true]);
    host.looks.on("/a", device("8:2"));
    host.looks.on("/b", None);
    host.counts("8:2", 3);
    let mut all = |now| ["/a", "/b", "/c"].map(|folder| host.works(folder, 0, now));
    assert_eq!(all(3), [false, true, true], "the first look at that one");
    assert_eq!(host.looks.device("/a"), device("8:2"));
    host.looks.forget("/a");
    assert_eq!(host.looks.device("/a"), None);
}

#[test]
fn what_has_no_row_or_loses_it_does_not_work() {
    let mut host = Host::new();
    // btrfs, NFS, FUSE, tmpfs, overlay.
    host.counts("0:45", 1);
    host.looks.on("/anonymous", device("0:45"));
    host.looks.on("/late", device("252:7"));
    for (count, now) in [(2, 1), (3, 2), (4, 3)] {
        host.counts("0:45", count);
        for folder in ["/anonymous", "/late", "/unknown"] {
            assert!(!host.works(folder, 0, now), "{folder}");
        }
    }
    // It comes later, goes, and another one comes in its place.
    host.counts("252:7", 1);
    assert!(!host.works("/late", 0, 4));
    host.counts("252:7", 2);
    assert!(host.works("/late", 0, 5));
    host.counts("252:7", 0);
    fs::write(host.place.path().join("252:7/stat"), "").unwrap();
    assert!(!host.works("/late", 0, 6));
    host.counts("252:7", 9);
    assert!(!host.works("/late", 0, 7), "it is not what was seen before");
}

#[test]
fn the_kernel_tells_of_a_real_disk() {
    let place = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut disk = super::super::disk::Disk::new(place.path(), ".beat");
    disk.beat().unwrap();
    let device = disk.device().unwrap();
    let path = Path::new(DEVICES).join(device.to_string()).join("stat");
    let Ok(row) = fs::read(&path) else {
        println!(
            "SKIP device: {} is not there: no disk of this kernel's",
            path.display()
        );
        return;
    };
    let before = Counted::read(&row).unwrap();
    let mut looks = Looks::default();
    looks.on("/a", Some(device));
    let start = Instant::now();
    assert!(!looks.works("/a", start, start));
    let seen = (0..1_000).any(|_| {
        disk.beat().unwrap();
        looks.works("/a", start, start)
    });
    // One whose writes are not counted (queue/iostats is 0) is well, too.
    let now = Counted::read(&fs::read(&path).unwrap()).unwrap();
    assert!(seen || !now.works_since(before));
}
