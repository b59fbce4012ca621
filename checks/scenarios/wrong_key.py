# One host has another key: it is named, it is left as it is, and the others go on.

EXPECTED_ERRORS = ["^nixio: host has failed host=app2:9876 result=bad-key"]

KEY = "/run/secrets/IO_GUARDIAN_PSK"


def tell() -> None:
    """Drains and undrains the fleet."""
    nixio.succeed(f"systemctl restart {COORDINATOR}", timeout=300)


def failures() -> str:
    """What the coordinator has said of hosts that failed, for as long as it has run."""
    return "\n".join(coordinator_said("host has failed.*bad-key"))


started()

with subtest("with one key for all, both hosts are told, and none is named"):
    before = up_since(app1, "myapp.service"), up_since(app2, "queue.service")
    tell()
    until("all dependents run", all_run, UNDRAIN)
    assert up_since(app1, "myapp.service") > before[0] and up_since(app2, "queue.service") > before[1]
    assert failures() == "", failures()

with subtest("with another key on app2, app2 is named and left alone, app1 is told"):
    app2.succeed(
        f"cp {KEY} /run/right-key",
        f"echo another-key-of-more-than-thirty-two-characters >{KEY}",
        "systemctl restart io-guardian.service",
    )
    before = up_since(app1, "myapp.service"), up_since(app2, "queue.service")
    tell()
    until("all dependents run", all_run, UNDRAIN)
    assert up_since(app1, "myapp.service") > before[0]
    assert up_since(app2, "queue.service") == before[1]
    said = failures()
    print(said)
    assert "host=app2" in said and "the guardian refused the key" in said, said
    assert "host=app1" not in said, said
    app2.succeed("journalctl -b -u io-guardian.service | grep 'wrong key'")

with subtest("no key is in a journal"):
    for host in (nixio, app1, app2):
        host.succeed(f"test -s {KEY}")
        host.fail(f"journalctl -b | grep -aFf {KEY}")

with subtest("with the right key again, app2 is told"):
    app2.succeed(f"cp /run/right-key {KEY}", "systemctl restart io-guardian.service")
    before = up_since(app1, "myapp.service"), up_since(app2, "queue.service")
    tell()
    until("all dependents run", all_run, UNDRAIN)
    assert up_since(app2, "queue.service") > before[1]
