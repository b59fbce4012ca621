# PostgreSQL's disk stalls under writers of another host: its port is closed to all others before anything more is acknowledged,
# whoever depends on it is drained, and all goes on when the disk does.

EXPECTED_ERRORS = [
    "^nixio: fenced folder=./var/lib/postgresql/io-fence. ",
    # A thread of its own waits for the disk, where nobody can kill it: systemd leaves it behind.
    "^nixio: io-fence.service: (Failed with result '(timeout|signal|watchdog)'|Scheduled restart job|Watchdog timeout)",
    "^nixio: io-fence.service: Processes still around after",
]
# Its defaults (modules/fence.nix), and what a machine that does much else may add.
HEARTBEAT = 5.0
UNFENCE_AFTER = 5.0
LATE = 2.0

# Knocks at the port again and again: when, and whether it is open.
KNOCK = """
import socket, time
with open("/run/knocks", "a", buffering=1) as log:
    while True:
        now = time.time()
        try:
            socket.create_connection(("nixio", 5432), timeout=5).close()
            said = "open"
        except ConnectionRefusedError:
            said = "refused"
        except OSError as error:
            said = f"silent {error}"
        log.write(f"{now} {said}\\n")
        time.sleep(0.02)
"""
# A client that says nothing and waits: when it is told that nobody will answer.
WAIT = """
import socket, time
client = socket.create_connection(("nixio", 5432))
open("/run/waits", "w").close()
try:
    client.recv(1)
    said = "closed"
except OSError as error:
    said = str(error)
with open("/run/told", "w") as log:
    log.write(f"{time.time()} {said}")
"""
# Writes row after row: when each was acknowledged. With `off` the server does so before the row is on the disk.
WRITE = r"""
export PGHOST=nixio PGUSER=myapp PGDATABASE=myapp PGPASSWORD=$(cat /run/secrets/POSTGRES/MYAPP_PASSWORD) PGCONNECT_TIMEOUT=5
number=1
while true; do
  coproc psql -XAtq -v ON_ERROR_STOP=1 2>&1
  server=$COPROC_PID in=${COPROC[1]} out=${COPROC[0]}
  echo "SET synchronous_commit = $1;" >&$in
  while echo "INSERT INTO written VALUES ('$1', $number) RETURNING number;" >&$in && read -r said <&$out && [ "$said" = $number ]; do
    echo "$EPOCHREALTIME $number" >>/run/acknowledged-$1
    number=$((number + 1))
    sleep 0.02
  done 2>/dev/null
  kill $server 2>/dev/null; wait $server
  # What was not acknowledged may be there all the same.
  number=$((number + 1))
  sleep 0.2
done
"""


def closed() -> str:
    """What the kernel refuses."""
    return nixio.execute("nft list set inet io_fence fenced_tcp 2>&1")[1]


def is_closed() -> bool:
    return "5432" in closed()


def knocks(host: Host) -> list[tuple[float, str]]:
    lines = [line.split(" ", 1) for line in host.succeed("cat /run/knocks").splitlines()]
    return [(float(at), said) for at, said in lines]


def acknowledged(kind: str) -> dict[int, float]:
    lines = [line.split() for line in app1.succeed(f"cat /run/acknowledged-{kind}").splitlines()]
    return {int(number): float(at) for at, number in lines}


def answers(host: Host, to: str, port: int) -> int:
    """0: a connection; 1: refused; 124: nobody says anything."""
    return host.execute(f"timeout 3 bash -c '</dev/tcp/{to}/{port}' 2>/dev/null")[0]


def fence() -> int:
    return number(nixio, "io-fence.service", "MainPID")


disk = nixio.disk("/var/lib/postgresql", megabytes=192)
started()
nixio.wait_for_unit("io-fence.service", timeout=30)
addresses = [nixio.succeed(f"ip -{family} -o addr show dev eth1 scope global").split()[3].split("/")[0] for family in (4, 6)]

with subtest("two writers, a client that waits, and one that knocks"):
    nixio.succeed(
        "runuser -u postgres -- psql -Xqd myapp -c 'CREATE TABLE written (kind text, number bigint, PRIMARY KEY (kind, number))' "
        "-c 'GRANT SELECT, INSERT ON written TO myapp'"
    )
    put(app1, "/run/knock.py", KNOCK)
    put(app1, "/run/wait.py", WAIT)
    put(app1, "/run/write", WRITE)
    app1.succeed(
        "systemd-run --quiet --unit=knock python3 /run/knock.py",
        "systemd-run --quiet --unit=wait python3 /run/wait.py",
        "systemd-run --quiet --unit=write-on bash /run/write on",
        "systemd-run --quiet --unit=write-off bash /run/write off",
        "until test -e /run/waits && test -s /run/acknowledged-on && test -s /run/acknowledged-off; do sleep 0.1; done",
        timeout=20,
    )
    assert not is_closed(), closed()

with subtest("the disk stalls: the port is closed within the heartbeat, and no write is acknowledged any more"):
    begun = time.time()
    disk.stall()
    stalled = time.time()
    until("the port is closed", is_closed, HEARTBEAT + LATE + 5)
    # What was begun before it is through by then.
    until("a knock is refused", lambda: "refused" in knocks(app1)[-1][1], 5)
    refused = next(at for at, said in knocks(app1) if at > begun and said == "refused")
    last = {kind: max(acknowledged(kind).values()) for kind in ("on", "off")}
    print(f"refused {(refused - stalled) * 1000:.0f} ms after the stall; the last row that was acknowledged:")
    for kind, at in last.items():
        print(f"  synchronous_commit = {kind}: {(at - stalled) * 1000:.0f} ms after the stall")
        # As the client has it; a moment for what it does after it has read.
        assert at < refused + 0.1, (kind, at - refused)
    assert refused - stalled < HEARTBEAT + LATE, refused - stalled

with subtest("other hosts are refused, by every address, and this one is not"):
    for host in (app1, app2):
        for address in addresses:
            assert answers(host, address, 5432) == 1, (host.name, address)
    for address in ("127.0.0.1", "::1", *addresses):
        assert answers(nixio, address, 5432) == 0, address
    assert query(nixio, "SELECT 1") == 1

with subtest("another disk's port is open as before"):
    for host in (app1, app2):
        assert answers(host, "nixio", 6379) == 0, host.name

with subtest("a client that only waits has been told"):
    when, said = app1.wait_until_succeeds("cat /run/told", timeout=5).split(" ", 1)
    print(f"{(float(when) - refused) * 1000:.0f} ms after the first refusal: {said}")
    assert "reset" in said, said

with subtest("whoever depends on the databases is drained"):
    until("both hosts rest", lambda: rest(app1) and rest(app2), 30)

with subtest("the fence is restarted, and killed, while the disk stalls: it stands all along, and who keeps it is another one"):
    before = fence()
    begun = time.monotonic()
    nixio.succeed("systemctl restart io-fence.service", timeout=40)
    print(f"restarted after {time.monotonic() - begun:.1f} s")
    assert is_closed() and fence() not in (0, before)
    before = fence()
    nixio.succeed("systemctl kill --signal=KILL io-fence.service")
    until("it is another one", lambda: is_active(nixio, "io-fence.service") and fence() not in (0, before), 30)
    stays("closed", lambda: is_closed() and answers(app1, "nixio", 5432) == 1, 3)
    print(nixio.succeed("io-fence status"))

with subtest("the disk goes on: open when it has answered for a while, and all go on"):
    went_on = time.time()
    disk.go_on()
    until("the port is open", lambda: not is_closed(), UNFENCE_AFTER + LATE + 5)
    until("a knock is heard", lambda: knocks(app1)[-1][1] == "open", 5)
    opened = next(at for at, said in knocks(app1) if at > went_on and said == "open")
    print(f"open {(opened - went_on) * 1000:.0f} ms after the disk went on")
    assert UNFENCE_AFTER - 0.5 < opened - went_on < UNFENCE_AFTER + LATE, opened - went_on
    until("rows are acknowledged", lambda: all(max(acknowledged(kind).values()) > opened for kind in ("on", "off")), 15)
    until("all dependents run", lambda: all_run(), UNDRAIN)

with subtest("between the two nobody was let in and no row was acknowledged, and none is lost"):
    between = [said for at, said in knocks(app1) if refused <= at < opened]
    assert set(between) == {"refused"}, sorted(set(between))
    for kind in ("on", "off"):
        rows = acknowledged(kind)
        late = [row for row, at in rows.items() if refused + 0.1 < at < opened]
        printed = nixio.succeed(f"runuser -u postgres -- psql -XAtd myapp -c \"SELECT number FROM written WHERE kind = '{kind}'\"")
        lost = rows.keys() - {int(line) for line in printed.split()}
        print(f"synchronous_commit = {kind}: {len(rows)} rows acknowledged, {len(lost)} lost, {len(late)} behind the fence")
        assert not late and not lost, (late[:5], sorted(lost)[:5])
