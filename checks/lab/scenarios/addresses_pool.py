# The pool of addresses and who has its share of it: hosts come and go, addresses are put in and taken out, moved and held back by operators, in the
# layout of the seed. Neighbours follow, two hosts never have one, and what is not ours stays as it is.

import typing

HOLDERS = 4
EXPECTED_ERRORS = [SLOW, "^v[1-4]: somebody on the network has an address of the pool already", "^v4: .*(name|nodename)"]

three, four = (v1, v2, v3), (v1, v2, v3, v4)
hardware: dict[str, str] = {}


def listed() -> dict[str, typing.Any]:
    found: dict[str, typing.Any] = json.loads(vip(v1, "list --json"))
    return found


def tokens() -> dict[str, int]:
    return {each["address"]: each["token"] for each in listed()["ips"]}


def known() -> dict[str, str]:
    """Who has which address, as the prober's own kernel knows: it sends to nobody but them, and asks nobody."""
    found = {}
    for line in p.succeed("ip neighbour show dev eth1").splitlines():
        words = line.split()
        if "lladdr" in words:
            found[words[0]] = words[words.index("lladdr") + 1]
    return found


def followed(verdict: Verdict) -> None:
    """Each address that has moved was announced by who has it, and neighbours know."""
    holders = p.holders()
    for address in moved(verdict):
        (holder,) = holders[address]
        taken = max(at for at, name in verdict.held[address] if name == holder)
        announced = [at - taken for at, what, name in verdict.announced if what == address and name == holder]
        assert announced and min(announced) < 0.1, (address, holder, announced)
    neighbours = known()
    assert {address: neighbours[address] for address in POOL} == {address: hardware[next(iter(holders[address]))] for address in POOL}


def second_api(method: str, path: str, data: str = "") -> None:
    """As the seed does it with curl, on the first store."""
    code = f"import urllib.request as u; u.urlopen(u.Request('http://192.168.1.1:2379/v2/keys{path}', {data.encode()!r} or None, method='{method}'), timeout=5)"
    p.succeed(f'python3 -c "{code}"')


def hardware_of(host: LabMachine | LightMachine) -> str:
    (link,) = json.loads(host.succeed("ip -j link show eth1"))
    return str(link["address"])


started(*three)
for host in three:
    hardware[host.name] = hardware_of(host)

with undisturbed(*three):
    with subtest("ten addresses, three hosts: four, three and three; keys, names and `list` say what the prober sees"):
        holders = p.holders()
        assert sorted(Counter(name for names in holders.values() for name in names).values()) == [3, 3, 4], shares()
        assert set(stored("nodes/").items()) == {(f"nodes/{host.name}", "healthy") for host in three}, stored("nodes/")
        marks = {f"ips/{address}/marked": next(iter(names)) for address, names in holders.items()}
        assert stored("ips/") == {**{f"ips/{address}": "" for address in POOL}, **marks}, stored("ips/")
        said = listed()
        assert {each["address"]: {each["marked"]} for each in said["ips"]} == holders, said
        assert sorted(said["nodes"]) == ["v1", "v2", "v3"] or {each["name"] for each in said["nodes"]} == {"v1", "v2", "v3"}, said

    with subtest("neighbours know who has what"):
        # Else its kernel may forget whom it has not talked to for a minute: all namespaces of a machine share the room for neighbours.
        p.succeed(*(f"echo 36000 >/proc/sys/net/{family}/neigh/eth1/gc_stale_time" for family in ("ipv4", "ipv6")))
        for address in POOL:
            p.execute(f"echo >/dev/udp/{address}/9")
        until("they are known", lambda: set(POOL) <= set(known()), 10)
        followed(one_at_most("known"))

    with subtest("a fourth host starts: it gets its two, and only those move"):

        def add_a_host() -> None:
            v4.start()
            v4.wait_for_unit(UNIT, timeout=60)

        # It is seen to have nothing before.
        began = tokens()
        one_at_most("before")
        add_a_host()
        shared(four)
        hardware["v4"] = hardware_of(v4)
        verdict = one_at_most("a fourth host")
        assert len(moved(verdict)) == 2 == len(held_by(v4)), moved(verdict)
        assert verdict.gap <= HANDED + LATE, verdict.gaps
        followed(verdict)
        now = tokens()
        # Whoever gets an address gets a higher token.
        assert all((now[address] > began[address]) == (address in moved(verdict)) for address in POOL), (began, now)

    with undisturbed(v4):
        with subtest("an address is put into the pool, by an operator and by hand: it is held; a word that is none is left alone"):
            new = ["192.168.1.109", "192.168.1.110", "192.168.1.111"]
            p.begin([*POOL, *new])
            vip(v2, f"add {new[0]}")
            p.etcdctl("put", f"/service/yaim/ips/{new[1]}/", "")
            p.etcdctl("put", "/service/yaim/ips/nobody", "")
            p.etcdctl("put", "/service/yaim/ips/192.168.1.300", "")
            shared(four, [*POOL, *new[:2]])
            one_at_most("twelve addresses")
            put_in_the_pool(new[2:])
            shared(four, [*POOL, *new])
            one_at_most("thirteen addresses")

        with subtest("addresses are taken out: nobody answers for them, nobody else's is touched"):
            vip(v2, f"remove {new[0]} {new[1]}")
            p.etcdctl("del", f"/service/yaim/ips/{new[2]}")
            p.etcdctl("del", "/service/yaim/ips/nobody")
            p.etcdctl("del", "/service/yaim/ips/192.168.1.300")
            until("nobody has them", lambda: not any(p.holders()[address] for address in new), 10)
            shared(four)
            one_at_most("taken out")
            assert set(stored("ips/")) == {f"ips/{address}{more}" for address in POOL for more in ("", "/marked")}, stored("ips/")
            p.begin(POOL)
            until("all are seen", lambda: are_held(POOL, four), 10)

        with subtest("an address that a machine outside of the pool has is left to it, and taken when it has gone"):
            foreign = ["192.168.1.112", "fd00:1::112"]
            for address in foreign:
                e1.succeed(f"ip address add {address} dev eth1{' nodad' if ':' in address else ''}")
            p.begin([*POOL, *foreign])
            until("it answers for them", lambda: all(p.holders()[address] == {"e1"} for address in foreign), 10)
            one_at_most("before")
            vip(v1, f"add {' '.join(foreign)}")
            until("each host says so", lambda: len([key for key in stored("cannot/") if key.split("/")[-1] in foreign]) == 2 * len(four), 30)
            stays("nobody takes them", lambda: all(p.holders()[address] == {"e1"} for address in foreign), 3 * TTL)
            assert vip(v2, "list").count(f"cannot be held by v2: {hardware_of(e1)} has it already") == 2, vip(v2, "list")
            for address in foreign:
                e1.succeed(f"ip address del {address} dev eth1")
            # They are asked for again at most a minute apart.
            shared(four, [*POOL, *foreign], 60 + CALM)
            one_at_most("a stranger's")
            vip(v1, f"remove {' '.join(foreign)}")
            until("nobody has them", lambda: not any(p.holders()[address] for address in foreign), 10)
            shared(four)
            p.begin(POOL)
            until("all are seen", lambda: are_held(POOL, four), 10)

        with subtest("an address is moved by an operator: at once, it stays there, and goes back to be anybody's"):
            address = POOL[0]
            (holder,) = p.holders()[address]
            target = next(host for host in four if host.name != holder)
            one_at_most("before")
            vip(v1, f"move {address} {target.name}")
            until("it is there", lambda: p.holders()[address] == {target.name}, 10)
            shared(four)
            verdict = one_at_most("moved")
            assert verdict.gaps[address][0] <= HANDED + LATE, verdict.gaps
            followed(verdict)
            assert next(each["preferred"] for each in listed()["ips"] if each["address"] == address) == target.name
            # Not when its host is gone, and again when it is back.
            handed_over("its host ends", [host for host in four if host is not target], lambda: target.succeed(f"systemctl stop {UNIT}"))
            handed_over("its host is back", four, lambda: target.succeed(f"systemctl start {UNIT}"))
            until("it is there again", lambda: p.holders()[address] == {target.name}, 10)
            vip(v1, f"move {address} --anywhere")
            assert f"ips/{address}/preferred" not in stored("ips/"), stored("ips/")

        with subtest("a host is held back by an operator: it has nothing until it is let on again, and a restart does not change that"):
            taken_from(v2, (v1, v3, v4), "held back", lambda: vip(v1, "pause v2 --reason=maintenance"), HANDED + LATE)
            assert "maintenance" in json.dumps(listed()["paused"]), listed()
            v2.succeed(f"systemctl restart {UNIT}")
            stays("it has nothing", lambda: not held_by(v2), 2 * TTL)
            handed_over("let on", four, lambda: vip(v1, "resume v2"))

        with subtest("somebody takes an address off the interface: it is answered for again, and by one"):
            taken_off = sorted(held_by(v1))[0]
            one_at_most("before")
            length = "128" if ":" in taken_off else "32"
            v1.succeed(f"ip address del {taken_off}/{length} dev eth1")
            shared(four)
            verdict = one_at_most("taken off")
            assert verdict.gap <= TAKEN + LATE, verdict.gaps

        with subtest("all that a host has are taken off its interface: each is answered for again"):
            # Two of IPv4 at least: there are eight.
            flushed = next(host for host in four if len([each for each in held_by(host) if ":" not in each]) > 1)
            off = [each for each in held_by(flushed) if ":" not in each]
            one_at_most("before")
            flushed.succeed("ip -4 address flush dev eth1 label eth1:vip")
            until("they are on it again", lambda: all(f" {each}/" in flushed.succeed("ip -o -4 address show dev eth1") for each in off), 10)
            shared(four)
            verdict = one_at_most("flushed")
            assert longest(verdict, off) <= HANDED + LATE, verdict.gaps

        with subtest("an administrator puts an address of the pool beside that of its holder: when it moves, one host has it, and the other one says so"):
            address = POOL[0]
            had = next(host for host in four if address in held_by(host))
            gets = next(host for host in four if host is not had)
            one_at_most("before")
            had.succeed(f"ip address add {address}/24 dev eth1")
            vip(v1, f"move {address} {gets.name}")
            until("it is there", lambda: p.holders()[address] == {gets.name}, 10)
            # Over the look every 5 s, and a restart.
            stays("one host has it", lambda: p.holders()[address] == {gets.name}, 6)
            had.succeed(f"systemctl restart {UNIT}")
            stays("one host has it", lambda: p.holders()[address] == {gets.name}, 2 * TTL)
            says = f"{address} is on this host, which does not answer for it"
            assert says in had.succeed("io-vip status"), had.succeed("io-vip status")
            one_at_most("beside")
            had.succeed(f"ip address del {address}/24 dev eth1")
            until("it says so no more", lambda: says not in had.succeed("io-vip status"), 15)
            vip(v1, f"move {address} --anywhere")
            shared(four)
            one_at_most("alone again")

        with subtest("a host takes another one's name: it gets nothing, and nothing happens to the other one"):
            handed_over("it ends", three, lambda: v4.succeed(f"systemctl stop {UNIT}"))
            told(v4, "nodename", '"v1"')
            nothing_moves("two of a name", lambda: v4.succeed(f"systemctl start --no-block {UNIT}"), 2 * TTL)
            v4.succeed(f"systemctl stop {UNIT}")
            nothing_moves("one of a name", lambda: None, TTL)
            told(v4, "nodename", '"v4"')
            handed_over("with its own name", four, lambda: v4.succeed(f"systemctl start {UNIT}"))

        with subtest("a pool of the seed's own, in the store's second API: it is imported, and its addresses are held"):
            theirs = "123.0.0.1"
            p.begin([*POOL, theirs])
            second_api("PUT", f"/service/yaim/ips/{theirs}", "dir=true")
            second_api("PUT", f"/service/yaim/ips/{theirs}/marked", "value=app2")
            refused = v1.fail("io-vip import --config /etc/io-vip.toml --from http://192.168.1.1:2379 2>&1")
            assert "app2" in refused and theirs not in {each["address"] for each in listed()["ips"]}, refused
            second_api("DELETE", f"/service/yaim/ips/{theirs}/marked")
            print(vip(v1, "import --from http://192.168.1.1:2379"))
            assert theirs in {each["address"] for each in listed()["ips"]}
            shared(four, [*POOL, theirs])
            one_at_most("imported")
            vip(v1, f"remove {theirs}")
            until("nobody has it", lambda: not p.holders()[theirs], 10)
            p.begin(POOL)
            until("all are seen", lambda: are_held(POOL, four), 10)

        with subtest("a netmask of 24 bits: held the same, by a kernel that is told to keep the others when the first one goes"):
            told(v4, "netmask", "24")
            handed_over("24 bits", four, lambda: v4.succeed(f"systemctl restart {UNIT}"))
            assert "/24 " in "".join(line for line in v4.succeed("ip -o -4 address show dev eth1").splitlines() if any(f" {its}/" in line for its in POOL))

# Its kernel takes away routes and addresses with the interface: what is not ours on it is not looked at.
with undisturbed(v1, v2, v4):
    with subtest("an interface goes down, the only one that it has: the others have its addresses in time; it comes up: it gets its share, and neighbours follow"):
        taken_from(v3, (v1, v2, v4), "interface down", lambda: v3.succeed("ip link set eth1 down"), TAKEN + LATE)
        v3.execute(". /etc/lab/others")
        verdict = handed_over("interface up", four, lambda: v3.succeed("ip link set eth1 up"))
        followed(verdict)
