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
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import InhouseError, UserError
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
from inhouse.serve.batch_lines import Bounds, Json, body_of, check_input
from inhouse.serve.dispatch import Sent, dispatch
from inhouse.serve.webhooks import announce

if TYPE_CHECKING:
    from inhouse.serve.routes import Route, Services

POLL_S = 2.0
AGAIN = (429, 503)  # quotas and engines that come back
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0)  # before each further try of one line
ENDED: dict[str, Status] = {"finalizing": "completed", "cancelling": "cancelled", "in_progress": "expired"}
log = logging.getLogger("inhouse.serve")


class BatchWorker:
    """Works on every open batch in turn, a few lines each."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.engine = services.deployments.registry.engine
        self.worker = this_worker()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something new to do."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._woken.clear()
            try:
                busy = await self._round()
            except InhouseError as error:  # a registry or a disk that fails now may work again later
                log.error("batches wait: %s", error)
                busy = False
            if not busy:
                await self._pause()

    def keep_leases(self) -> None:
        """Say that this worker lives, or others would take its lines."""
        renew(self.engine, self.worker, _now())

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), POLL_S)
        except TimeoutError:
            return

    async def _round(self) -> bool:
        """A step of every open batch; whether one of them got on."""
        busy = False
        for batch in await asyncio.to_thread(open_batches, self.engine):
            busy |= await self._step(batch)
        return busy

    async def _step(self, batch: Batch) -> bool:
        if batch.status == "validating":
            return await self._validate(batch)
        if batch.status in ("finalizing", "cancelling"):
            return await self._end(batch)
        if batch.expires <= _now():
            return await self._end(batch)
        lines = await asyncio.to_thread(
            claim, self.engine, batch.id, self.worker, self.services.settings.batches.parallel, _now()
        )
        if lines:
            await self._answer(batch, lines)
            return True
        if await asyncio.to_thread(lines_left, self.engine, batch.id) == 0:
            return await asyncio.to_thread(move_batch, self.engine, batch, "finalizing", _now())
        return False  # others work on the rest

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
            await asyncio.to_thread(add_lines, self.engine, batch.id, lines)
        except UserError as error:
            if error.code != "release.batch_twice":  # they are kept: this was stopped just after that before
                raise
        return await asyncio.to_thread(move_batch, self.engine, batch, "in_progress", _now())

    async def _answer(self, batch: Batch, lines: list[Line]) -> None:
        key = self._key(batch)
        if key is None:
            await self._fail(batch, [_no_key()])
            return
        try:
            found = await asyncio.gather(*(self._line(batch, key, line) for line in lines))
            await asyncio.to_thread(finish, self.engine, batch.id, self.worker, found)
        except asyncio.CancelledError:
            give_back(self.engine, batch.id, self.worker)  # the server stops: a few milliseconds
            raise

    async def _line(self, batch: Batch, key: Key, line: Line) -> Answer:
        path = self.services.files.path(batch.input_file)
        try:
            body = await asyncio.to_thread(body_of, path, line)
        except (OSError, ValueError, KeyError):
            return _answered(batch, line, None, {"code": "input_file_gone", "message": text("serve.batch_gone")})
        sent = await self._tried(batch, key, body)
        return _answered(batch, line, sent, None)

    async def _tried(self, batch: Batch, key: Key, body: bytes) -> Sent:
        """One request, tried again while the server says 'not now'."""
        route = self._route(batch)
        for pause in PAUSES_S:
            sent = await dispatch(self.services, route, key, body)
            if sent.status not in AGAIN or _now() >= batch.expires:
                return sent
            await asyncio.sleep(pause)
        return await dispatch(self.services, route, key, body)

    async def _end(self, batch: Batch) -> bool:
        """Write the files and close the batch."""
        status = ENDED[batch.status]
        output, error_file = await asyncio.to_thread(self._write, batch, status)
        more = {"output_file": output, "error_file": error_file}
        if not await asyncio.to_thread(move_batch, self.engine, batch, status, _now(), more):
            return True
        await asyncio.to_thread(drop_answers, self.engine, batch.id)
        self._announce(batch)
        return True

    async def _fail(self, batch: Batch, errors: list[Json]) -> bool:
        moved = await asyncio.to_thread(move_batch, self.engine, batch, "failed", _now(), {"errors": errors})
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


def _no_key() -> Json:
    return {"code": "invalid_api_key", "message": text("serve.batch_key"), "line": None, "param": None}


def _now() -> int:
    return int(time.time())
