"""The child's side of the wire: take requests from the gateway, run the engine step by step, send what each step made.

An engine implements `ChildEngine`; its `main` loads the model and calls `serve(engine, reporter)`. One thread does all
in turns: read what has arrived, one step, send what it made in one line. A second thread would only wait for the
interpreter's lock, which openvino_genai holds during a step: each system call of a reader then cost it one more step.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import selectors
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

from inhouse.core.serving import Ask, Capabilities, Delta, EngineRefused, PairScores, Stats
from inhouse.core.thoughts import OPEN, opens_thought
from inhouse.engines.process import Reporter, heed_only_parent
from inhouse.engines.wire import MOST_LINE_BYTES, from_capabilities, from_delta, to_ask

RECEIVE_BYTES = 256 * 1024
LONGEST_PATH = 100  # of sockaddr_un: 108 on Linux, 104 elsewhere
SEND_S = 10  # a gateway that does not read for so long is given up
log = logging.getLogger("inhouse.engines")


class ChildEngine(Protocol):
    """A loaded model. All but `embed`, which has a thread of its own, is called on the main thread: no locks.

    `submit`, `tokenize`, `detokenize` and `render` hold up every stream while they run: keep them short, and put what
    comes from a model's file (its template) under `time_limit`.
    """

    capabilities: Capabilities
    context_length: int

    def submit(self, uid: int, ask: Ask) -> None:
        """Take a request in; it joins the batch at the next step. Raises EngineRefused."""
        ...

    def cancel(self, uid: int) -> None:
        """Drop a request; one that has ended is no error."""
        ...

    def step(self, out: Outbox) -> bool:
        """Advance every request by one step and put its deltas in `out`; False when there was nothing to do.

        The last delta of each choice carries finish and usage. What goes wrong with one request is `out.refuse`d;
        an exception ends the process, and its supervisor starts another.
        """
        ...

    def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """Unit vectors and the number of tokens read. Raises EngineRefused("unsupported") where it cannot."""
        ...

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        ...

    def render(self, ask: Ask) -> str:
        """The conversation through the template."""
        ...

    def stats(self) -> Stats:
        """Load and memory."""
        ...


def opener_of(engine: ChildEngine, ask: Ask, ids: Sequence[int]) -> str:
    """The tag that a chat's prompt ends with where it opens a thought: its answer is told from the tag on."""
    opened = ask.messages is not None and engine.capabilities.thinks and opens_thought(engine.detokenize(ids[-16:]))
    return OPEN if opened else ""


class PairEngine(Protocol):
    """An engine with `capabilities.rerank`."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> PairScores:
        """How well each document fits its query; called on a thread, as `embed`."""
        ...


class TookTooLong(Exception):
    """What ran under `time_limit` was cut off."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Cut Python code off after `seconds`, as a chat template that loops. Main thread only. Raises TookTooLong."""

    def cut(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(eq=False)
class _Connection:
    """One gateway: its socket, what of a line has arrived, and its requests by their id there."""

    socket: socket.socket
    parts: list[bytes] = field(default_factory=list)
    held: int = 0
    uids: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    broken: bool = False

    def send(self, message: Any) -> None:
        """Write one line; a gateway that is gone, or does not read, is dropped when its end of file is read."""
        line = json.dumps(message).encode() + b"\n"
        with self.lock:
            try:
                if not self.broken:
                    self.socket.sendall(line)
            except OSError:
                self.broken = True
                with contextlib.suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)


@dataclass(eq=False)
class _Request:
    connection: _Connection
    id: int
    left: int  # choices that have not finished


class Outbox:
    """What one step has made, until `flush` sends it: one line for each gateway."""

    def __init__(self) -> None:
        self.requests: dict[int, _Request] = {}
        self._waiting: dict[_Connection, list[list[Any]]] = {}

    def add(self, uid: int, delta: Delta) -> None:
        """Put a delta in; one of a cancelled request is dropped."""
        request = self.requests.get(uid)
        if request is None:
            return
        self._waiting.setdefault(request.connection, []).append(from_delta(request.id, delta))
        if delta.finish is not None:
            request.left -= 1
            if request.left == 0:
                self.forget(uid)

    def refuse(self, uid: int, error: EngineRefused) -> None:
        """End a request that cannot be answered."""
        if (request := self.forget(uid)) is not None:
            request.connection.send(_refusal(request.id, error))

    def flush(self) -> None:
        """Send what the step made."""
        waiting, self._waiting = self._waiting, {}
        for connection, deltas in waiting.items():
            connection.send(deltas)

    def forget(self, uid: int) -> _Request | None:
        """Let go of a request: what is added for it from now on is dropped."""
        request = self.requests.pop(uid, None)
        if request is not None:
            request.connection.uids.pop(request.id, None)
        return request


def _refusal(id: int, error: EngineRefused) -> dict[str, Any]:
    keyword = {} if error.keyword is None else {"keyword": error.keyword}
    return {"id": id, "refused": error.reason, "tokens": error.tokens, **keyword}


def serve(engine: ChildEngine, reporter: Reporter) -> int:
    """Open the socket, report ready, and work until the parent says stop. Returns the exit code."""
    folder = socket_folder()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(folder / "engine"))
            listener.listen(16)
            server = _Server(engine, listener)
            facts = {"capabilities": from_capabilities(engine.capabilities), "context_length": engine.context_length}
            reporter.ready(socket=str(folder / "engine"), **facts)
            return server.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def socket_folder() -> Path:
    """A folder that only this user can enter, with a path short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="inhouse-"))
    if len(str(folder)) <= LONGEST_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="inhouse-", dir="/tmp"))


class _Server:
    """The main thread's loop over the listener, the gateways, the engine and the signal to stop."""

    def __init__(self, engine: ChildEngine, listener: socket.socket) -> None:
        self.engine = engine
        self.outbox = Outbox()
        self._listener = listener
        self._select = selectors.DefaultSelector()
        self._embedding = threading.Lock()  # one at a time
        self._last_uid = 0
        self._stopping = False
        self._wake_in, self._wake_out = socket.socketpair()

    def run(self) -> int:
        heed_only_parent(self._stop)
        self._select.register(self._listener, selectors.EVENT_READ)
        self._select.register(self._wake_in, selectors.EVENT_READ)
        busy = False
        while not self._stopping:
            for key, _ in self._select.select(0 if busy else None):
                self._event(key.fileobj, key.data)
            busy = self.engine.step(self.outbox)
            self.outbox.flush()
        return 0

    def _stop(self) -> None:
        self._stopping = True
        self._wake_out.send(b"x")

    def _event(self, source: Any, connection: _Connection | None) -> None:
        if source is self._listener:
            self._accept()
        elif connection is not None:
            self._receive(connection)

    def _accept(self) -> None:
        link, _ = self._listener.accept()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
        self._select.register(link, selectors.EVENT_READ, _Connection(link))

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
            good = bool(data) and self._lines(connection, data)
        except OSError:
            good = False
        except (ValueError, KeyError, TypeError, RecursionError):  # not our gateway's protocol
            traceback.print_exc(file=sys.stderr)
            good = False
        if not good:
            self._drop(connection)

    def _lines(self, connection: _Connection, data: bytes) -> bool:
        """Work on the lines that are whole now; False when one is too long."""
        *lines, rest = data.split(b"\n")
        if lines and connection.parts:
            lines[0] = b"".join([*connection.parts, lines[0]])
            connection.parts, connection.held = [], 0
        if rest:
            connection.parts.append(rest)
            connection.held += len(rest)
        for line in lines:
            self._message(connection, json.loads(line))
        return connection.held <= MOST_LINE_BYTES

    def _drop(self, connection: _Connection) -> None:
        """A gateway is gone: nobody reads the answers to its requests."""
        self._select.unregister(connection.socket)
        for uid in list(connection.uids.values()):
            self._cancel(uid)
        with connection.lock:
            connection.broken = True
            connection.socket.close()

    def _message(self, connection: _Connection, message: dict[str, Any]) -> None:
        op, id = message["op"], message["id"]
        if op == "submit":
            self._submit(connection, id, to_ask(message["ask"]))
        elif op == "cancel":
            if (uid := connection.uids.get(id)) is not None:
                self._cancel(uid)
        elif op == "embed":
            self._apart(connection, id, partial(self._embed, message["texts"]))
        elif op == "score" and self.engine.capabilities.rerank:
            pairs = [(str(query), str(document)) for query, document in message["pairs"]]
            self._apart(connection, id, partial(self._score, pairs))
        else:
            self._reply(connection, id, message)

    def _submit(self, connection: _Connection, id: int, ask: Ask) -> None:
        self._last_uid += 1
        uid = self._last_uid
        self.outbox.requests[uid] = _Request(connection, id, ask.sampling.n)
        connection.uids[id] = uid
        try:
            self.engine.submit(uid, ask)
        except EngineRefused as error:
            self.outbox.refuse(uid, error)
        except Exception:  # one request's: those of all others on this connection go on
            log.exception("a request failed before its first step")
            self.outbox.refuse(uid, EngineRefused("failed"))
            self.engine.cancel(uid)

    def _cancel(self, uid: int) -> None:
        self.outbox.forget(uid)
        self.engine.cancel(uid)

    def _apart(self, connection: _Connection, id: int, work: Callable[[], dict[str, Any]]) -> None:
        """Answer on a thread of its own, one request at a time."""

        def run() -> None:
            try:
                with self._embedding:
                    told = {"id": id, "reply": work()}
            except EngineRefused as error:
                told = _refusal(id, error)
            except Exception:  # whatever the model broke on: without a word the request would wait for ever
                log.exception("a request of the thread for vectors and scores failed")
                told = _refusal(id, EngineRefused("failed"))
            connection.send(told)

        threading.Thread(target=run, name="embed", daemon=True).start()

    def _embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> dict[str, Any]:
        vectors, tokens = self.engine.embed(texts)
        return {"vectors": [base64.b64encode(array("f", v).tobytes()).decode() for v in vectors], "tokens": tokens}

    def _score(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return asdict(cast(PairEngine, self.engine).score_pairs(pairs))

    def _reply(self, connection: _Connection, id: int, message: dict[str, Any]) -> None:
        try:
            reply = self._answer(message)
        except EngineRefused as error:
            return connection.send(_refusal(id, error))
        except Exception:  # as in `_submit`
            log.exception("a question failed")
            return connection.send(_refusal(id, EngineRefused("failed")))
        return connection.send({"id": id, "reply": reply})

    def _answer(self, message: dict[str, Any]) -> Any:
        match message["op"]:
            case "tokenize":
                return self.engine.tokenize(message["text"], message["special"])
            case "detokenize":
                return self.engine.detokenize(message["tokens"])
            case "render":
                return self.engine.render(to_ask(message["ask"]))
            case "stats":
                return asdict(self.engine.stats())
            case "ping":
                return {}
        raise EngineRefused("unsupported")
