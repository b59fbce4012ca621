# Writers on two hosts write through stops, kills and a power cut of the primary: what was acknowledged is there, and what is planned
# is no error to them.
#
# In the lab, because app2 has no PostgreSQL programs on NixOS. A power cut here is the end of all processes at once: what they
# wrote is in the kernel, which goes on. So it shows that PostgreSQL recovers what it acknowledged, and nothing about disks.

PLACE = "/var/lib/writer"
HOSTS = {"app1": app1, "app2": app2}
# One session for as long as it runs. A number is written down when the server has said that its row is there, and not before.
WRITER = r"""
cd "$STATE_DIRECTORY"
export PGPASSWORD=$(cat "$CREDENTIALS_DIRECTORY/password")
lost() { echo "$(date +%T.%N) $1" >>errors; exit 1; }
coproc psql -XAtq -v ON_ERROR_STOP=1 2>>stderr
server=$COPROC_PID
# Told to stop, it says farewell to its database, as an application should.
trap 'exec {COPROC[1]}>&-; wait $server; exit 0' TERM
number=$(cat next 2>/dev/null || echo 1)
while true; do
  echo $((number + 1)) >next
  echo "INSERT INTO written VALUES ('$WRITER', $number) RETURNING number;" >&${COPROC[1]} || lost "writing $number"
  read -r -t 30 said <&${COPROC[0]} || lost "no acknowledgement of $number"
  [ "$said" = "$number" ] || lost "instead of $number: $said"
  echo $number >>acknowledged
  number=$((number + 1))
  sleep 0.02
done
"""
UNIT = """\
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/bash /etc/writer
Environment=WRITER={name} PGHOST=nixio PGUSER=myapp PGDATABASE=myapp PGAPPNAME=myapp
LoadCredential=password:/run/secrets/POSTGRES/MYAPP_PASSWORD
DynamicUser=yes
StateDirectory=writer
KillMode=mixed
TimeoutStopSec=20s
# Like the application of app1: it tries until it succeeds.
Restart=always
RestartSec=1s
"""
# The modules' ties, as they write them for a dependent.
TIES = """\
[Unit]
Upholds=writer.service
Before=writer.service
"""


def numbers(host: Host) -> set[int]:
    """What the server has acknowledged to the writer of this host."""
    _, printed = host.execute(f"cat {PLACE}/acknowledged")
    return {int(line) for line in printed.split()}


def errors(host: Host) -> list[str]:
    _, printed = host.execute(f"cat {PLACE}/errors")
    return printed.splitlines()


def written(name: str) -> set[int]:
    """The rows of a writer that PostgreSQL has."""
    printed = nixio.succeed(f"runuser -u postgres -- psql -XAtd myapp -c \"SELECT number FROM written WHERE writer = '{name}'\"")
    return {int(line) for line in printed.split()}


def writers_write(seconds: float) -> None:
    """Each goes on from here."""
    before = {name: len(numbers(host)) for name, host in HOSTS.items()}
    until(
        "both writers write",
        lambda: all(len(numbers(host)) >= before[name] + 10 for name, host in HOSTS.items()),
        seconds,
    )


def all_there() -> None:
    for name, host in HOSTS.items():
        # In this order: what is acknowledged in between is no loss.
        acknowledged = numbers(host)
        lost = acknowledged - written(name)
        print(f"{name}: {len(acknowledged)} rows acknowledged, {len(lost)} lost, {len(errors(host))} errors")
        assert acknowledged and not lost, (name, sorted(lost)[:20])


def no_error(before: dict[str, list[str]]) -> None:
    for name, host in HOSTS.items():
        assert errors(host) == before[name], (name, errors(host))


def none_at_the_stop() -> None:
    """Of all sessions, the application's too."""
    assert sessions_at_stop(nixio)[-1] == 0, sessions_at_stop(nixio)


started()
nixio.wait_for_unit(COORDINATOR, timeout=60)

with subtest("two writers, in the ties of a dependent"):
    nixio.succeed(
        "runuser -u postgres -- psql -Xqd myapp -c 'CREATE TABLE written (writer text, number bigint, PRIMARY KEY (writer, number))' "
        "-c 'GRANT SELECT, INSERT ON written TO myapp'"
    )
    password = app1.succeed("cat /run/secrets/POSTGRES/MYAPP_PASSWORD").strip()
    put(app2, "/run/secrets/POSTGRES/MYAPP_PASSWORD", password)
    for name, host in HOSTS.items():
        put(host, "/etc/writer", WRITER)
        put(host, "/etc/systemd/system/writer.service", UNIT.format(name=name))
        put(host, "/etc/systemd/system/io-databases.target.d/writer.conf", TIES)
        host.succeed(
            "mkdir -p /etc/systemd/system/writer.service.requires",
            "ln -s ../io-databases.target /etc/systemd/system/writer.service.requires/",
            "systemctl daemon-reload",
            "systemctl restart io-databases.target",
        )
    writers_write(UNDRAIN)
    assert sessions(nixio) == 3, sessions(nixio)
    all_there()
    watch_the_stop(nixio)

with subtest("PostgreSQL is restarted: no writer has seen an error, and nothing is lost"):
    seen = {name: errors(host) for name, host in HOSTS.items()}
    assert not any(seen.values()), seen
    starts = {name: up_since(host, "writer.service") for name, host in HOSTS.items()}
    nixio.succeed("systemctl restart postgresql.service")
    none_at_the_stop()
    writers_write(UNDRAIN)
    no_error(seen)
    all_there()
    assert all(up_since(host, "writer.service") > starts[name] for name, host in HOSTS.items())

with subtest("PostgreSQL is stopped, and started later"):
    nixio.succeed("systemctl stop postgresql.service")
    assert len(sessions_at_stop(nixio)) == 2
    none_at_the_stop()
    silent = {name: numbers(host) for name, host in HOSTS.items()}
    stays("nothing is written", lambda: all(numbers(host) == silent[name] for name, host in HOSTS.items()), 3)
    nixio.succeed("systemctl start postgresql.service")
    writers_write(UNDRAIN)
    no_error(seen)
    all_there()

with subtest("the primary is restarted: no writer has seen an error, and nothing is lost"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    nixio.shutdown()
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    assert len(sessions_at_stop(nixio)) == 3
    none_at_the_stop()
    writers_write(UNDRAIN)
    no_error(seen)
    all_there()

with subtest("the server's first process is killed: errors are seen, and nothing that was acknowledged is lost"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    starts = {name: up_since(host, "writer.service") for name, host in HOSTS.items()}
    nixio.succeed("kill -KILL $(systemctl show -P MainPID postgresql.service)")
    until("both writers have lost it", lambda: all(errors(host) != seen[name] for name, host in HOSTS.items()), 30)
    writers_write(2 * UNDRAIN)
    all_there()
    assert all(up_since(host, "writer.service") > starts[name] for name, host in HOSTS.items())

with subtest("the primary loses its power: nothing that was acknowledged is lost"):
    nixio.wait_for_unit(COORDINATOR, timeout=60)
    nixio.crash()
    nixio.start()
    nixio.wait_for_unit("postgresql.service", timeout=BOOT)
    writers_write(2 * UNDRAIN)
    all_there()
