"""What the worker does when something breaks: one batch, one key, the registry, or the place of a webhook."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from inhouse.core.store import Store
from inhouse.database import writing
from inhouse.release.batches import Batch, add_batch, cancel_batch, finish, get_batch, open_batches
from inhouse.release.keys import Key, create_key
from inhouse.release.registry import open_registry
from inhouse.release.settings import FileParams
from inhouse.release.stored import new_id
from inhouse.serve import batch_worker
from inhouse.serve.background import MOST_TOLD, Background
from inhouse.serve.batch_worker import MOST_ROUNDS, WEBHOOK, BatchWorker
from inhouse.serve.errors import ApiError, unavailable
from inhouse.serve.file_store import FileStore
from inhouse.serve.routes import Route, Services

CHAT = "/v1/chat/completions"


class Place:
    """A worker over a registry, whose engine answers as it is told by the words of a request."""

    def __init__(self, folder: Path) -> None:
        registry = open_registry(Store(folder))
        self.engine = registry.engine
        self.keys = [create_key(self.engine, name)[1] for name in ("poor", "rich")]
        self.files = FileStore(self.engine, folder / "files", FileParams())
        self.files.root.mkdir()
        self.background = Background()
        self.refusals: dict[str, Callable[[], ApiError]] = {}
        self.asked: list[str] = []
        settings = SimpleNamespace(
            max_body_bytes=10_000, batches=SimpleNamespace(parallel=2, most_requests=10, webhooks=())
        )
        ring = SimpleNamespace(keys={key.id: key for key in self.keys})
        route = Route("POST", CHAT, self.answer)
        services = SimpleNamespace(
            deployments=SimpleNamespace(registry=registry, keys=ring), settings=settings, files=self.files,
            background=self.background, routes=SimpleNamespace(find=lambda *_: (route, {})),
        )  # fmt: skip
        self.worker = BatchWorker(cast(Services, services))

    async def answer(self, _: Services, call: Any) -> None:
        said = json.loads(await call.json_body())["say"]
        self.asked.append(said)
        if said in self.refusals:
            raise self.refusals[said]()
        await call.reply({"said": said})

    def batch(self, key: Key, *says: str, **changes: Any) -> Batch:
        now, file = int(time.time()), new_id("file-")
        lines = [{"custom_id": s, "method": "POST", "url": CHAT, "body": {"say": s}} for s in says]
        self.files.path(file).write_text("\n".join(json.dumps(line) for line in lines))
        made = Batch(new_id("batch_"), key.id, CHAT, file, "validating", now, now + 86400)
        return add_batch(self.engine, replace(made, **changes))

    def now(self, batch: Batch) -> Batch:
        found = get_batch(self.engine, batch.key, batch.id)
        assert found is not None
        return found

    async def until(self, batch: Batch, status: str) -> None:
        async with asyncio.timeout(10):
            while self.now(batch).status != status:
                await asyncio.sleep(0.01)

    def play(self, story: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            self.background.start("batches", self.worker.run())
            await story()
            await self.background.stop()

        asyncio.run(run())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(batch_worker, "POLL_S", 0.01)
    return Place(tmp_path)


def quota() -> ApiError:
    return ApiError(429, "rate_limit_exceeded", "used up", retry_after_s=3600)


def test_used_up_quota_of_one_key_keeps_no_other_batch_and_its_own_can_be_cancelled(place: Place) -> None:
    poor, rich = place.keys
    place.refusals["dear"] = quota
    stuck = place.batch(poor, "dear", "cheap")

    async def story() -> None:
        async with asyncio.timeout(10):
            while "dear" not in place.asked:
                await asyncio.sleep(0.01)
        other = place.batch(rich, "a", "b", "c")
        await place.until(other, "completed")
        assert place.now(stuck).status == "in_progress" and place.now(stuck).completed == 1
        cancel_batch(place.engine, poor.id, stuck.id, 1)
        await place.until(stuck, "cancelled")
        assert place.asked.count("dear") == 1  # it says when to come back

    place.play(story)


def test_expired_batch_that_waits_for_its_quota_is_ended(place: Place) -> None:
    place.refusals["dear"] = quota
    stuck = place.batch(place.keys[0], "dear", expires=int(time.time()) + 2)
    place.play(lambda: place.until(stuck, "expired"))


def test_refused_line_is_asked_again_and_a_lasting_503_is_its_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_worker, "growing", lambda _: 0.01)
    monkeypatch.setattr(batch_worker, "MOST_WAIT_S", 0.01)
    times = 0

    def twice() -> ApiError:
        nonlocal times
        times += 1
        if times == 2:
            del place.refusals["later"]
        return quota()

    place.refusals |= {"later": twice, "gone": unavailable}
    made = place.batch(place.keys[0], "later", "gone", "last")
    place.play(lambda: place.until(made, "completed"))
    done = place.now(made)
    assert (done.completed, done.failed) == (2, 1)
    assert place.asked.count("later") == 3 and place.asked.count("gone") > MOST_ROUNDS


@pytest.mark.parametrize("error", [OSError(28, "disk full"), OperationalError("x", {}, Exception()), KeyError("bug")])
def test_broken_batch_is_set_aside_and_a_broken_registry_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    good, bad = place.batch(place.keys[1], "a", "b"), place.batch(place.keys[0], "x")
    rounds, finishes = 0, 0
    written = place.files.write

    def opened(engine: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds <= 2:
            raise error
        return open_batches(engine)

    def write(file: Any, lines: Any) -> Any:
        if bad.id in file.filename:
            raise error
        return written(file, lines)

    def finished(engine: Any, batch: str, *more: Any) -> Any:
        nonlocal finishes
        finishes += 1
        if finishes == 1:
            raise error
        return finish(engine, batch, *more)

    monkeypatch.setattr(batch_worker, "open_batches", opened)
    monkeypatch.setattr(batch_worker, "finish", finished)
    object.__setattr__(place.files, "write", write)  # it is frozen

    async def story() -> None:
        await place.until(good, "completed")
        await place.until(bad, "finalizing")
        object.__setattr__(place.files, "write", written)
        await place.until(bad, "completed")  # when what broke it is mended

    place.play(story)
    assert "batches wait" in caplog.text and f"{bad.id} is set aside" in caplog.text


@pytest.mark.parametrize("table", ["batches", "batch_items"])
def test_broken_row_fails_its_batch_and_the_others_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(batch_worker, "growing", lambda _: 0.01)
    monkeypatch.setattr(batch_worker, "MOST_WAIT_S", 0.01)
    place.refusals["later"] = quota
    bad, good = place.batch(place.keys[0], "later"), place.batch(place.keys[1], "a", "b")
    column, which = ("metadata", "id") if table == "batches" else ("custom_id", "batch")

    async def story() -> None:
        await place.until(bad, "in_progress")
        with writing(place.engine) as connection:
            connection.exec_driver_sql(f"UPDATE {table} SET {column} = '{{' WHERE {which} = '{bad.id}'")
        await place.until(bad, "failed")
        await place.until(good, "completed")

    place.play(story)
    assert place.now(bad).errors[0]["code"] == "batch_broken"


def test_batch_ends_when_there_is_no_place_for_its_webhook(place: Place) -> None:
    made = place.batch(place.keys[0], "a", metadata={WEBHOOK: "http://127.0.0.1:1/"})
    after = place.batch(place.keys[0], "b")

    async def story() -> None:
        for _ in range(MOST_TOLD):
            place.background.tell("busy", asyncio.sleep(60))
        await place.until(made, "completed")
        await place.until(after, "completed")

    place.play(story)
