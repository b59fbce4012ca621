# Links that are late, by chance, so that packets overtake each other: drain and undrain take longer, and are as sure.

# Each way, more or less: 100 to 300 ms for a packet.
LATE, JITTER = 200, 100
TURNS = 3


started()
watch_the_stop(nixio)
nixio.slow(LATE, JITTER)

with subtest("the links are late"):
    _, printed = nixio.execute("ping -c 10 -i 0.1 -q app1")
    average = float(printed.split("min/avg/max/mdev = ")[1].split("/")[1])
    print(f"{average:.0f} ms there and back")
    assert average > LATE, printed

for turn in range(1, TURNS + 1):
    with subtest(f"both hosts are drained before PostgreSQL stops, and undrained when it is back: {turn}"):
        stop_and_start(UNDRAIN)

with subtest("in time again: one session is open, all run, and no host was missed"):
    nixio.slow(0)
    until("all run", all_run, 2 * UNDRAIN)
    assert told("drain") == TURNS, told("drain")
