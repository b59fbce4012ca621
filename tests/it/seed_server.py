"""A guardian that knows only the page of the documentation, written with another WebSocket library.

Usage: seed_server.py KEY. Prints its port, then each frame that it receives, one a line. Ends when standard input
does, so that it never outlives the test that started it.

Usage: seed_server.py KEY PORT TARGET. Guards a host: listens on all addresses, and stops and starts the target. It does
one thing at a time, keep-alive included.
"""

import asyncio
import json
import subprocess
import sys

import websockets

KEY, *GUARDS = sys.argv[1:]


def obey(action):
    if GUARDS and action != "ping":
        verb = {"drain": "stop", "undrain": "start"}[action]
        done = subprocess.run(["systemctl", verb, GUARDS[1]], capture_output=True, text=True)
        if done.returncode != 0:
            return "error", done.stderr.strip()
    return "ok", f"{action} done"


async def serve(socket):
    authenticated = False
    async for frame in socket:
        # On a host it goes to the journal, where no key belongs.
        if not GUARDS or '"auth"' not in frame:
            print(frame, flush=True)
        message = json.loads(frame)
        if message["type"] == "auth":
            authenticated = message["key"] == KEY
            if not authenticated:
                await socket.send('{"type": "auth", "status": "error", "message": "Invalid key"}')
                return
            await socket.send('{"type": "auth", "status": "ok", "message": "Authentication successful"}')
        elif authenticated and message["action"] in ("drain", "undrain", "ping"):
            action = message["action"]
            status, text = obey(action)
            answer = {"type": "response", "action": action, "status": status, "message": text}
            await socket.send(json.dumps(answer))
        else:
            await socket.send(json.dumps({"type": "error", "message": "Unknown action: " + message["action"]}))


async def test():
    # ping_interval: far shorter than the command takes anywhere, so that keep-alive is in play.
    async with websockets.serve(serve, "127.0.0.1", 0, ping_interval=0.05, ping_timeout=20) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def guard():
    async with websockets.serve(serve, None, int(GUARDS[0])):
        await asyncio.Future()


asyncio.run(guard() if GUARDS else test())
