# A disk that fails, is full, has become read-only, is late or is gone: each has the end that the configuration says. What is closed
# by hand stays so until it is opened by hand.

EXPECTED_ERRORS = ["^nixio: (fenced|a write failed) folder=./var/lib/(postgresql|redis)/io-fence. "]
CONFIGURATION = """
heartbeat = "1s"
unfence-after = "1s"
metrics = "127.0.0.1:9879"
[[folder]]
path = "/var/lib/postgresql/io-fence"
ports = [5432]
warn-latency = "300ms"
[[folder]]
path = "/var/lib/redis/io-fence"
ports = [6379]
busy-limit = "6s"
on-error = { enospc = "fence" }
"""
# One address of app1's is let in, and established connections are left alone.
LENIENT = """
allow = ["{allowed}/128"]
cut = ["new"]
[[folder]]
path = "/var/lib/redis/io-fence"
ports = [6379]
"""
# A connection that is there before, and says something when it is told to. Redis answers that it wants a password.
TALK = """
import os, socket, sys, time
client = socket.create_connection((sys.argv[1], 6379), timeout=5)
open("/run/talks", "w").close()
while not os.path.exists("/run/talk"):
    time.sleep(0.05)
client.sendall(b"PING\\r\\n")
print(client.recv(100).decode())
"""
# A server for UDP, and a client that says whether it is answered, refused or left alone.
ECHO = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("::", 5353))
while True:
    said, peer = server.recvfrom(100)
    server.sendto(said, peer)
"""
ASK = """
import socket, sys
info = socket.getaddrinfo(sys.argv[1], 5353, type=socket.SOCK_DGRAM)[0]
client = socket.socket(info[0], info[1])
client.settimeout(2)
client.connect(info[4])
try:
    client.send(b"x")
    print("answered" if client.recv(10) else "nothing")
except ConnectionRefusedError:
    print("refused")
except TimeoutError:
    print("silence")
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/local/bin/io-fence run --config /etc/io-fence.toml
RestrictAddressFamilies=AF_INET AF_INET6
# A host gives it the limit that it asks for; one in a container whose root may not raise limits cannot.
AmbientCapabilities=CAP_IPC_LOCK
CapabilityBoundingSet=CAP_IPC_LOCK
"""
HEARTBEAT = 1.0
BUSY_LIMIT = 6.0
# A machine that does much else.
LATE = 3.0

double = nixio.double("/var/lib/postgresql/io-fence")
redis = nixio.disk("/var/lib/redis")


def is_closed(port: int) -> bool:
    return str(port) in nixio.execute("nft list set inet io_fence fenced_tcp 2>&1")[1]


def answers(host: Host, to: str, port: int) -> int:
    """0: a connection; 1: refused; 124: nobody says anything."""
    return host.execute(f"timeout 3 bash -c '</dev/tcp/{to}/{port}' 2>/dev/null")[0]


def closes(port: int) -> None:
    took = until(f"{port} is closed", lambda: is_closed(port), HEARTBEAT + LATE)
    print(f"closed after {took:.1f} s")
    assert answers(app1, "nixio", port) == 1
    assert answers(nixio, "localhost", port) == 0


def opens(port: int) -> None:
    took = until(f"{port} is open", lambda: not is_closed(port), HEARTBEAT + LATE)
    print(f"open after {took:.1f} s")
    assert answers(app1, "nixio", port) == 0


def said(pattern: str) -> list[str]:
    """Lines of its journal that have it."""
    _, lines = nixio.execute(f"journalctl -b -o cat -u io-fence.service | grep -aiE -- '{pattern}'")
    return lines.splitlines()


def figure(name: str, folder: str) -> float:
    lines = nixio.succeed("python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9879/metrics\").read().decode())'")
    for line in lines.splitlines():
        if line.startswith(f"{name}{{") and folder in line:
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no {name} of {folder} in:\n{lines}")


nixio.start()
app1.start()
nixio.wait_for_unit("postgresql.service", timeout=BOOT)
nixio.wait_for_unit("redis.service", timeout=BOOT)
put(nixio, "/etc/io-fence.toml", CONFIGURATION)
put(nixio, "/etc/systemd/system/io-fence.service.d/check.conf", DROP_IN)
nixio.succeed("systemctl daemon-reload", "systemctl restart io-fence.service")
for port in (5432, 6379):
    nixio.wait_for_open_port(port, timeout=60)
    until(f"{port} is reached", lambda: answers(app1, "nixio", port) == 0, 30)

with subtest("it is held in memory, all of it"):
    status = nixio.succeed(f"cat /proc/{number(nixio, 'io-fence.service', 'MainPID')}/status")
    figures = {line.split()[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
    print(f"resident {figures['VmRSS:']} KiB, locked {figures['VmLck:']} KiB, at most {figures['VmHWM:']} KiB")
    assert figures["VmLck:"] >= figures["VmRSS:"] > 0, figures
    assert "not locked" not in nixio.succeed("io-fence status")

with subtest("all is well: nothing is closed, and there are figures of it"):
    stays("open", lambda: not is_closed(5432) and not is_closed(6379), 2)
    assert figure("io_fence_fenced", "postgresql") == 0
    assert figure("io_fence_beat_age_seconds", "postgresql") < HEARTBEAT

for error in ("EIO", "EROFS"):
    with subtest(f"{error}: closed, and open again when it works"):
        double.fails(error)
        closes(5432)
        assert figure("io_fence_fenced", "postgresql") == 1
        assert not is_closed(6379)
        double.works()
        opens(5432)

with subtest("ENOSPC: a line in the journal, and nothing is closed where it says so"):
    double.fails("ENOSPC")
    until("it is said", lambda: bool(said("a write failed.*enospc")), 5)
    stays("open", lambda: not is_closed(5432), 2 * HEARTBEAT)
    double.works()

with subtest("one that answers late, and in time: a warning, and nothing is closed"):
    double.is_late(400)
    until("it is said", lambda: bool(said("writes are slow")), 10)
    stays("open", lambda: not is_closed(5432), 2 * HEARTBEAT)
    assert figure("io_fence_write_latency_p99_seconds", "postgresql") >= 0.35
    double.works()

with subtest("one that answers nothing: closed, and open again"):
    double.hangs()
    closes(5432)
    double.works()
    opens(5432)

with subtest("a disk that is full, where that closes: closed until there is room"):
    redis.fill()
    closes(6379)
    redis.empty()
    opens(6379)

with subtest("one that is busy: a line in the journal, and nothing is closed while it completes what others write"):
    redis.stall(busy=True)
    until("it is said", lambda: bool(said("the disk is busy.*redis")), HEARTBEAT + LATE)
    assert not is_closed(6379) and figure("io_fence_busy", "redis") == 1
    redis.go_on()
    until("it is over", lambda: bool(said("came back from the busy disk")), LATE)
    assert not said("fenced folder=./var/lib/redis/io-fence. .*disk_worked")

with subtest("one that is busy for too long: closed, and open again"):
    redis.stall(busy=True)
    took = until("6379 is closed", lambda: is_closed(6379), BUSY_LIMIT + LATE)
    print(f"closed after {took:.1f} s")
    assert took > BUSY_LIMIT - HEARTBEAT, took
    redis.go_on()
    opens(6379)

with subtest("one that hangs: closed, and open again"):
    redis.stall()
    closes(6379)
    redis.go_on()
    opens(6379)

with subtest("a folder that is gone: closed until it is back"):
    nixio.succeed("mv /var/lib/redis/io-fence /var/lib/redis/elsewhere")
    closes(6379)
    nixio.succeed("mv /var/lib/redis/elsewhere /var/lib/redis/io-fence")
    opens(6379)

with subtest("what is closed by hand stays closed, over a restart too, until it is opened by hand"):
    nixio.succeed("io-fence fence --ports 6379 --reason 'somebody looks at it'")
    assert is_closed(6379) and answers(app1, "nixio", 6379) == 1
    stays("closed, whatever the disk says", lambda: is_closed(6379), 3 * HEARTBEAT)
    nixio.succeed("systemctl restart io-fence.service", timeout=30)
    stays("closed", lambda: is_closed(6379), 3 * HEARTBEAT)
    status = nixio.succeed("io-fence status")
    print(status)
    assert "somebody looks at it" in status, status
    nixio.succeed("io-fence unfence --ports 6379")
    opens(6379)

with subtest("a user of no right asks, and does nothing"):
    nixio.succeed("runuser -u nobody -- io-fence status")
    code, printed = nixio.execute("runuser -u nobody -- io-fence fence --ports 6379 2>&1")
    assert code != 0 and not is_closed(6379), printed
    print(printed.strip())

with subtest("a port of UDP: refused, by either version of IP, and answered again"):
    put(nixio, "/run/echo.py", ECHO)
    put(app1, "/run/ask.py", ASK)
    nixio.succeed("systemd-run --quiet --unit=echo python3 /run/echo.py")
    addresses = [nixio.succeed(f"ip -{family} -o addr show dev eth1 scope global").split()[3].split("/")[0] for family in (4, 6)]
    # The host's firewall lets nobody in on it.
    nixio.succeed("nft insert rule inet nixos-fw input udp dport 5353 accept")

    def asked() -> list[str]:
        return [app1.succeed(f"python3 /run/ask.py {address}").strip() for address in addresses]

    until("it answers", lambda: asked() == ["answered", "answered"], 10)
    nixio.succeed("io-fence fence --udp-ports 5353")
    assert asked() == ["refused", "refused"], asked()
    assert nixio.succeed("python3 - ::1 <<'END'\n" + ASK + "END").strip() == "answered"
    nixio.succeed("io-fence unfence --udp-ports 5353")
    assert asked() == ["answered", "answered"], asked()

with subtest("who is allowed is let in, and an established connection goes on where only new ones are to end"):
    allowed = app1.succeed("ip -6 -o addr show dev eth1 scope global").split()[3].split("/")[0]
    put(nixio, "/etc/io-fence.toml", LENIENT.format(allowed=allowed))
    nixio.succeed("systemctl restart io-fence.service")
    put(app1, "/run/talk.py", TALK)
    app1.succeed(f"systemd-run --quiet --unit=talk python3 /run/talk.py {addresses[0]}", "until test -e /run/talks; do sleep 0.1; done", timeout=10)
    nixio.succeed("io-fence fence --ports 6379")
    assert answers(app1, addresses[0], 6379) == 1 and answers(app1, addresses[1], 6379) == 0
    app1.succeed("touch /run/talk")
    app1.wait_until_succeeds("journalctl -o cat -u talk.service | grep -a NOAUTH", timeout=5)
    nixio.succeed("io-fence unfence --ports 6379")
    put(nixio, "/etc/io-fence.toml", CONFIGURATION)
    nixio.succeed("systemctl restart io-fence.service")
    stays("open", lambda: not is_closed(6379), 2)

with subtest("a disk that becomes read-only after an error, with files open there: closed"):
    redis.read_only()
    closes(6379)
    assert not is_closed(5432)
