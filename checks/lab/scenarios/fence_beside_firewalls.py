# Other people's rules beside the fence's, by nft, iptables-nft and firewalld: they are byte for byte the same before, during and after
# it, and no reload or flush of theirs opens what it has closed.

# Of this scenario's own: nobody is drained.
CONFIGURATION = """
heartbeat = "5s"
unfence-after = "1s"
[[folder]]
path = "/var/lib/postgresql/io-fence"
ports = [5432]
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=/usr/local/bin/io-fence run --config /etc/io-fence.toml
"""
FOREIGN = """
table inet somebody {
  set blocked {
    type ipv4_addr
    flags interval
    elements = { 203.0.113.0/24 }
  }
  counter seen {
  }
  chain input {
    type filter hook input priority -300
    ip saddr @blocked counter drop
    tcp dport 5432 counter name seen
  }
  chain output {
    type filter hook output priority 300
    tcp sport 9999 drop comment "somebody's"
  }
}
table ip io_fence_of_another {
  chain c {
    tcp dport 5432 accept
  }
}
"""


def answers(to: str, port: int = 5432) -> int:
    """0: a connection; 1: refused; 124: nobody says anything."""
    return app1.execute(f"timeout 3 bash -c '</dev/tcp/{to}/{port}' 2>/dev/null")[0]


def foreign() -> dict[str, str]:
    """What all of them have, but the fence: rules with their handles, counts left out."""
    lines, ours = [], False
    for line in nixio.succeed("nft --handle --stateless list ruleset 2>/dev/null").splitlines():
        if line.startswith("table "):
            ours = line.startswith("table inet io_fence {")
        if not ours:
            lines.append(line)
    saved = {
        command: "\n".join(line for line in nixio.succeed(f"{command} 2>/dev/null").splitlines() if not line.startswith("#"))
        for command in ("iptables-save", "ip6tables-save")
    }
    return {"nft": "\n".join(lines), **saved, "firewalld": nixio.succeed("firewall-cmd --list-all-zones 2>/dev/null || true")}


def fenced_and_open_again(others: dict[str, str]) -> None:
    nixio.succeed("io-fence fence --ports 5432 --reason check")
    for address in addresses:
        assert answers(address) == 1, address
    assert nixio.execute("timeout 3 bash -c '</dev/tcp/127.0.0.1/5432'")[0] == 0
    assert foreign() == others
    nixio.succeed("io-fence unfence --ports 5432")
    until("open", lambda: all(answers(address) == 0 for address in addresses), 5)
    assert foreign() == others


nixio.start()
app1.start()
nixio.wait_for_unit("postgresql.service", timeout=BOOT)
put(nixio, "/etc/io-fence.toml", CONFIGURATION)
put(nixio, "/etc/systemd/system/io-fence.service.d/check.conf", DROP_IN)
put(nixio, "/etc/foreign.nft", FOREIGN)
nixio.succeed("systemctl daemon-reload", "systemctl restart io-fence.service")
addresses = [nixio.succeed(f"ip -{family} -o addr show dev eth1 scope global").split()[3].split("/")[0] for family in (4, 6)]
until("the port is reached", lambda: all(answers(address) == 0 for address in addresses), 30)

with subtest("beside tables of somebody's, made by nft"):
    nixio.succeed("nft -f /etc/foreign.nft")
    fenced_and_open_again(foreign())

with subtest("beside iptables-nft, with rules for the very port"):
    for command in ("iptables", "ip6tables"):
        nixio.succeed(
            f"{command} -N OURS",
            f"{command} -A INPUT -p tcp --dport 5432 -m comment --comment \"disk-monitor /var/lib\" -j OURS",
            f"{command} -A OURS -m conntrack --ctstate NEW -j ACCEPT",
            f"{command} -I OUTPUT -p udp --sport 5432 -j DROP",
        )
    fenced_and_open_again(foreign())

with subtest("beside firewalld"):
    nixio.succeed("systemctl unmask firewalld.service", "systemctl start firewalld.service", timeout=60)
    nixio.succeed("firewall-cmd --quiet --zone=public --add-port=5432/tcp", "firewall-cmd --quiet --zone=public --add-port=5432/tcp --permanent")
    until("the port is reached", lambda: all(answers(address) == 0 for address in addresses), 10)
    fenced_and_open_again(foreign())

with subtest("whatever they reload or flush, what is closed stays closed"):
    nixio.succeed("io-fence fence --ports 5432 --reason check")
    for command in ("firewall-cmd --reload", "systemctl stop firewalld.service", "iptables -F; ip6tables -F", "nft flush ruleset", "nft delete table inet io_fence"):
        code, said = nixio.execute(f"{command} 2>&1")
        print(f"{command}: {code} {said.strip()}")
        assert (code == 0) == (command != "nft delete table inet io_fence"), said
        stays(f"refused after {command}", lambda: all(answers(address) == 1 for address in addresses), 2)
