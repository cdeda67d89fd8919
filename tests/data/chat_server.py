"""A real chat-completions server on loopback for the tests: answers by a function, counts what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: a status, a body, headers; or nothing at all until the test ends."""

    text: str = ""
    status: int = 200
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    hang_up: bool = False
    usage: bool = True


@dataclass
class Server:
    """Where it listens, and the requests it got, in order."""

    url: str
    seen: list[dict[str, Any]]

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.seen]


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply | str]) -> Iterator[Server]:
    """`answer(body, n)` gives the reply to the n-th request (from 0). A text costs a token a character."""
    seen: list[dict[str, Any]] = []
    lock, ended = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                seen.append({**body, "path": self.path, "key": self.headers["authorization"]})
                number = len(seen) - 1
            reply = answer(body, number)
            self._send(body, Reply(reply) if isinstance(reply, str) else reply)

        def _send(self, body: dict[str, Any], reply: Reply) -> None:
            if reply.silent:
                ended.wait(10)
            if reply.silent or reply.hang_up:
                self.close_connection = True
                return
            asked = sum(len(m["content"]) for m in body["messages"])
            value: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": reply.text}}]}
            if reply.usage:
                value["usage"] = {"prompt_tokens": asked, "completion_tokens": len(reply.text)}
            data = (reply.raw if reply.raw is not None else json.dumps(value)).encode()
            self.send_response(reply.status)
            for name, content in {**reply.headers, "content-length": str(len(data))}.items():
                self.send_header(name, content)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", seen)
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
