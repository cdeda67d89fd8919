"""Answers batches: line by line, when nobody else waits, going on after whatever stopped it before.

Each answer is kept in the registry as soon as it is there, and the files are written from those at the end. A line
that was being answered when the process was killed is answered again; of two answers to a line one is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.release.batches import (
    Answer,
    Batch,
    Line,
    Status,
    add_lines,
    answers,
    claim,
    drop_answers,
    finish,
    get_batch,
    give_back,
    lines_left,
    move_batch,
    open_batches,
    renew,
    this_worker,
    unanswered,
)
from inhouse.release.keys import Key
from inhouse.release.stored import StoredFile
from inhouse.serve.background import growing
from inhouse.serve.batch_lines import Bounds, Json, body_of, check_input
from inhouse.serve.dispatch import Sent, dispatch
from inhouse.serve.errors import ApiError
from inhouse.serve.http import Call
from inhouse.serve.registry_writes import written
from inhouse.serve.webhooks import announce

if TYPE_CHECKING:
    from inhouse.serve.routes import Route, Services

POLL_S = 2.0
AGAIN = (429, 503)  # quotas and engines that come back
MOST_ROUNDS = 8  # in a row without an answer; then 503 is one. A quota is waited for until the batch expires.
MOST_WAIT_S = 300.0  # however late a quota says that it comes back: it may be raised before
ENDED: dict[str, Status] = {"finalizing": "completed", "cancelling": "cancelled", "in_progress": "expired"}
log = logging.getLogger("inhouse.serve")


@dataclass
class Wait:
    """A step of a batch that is not tried before `until` (monotonic), after `times` failures in a row."""

    until: float = 0.0
    times: int = 0


class BatchWorker:
    """Works on every open batch in turn, a few lines each; begins and ends others while lines are answered."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.engine = services.deployments.registry.engine
        self.worker = this_worker()
        self._woken = (asyncio.Event(), asyncio.Event())
        self._waits: dict[tuple[str, str], Wait] = {}  # by batch and step
        self._held: set[str] = set()  # batches of which this worker may hold lines
        self._answering: str | None = None

    def wake(self) -> None:
        """There is something new to do."""
        for woken in self._woken:
            woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop(self._begin_and_end, self._woken[0]))
            group.create_task(self._loop(self._answer_all, self._woken[1]))

    def keep_leases(self) -> None:
        """Say that this worker lives, or others would take its lines."""
        renew(self.engine, self.worker, _now())

    async def _loop(self, work: Callable[[], Awaitable[bool]], woken: asyncio.Event) -> None:
        failed = 0
        while True:
            woken.clear()
            try:
                busy = await work()
                failed = 0
            except Exception:  # whatever it is: a worker that ends takes all batches with it until a restart
                log.exception("batches wait")
                await asyncio.sleep(growing(failed))
                failed += 1
                continue
            if not busy:
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), POLL_S)

    async def _begin_and_end(self) -> bool:
        """What needs no engine, for every open batch; whether one of them got on."""
        busy = False
        found = await asyncio.to_thread(open_batches, self.engine)
        known = {batch.id for batch in found}
        self._waits = {place: wait for place, wait in self._waits.items() if place[0] in known}
        for batch in found:
            if batch.status == "validating":
                busy |= await self._tried(batch, self._validate)
            elif batch.id != self._answering and (batch.status != "in_progress" or batch.expires <= _now()):
                busy |= await self._tried(batch, self._end)
        return busy

    async def _answer_all(self) -> bool:
        """A few lines of every batch; whether one of them got on."""
        busy = False
        for batch in await asyncio.to_thread(open_batches, self.engine):
            if batch.status != "in_progress":
                continue
            self._answering = batch.id
            try:
                busy |= await self._tried(batch, self._answer_some)
            finally:
                self._answering = None
        return busy

    async def _tried(self, batch: Batch, step: Callable[[Batch], Awaitable[bool]]) -> bool:
        """A step that is not waiting; a batch that breaks it waits, and the others go on."""
        place = (batch.id, step.__name__)
        wait = self._waits.get(place)
        if wait is not None and time.monotonic() < wait.until:
            return False
        try:
            return await step(batch)
        except UserError as error:
            if error.code == "release.batch_broken":
                return await self._fail(batch, [_broken(error)])
            log.error("batch %s is set aside for a while: %s", batch.id, error)
        except Exception:  # whatever it is: one broken batch may not keep the others
            log.exception("batch %s is set aside for a while", batch.id)
        self._put_off(place)
        return False

    def _put_off(self, place: tuple[str, str], least: float = 0.0) -> None:
        wait = self._waits.setdefault(place, Wait())
        wait.until = time.monotonic() + max(growing(wait.times), min(least, MOST_WAIT_S))
        wait.times += 1

    async def _answer_some(self, batch: Batch) -> bool:
        now = await asyncio.to_thread(get_batch, self.engine, batch.key, batch.id)
        if now is None or now.status != "in_progress" or now.expires <= _now():
            return False  # cancelled or expired since it was listed
        if batch.id in self._held:  # something broke after they were claimed
            await written(give_back, self.engine, batch.id, self.worker)
        self._held.add(batch.id)
        most = self.services.settings.batches.parallel
        lines = await written(claim, self.engine, batch.id, self.worker, most, _now())
        busy = await self._answer(batch, lines) if lines else False
        self._held.discard(batch.id)
        left = await asyncio.to_thread(lines_left, self.engine, batch.id)
        if lines or left:
            return busy  # or others work on the rest
        return await written(move_batch, self.engine, batch, "finalizing", _now())

    async def _validate(self, batch: Batch) -> bool:
        settings = self.services.settings
        bounds = Bounds(batch.endpoint, settings.batches.most_requests, settings.max_body_bytes)
        path = self.services.files.path(batch.input_file)
        try:
            lines, errors = await asyncio.to_thread(check_input, path, bounds)
        except FileNotFoundError:
            lines, errors = [], [_gone()]
        if errors:
            return await self._fail(batch, errors)
        try:
            await written(add_lines, self.engine, batch.id, lines)
        except UserError as error:
            if error.code != "release.batch_twice":  # they are kept: this was stopped just after that before
                raise
        return await written(move_batch, self.engine, batch, "in_progress", _now())

    async def _answer(self, batch: Batch, lines: list[Line]) -> bool:
        """Keep what is answered, and give back what is to be asked later; whether there was an answer."""
        key = self._key(batch)
        if key is None:
            return await self._fail(batch, [_no_key()])
        place, waits = (batch.id, self._answer_some.__name__), list[int]()
        route = _noting(self._route(batch), waits)
        try:
            asked = (self._line(batch, route, key, line) for line in lines)
            found = await asyncio.gather(*asked, return_exceptions=True)
            kept = [answer for answer in found if isinstance(answer, Answer)]
            await written(finish, self.engine, batch.id, self.worker, kept)
            if len(kept) < len(lines):
                await written(give_back, self.engine, batch.id, self.worker)
        except asyncio.CancelledError:
            give_back(self.engine, batch.id, self.worker)  # the server stops: a few milliseconds
            raise
        if kept:
            self._waits.pop(place, None)
        for broken in found:
            if isinstance(broken, BaseException):
                raise broken
        if len(kept) < len(lines):
            self._put_off(place, max(waits, default=0))
        return bool(kept)

    async def _line(self, batch: Batch, route: Route, key: Key, line: Line) -> Answer | None:
        """The answer to a line; None when the server says 'not now'."""
        path = self.services.files.path(batch.input_file)
        try:
            body = await asyncio.to_thread(body_of, path, line)
        except (OSError, ValueError, KeyError):
            return _answered(batch, line, None, {"code": "input_file_gone", "message": text("serve.batch_gone")})
        sent = await dispatch(self.services, route, key, body)
        wait = self._waits.get((batch.id, self._answer_some.__name__), Wait())
        if sent.status == 429 or (sent.status in AGAIN and wait.times < MOST_ROUNDS):
            return None
        return _answered(batch, line, sent, None)

    async def _end(self, batch: Batch) -> bool:
        """Write the files and close the batch."""
        status = ENDED[batch.status]
        output, error_file = await written(self._write, batch, status)
        more = {"output_file": output, "error_file": error_file}
        if not await written(move_batch, self.engine, batch, status, _now(), more):
            return True
        await written(drop_answers, self.engine, batch.id)
        self._announce(batch)
        return True

    async def _fail(self, batch: Batch, errors: list[Json]) -> bool:
        moved = await written(move_batch, self.engine, batch, "failed", _now(), {"errors": errors})
        if moved:
            self._announce(batch)
        return True

    def _announce(self, batch: Batch) -> None:
        now = get_batch(self.engine, batch.key, batch.id)
        if now is not None and now.metadata.get(WEBHOOK):
            work = announce(now.metadata[WEBHOOK], f"batch.{now.status}", now.id)
            self.services.background.tell(f"webhook {batch.id}", work)

    def _write(self, batch: Batch, status: Status) -> tuple[str | None, str | None]:
        files = self.services.files
        output = files.write(_file(batch, "output"), _good(self.engine, batch))
        errors = files.write(_file(batch, "errors"), _bad(self.engine, batch, status))
        return (None if output is None else output.id), (None if errors is None else errors.id)

    def _key(self, batch: Batch) -> Key | None:
        """The key that made the batch, while it is valid."""
        now = datetime.now(UTC)
        known = self.services.deployments.keys.keys.values()
        return next((key for key in known if key.id == batch.key and key.valid(now)), None)

    def _route(self, batch: Batch) -> Route:
        return self.services.routes.find("POST", batch.endpoint)[0]


WEBHOOK = "inhouse:webhook"  # among the metadata in the registry, never among those that are shown


def _noting(route: Route, waits: list[int]) -> Route:
    """The route, that notes when a refusal says to come back."""

    async def handle(services: Services, call: Call) -> None:
        try:
            await route.handle(services, call)
        except ApiError as error:
            if error.status in AGAIN:
                waits.append(error.retry_after_s)
            raise

    return replace(route, handle=handle)


def _good(engine: Any, batch: Batch) -> Iterator[bytes]:
    for answer in answers(engine, batch.id, failed=False):
        yield _jsonl(answer.body)


def _bad(engine: Any, batch: Batch, status: Status) -> Iterator[bytes]:
    for answer in answers(engine, batch.id, failed=True):
        yield _jsonl(answer.body)
    if status == "completed":
        return
    for line in unanswered(engine, batch.id):
        error = {"code": f"batch_{status}", "message": text("serve.batch_unanswered")}
        yield _jsonl(_answered(batch, line, None, error).body)


def _answered(batch: Batch, line: Line, sent: Sent | None, error: Json | None) -> Answer:
    response = None
    if sent is not None:
        response = {"status_code": sent.status, "request_id": sent.request_id, "body": json.loads(sent.body)}
    failed = sent is None or sent.status >= 400
    number = hashlib.sha256(f"{batch.id} {line.line}".encode()).hexdigest()[:32]
    body = {"id": f"batch_req_{number}", "custom_id": line.custom_id, "response": response, "error": error}
    return Answer(line.line, line.custom_id, failed, body)


def _jsonl(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _file(batch: Batch, kind: str) -> StoredFile:
    """The same id whenever it is written: a batch whose end is interrupted gets no second file."""
    number = hashlib.sha256(f"{batch.id} {kind}".encode()).hexdigest()[:32]
    name = f"{batch.id}_{kind}.jsonl"
    return StoredFile(f"file-{number}", batch.key, "batch_output", name, 0, "", _now())


def _gone() -> Json:
    return {"code": "input_file_gone", "message": text("serve.batch_gone"), "line": None, "param": "input_file_id"}


def _broken(error: UserError) -> Json:
    return {"code": "batch_broken", "message": str(error), "line": None, "param": None}


def _no_key() -> Json:
    return {"code": "invalid_api_key", "message": text("serve.batch_key"), "line": None, "param": None}


def _now() -> int:
    return int(time.time())
