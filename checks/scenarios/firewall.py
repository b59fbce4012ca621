# A guardian is reached from the fleet's networks, and from nowhere else; from there, nothing else of its host is.
#
# The stranger is app2 with a second address, in no network of the fleet: a machine behind a link of its own would show the same,
# and not every driver has one.

STRANGER = "10.77.0.2"
# Something listens there, and it is nobody's business.
OTHER_PORT = 9877


def address(name: str, seen_from: Host) -> str:
    return seen_from.succeed(f"getent ahostsv4 {name}").split()[0]


def interface(host: Host, to: str) -> str:
    """By which `to` is reached."""
    words = host.succeed(f"ip -4 -o route get {to}").split()
    return words[words.index("dev") + 1]


def connects(host: Host, to: str, port: int) -> bool:
    code, _ = host.execute(f"timeout 5 bash -c '</dev/tcp/{to}/{port}'")
    return code == 0


started()
client = address("app1", seen_from=nixio)
primary = address("nixio", seen_from=app1)
outer = address("app2", seen_from=nixio)

# A program by its path: a unit made on the spot has a PATH of its own.
sleep = app1.succeed("command -v sleep").strip()
app1.succeed(f"systemd-run --unit=other-port systemd-socket-activate --listen=0.0.0.0:{OTHER_PORT} {sleep} infinity")
until("the other port is open", lambda: connects(app1, "127.0.0.1", OTHER_PORT), 30)

with subtest("from outside of the fleet's networks nothing is open, and the hosts are there"):
    link = interface(app2, client)
    app2.succeed(f"ip address add {STRANGER}/32 dev {link}")
    for host, to in ((app1, client), (nixio, primary)):
        host.succeed(f"ip route add {STRANGER}/32 dev {interface(host, outer)}")
        app2.succeed(f"ip route add {to}/32 dev {link} src {STRANGER}", f"ping -c 1 -W 10 {to}")
    for to, ports in ((client, (9876, OTHER_PORT)), (primary, (5432, 6379, 9876))):
        for port in ports:
            assert not connects(app2, to, port), (to, port)
    app2.succeed(f"ip route del {client}/32 dev {link}", f"ip route del {primary}/32 dev {link}")

with subtest("within the fleet's networks the guardian is reached, and nothing else of its host"):
    for host in (app2, nixio):
        assert connects(host, client, 9876), host.name
        assert not connects(host, client, OTHER_PORT), host.name

with subtest("and the databases of the primary, which has no guardian"):
    for host in (app1, app2):
        assert connects(host, primary, 5432) and connects(host, primary, 6379), host.name
        assert not connects(host, primary, 9876), host.name

with subtest("and what was closed all along was closed by the firewall"):
    assert connects(app1, "127.0.0.1", OTHER_PORT)
