# Links that lose a fifth of the packets, both ways: drain and undrain are slower, and as sure.

LOST = 20


started()
watch_the_stop(nixio)
for one, other in ((nixio, app1), (nixio, app2)):
    one.loses(other, LOST)
    other.loses(one, LOST)


def dropped() -> bool:
    """Some of these pings are lost, and some are not."""
    _, printed = nixio.execute("ping -c 60 -i 0.02 -W 1 -q app1")
    answered = int(printed.split(" received")[0].split()[-1])
    print(f"{answered} of 60 pings were answered")
    return 0 < answered < 60


with subtest("the links do lose"):
    assert dropped()

for turn in (1, 2, 3):
    with subtest(f"both hosts are drained before PostgreSQL stops, and undrained when it is back: {turn}"):
        stop_and_start(2 * UNDRAIN)

with subtest("whole again, and nothing is left of it"):
    for one, other in ((nixio, app1), (nixio, app2)):
        one.loses(other, 0)
        other.loses(one, 0)
    until("one session is open, and all run", all_run, 2 * UNDRAIN)
    assert told("drain") == 3, told("drain")
