"""A coordinator that knows only the page of the documentation, written with another WebSocket library.

Usage: seed_client.py ACTION KEY_FILE HOST... Tells all hosts at once, on port 9876, and prints each answer as it came, after
the host's name. Ends with 1 when one of them has not said ok.
"""

import asyncio
import json
import sys

import websockets

ACTION, KEY_FILE, *HOSTS = sys.argv[1:]


async def tell(host):
    try:
        # With the library's own defaults: compression is offered, and pings are sent.
        async with websockets.connect(f"ws://{host}:9876") as socket:
            with open(KEY_FILE) as file:
                await socket.send(json.dumps({"type": "auth", "key": file.read().strip()}))
            answer = await socket.recv()
            if json.loads(answer)["status"] == "ok":
                await socket.send(json.dumps({"type": "command", "action": ACTION}))
                answer = await socket.recv()
    except (OSError, websockets.WebSocketException) as error:
        print(f"{host} {error}", flush=True)
        return False
    print(f"{host} {answer}", flush=True)
    return json.loads(answer)["status"] == "ok"


async def main():
    return all(await asyncio.gather(*map(tell, HOSTS)))


sys.exit(0 if asyncio.run(main()) else 1)
