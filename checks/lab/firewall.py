"""A host's firewall: what NixOS makes of `networking.firewall`, as one nftables table.

The modules add iptables commands to NixOS' chain. They are translated one by one; a command of another shape is an error, so
that nothing which the modules say is left out here.
"""

from __future__ import annotations

import re
from typing import Any

ACCEPT = re.compile(r"(ip6?)tables -A nixos-fw -p (tcp|udp) -s (\S+) --dport (\d+) -j nixos-fw-accept")


class FirewallError(Exception):
    """The modules say something that is not understood here."""


def accepted(commands: str) -> list[str]:
    rules = []
    for line in filter(None, map(str.strip, commands.splitlines())):
        found = ACCEPT.fullmatch(line)
        if not found:
            raise FirewallError(f"checks/lab/firewall.py cannot translate: {line}")
        family, protocol, network, port = found.groups()
        rules.append(f"{family} saddr {network} {protocol} dport {port} accept")
    return rules


def table(firewall: dict[str, Any]) -> str:
    """For `nft -f`."""
    rules = [
        "iif lo accept",
        "ct state established,related accept",
        "ip protocol icmp accept",
        # NixOS lets in all but redirects and node information.
        "icmpv6 type { nd-redirect, 139 } drop",
        "meta l4proto ipv6-icmp accept",
        *(f"tcp dport {port} accept" for port in firewall["allowedTCPPorts"]),
        *accepted(firewall["extraCommands"]),
    ]
    # NixOS refuses with its default settings by dropping; a reverse path that is another is dropped before.
    text = "table inet nixos-fw {\n"
    text += "  chain rpfilter { type filter hook prerouting priority mangle + 10; fib saddr . mark . iif oif missing drop; }\n"
    text += "  chain input { type filter hook input priority filter; policy drop;\n"
    return text + "".join(f"    {rule}\n" for rule in rules) + "  }\n}\n"
