# Reporters of their own, each as the database's user, and a monitor that needs no disk: one that is killed is missed, one that is
# nobody's is not believed, and the monitor is restarted in the middle of a stall with nothing left behind.

EXPECTED_ERRORS = [
    "^nixio: fenced folder=./var/lib/postgresql. ",
    "^nixio: cannot report; trying again folder=./var/lib/postgresql. ",
    # What this scenario kills.
    "^nixio: reporter.service: ",
    "^nixio: io-fence.service: (Failed with result '(signal|exit-code)'|Scheduled restart job)",
]
MONITOR = """
heartbeat = "1s"
unfence-after = "1s"
reporter-users = ["postgres"]
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/local/bin/io-fence monitor --config /etc/io-fence.toml
"""
REPORTER = """
[Unit]
StartLimitIntervalSec=0
[Service]
User=postgres
ExecStart=/usr/local/bin/io-fence reporter --monitor /var/lib/postgresql --ports 5432 --sleep 200ms
"""


def is_closed() -> bool:
    return "5432" in nixio.execute("nft list set inet io_fence fenced_tcp 2>&1")[1]


def answers(host: Host) -> int:
    """0: a connection; 1: refused; 124: nobody says anything."""
    return host.execute("timeout 3 bash -c '</dev/tcp/nixio/5432' 2>/dev/null")[0]


def monitor() -> int:
    return number(nixio, "io-fence.service", "MainPID")


disk = nixio.disk("/var/lib/postgresql", megabytes=192)
nixio.start()
app1.start()
nixio.wait_for_unit("postgresql.service", timeout=BOOT)
put(nixio, "/etc/io-fence.toml", MONITOR)
put(nixio, "/etc/systemd/system/io-fence.service.d/check.conf", DROP_IN)
put(nixio, "/etc/systemd/system/reporter.service", REPORTER)
nixio.succeed("systemctl daemon-reload", "systemctl restart io-fence.service", "systemctl start reporter.service")
until("the port is reached", lambda: answers(app1) == 0, 30)

with subtest("a reporter registers itself, and is heard"):
    until("it is known", lambda: "/var/lib/postgresql" in nixio.succeed("io-fence status"), 10)
    stays("open", lambda: not is_closed(), 2)

with subtest("it is killed: closed, though the disk is well; another one, and open again"):
    nixio.succeed("systemctl kill --signal=KILL reporter.service")
    until("closed", is_closed, 5)
    assert answers(app1) == 1
    nixio.succeed("systemctl start reporter.service")
    until("open", lambda: not is_closed(), 6)

with subtest("it is stopped, on purpose: it says so, and nothing is closed"):
    nixio.succeed("systemctl stop reporter.service")
    stays("open", lambda: not is_closed(), 3)
    nixio.succeed("systemctl start reporter.service")
    until("it is known", lambda: "/var/lib/postgresql" in nixio.succeed("io-fence status"), 10)

with subtest("one of another user is not believed, for this folder or any"):
    nixio.succeed("systemctl kill --signal=KILL reporter.service")
    until("closed", is_closed, 5)
    _, said = nixio.execute(
        "cd /tmp; timeout 4 runuser -u nobody -- io-fence reporter --monitor /tmp --ports 5432 --sleep 200ms 2>&1"
    )
    print(said.strip()[-300:])
    assert "may not report" in said and "/tmp" not in nixio.succeed("io-fence status"), said
    assert is_closed()
    nixio.succeed("systemctl start reporter.service")
    until("open", lambda: not is_closed(), 6)

with subtest("the disk stalls: closed; the monitor is restarted at once and leaves nothing behind; open when the disk goes on"):
    disk.stall()
    until("closed", is_closed, 6)
    before = monitor()
    begun = time.monotonic()
    nixio.succeed("systemctl restart io-fence.service", timeout=30)
    took = time.monotonic() - begun
    print(f"restarted after {took:.1f} s")
    assert is_closed() and monitor() != before and processes(nixio, "io-fence.service") == 1
    nixio.succeed("systemctl kill --signal=KILL io-fence.service")
    until("another one", lambda: is_active(nixio, "io-fence.service") and monitor() != before, 15)
    stays("closed", is_closed, 3)
    disk.go_on()
    until("open", lambda: not is_closed(), 8)
    assert answers(app1) == 0
