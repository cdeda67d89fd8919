"""What an answer may be held to: a JSON schema, any JSON object, a regular expression, a grammar, a choice.

Checked before an engine sees it, and compiled in a process of its own that is ended after a second: an engine that
compiles a hostile grammar itself stands still for everybody, and llama.cpp drops one that it cannot compile.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import sys
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, cast

from inhouse.core.messages import text
from inhouse.core.plugins import require
from inhouse.core.serving import Constraint, Limit
from inhouse.core.settings import child_environment
from inhouse.serve.constraint_rules import check_choices, check_grammar, check_regex
from inhouse.serve.constraint_schema import check_schema
from inhouse.serve.errors import ApiError, invalid, unsupported

COMPILE_S = 0.8  # a refusal within a second
TRY_AGAIN_S = 30.0  # what took too long is refused at once for so long
START_S = 20.0  # a busy machine needs seconds to start a Python
CLOSE_S = 1.0
KEPT = 256  # verdicts, refusals too: an attack that is repeated costs nothing
KEPT_BYTES = 8 * 2**20
WAITING = 256  # requests that wait for the worker, of all keys
WAITING_EACH = 2  # of one key: each may take a second, and the keys take turns
SLOW_MOST = 3  # constraints of one key that may take too long within SLOW_WITHIN_S
SLOW_WITHIN_S = 60.0
SLOW_PAUSE_S = 30.0  # for which nothing new is compiled for that key then
REPLY_BYTES = 2**20
# One space after a comma and a colon, and none elsewhere: small models otherwise write blank lines until the answer is
# cut off ("[\n\n[\n\n[" was seen).
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT: dict[str, Any] = {"type": "object"}
FIELDS: dict[str, Limit] = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
Verdict = Literal["lark", "invalid", "unmatched", "complex"]
# The id of the key that asks; 0 where nobody said.
current_tenant: ContextVar[int] = ContextVar("current_tenant", default=0)


@dataclass(frozen=True)
class Wanted:
    """A constraint as a request names it: not checked yet. `param` is the field that holds it."""

    kind: Limit
    value: Any
    param: str
    strict: bool = True


def find_constraint(response_format: Any, extra: Mapping[str, Any]) -> Wanted | None:
    """The one constraint that a body asks for: OpenAI's `response_format`, or vLLM's names for the others.

    `extra` is the rest of the body: `structured_outputs: {json|regex|choice|grammar}` and `guided_json|regex|choice|
    grammar`. Raises ApiError 400 for two at once and for kinds that nobody knows.
    """
    found = [wanted for wanted in (_response_format(response_format), *_extra(extra)) if wanted is not None]
    if len(found) > 1:
        raise invalid(text("serve.constraint_twice", first=found[0].param, second=found[1].param), found[1].param)
    return found[0] if found else None


def _response_format(asked: Any) -> Wanted | None:
    if asked is None:
        return None
    if not isinstance(asked, Mapping):
        raise invalid(text("serve.constraint_kind", kind=str(asked)[:64]), "response_format")
    kind = asked.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Wanted("json_object", None, "response_format")
    if kind != "json_schema":
        raise invalid(text("serve.constraint_kind", kind=str(kind)[:64]), "response_format.type")
    if "json_schema" not in asked and "schema" not in asked:
        raise invalid(text("serve.schema_missing"), "response_format.json_schema")
    # The Responses API has the same fields one level up.
    place, inner = ("response_format.json_schema", asked["json_schema"]) if "json_schema" in asked else (
        "response_format", asked)  # fmt: skip
    if not isinstance(inner, Mapping):
        raise invalid(text("serve.schema_object"), place)
    return Wanted("json_schema", inner.get("schema"), f"{place}.schema", inner.get("strict") is not False)


def _extra(extra: Mapping[str, Any]) -> list[Wanted]:
    found = [
        Wanted(kind, extra[f"guided_{name}"], f"guided_{name}")
        for name, kind in FIELDS.items()
        if extra.get(f"guided_{name}") is not None
    ]
    outputs = extra.get("structured_outputs")
    if outputs is None:
        return found
    if not isinstance(outputs, Mapping):
        raise invalid(text("serve.constraint_kind", kind=str(outputs)[:64]), "structured_outputs")
    for name, value in outputs.items():
        param = f"structured_outputs.{name}"
        if value is None or value is False:
            continue
        if name == "json_object":
            found.append(Wanted("json_object", None, param))
        elif name in FIELDS:
            found.append(Wanted(FIELDS[name], value, param))
        else:
            raise unsupported(param[:128])
    return found


async def check_constraint(
    kind: Limit, value: Any = None, param: str = "response_format", *, strict: bool = True
) -> Constraint:
    """A constraint that engines can be given: within the limits, and known to compile.

    `strict` off: what a grammar cannot hold (`uniqueItems`) is left to the model. Raises ApiError 400 within a
    second of its turn, 429 when this key has too many in line or had too many that took too long, 503 when too many
    others wait.
    """
    checked, source = _source(kind, value, param, strict)
    lark = await _shared().compile("grammar" if kind == "grammar" else "lark", source, param)
    return Constraint(kind, checked, lark, param)


def _source(kind: Limit, value: Any, param: str, strict: bool) -> tuple[Any, str]:
    """The value as engines of any kind take it, and what is compiled: GBNF as it is, all else in llguidance's words."""
    if kind == "json_object":
        return None, _json_rule(ANY_OBJECT, strict=True)
    if kind == "json_schema":
        if isinstance(value, str):  # vLLM takes the schema as text too
            value = _parsed(value, param)
        schema = check_schema(value, param, strict)
        return schema, _json_rule(schema, strict)
    if kind == "regex":
        pattern = check_regex(value, param)
        return pattern, f"start: /{_in_slashes(pattern)}/"
    if kind == "choice":
        choices = check_choices(value, param)
        words = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return choices, f"start: CHOICE\nCHOICE: {words}"
    grammar = check_grammar(value, param)
    return grammar, grammar


def _json_rule(schema: dict[str, Any], strict: bool) -> str:
    own = {**schema, "x-guidance": SPACING if strict else {**SPACING, "lenient": True, "coerce_one_of": True}}
    return "start: %json " + json.dumps(own, ensure_ascii=False)


def _parsed(schema: str, param: str) -> Any:
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise invalid(text("serve.schema_object"), param) from None


def _in_slashes(pattern: str) -> str:
    """A pattern as it stands between slashes: a slash of its own and line ends are escaped, once."""
    out, escaped = [], False
    for character in pattern:
        if escaped or character not in "/\n\r":
            out.append(character)
        else:
            out.append({"/": "\\/", "\n": "\\n", "\r": "\\r"}[character])
        escaped = character == "\\" and not escaped
    return "".join(out)


@dataclass(frozen=True)
class _Judged:
    """What the worker said, and until when that holds."""

    verdict: Verdict
    lark: str = ""
    until: float = math.inf

    @property
    def holds(self) -> bool:
        return time.monotonic() < self.until


class _Turns:
    """Who compiles next: one at a time, the keys after one another, so that none waits for all of another's."""

    def __init__(self) -> None:
        self._busy = False
        self._last = 0  # the key whose turn it was
        self._lines: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()
        self._slow: dict[int, deque[float]] = {}
        self._paused: dict[int, float] = {}

    @asynccontextmanager
    async def turn(self, tenant: int) -> AsyncIterator[None]:
        """Wait for the turn of this key. Raises ApiError 429 or 503 where the line is full."""
        if self._busy:
            await self._wait(tenant)
        self._busy, self._last = True, tenant
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: int) -> None:
        if sum(map(len, self._lines.values())) >= WAITING:
            raise ApiError(503, "overloaded", text("serve.constraint_busy"))
        if len(self._lines.get(tenant, ())) >= WAITING_EACH:
            raise ApiError(429, "rate_limit_exceeded", text("serve.constraint_busy"))
        called = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._pass_on()  # it was this one's turn already
            elif tenant in self._lines and called in self._lines[tenant]:
                self._lines[tenant].remove(called)
                if not self._lines[tenant]:
                    del self._lines[tenant]
            raise

    def _pass_on(self) -> None:
        """The turn goes to the key that waits for longest since its last one."""
        if self._last in self._lines:
            self._lines.move_to_end(self._last)
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            called = line.popleft()
            if line:
                self._lines[tenant] = line
            if not called.done():
                called.set_result(None)  # the turn stays taken until that one is through
                return
        self._busy = False

    def refuse_slow(self, tenant: int) -> None:
        """Raises ApiError 429 for a key whose constraints took too long too often."""
        seconds = self._paused.get(tenant, 0.0) - time.monotonic()
        if seconds > 0:
            whole = math.ceil(seconds)
            told = text("serve.constraint_paused", count=SLOW_MOST, seconds=whole)
            raise ApiError(429, "rate_limit_exceeded", told, retry_after_s=whole)
        self._paused.pop(tenant, None)

    def note_slow(self, tenant: int) -> None:
        """One of this key's took too long."""
        now = time.monotonic()
        self._slow = {key: times for key, times in self._slow.items() if now - times[-1] < SLOW_WITHIN_S}
        times = self._slow.setdefault(tenant, deque(maxlen=SLOW_MOST))
        times.append(now)
        if len(times) == SLOW_MOST and now - times[0] < SLOW_WITHIN_S:
            self._paused = {key: until for key, until in self._paused.items() if until > now}
            self._paused[tenant] = now + SLOW_PAUSE_S
            del self._slow[tenant]


class ConstraintWorker:
    """One process that compiles, started when it is first needed, and again after it was ended."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turns = _Turns()
        self._asked: dict[tuple[int, str], asyncio.Event] = {}
        self._verdicts: OrderedDict[str, _Judged] = OrderedDict()
        self._bytes = 0

    async def start(self) -> None:
        """Start the process now, so that the first request need not wait for it."""
        async with self._turns.turn(current_tenant.get()):
            await self._running()

    async def compile(self, kind: Literal["grammar", "lark"], source: str, param: str) -> str:
        """The constraint in llguidance's notation. Raises ApiError."""
        name = hashlib.sha256(f"{kind}\n{source}".encode("utf-8", "surrogatepass")).hexdigest()
        while not self._known(name):
            await self._learn(name, kind, source)
        self._verdicts.move_to_end(name)
        judged = self._verdicts[name]
        if judged.verdict == "lark":
            return judged.lark
        raise invalid(_told(judged.verdict), param)

    async def _learn(self, name: str, kind: str, source: str) -> None:
        """Ask the process once, however many requests of a key wait for the same: they take one place in line."""
        tenant = current_tenant.get()
        asked = self._asked.get((tenant, name))
        if asked is not None:
            await asked.wait()
            return
        asked = self._asked[tenant, name] = asyncio.Event()
        try:
            self._turns.refuse_slow(tenant)
            async with self._turns.turn(tenant):
                await self._ask(tenant, name, kind, source)
        finally:  # where this client left, or was refused, the others find out for themselves
            del self._asked[tenant, name]
            asked.set()

    async def _ask(self, tenant: int, name: str, kind: str, source: str) -> None:
        if self._known(name):
            return
        self._turns.refuse_slow(tenant)  # those before it in line may have been too slow meanwhile
        judged = await self._judged(kind, source)
        self._keep(name, judged)
        if judged.until < math.inf:
            self._turns.note_slow(tenant)

    async def close(self) -> None:
        """Let the process end: it does when nobody can ask it any more."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), CLOSE_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _judged(self, kind: str, source: str) -> _Judged:
        process = await self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"kind": kind, "source": source}).encode() + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), COMPILE_S)
            reply: dict[str, str] = json.loads(line)
        except (TimeoutError, OSError, ValueError):  # too slow, or it ended: out of memory, out of stack
            await self._kill()
            return _Judged("complex", until=time.monotonic() + TRY_AGAIN_S)  # it may have been the machine
        except BaseException:  # the client left: the next request must not read this one's reply
            if self._process is not None:
                self._process.kill()
            self._process = None
            raise
        return _Judged("lark", reply["lark"]) if "lark" in reply else _Judged(cast(Verdict, reply["refused"]))

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        require("serve", "llguidance")
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "inhouse.serve.constraint_worker", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(offline=True),
            limit=REPLY_BYTES,
        )
        assert process.stdout is not None
        try:
            ready = await asyncio.wait_for(process.stdout.readline(), START_S)
        except TimeoutError:
            ready = b""
        if not ready:
            await self._kill()
            raise ApiError(503, "engine_unavailable", text("serve.constraint_off"))
        return process

    def _known(self, name: str) -> bool:
        return name in self._verdicts and self._verdicts[name].holds

    def _keep(self, name: str, judged: _Judged) -> None:
        self._verdicts.pop(name, None)
        self._verdicts[name] = judged
        self._bytes += len(judged.lark)
        while len(self._verdicts) > KEPT or (self._bytes > KEPT_BYTES and len(self._verdicts) > 1):
            self._bytes -= len(self._verdicts.popitem(last=False)[1].lark)


def _told(verdict: Verdict) -> str:
    if verdict == "complex":
        return text("serve.too_complex", seconds=f"{COMPILE_S:g}")
    return text("serve.constraint_unmatched") if verdict == "unmatched" else text("serve.constraint_invalid")


_workers: dict[int, tuple[asyncio.AbstractEventLoop, ConstraintWorker]] = {}


def _shared() -> ConstraintWorker:
    """The worker of the running event loop: a process has one loop, tests have several."""
    loop = asyncio.get_running_loop()
    for name, (other, _) in list(_workers.items()):
        if other.is_closed():
            del _workers[name]  # its process ends when the pipe is closed
    return _workers.setdefault(id(loop), (loop, ConstraintWorker()))[1]


async def start_compiler() -> None:
    """Start the process that compiles before the first request needs it."""
    await _shared().start()


async def stop_compiler() -> None:
    """End the process that compiles."""
    worker = _workers.pop(id(asyncio.get_running_loop()), None)
    if worker is not None:
        await worker[1].close()
