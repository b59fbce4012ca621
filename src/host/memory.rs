//! Memory that stays in memory: a page that must be read from a disk that hangs would hang its reader.

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Under a lower limit nothing is locked that is not there yet: with `MCL_FUTURE` each allocation beyond the limit fails, and a program whose
/// allocation fails ends.
const ENOUGH: u64 = 256 << 20;

/// Why memory is not locked, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The limit is too low for what is to come.
    #[error(
        "the limit of locked memory (RLIMIT_MEMLOCK) is {0} bytes; set LimitMEMLOCK=infinity in the unit, or give it CAP_IPC_LOCK"
    )]
    Limit(u64),
    /// The kernel said no.
    #[error("mlockall: {0}; set LimitMEMLOCK=infinity in the unit, or give it CAP_IPC_LOCK")]
    Refused(Errno),
}

/// Locks all that this process has, its program included, and all that it will have.
///
/// # Errors
/// When it is not all locked. What could be is: the program itself is the larger part.
pub fn lock_memory() -> Result<(), LockError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(LockError::Refused)?;
    if soft < hard {
        // As much as we may have. Whether it was enough is seen below.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
    if hard < ENOUGH && !may_lock_without_limit() {
        let _ = mlockall(MlockAllFlags::MCL_CURRENT);
        return Err(LockError::Limit(hard));
    }
    give_back();
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).map_err(LockError::Refused)
}

/// What the start has needed and nobody needs any more (arguments, configuration) is not to be locked for years.
fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "glibc's own call; there is no safe binding")]
    // SAFETY: malloc_trim takes a number, gives free pages of the heap back, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether this process has CAP_IPC_LOCK, by proc_pid_status(5).
fn may_lock_without_limit() -> bool {
    /// capability(7)
    const CAP_IPC_LOCK: u32 = 14;
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return false;
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

/// One heap for all threads, which grows by little, to be called before there are any: glibc gives each thread 64 MB of address space of its own, which
/// counts against the limit of locked memory, and the heap 128 KB more than it needs each time, which are locked.
pub fn small_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "glibc's own settings; there is no safe binding")]
    // SAFETY: mallopt takes two numbers and touches nothing of ours; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, 4 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 10);
    }
}
