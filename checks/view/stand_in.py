"""Stands in for `io-coordinator serve`, with a fleet that it makes up: it serves the page from the sources, and says what no real
guardian says when it is told to. Also for work on the page:

    /usr/bin/python3 checks/view/stand_in.py [--port 8099]

`POST /stand-in/drain` takes one host through a drain; see `StandIn.orders` for the others.
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE = Path(__file__).resolve().parents[2] / "src/coordinator/serve"
TOKEN = "stand-in-token"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
PARTS = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
MARKUP = "<img src=x onerror=alert(1)>"
ENDLESS = "a-host-with-a-name-that-does-not-end-" + "x" * 180
BY = "10.0.0.9 v2:92b1ddb6"
UNITS = ("web", "worker@1", "worker@2", "scheduler", "mailer", "search-indexer", "reports", "webhooks", "api", "metrics-bridge")


def now_ms() -> int:
    return int(time.time() * 1000)


def a_host(name: str, number: int, **fields: Any) -> dict[str, Any]:
    now = now_ms()
    host = {
        "name": name, "address": f"10.0.{number // 250}.{number % 250 + 1}:9876",
        "link": "open", "link_since_ms": now - 7_200_000, "fault": None, "remedy": None,
        "wire": "v2", "state": "undrained", "standing": "undrained by command", "held": False,
        "target": "io-databases.target", "target_state": "active",
        "units": [{"name": f"{unit}.service", "state": "active", "result": None} for unit in UNITS],
        "units_omitted": 0,
        "databases": [
            {"name": "postgres db:5432", "ready": True, "why": None, "since_ms": now - 86_400_000},
            {"name": "redis cache:6379", "ready": True, "why": None, "since_ms": now - 3_600_000},
        ],
        "last_command": {"action": "undrain", "status": "ok", "message": "Started 10 units", "by": BY, "at_ms": now - 3_000_000,
                         "elapsed_ms": 2310},
        "generation": 41, "guardian_version": "0.1.0", "seen_ms": now - 2000,
    }
    return host | fields


def stopped(state: str = "inactive") -> list[dict[str, Any]]:
    return [{"name": f"{unit}.service", "state": state, "result": None} for unit in UNITS]


def made_up() -> list[dict[str, Any]]:
    """Twenty hosts, with something of everything."""
    now = now_ms()
    hosts = [a_host(f"app{n}", n) for n in range(1, 15)]
    hosts.append(a_host(
        "batch1", 20, state="drained", standing="drained by its own probes: postgres db:5432 is not ready", target_state="inactive",
        units=stopped(), databases=[
            {"name": "postgres db:5432", "ready": False, "why": "connection refused", "since_ms": now - 95_000},
            {"name": "redis cache:6379", "ready": True, "why": None, "since_ms": now - 3_600_000},
        ]))
    hosts.append(a_host(
        "batch2", 21, state="held", held=True, standing="held by 10.0.0.9 for 1 h 20 min more: restoring the backup of last night",
        target_state="inactive", units=stopped(),
        last_command={"action": "hold", "status": "ok", "message": "Stopped 10 units", "by": BY, "at_ms": now - 2_400_000, "elapsed_ms": 4100}))
    degraded = a_host("web1", 22, state="degraded")
    degraded["units"][3] = {"name": "scheduler.service", "state": "failed", "result": "exit-code"}
    hosts.append(degraded)
    hosts.append(a_host(
        "web2", 23, link="lost", link_since_ms=now - 400_000, seen_ms=now - 412_000, fault="no answer for 12 s: connection timed out",
        remedy="Check that io-guardian.service runs on web2 and that port 9876 is open to this host."))
    hosts.append(a_host(
        MARKUP, 24, state="failed", address=MARKUP, standing=f"undrained by {MARKUP}", fault=MARKUP, remedy=f"</span><script>{MARKUP}</script>",
        units=[{"name": f"{MARKUP}{n}", "state": "failed" if n < 2 else "active", "result": MARKUP} for n in range(450)], units_omitted=50,
        databases=[{"name": MARKUP, "ready": False, "why": MARKUP, "since_ms": 9e99}],
        last_command={"action": MARKUP, "status": "error", "message": MARKUP, "by": MARKUP, "at_ms": now - 60_000, "elapsed_ms": 100}))
    hosts.append(a_host(ENDLESS, 25, standing="W" * 400, databases=[], units=[], last_command=None, wire=None, generation=None,
                        guardian_version=None, state="constructor"))
    return hosts


class StandIn:
    """The fleet, and who listens to it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.started = now_ms()
        self.commands = True
        self.deaf = False
        self.reset()
        self.listeners: set[queue.SimpleQueue[str | None]] = set()
        self.said: list[dict[str, Any]] = []

    def reset(self) -> None:
        now = now_ms()
        self.hosts = {host["name"]: host for host in made_up()}
        self.history = [
            {"at_ms": now - 60_000, "host": MARKUP, "what": MARKUP, "by": MARKUP, "message": MARKUP, "level": "error"},
            {"at_ms": now - 95_000, "host": "batch1", "what": "database not ready", "by": None,
             "message": "postgres db:5432: connection refused", "level": "warning"},
            {"at_ms": now - 400_000, "host": "web2", "what": "lost", "by": None, "message": "connection timed out", "level": "error"},
            {"at_ms": now - 2_400_000, "host": "batch2", "what": "hold done", "by": BY, "message": "restoring the backup of last night",
             "level": "info"},
        ] + [{"at_ms": now - 3_000_000 - n * 7000, "host": f"app{n}", "what": "undrain done", "by": BY, "message": "Started 10 units",
              "level": "info"} for n in range(1, 15)]

    def document(self) -> dict[str, Any]:
        return {
            "version": 1, "now_ms": now_ms(), "coordinator": {"version": "0.1.0", "started_ms": self.started, "commands": self.commands},
            "hosts": list(self.hosts.values()), "history": self.history,
        }

    def send(self, event: str, data: Any) -> None:
        for listener in list(self.listeners):
            listener.put(f"event: {event}\ndata: {json.dumps(data)}\n\n")

    def change(self, name: str, **fields: Any) -> None:
        with self.lock:
            self.hosts[name] = self.hosts[name] | {"seen_ms": now_ms()} | fields
            self.send("host", self.hosts[name])

    def note(self, host: str, what: str, message: str, level: str = "info", by: str | None = BY) -> None:
        entry = {"at_ms": now_ms(), "host": host, "what": what, "by": by, "message": message, "level": level}
        with self.lock:
            self.history = [entry, *self.history][:200]
            self.send("history", entry)

    def drain(self, name: str, step: float, stay: bool) -> None:
        """A drain in small steps, and the undrain after it; `stay` stops half way."""
        command = {"action": "drain", "status": None, "message": "", "by": BY, "at_ms": now_ms(), "elapsed_ms": 0}
        units = stopped("active")
        self.note(name, "drain begun", "by command")
        for n in range(len(units) // 2 if stay else len(units)):
            units[n]["state"] = "deactivating"
            self.change(name, state="draining", standing="drained by command", target_state="deactivating", last_command=command,
                        units=[dict(unit) for unit in units])
            time.sleep(step)
            units[n]["state"] = "deactivating" if stay and n > 2 else "inactive"
        if stay:
            return
        done = command | {"status": "ok", "message": f"Stopped {len(units)} units", "elapsed_ms": now_ms() - int(str(command["at_ms"]))}
        self.change(name, state="drained", target_state="inactive", last_command=done, units=units)
        self.note(name, "drain done", f"Stopped {len(units)} units")

    def orders(self, what: str, asked: dict[str, str]) -> None:
        name = asked.get("host", "app1")
        if what == "drain":
            step = float(asked.get("step", "0.05"))
            threading.Thread(target=self.drain, args=(name, step, "stay" in asked), daemon=True).start()
        elif what == "change":
            self.change(name, **json.loads(asked["fields"]))
        elif what == "many":
            self.hosts = {f"node{n}": a_host(f"node{n}", n) for n in range(int(asked.get("n", "1000")))}
            self.send("fleet", self.document())
        elif what == "reset":
            self.commands, self.deaf = "readonly" not in asked, False
            self.reset()
            self.send("fleet", self.document())
        elif what == "cut":
            # Hangs up on all, and takes no one back before the next reset.
            self.deaf = True
            for listener in list(self.listeners):
                listener.put(None)


class Handler(BaseHTTPRequestHandler):
    fleet: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, kind: str, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, what: Any) -> None:
        self.answer(status, "application/json", json.dumps(what).encode())

    def allowed(self) -> bool:
        if not self.fleet.commands:
            self.answer_json(403, {"error": "commands are not enabled"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer_json(401, {"error": "wrong token"})
        else:
            return True
        return False

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in PARTS:
            name, kind = PARTS[path]
            self.answer(200, f"{kind}; charset=utf-8", (PAGE / name).read_bytes())
        elif path == "/api/fleet":
            self.answer_json(200, self.fleet.document())
        elif path == "/events" and not self.fleet.deaf:
            self.events()
        elif path == "/stand-in/said":
            self.answer_json(200, self.fleet.said)
        elif path == "/api/session":
            if self.allowed():
                self.send_response(204)
                self.end_headers()
        else:
            self.answer(503 if path == "/events" else 404, "text/plain")

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if url.path.startswith("/stand-in/"):
            self.fleet.orders(url.path.removeprefix("/stand-in/"), {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()})
            self.answer_json(200, {})
        elif url.path != "/api/command":
            self.answer(404, "text/plain")
        elif self.allowed():
            self.take(json.loads(body))

    def take(self, command: dict[str, Any]) -> None:
        unknown = [name for name in command["hosts"] if name not in self.fleet.hosts]
        if unknown or command.get("reason") == "refuse":
            self.answer_json(400, {"error": f"no such host: {unknown}" if unknown else "refused, as asked for"})
            return
        self.fleet.said.append(command)
        self.answer_json(202, {"accepted": len(command["hosts"])})
        for name in command["hosts"]:
            self.fleet.note(name, f"{command['action']} told", command.get("reason", ""))

    def events(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        mine: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with self.fleet.lock:
            mine.put(f"event: fleet\ndata: {json.dumps(self.fleet.document())}\n\n")
            self.fleet.listeners.add(mine)
        try:
            while True:
                try:
                    text = mine.get(timeout=15)
                except queue.Empty:
                    text = f"event: beat\ndata: {json.dumps({'now_ms': now_ms()})}\n\n"
                if text is None:
                    return
                self.wfile.write(text.encode())
        except OSError:
            pass
        finally:
            self.fleet.listeners.discard(mine)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def serve(port: int = 0) -> Server:
    """Starts it on a free port, in a thread. `shutdown` and `server_close` end it."""
    server = Server(("127.0.0.1", port), type("Bound", (Handler,), {"fleet": StandIn()}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description="A made-up fleet, for work on the page.")
    parser.add_argument("--port", type=int, default=8099)
    server = serve(parser.parse_args().port)
    print(f"http://127.0.0.1:{server.server_address[1]}/ (token: {TOKEN})", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.shutdown()


if __name__ == "__main__":
    main()
