"""Runs in a host of the lab: so many drains at once, in the second version of the wire, all unanswered while others change the key.

    in_flight.py KEY-FILE GENERATION CONNECTIONS EACH

Prints `sent`, then how many were answered `ok`, then how many connections were refused one more command.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attacks


def drain(generation: int, number: int) -> str:
    return json.dumps({"type": "command", "action": "drain", "generation": generation, "id": number})


def main() -> None:
    key_file, generation, connections, each = sys.argv[1], *map(int, sys.argv[2:])
    key = Path(key_file).read_text().split()[0]
    peers = [attacks.Sealed(9876, key) for _ in range(connections)]
    for peer in peers:
        for number in range(each):
            peer.send(peer.channel.seal(drain(generation, number)))
    print("sent", flush=True)
    answered = 0
    for peer in peers:
        peer.peer.settimeout(120)
        answers = [json.loads(peer.channel.open(peer.receive())) for _ in range(each)]
        if sorted(answer["id"] for answer in answers) == list(range(each)):
            answered += sum(answer["status"] == "ok" for answer in answers)
    print(f"{answered} answered ok", flush=True)
    refused = 0
    for peer in peers:
        answer = json.loads(peer.ask(drain(generation, each)))
        refused += answer["status"] == "error" and "no longer accepted" in answer["message"]
    print(f"{refused} refused", flush=True)


if __name__ == "__main__":
    main()
