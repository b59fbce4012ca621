//! One write that reaches the disk, and comes back from it. docs/FENCE.md says what that is on which filesystem.
//!
//! Each time the folder is opened anew, so that one that is gone, or in whose place there is another one, is noticed. Nothing here has a
//! deadline: whoever calls it may hang for ever.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, open, openat, posix_fadvise};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use tokio::time::Instant;

use super::core::Kind;
use super::device::Device;
use super::wire::How;

/// What is written at once: no disk has larger sectors that are still in use.
const BLOCK: usize = 4_096;
/// How a file of ours begins. One that begins with something else is somebody's.
const MAGIC: &[u8; 16] = b"io-fence beats.\n";
/// So many earlier reporters may have left a write behind.
const LATE_WRITES: usize = 8;
/// With less room than this a disk is full: what a database asks for next is larger.
const ROOM: u64 = 256 << 10;

/// A write that came back with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// None when it says nothing of the disk: this host is short of something. Then silence decides.
    pub(super) kind: Option<Kind>,
    pub(super) text: String,
}

/// A block where direct I/O wants it.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// A place, by what the kernel calls it.
type Identity = (u64, u64);

pub(super) struct Disk {
    folder: PathBuf,
    name: String,
    /// Random: no other reporter's, and no earlier one's.
    nonce: [u8; 16],
    count: u64,
    how: How,
    home: Option<Identity>,
    file: Option<Identity>,
    written: Box<Block>,
    read: Box<Block>,
    /// How long the last write took.
    took: Duration,
    /// That another reporter writes the same file has been said.
    shared: bool,
}

impl Disk {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let mut nonce = [0; 16];
        // Without it, it is still no other process's.
        if getrandom::fill(&mut nonce).is_err() {
            nonce[..4].copy_from_slice(&std::process::id().to_ne_bytes());
        }
        Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            nonce,
            count: 0,
            how: How::Direct,
            home: None,
            file: None,
            written: Box::new(Block([0; BLOCK])),
            read: Box::new(Block([0; BLOCK])),
            took: Duration::ZERO,
            shared: false,
        }
    }

    /// Writes a block, and reads it back. How long the write took, and how it was done.
    pub(super) fn beat(&mut self) -> Result<(Duration, How), Trouble> {
        let mut result = match self.once() {
            // Not every filesystem takes direct I/O, and some say so only when something is written.
            Err((Errno::EINVAL, _)) if self.how == How::Direct => {
                self.how = How::Synced;
                self.once()
            }
            result => result,
        };
        // One who was killed while the disk held its write is not gone: that write comes when the disk goes on, and may be the last.
        for _ in 0..LATE_WRITES {
            if !matches!(result, Ok(Err(_))) || !self.is_of_another() {
                break;
            }
            result = self.once();
        }
        // Another one that lives, such as one on another host with the same folder: what it has written was on the disk, as ours was.
        if matches!(result, Ok(Err(_))) && self.is_of_another() {
            if !self.shared {
                tracing::warn!(
                    file = %self.folder.join(&self.name).display(),
                    "another reporter writes this file, too; give each its own with --touchfile"
                );
                self.shared = true;
            }
            result = Ok(Ok(self.took));
        }
        let took = result.map_err(|(errno, what)| trouble(errno, &what))??;
        Ok((took, self.how))
    }

    /// What the file is on that was written last.
    pub(super) fn device(&self) -> Option<Device> {
        self.file.map(|(st_dev, _)| Device::of(st_dev))
    }

    fn once(&mut self) -> Result<Result<Duration, Trouble>, (Errno, String)> {
        let direct = self.how == How::Direct;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let shown = self.folder.display().to_string();
        let folder =
            open(&self.folder, flags, Mode::empty()).map_err(|errno| (errno, format!("open {shown}")))?;
        let home = identity(&folder).map_err(|errno| (errno, format!("stat {shown}")))?;
        if self.home.is_some_and(|known| known != home) && !self.is_ours(&folder) {
            return Ok(Err(Trouble {
                kind: Some(Kind::Vanished),
                text: "another folder is in its place (unmounted, or mounted over); start io-fence again if that is meant to be".to_owned(),
            }));
        }
        let shown = format!("{shown}/{}", self.name);
        let file = match self.open(&folder, direct) {
            Ok(file) => file,
            Err(errno) => return Err((errno, format!("open {shown}"))),
        };
        let known = self.file;
        let file = File::from(file);
        let meta = file
            .metadata()
            .map_err(|error| (errno(&error), format!("stat {shown}")))?;
        let foreign = |text: &str| {
            Ok(Err(Trouble {
                kind: Some(Kind::Other),
                text: format!("{shown} {text}; choose another --touchfile"),
            }))
        };
        // It is written to: a link to, or a name of, somebody's file would be the end of that.
        // Once it is known to be ours it may get more names: that is how some backups are made.
        let place = (meta.dev(), meta.ino());
        if !meta.is_file() || (known != Some(place) && meta.nlink() != 1) {
            return foreign("is no file with one name");
        }
        if known != Some(place) && meta.len() > 0 {
            let begins = file.read_at(&mut self.read.0, 0);
            let read = begins.map_err(|error| (errno(&error), format!("read {shown}")))?;
            if !self
                .read
                .0
                .get(..read)
                .is_some_and(|text| text.starts_with(MAGIC))
            {
                return foreign("is a file of somebody else");
            }
        }
        self.fill();
        let start = Instant::now();
        file.write_all_at(&self.written.0, 0)
            .map_err(|error| (errno(&error), format!("write {shown}")))?;
        if !direct {
            file.sync_data()
                .map_err(|error| (errno(&error), format!("sync {shown}")))?;
        }
        let took = start.elapsed();
        self.took = took;
        if !direct {
            // Where the page stays in the cache all the same, the sync has been the proof.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        self.read.0.fill(0);
        file.read_exact_at(&mut self.read.0, 0)
            .map_err(|error| (errno(&error), format!("read {shown}")))?;
        if self.read.0 != self.written.0 {
            return Ok(Err(Trouble {
                kind: Some(Kind::Other),
                text: format!("what is read from {shown} is not what was written there"),
            }));
        }
        self.home = Some(home);
        self.file = Some(place);
        Ok(full(&file).map_or(Ok(took), |text| {
            Err(Trouble {
                kind: Some(Kind::Enospc),
                text,
            })
        }))
    }

    fn open(&self, folder: &OwnedFd, direct: bool) -> nix::Result<OwnedFd> {
        let mut flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        if direct {
            flags |= OFlag::O_DIRECT | OFlag::O_DSYNC;
        }
        openat(folder, self.name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// Whether the folder has the file that we have written last: the same disk, mounted again.
    fn is_ours(&self, folder: &OwnedFd) -> bool {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let Ok(file) = openat(folder, self.name.as_str(), flags, Mode::empty()) else {
            return false;
        };
        let mut begins = [0; MAGIC.len() + 16];
        let read = File::from(file).read_exact(&mut begins);
        read.is_ok() && begins.starts_with(MAGIC) && begins.ends_with(&self.nonce)
    }

    /// Whether what was read last was written by another reporter.
    fn is_of_another(&self) -> bool {
        let nonce = self
            .read
            .0
            .strip_prefix(MAGIC.as_slice())
            .and_then(|rest| rest.first_chunk());
        nonce.is_some_and(|nonce: &[u8; 16]| *nonce != self.nonce)
    }

    fn fill(&mut self) {
        self.count += 1;
        let mut parts = MAGIC.iter().chain(&self.nonce).copied();
        let count = self.count.to_le_bytes();
        for (at, byte) in self.written.0.iter_mut().enumerate() {
            // Another content in each sector each time: a cache that lies must lie well.
            *byte = parts.next().unwrap_or_else(|| count[at % 8] ^ (at >> 8) as u8);
        }
    }
}

fn identity(file: &impl AsFd) -> nix::Result<Identity> {
    let stat = fstat(file)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        return Err(Errno::ENOTDIR);
    }
    Ok((stat.st_dev, stat.st_ino))
}

/// Why there is no room, where there is none. An overwritten block needs none on most filesystems, so its success says nothing of it.
fn full(file: &File) -> Option<String> {
    // What does not know how large it is (FUSE may not) is not full.
    let stat = fstatvfs(file).ok()?;
    let (free, size) = (stat.blocks_available(), stat.fragment_size());
    if stat.blocks() > 0 && free * size < ROOM.min(stat.blocks() * size / 16) {
        return Some("no room is left for users other than root".to_owned());
    }
    (stat.files() > 0 && stat.files_available() == 0).then(|| "no inode is left".to_owned())
}

fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        // Less than was there a moment ago.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => Errno::EIO,
        _ => error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw),
    }
}

fn trouble(errno: Errno, what: &str) -> Trouble {
    let kind = Some(match errno {
        Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM | Errno::ENOBUFS | Errno::EMFILE | Errno::ENFILE => {
            return Trouble {
                kind: None,
                text: format!("{what}: {}", errno.desc()),
            };
        }
        Errno::EIO
        | Errno::EREMOTEIO
        | Errno::EUCLEAN
        | Errno::EBADMSG
        | Errno::ENXIO
        | Errno::ENODEV
        | Errno::ENOTCONN
        | Errno::ECONNABORTED
        | Errno::ESHUTDOWN
        | Errno::ETIMEDOUT => Kind::Eio,
        Errno::ENOSPC | Errno::EDQUOT => Kind::Enospc,
        Errno::EROFS => Kind::Erofs,
        Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE => Kind::Vanished,
        _ => Kind::Other,
    });
    Trouble {
        kind,
        text: format!("{what}: {}", errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_written_and_read_back_and_no_file_of_others_is_touched() {
        let place = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(place.path(), ".beat");
        disk.beat().unwrap();
        disk.beat().unwrap();
        assert_eq!(place.path().join(".beat").metadata().unwrap().len(), 4_096);
        // Another reporter, later: the file is one of ours.
        Disk::new(place.path(), ".beat").beat().unwrap();

        std::fs::write(place.path().join("data"), "precious").unwrap();
        for (name, make) in [("data", None), ("link", Some(true)), ("name", Some(false))] {
            let path = place.path().join(name);
            match make {
                Some(true) => std::os::unix::fs::symlink("data", path).unwrap(),
                Some(false) => std::fs::hard_link(place.path().join(".beat"), path).unwrap(),
                None => {}
            }
            assert_eq!(
                Disk::new(place.path(), name).beat().unwrap_err().kind,
                Some(Kind::Other),
                "{name}"
            );
        }
        assert_eq!(std::fs::read(place.path().join("data")).unwrap(), b"precious");
        // A backup of hard links, while it is in use.
        std::fs::remove_file(place.path().join("name")).unwrap();
        disk.beat().unwrap();
        std::fs::hard_link(place.path().join(".beat"), place.path().join("backup")).unwrap();
        disk.beat().unwrap();
    }

    #[test]
    fn two_that_write_the_same_file_both_beat() {
        let place = tempfile::tempdir().unwrap();
        let beats = |folder: std::path::PathBuf| {
            std::thread::spawn(move || {
                let mut disk = Disk::new(&folder, ".beat");
                for _ in 0..200 {
                    disk.beat().unwrap();
                }
            })
        };
        for thread in [1, 2].map(|_| beats(place.path().to_owned())) {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_gone_or_another_one_is_noticed_and_one_that_is_back() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("folder");
        let mut disk = Disk::new(&folder, ".beat");
        assert_eq!(disk.beat().unwrap_err().kind, Some(Kind::Vanished));
        std::fs::create_dir(&folder).unwrap();
        disk.beat().unwrap();
        std::fs::rename(&folder, place.path().join("away")).unwrap();
        assert_eq!(disk.beat().unwrap_err().kind, Some(Kind::Vanished));
        std::fs::create_dir(&folder).unwrap();
        let other = disk.beat().unwrap_err();
        assert_eq!(other.kind, Some(Kind::Vanished));
        assert!(other.text.contains("another folder"), "{}", other.text);
        assert!(!folder.join(".beat").exists(), "nothing is written there");
        std::fs::remove_dir(&folder).unwrap();
        std::fs::rename(place.path().join("away"), &folder).unwrap();
        disk.beat().unwrap();
        // A cleaner has taken the file.
        std::fs::remove_file(folder.join(".beat")).unwrap();
        disk.beat().unwrap();
    }

    #[test]
    fn errors_have_kinds() {
        for (errno, kind) in [
            (Errno::EIO, Kind::Eio),
            (Errno::ENOTCONN, Kind::Eio),
            (Errno::EDQUOT, Kind::Enospc),
            (Errno::EROFS, Kind::Erofs),
            (Errno::ESTALE, Kind::Vanished),
            (Errno::EACCES, Kind::Other),
        ] {
            assert_eq!(trouble(errno, "write").kind, Some(kind), "{errno}");
        }
        assert_eq!(
            trouble(Errno::EMFILE, "open").kind,
            None,
            "no fault of the disk's"
        );
    }
}
