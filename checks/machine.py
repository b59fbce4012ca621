"""Hosts with a real systemd, up in about two seconds, gone without a trace: what the throw-away host and the lab share.

The tree is built once by mmdebstrap and kept under ~/.cache/io-guardian; each host writes to a tmpfs over it.
Whoever boots one enters mount and network namespaces of its own first (`isolate`). Mounts and namespaces end with the
last process in them, and systemd-nspawn dies with the process that started it, so a killed run leaves nothing to clean up
but empty cgroups, which the next run removes.

Needs root. Debian's python3 suffices.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "procps", "polkitd", "postgresql", "redis-server", "iproute2", "iputils-ping", "nftables",
    "python3-websockets", "python3-cryptography", "iptables", "firewalld",
)  # fmt: skip
# Raise it when the tree must be built anew although the packages stay the same.
TREE_VERSION = 1

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

LIBC = ctypes.CDLL(None, use_errno=True)

# What a command in the host finds in its environment: nothing of ours.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}


class HostError(Exception):
    """The host cannot be built, booted or reached."""


class NotHere(HostError):
    """What a test needs, this machine has not."""


class CommandFailed(Exception):
    """A command in the host ended with a code that the test did not expect."""


def missing() -> str | None:
    """Why no host can be booted here, or None."""
    if os.geteuid() != 0:
        return "needs root (namespaces, overlay mounts, systemd-nspawn)"
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET) == 0 else 1)
    if os.waitpid(pid, 0)[1] != 0:
        return "this root may not make namespaces (a container without CAP_SYS_ADMIN?)"
    return None


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/root"), ".cache")
    return Path(base) / "io-guardian"


def suite() -> str:
    """The Debian release of the host: ours, so that a program built here runs there. CHECKS_SUITE names a newer one."""
    if chosen := os.environ.get("CHECKS_SUITE"):
        return chosen
    try:
        found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1) if found and found.group(1) in ("bookworm", "trixie") else "bookworm"


def tree(log: Any = None) -> Path:
    """The root tree that all hosts lie over; built when it is not there yet."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    release = suite()
    key = hashlib.sha256(repr((TREE_VERSION, release, PACKAGES)).encode()).hexdigest()[:12]
    done = cache / f"root-{release}-{key}"
    # One builder at a time; the lock goes with the process.
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in cache.glob("building-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if not done.is_dir():
            building = cache / f"building-{os.getpid()}"
            print(f"building the root tree of the throw-away host, once (about a minute): {done}", file=log or sys.stderr, flush=True)
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(building)]
            result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if result.returncode != 0:
                shutil.rmtree(building, ignore_errors=True)
                raise HostError(f"mmdebstrap failed: {' '.join(command)}\n{result.stderr[-4000:]}")
            # Only a whole tree gets the name that is looked for.
            building.rename(done)
        # When it was last used. Another checkout may have a tree of its own in use: only old ones go.
        os.utime(done)
        for old in cache.glob("root-*"):
            if time.time() - old.stat().st_mtime > 7 * 24 * 3600:
                shutil.rmtree(old, ignore_errors=True)
    return done


def call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise HostError(f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    call(
        LIBC.mount(source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()),
        f"mount {kind} on {target}",
    )


def unmount(target: Path) -> None:
    # Detached (MNT_DETACH): what lies in a mount goes with it.
    LIBC.umount2(str(target).encode(), 2)


def die_with(parent: int) -> None:
    """Runs in a child before it becomes something else: it ends when its parent does."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


_isolated = False


def isolate() -> None:
    """Moves this process into mount and network namespaces of its own, once. There is no way back."""
    global _isolated
    if _isolated:
        return
    call(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    mount("none", Path("/"), "none", MS_REC | MS_PRIVATE)
    loopback_up()
    _isolated = True


def unified_hierarchy() -> Path | None:
    for place in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{place}/cgroup.procs") and os.path.exists(f"{place}/cgroup.controllers"):
            return Path(place)
    return None


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise HostError(f"process {pid} should have one child, but has {len(children)}")
    return int(children[0])


class Cgroup:
    """A cgroup for one host, where no outer systemd hands them out."""

    def __init__(self, name: str) -> None:
        self.paths: list[Path] = []
        roots = [Path("/sys/fs/cgroup/systemd"), unified_hierarchy()]
        for root in roots:
            if root is None or not root.is_dir():
                continue
            for old in root.glob("io-guardian-check-*"):
                owner = old.name.rsplit("-", 1)[-1]
                if not (owner.isdigit() and alive(int(owner))):
                    self.remove(old)
            path = root / f"io-guardian-check-{name}-{os.getpid()}"
            try:
                path.mkdir(exist_ok=True)
                self.paths.append(path)
            except OSError:
                # Read-only cgroups: nspawn then uses the one that we are in.
                pass

    def enter(self) -> None:
        """Runs in the child, before it becomes systemd-nspawn."""
        for path in self.paths:
            (path / "cgroup.procs").write_text("0")

    @staticmethod
    def remove(top: Path) -> None:
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass

    def close(self) -> None:
        # The kernel may still be taking down what was killed in it.
        deadline = time.monotonic() + 5
        for path in self.paths:
            self.remove(path)
            while path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
                self.remove(path)


class Machine:
    """A host: files of its own over the shared tree, and a systemd that is booted over them, as often as one likes."""

    # Of ours: what is found in its PATH.
    PROGRAMS: tuple[str, ...] = ("io-guardian", "io-coordinator", "io-fence")

    def __init__(
        self,
        name: str,
        place: Path,
        bin_dir: str | os.PathLike[str] | None = None,
        log: str | os.PathLike[str] | None = None,
        *,
        whole: bool = True,
        capabilities: str = "",
    ) -> None:
        """`whole`: it counts as booted when its own PID 1 says so, and not as soon as that runs."""
        self.name = name
        self.place = place
        self.root = place / "root"
        self.bin_dir = Path(bin_dir) if bin_dir else None
        self.log_path = Path(log) if log else None
        self.leader = 0
        self._whole = whole
        self._capabilities = capabilities
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        self._cgroup: Cgroup | None = None

    # -- boot and end -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Makes its files. This process is isolated."""
        lower = tree()
        self.place.mkdir(exist_ok=True)
        mount("tmpfs", self.place, "tmpfs", 0, "mode=0755,size=2g")
        self.root.mkdir()
        own = self._own_layer()
        for name in ("upper", "work"):
            (own / name).mkdir()
        layers = f"lowerdir={lower},upperdir={own}/upper,workdir={own}/work"
        mount("overlay", self.root, "overlay", 0, layers)
        self._furnish(self.root)

    def _own_layer(self) -> Path:
        """Where what it writes is kept."""
        return self.place

    def _furnish(self, root: Path) -> None:
        (root / "etc/machine-id").write_text("")
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
        # What a test does not look at only costs time at boot.
        for unit in ("systemd-timesyncd.service", "getty.target", "console-getty.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer", "systemd-networkd.service", "systemd-resolved.service", "firewalld.service"):
            link = root / "etc/systemd/system" / unit
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        # The databases' programs are there for those who start them, and Debian's ways of starting them are not.
        for unit in ("multi-user.target.wants/postgresql.service", "multi-user.target.wants/redis-server.service", "redis.service"):
            (root / "etc/systemd/system" / unit).unlink(missing_ok=True)
        generators = root / "etc/systemd/system-generators"
        generators.mkdir(parents=True, exist_ok=True)
        (generators / "postgresql-generator").symlink_to("/dev/null")
        # The journal is read by tests: nothing may be dropped from it, and it need not survive.
        conf = root / "etc/systemd/journald.conf.d"
        conf.mkdir(parents=True, exist_ok=True)
        (conf / "checks.conf").write_text("[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n")
        conf = root / "etc/systemd/system.conf.d"
        conf.mkdir(parents=True, exist_ok=True)
        (conf / "checks.conf").write_text("[Manager]\nDefaultStartLimitIntervalSec=0\n")
        if self.bin_dir:
            # Bound, not copied: they are large, and a host is up in half a second.
            for name in self.PROGRAMS:
                source = self.bin_dir / name
                if not source.is_file():
                    raise HostError(f"{source} is not there: cargo build, or name another folder with --bin-dir")
                target = root / "usr/local/bin" / name
                target.touch()
                mount(str(source.resolve()), target, "none", MS_BIND)

    def spawn(self, netns: Path) -> None:
        """Begins to boot, in a network namespace that has a name."""
        notify_path = self.place / "notify"
        notify_path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(notify_path))
        command = [
            # A process namespace: when its first process (nspawn) dies, the kernel ends everything in it.
            "unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--",
            "systemd-nspawn", "--quiet", "--register=no", f"--directory={self.root}", f"--machine={self.name}", "--boot",
            f"--notify-ready={'yes' if self._whole else 'no'}", "--kill-signal=SIGRTMIN+3", "--resolv-conf=off",
            "--timezone=off", "--link-journal=no", f"--network-namespace-path={netns}",
        ]  # fmt: skip
        if self._capabilities:
            command.append(f"--capability={self._capabilities}")
        if not os.path.isdir("/run/systemd/system"):
            # No systemd outside that could make a scope for it: we make the cgroup.
            command.append("--keep-unit")
            self._cgroup = Cgroup(self.name)
        environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(notify_path)}
        if unified_hierarchy():
            environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
        parent = os.getpid()

        def before_exec() -> None:
            die_with(parent)
            if self._cgroup:
                self._cgroup.enter()

        self._log = open(self.log_path, "ab") if self.log_path else tempfile.TemporaryFile()
        self._nspawn = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment,
            preexec_fn=before_exec, start_new_session=True,
        )  # fmt: skip

    def await_boot(self, deadline: float) -> None:
        """Waits until it is booted, and so can be entered."""
        assert self._nspawn and self._notify
        while True:
            left = deadline - time.monotonic()
            self._notify.settimeout(max(0.01, min(left, 0.5)))
            try:
                message = self._notify.recv(4096).decode(errors="replace")
            except (TimeoutError, socket.timeout):
                if self._nspawn.poll() is not None or left <= 0:
                    said = self.said()
                    self.kill()
                    raise HostError(f"{self.name} did not boot; systemd-nspawn said:\n{said}") from None
                continue
            if re.search(r"^READY=1$", message, re.M):
                break
        self._notify.close()
        # unshare's child is nspawn, nspawn's child is the host's PID 1.
        self.leader = child_of(child_of(self._nspawn.pid))

    def console(self) -> str:
        """What its console has shown."""
        if self.log_path:
            return self.log_path.read_text(errors="replace")
        # Where this process reads is where systemd-nspawn would write: they have one position in it.
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def said(self) -> str:
        return self.console()[-4000:]

    def is_over(self) -> bool:
        """Nothing of it runs: it was never booted, it has powered off, it was killed."""
        return self._nspawn is None or self._nspawn.poll() is not None

    def kill(self) -> None:
        """Ends all of it at once. Its files stay."""
        if self._nspawn:
            leader = self.leader
            self._nspawn.kill()
            self._nspawn.wait()
            self._nspawn = None
            self._log.close()
            self.leader = 0
            deadline = time.monotonic() + 10
            while leader and alive(leader) and time.monotonic() < deadline:
                time.sleep(0.01)
        if self._notify:
            self._notify.close()
        if self._cgroup:
            self._cgroup.close()

    def discard(self) -> None:
        """Ends it, and its files with it."""
        self.kill()
        unmount(self.place)

    # -- what tests do ------------------------------------------------------------------------------------------

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` in the host."""
        return ["nsenter", f"--target={self.leader}", "--all", "--wdns=/", "--", *command]

    def run(self, *command: str, check: bool = True, timeout: float = 60, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command in the host. One text is a shell script."""
        argv = ["/bin/sh", "-c", command[0]] if len(command) == 1 else list(command)
        result = subprocess.run(
            self.argv(*argv),
            env=ENVIRONMENT, input=input, stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if check and result.returncode != 0:
            raise CommandFailed(f"{' '.join(argv)}\nended with {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 60) -> str:
        return self.run("systemctl", *arguments, check=check, timeout=timeout).stdout.strip()

    def path(self, path: str) -> Path:
        """Where a file of the host is, seen from here."""
        return Path(f"/proc/{self.leader}/root{path}")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def read(self, path: str) -> str:
        return self.path(path).read_text(errors="replace")

    def exists(self, path: str) -> bool:
        return self.path(path).exists()

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        said = self.systemctl("show", unit, *(f"--property={p}" for p in properties))
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")["ActiveState"]

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit, check=False).stdout

    def processes(self, variable: str) -> dict[int, str]:
        """Processes in the host (by their id there) whose environment has `variable`, with their command lines."""
        found = {}
        for entry in self.path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if any(v.startswith(f"{variable}=".encode()) for v in (entry / "environ").read_bytes().split(b"\0")):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                # It ended while we looked.
                continue
        return found
