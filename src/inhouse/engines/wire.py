"""Talk to an engine in a child process: JSON lines over a Unix socket, every request on one connection.

To the child, one object a line: `{"op": "submit", "id": n, "ask": {…}}`, `{"op": "cancel", "id": n}`, and the questions
`embed`, `score`, `tokenize`, `detokenize`, `render`, `stats`, `ping` with an id. From it: a list with all deltas of one
engine step, `[[id, index, text, tokens, finish, extra], …]`, or an object about one id: `{"id": n, "reply": …}` or
`{"id": n, "refused": reason, "tokens": …, "keyword": …}`. The child's side is `engines/wire_child.py`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import threading
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from inhouse.core.control_tokens import ControlTokens
from inhouse.core.serving import (
    Ask,
    Capabilities,
    Constraint,
    Delta,
    EngineLost,
    EngineRefused,
    EngineSilent,
    PairScores,
    Push,
    Sampling,
    Stats,
    Usage,
)
from inhouse.engines.process import Child

MOST_LINE_BYTES = 64 * 2**20
SILENCE_S = 60.0
PING_S = 5.0


@dataclass(frozen=True)
class WireBackend:
    """An engine in a child process of ours that speaks the wire."""

    name: str
    process: Child
    socket: Path
    context_length: int
    capabilities: Capabilities
    silence_s: float = SILENCE_S

    def healthy(self, timeout_s: float = PING_S) -> bool:
        """Whether the child answers: it does so between two steps of its engine."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(timeout_s)
                link.connect(str(self.socket))
                link.sendall(b'{"op":"ping","id":0}\n')
                return link.recv(4096) != b""
        except OSError:
            return False

    def open(self) -> WireEngine:
        """The engine as the gateway uses it, inside the event loop; it connects with its first request."""
        return WireEngine(self.name, self.socket, self.capabilities, self.context_length, silence_s=self.silence_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """End the child: politely, then by force."""
        self.process.stop(grace_s)


def backend(name: str, child: Child, ready: Mapping[str, Any], silence_s: float = SILENCE_S) -> WireBackend:
    """The engine of a child, from its ready report; the socket's folder goes when the child has ended."""
    path = Path(ready["socket"])
    threading.Thread(target=_tidy, args=(child, path.parent), name=f"tidy {name}", daemon=True).start()
    return WireBackend(name, child, path, ready["context_length"], to_capabilities(ready["capabilities"]), silence_s)


def _tidy(child: Child, folder: Path) -> None:
    child.wait()  # one that was killed could not remove it itself
    shutil.rmtree(folder, ignore_errors=True)


class WireEngine:
    """A model in a child process that answers many requests at once. Used inside one event loop."""

    def __init__(
        self, name: str, path: Path, capabilities: Capabilities, context_length: int, *, silence_s: float = SILENCE_S
    ) -> None:
        self.name = name
        self.capabilities = capabilities
        self.context_length = context_length
        self._path = path
        self._silence_s = silence_s
        self._link: _Link | None = None
        self._connecting: asyncio.Lock | None = None

    async def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        """The answer, as lists of what arrived together. Closing the generator cancels the request.

        Raises EngineRefused before the first delta, EngineLost, EngineSilent.
        """
        link = await self._linked()
        stream = link.submit(ask)
        stream.push = push
        try:
            while stream.left > 0 or stream.ready:
                if taken := await stream.take():
                    yield taken
        finally:
            stream.push = None
            link.forget(stream)

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """One vector a text (unit length), and the number of tokens read."""
        reply = await self._question("embed", texts=[text if isinstance(text, str) else list(text) for text in texts])
        return [array("f", base64.b64decode(vector)).tolist() for vector in reply["vectors"]], reply["tokens"]

    async def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> PairScores:
        """How well each document fits its query; only where `capabilities.rerank` says so."""
        reply = await self._question("score", pairs=[list(pair) for pair in pairs])
        return PairScores(reply["scores"], reply["tokens"], tuple(reply["cut"]))

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids; with `special`, special tokens are parsed and added as for a prompt."""
        ids: list[int] = await self._question("tokenize", text=text, special=special)
        return ids

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = await self._question("detokenize", tokens=list(tokens))
        return text

    async def render(self, ask: Ask) -> str:
        """The conversation through the model's own template, ready for the answer to follow."""
        text: str = await self._question("render", ask=from_ask(ask))
        return text

    async def stats(self) -> Stats:
        """Load and memory."""
        return Stats(**await self._question("stats"))

    async def close(self) -> None:
        """Let go of the connection; what still runs on it is lost."""
        if self._link is not None:
            self._link.close()

    async def _question(self, op: str, **facts: Any) -> Any:
        link = await self._linked()
        try:
            async with asyncio.timeout(self._silence_s):
                return await link.question({"op": op, **facts})
        except TimeoutError:
            raise EngineSilent(self.name) from None

    async def _linked(self) -> _Link:
        if (link := self._link) is not None and link.lost is None:
            return link
        self._connecting = self._connecting or asyncio.Lock()
        async with self._connecting:
            if self._link is None or self._link.lost is not None:
                self._link = await self._connect()
            return self._link

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._silence_s):
                _, link = await loop.create_unix_connection(lambda: _Link(loop, self._silence_s), str(self._path))
        except TimeoutError:
            raise EngineSilent(self.name) from None
        except OSError:
            raise EngineLost(self.name) from None
        return link


class _Stream:
    """What has arrived for one request and was not taken yet. No task, queue or timer per token."""

    __slots__ = ("begun", "failure", "heard", "id", "left", "loop", "push", "ready", "waiter")

    def __init__(self, id: int, left: int, loop: asyncio.AbstractEventLoop) -> None:
        self.id = id
        self.left = left  # choices that have not finished
        self.loop = loop
        self.heard = loop.time()
        self.begun = False
        self.ready: list[Delta] = []
        self.push: Push | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.failure: Exception | None = None

    async def take(self) -> list[Delta]:
        """Everything that arrived, once there is something; nothing where it was pushed, and is whole."""
        while not self.ready:
            if self.left <= 0:
                break
            if self.failure is not None:
                raise self.failure
            self.waiter = self.loop.create_future()
            await self.waiter
        taken, self.ready = self.ready, []
        return taken

    def add(self, delta: Delta) -> None:
        """What has arrived: pushed on while somebody waits for it, else kept."""
        self.heard = self.loop.time()
        self.begun = True
        if delta.finish is not None:
            self.left -= 1
        waits = self.waiter is not None and not self.waiter.done() and not self.ready
        if waits and self.push is not None and self.push([delta]):
            if self.left <= 0:
                self.wake()
            return
        self.ready.append(delta)
        self.wake()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.wake()


class _Link(asyncio.Protocol):
    """The connection: cuts what arrives into lines, and gives each request its part."""

    def __init__(self, loop: asyncio.AbstractEventLoop, silence_s: float) -> None:
        self.lost: Exception | None = None
        self._loop = loop
        self._silence_s = silence_s
        self._streams: dict[int, _Stream] = {}
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._parts: list[bytes] = []
        self._held = 0
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose()

    def data_received(self, data: bytes) -> None:
        lines = data.split(b"\n")
        if len(lines) > 1 and self._parts:
            lines[0] = b"".join([*self._parts, lines[0]])
            self._parts, self._held = [], 0
        rest = lines.pop()
        if rest:
            self._parts.append(rest)
            self._held += len(rest)
        try:
            for line in lines:
                self._line(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return self.close()  # not our child's protocol: nothing after it can be trusted
        if self._held > MOST_LINE_BYTES:
            self.close()

    def submit(self, ask: Ask) -> _Stream:
        """Send a request; its deltas gather in the stream."""
        self._last_id += 1
        stream = _Stream(self._last_id, ask.sampling.n, self._loop)
        self._send({"op": "submit", "id": stream.id, "ask": from_ask(ask)})
        self._streams[stream.id] = stream
        if self._watch is None:
            self._watch = self._loop.call_later(self._silence_s / 8, self._look)
        return stream

    def forget(self, stream: _Stream) -> None:
        """Let go of a request; one that is not whole is cancelled."""
        if self._streams.pop(stream.id, None) and stream.left > 0 and self.lost is None:
            self._send({"op": "cancel", "id": stream.id})

    async def question(self, message: dict[str, Any]) -> Any:
        """Ask what has one answer."""
        self._last_id += 1
        id = self._last_id
        self._send(message | {"id": id})
        future = self._questions[id] = self._loop.create_future()
        try:
            return await future
        finally:
            del self._questions[id]

    def close(self) -> None:
        """Cut the connection."""
        self._lose()
        if self._transport is not None:
            self._transport.abort()

    def _send(self, message: dict[str, Any]) -> None:
        if self.lost is not None:
            raise EngineLost("engine")
        assert self._transport is not None
        self._transport.write(json.dumps(message).encode() + b"\n")

    def _line(self, line: Any) -> None:
        if isinstance(line, dict):
            return self._about(line)
        streams = self._streams
        for id, index, text, tokens, finish, extra in line:
            stream = streams.get(id)
            if stream is None:
                continue  # cancelled a moment ago
            delta = Delta(text, index, tokens, finish)
            if extra is not None:
                _add_extra(delta, extra)
            stream.add(delta)
        return None

    def _about(self, line: dict[str, Any]) -> None:
        id = line["id"]
        refused = EngineRefused(line["refused"], line.get("tokens"), line.get("keyword")) if "refused" in line else None
        if (stream := self._streams.get(id)) is not None:
            stream.left = max(stream.left, 1)
            stream.fail(EngineLost("engine") if stream.begun or refused is None else refused)
            del self._streams[id]
        elif (question := self._questions.get(id)) is not None and not question.done():
            if refused is None:
                question.set_result(line["reply"])
            else:
                question.set_exception(refused)

    def _look(self) -> None:
        """Fail the requests that heard nothing for too long. One timer for all of them."""
        oldest = self._loop.time() - self._silence_s
        for stream in self._streams.values():
            if stream.heard < oldest and not stream.ready:
                stream.fail(EngineSilent("engine"))
        again = bool(self._streams) and self.lost is None
        self._watch = self._loop.call_later(self._silence_s / 8, self._look) if again else None

    def _lose(self) -> None:
        if self.lost is None:
            self.lost = EngineLost("engine")
            for stream in self._streams.values():
                stream.fail(EngineLost("engine"))
            for question in self._questions.values():
                if not question.done():
                    question.set_exception(EngineLost("engine"))
            if self._watch is not None:
                self._watch.cancel()


def _add_extra(delta: Delta, extra: dict[str, Any]) -> None:
    delta.logprobs = extra.get("logprobs")
    delta.tool_calls = extra.get("tool_calls")
    delta.reasoning = extra.get("reasoning")
    delta.stop = extra.get("stop")
    if (usage := extra.get("usage")) is not None:
        delta.usage = Usage(*usage)


def from_delta(id: int, delta: Delta) -> list[Any]:
    """A delta as the wire carries it."""
    extra: dict[str, Any] = {}
    if delta.logprobs is not None:
        extra["logprobs"] = delta.logprobs
    if delta.tool_calls is not None:
        extra["tool_calls"] = delta.tool_calls
    if delta.reasoning is not None:
        extra["reasoning"] = delta.reasoning
    if delta.stop is not None:
        extra["stop"] = delta.stop
    if (usage := delta.usage) is not None:
        extra["usage"] = [usage.prompt, usage.answer, usage.cached, usage.prefill_s, usage.decode_s]
    return [id, delta.index, delta.text, delta.tokens, delta.finish, extra or None]


def from_ask(ask: Ask) -> dict[str, Any]:
    """A request as the wire carries it."""
    carried = {name: getattr(ask, name) for name in Ask.__dataclass_fields__}
    sampling = {name: getattr(ask.sampling, name) for name in Sampling.__dataclass_fields__}
    sampling["logit_bias"] = list(ask.sampling.logit_bias.items())  # JSON has no numbers for keys
    if (limit := ask.constraint) is not None:
        carried["constraint"] = {name: getattr(limit, name) for name in Constraint.__dataclass_fields__}
    return carried | {"sampling": sampling}


def to_ask(carried: Mapping[str, Any]) -> Ask:
    """The request that `from_ask` described."""
    sampling = dict(carried["sampling"])
    sampling["stop"] = tuple(sampling["stop"])
    sampling["logit_bias"] = {token: bias for token, bias in sampling["logit_bias"]}
    limit = carried["constraint"]
    rest = {
        "sampling": Sampling(**sampling),
        "constraint": None if limit is None else Constraint(**limit),
        "tools": tuple(carried["tools"]),
    }
    return Ask(**{**carried, **rest})


def from_capabilities(capabilities: Capabilities) -> dict[str, Any]:
    """Capabilities as the ready report carries them."""
    told = {name: getattr(capabilities, name) for name in Capabilities.__dataclass_fields__}
    control = {"texts": capabilities.control.texts, "refused": capabilities.control.refused}
    lists = {"constraints": sorted(capabilities.constraints), "adapters": list(capabilities.adapters)}
    return told | lists | {"control": control}


def to_capabilities(carried: Mapping[str, Any]) -> Capabilities:
    """The capabilities that `from_capabilities` described."""
    sets = {
        "constraints": frozenset(carried["constraints"]),
        "adapters": tuple(carried["adapters"]),
        "control": ControlTokens(**carried["control"]),
    }
    return Capabilities(**{**carried, **sets})
