"""A guardian that knows only the page of the documentation, written with another WebSocket library.

Usage: seed_server.py KEY. Prints its port, then each frame that it receives, one a line. Ends when standard input
does, so that it never outlives the test that started it.
"""

import asyncio
import json
import sys

import websockets

KEY = sys.argv[1]


async def serve(socket):
    authenticated = False
    async for frame in socket:
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
            answer = {"type": "response", "action": action, "status": "ok", "message": f"{action} done"}
            await socket.send(json.dumps(answer))
        else:
            await socket.send(json.dumps({"type": "error", "message": "Unknown action: " + message["action"]}))


async def main():
    # ping_interval: far shorter than the command takes anywhere, so that keep-alive is in play.
    async with websockets.serve(serve, "127.0.0.1", 0, ping_interval=0.05, ping_timeout=20) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
