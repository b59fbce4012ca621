# A thousand commands are in flight while the fleet's key is changed: each is answered, and after it the old key commands nothing more.

KEY = "/run/secrets/IO_GUARDIAN_PSK"
NEW = "a-new-key-of-more-than-thirty-two-characters"
CONNECTIONS, EACH = 40, 25
PROGRAM = "/usr/local/lib/in-flight"


def holds_keys(host: Host, *keys: str) -> None:
    """What is in the host's file from now on, as sops-nix would put it there."""
    lines = " ".join(keys)
    host.succeed(f"cp -p {KEY} {KEY}.new", f"printf '%s\\n' {lines} >{KEY}.new", f"mv {KEY}.new {KEY}")
    if host.name != "nixio":
        host.succeed("systemctl reload io-guardian.service")


def said(line: str) -> bool:
    code, _ = app1.execute(f"journalctl -b -o cat -u in-flight.service | grep -qx '{line}'")
    return code == 0


def received() -> int:
    """Drains that the guardian has taken, and not answered. By the text: when there are hundreds at once, the journal does not take each
    one with its fields."""
    of = "journalctl -b -o cat -u io-guardian.service | grep -ac '^command {} action=drain' || true"
    return int(app1.succeed(of.format("received"))) - int(app1.succeed(of.format("answered")))


def pings(file: str) -> bool:
    code, printed = nixio.execute(f"io-coordinator ping --hosts app1,app2 --psk-file {file} --fail-fast 2>&1")
    print(printed)
    return code == 0


started()
old = nixio.succeed(f"cat {KEY}").strip()
generation = taken() + 1
nixio.succeed(f"echo {old} >/run/old", f"echo {NEW} >/run/new")

with subtest("a thousand drains are in flight"):
    hold_the_stop(app1, "myapp.service")
    app1.succeed(f"mkdir -p {PROGRAM}", f"cp -p {KEY} /run/old")
    for file in ("checks/sealed.py", "checks/strangers/attacks.py", "checks/lab/in_flight.py"):
        app1.gets(file, f"{PROGRAM}/{file.rsplit('/', 1)[1]}")
    app1.succeed(
        "systemd-run --unit=in-flight -p RemainAfterExit=yes "
        f"/usr/bin/python3 {PROGRAM}/in_flight.py /run/old {generation} {CONNECTIONS} {EACH}"
    )
    until("all are sent", lambda: said("sent"), 30)
    until("all have arrived", lambda: received() == CONNECTIONS * EACH, 30)

with subtest("the new key comes, is spoken, and the old one goes"):
    for host in (app1, app2, nixio):
        holds_keys(host, old, NEW)
    until("the hosts know the new one", lambda: pings("/run/new"), 30)
    for host in (nixio, app1, app2):
        holds_keys(host, NEW)
    until("the hosts do not know the old one", lambda: not pings("/run/old"), 30)
    assert pings("/run/new")
    assert received() == CONNECTIONS * EACH, "some were answered before the key was changed"

with subtest("each of them is answered, and what comes after them with the old key is not obeyed"):
    let_go(app1)
    until("all are answered", lambda: said(f"{CONNECTIONS * EACH} answered ok"), 60)
    until("one more of each connection is refused", lambda: said(f"{CONNECTIONS} refused"), 30)
    assert rest(app1)
