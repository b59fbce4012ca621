# Databases that come and go, by the network and by a server that hangs, at random: at most one drain and one undrain. With LAB_FLAPPING=600 for ten
# minutes.

import os
import random

SECONDS = int(os.environ.get("LAB_FLAPPING", "30"))
SEED = int(os.environ.get("LAB_SEED", str(random.randrange(1 << 32))))


def begun(host: Host, action: str) -> int:
    """How often the guardian has begun it."""
    code, lines = host.execute(f"journalctl -b -o cat -u io-guardian.service | grep -ac '^command begins action={action} '")
    return int(lines)


started()
chance = random.Random(SEED)
first = {(host.name, action): begun(host, action) for host in (app1, app2) for action in ("drain", "undrain")}

with subtest(f"{SECONDS} s of flapping (LAB_SEED={SEED}) cause at most one drain and one undrain on each host"):
    end = time.monotonic() + SECONDS
    flaps = 0
    while time.monotonic() < end:
        flaps += 1
        if flaps % 3:
            nixio.block()
        else:
            nixio.succeed("systemctl kill --signal=STOP redis.service")
        time.sleep(chance.uniform(1, 20))
        if flaps % 3:
            nixio.unblock()
        else:
            nixio.succeed("systemctl kill --signal=CONT redis.service")
        time.sleep(chance.uniform(1, 4))
    # What comes and goes must stay for a minute until it is trusted.
    # Not all_run: PostgreSQL may still keep the session of a connection that the network has eaten.
    until("all dependents run", lambda: run(app1) and run(app2), 60 + UNDRAIN)
    print(f"{flaps} times")
    for host in (app1, app2):
        counts = {action: begun(host, action) - first[host.name, action] for action in ("drain", "undrain")}
        print(host.name, counts)
        assert max(counts.values()) <= 1, (host.name, counts)
