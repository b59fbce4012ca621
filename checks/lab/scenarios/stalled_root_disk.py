# The disk of the whole host stalls, with the journal, the programs' folders and the databases on it: their ports are closed all the same,
# the fence can be restarted, whoever depends on them is drained, and all goes on when the disk does.

EXPECTED_ERRORS = [
    "^nixio: fenced folder=./var/lib/(postgresql|redis)/io-fence. ",
    # Threads that wait for the disk are left behind.
    "^nixio: io-fence.service: (Failed with result '(timeout|signal|watchdog)'|Scheduled restart job|Watchdog timeout)",
    "^nixio: io-fence.service: Processes still around after",
    "^nixio: cannot remember the generation: draining with one (above the last|from the clock)",
    # Who waits for the disk does not answer systemd.
    "^nixio: (systemd-journald|postgresql|redis|io-coordinator-serve).service: ",
    "^nixio: io-fence-drain.service: ",
]

root = nixio.root_disk()


def is_closed(port: int) -> bool:
    return str(port) in nixio.execute("nft list set inet io_fence fenced_tcp 2>&1")[1]


def answers(host: Host, port: int) -> int:
    """0: a connection; 1: refused; 124: nobody says anything."""
    return host.execute(f"timeout 3 bash -c '</dev/tcp/nixio/{port}' 2>/dev/null")[0]


def fence() -> int:
    return number(nixio, "io-fence.service", "MainPID")


started()
nixio.wait_for_unit("io-fence.service", timeout=30)

with subtest("it stalls: the ports are closed to others"):
    begun = time.monotonic()
    root.stall()
    until("both are closed", lambda: is_closed(5432) and is_closed(6379), 15)
    print(f"closed after {time.monotonic() - begun:.1f} s")
    for port in (5432, 6379):
        assert answers(app1, port) == 1 and answers(app2, port) == 1, port

with subtest("whoever depends on them is drained"):
    until("both hosts rest", lambda: rest(app1) and rest(app2), 30)

with subtest("the fence is stopped and started, with the disk of all that it could need stalled"):
    before = fence()
    begun = time.monotonic()
    # More than a restart: for a start after a stop systemd makes anew what a unit has (PrivateTmp= would need the disk here).
    nixio.succeed("systemctl stop io-fence.service", timeout=40)
    assert is_closed(5432) and is_closed(6379)
    nixio.succeed("systemctl start io-fence.service", timeout=40)
    print(f"stopped and started after {time.monotonic() - begun:.1f} s")
    assert fence() not in (0, before)
    stays("closed", lambda: is_closed(5432) and is_closed(6379) and answers(app1, 5432) == 1, 3)

with subtest("it goes on: open, and all dependents run"):
    root.go_on()
    until("both are open", lambda: not is_closed(5432) and not is_closed(6379), 20)
    until("all dependents run", all_run, UNDRAIN)
