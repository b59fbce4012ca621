# The fleet is shown as it is: over HTTP on the primary, and by each guardian for itself.
import json

SEEN = 45
EXPECTED_ERRORS = ["^nixio: io-coordinator-serve.service: (Failed with result 'signal'|Scheduled restart job)"]
PSK = "--psk-file /run/secrets/IO_GUARDIAN_PSK"


def fetch(host: Host, place: str, port: int, path: str) -> str:
    """What an HTTP server answers, with nothing but a shell: hosts have no client of their own."""
    answer = host.succeed(f"exec 3<>/dev/tcp/{place}/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3")
    head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    assert " 200 " in head.split("\n")[0], head
    return body


def in_its_eyes() -> dict[str, str]:
    """What each host is in, in the eyes of the primary."""
    fleet = json.loads(fetch(nixio, "localhost", 9877, "/api/fleet"))
    return {
        host["name"].split(":")[0]: host["state"] if host["link"] == "open" else host["link"] for host in fleet["hosts"]
    }


def are(app1_is: str, app2_is: str) -> Callable[[], bool]:
    def check() -> bool:
        seen = in_its_eyes()
        return (seen["app1"], seen["app2"]) == (app1_is, app2_is)

    return check


def figure(host: Host, place: str, port: int, name: str) -> float:
    lines = fetch(host, place, port, "/metrics").splitlines()
    found = [line.rsplit(" ", 1)[1] for line in lines if line.rsplit(" ", 1)[0] == name]
    assert len(found) == 1, (name, lines)
    return float(found[0])


started()

with subtest("what runs is shown"):
    nixio.wait_for_unit("io-coordinator-serve.service", timeout=30)
    until("both are undrained", are("undrained", "undrained"), SEEN)
    assert "io-coordinator" in fetch(nixio, "localhost", 9877, "/") or "Fleet" in fetch(nixio, "localhost", 9877, "/")
    assert fetch(nixio, "localhost", 9877, "/healthz").strip() == "ok"
    print(nixio.succeed(f"io-coordinator top --once --hosts-file /etc/io-guardian/hosts {PSK}"))

with subtest("a guardian has figures for the fleet's own networks"):
    assert figure(nixio, "app1", 9878, "io_guardian_target_active") == 1
    assert figure(app2, "app1", 9878, 'io_guardian_units{state="active"}') >= 1
    assert figure(nixio, "app1", 9878, 'io_guardian_database_ready{database="postgres nixio:5432"}') == 1
    for host in (app1, app2):
        memory = figure(host, "localhost", 9878, "process_resident_memory_bytes") / 1e6
        print(f"{host.name}: the guardian, with its probes, has {memory:.1f} MB")

with subtest("a drain is shown, and who wanted it"):
    nixio.succeed("systemctl stop postgresql.service")
    until("both are drained", are("drained", "drained"), SEEN)
    history = json.loads(fetch(nixio, "localhost", 9877, "/api/fleet"))["history"]
    done = [entry for entry in history if entry["what"] == "drain done"]
    assert {entry["host"].split(":")[0] for entry in done} == {"app1", "app2"}, history
    assert all(entry["by"] and " v2:" in entry["by"] for entry in done), history
    assert figure(nixio, "app1", 9878, "io_guardian_drained") == 1
    until("the loss is in the figures", lambda: figure(nixio, "localhost", 9877, 'io_coordinator_hosts{state="drained"}') == 2, 10)
    nixio.succeed("systemctl start postgresql.service")
    until("both are undrained", are("undrained", "undrained"), SEEN)

with subtest("a service that dies by itself is shown"):
    app1.succeed("systemctl kill -s KILL myapp.service")

    def is_told() -> bool:
        history = json.loads(fetch(nixio, "localhost", 9877, "/api/fleet"))["history"]
        return any(entry["what"].startswith("unit ") and entry["message"].startswith("myapp.service") for entry in history)

    until("it is in the history", is_told, SEEN)
    until("both are undrained", are("undrained", "undrained"), SEEN)

with subtest("a host that is cut off, and one that loses its power, are shown as lost, and found again"):
    app1.block()
    app2.crash()
    until("both are lost", are("lost", "lost"), SEEN)
    app1.unblock()
    app2.start()
    app2.wait_for_unit("io-guardian.service", timeout=BOOT)
    until("both are undrained", are("undrained", "undrained"), 2 * SEEN)

with subtest("so is what a killed server had seen"):
    nixio.succeed("systemctl kill -s KILL io-coordinator-serve.service")
    nixio.wait_until_succeeds("systemctl is-active io-coordinator-serve.service", timeout=30)
    until("both are undrained", are("undrained", "undrained"), SEEN)

with subtest("a plan goes through the fleet by what its hosts run, and back"):
    plan = f"--hosts-file /etc/io-guardian/hosts {PSK} --tier 0=queue.service --output json 2>/dev/null"
    dry = json.loads(nixio.succeed(f"io-coordinator undrain --dry-run {plan}"))
    assert [[host["host"] for host in wave["hosts"]] for wave in dry["waves"]] == [["app2:9876"], ["app1:9876"]], dry
    drained = json.loads(nixio.succeed(f"io-coordinator drain --generation-file /tmp/generation {plan}"))
    waves = {host["host"]: (host["wave"], host["result"]) for host in drained["hosts"]}
    assert waves == {"app1:9876": (1, "ok"), "app2:9876": (2, "ok")}, waves
    assert rest(app1) and rest(app2)
    undrained = json.loads(nixio.succeed(f"io-coordinator undrain --settle 1s --generation-file /tmp/generation {plan}"))
    waves = {host["host"]: (host["wave"], host["result"]) for host in undrained["hosts"]}
    assert waves == {"app2:9876": (1, "ok"), "app1:9876": (2, "ok")}, waves
    until("all dependents run", all_run, UNDRAIN)
