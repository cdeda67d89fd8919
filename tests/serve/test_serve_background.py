"""What goes on behind a request: nobody ends another's work, no kind takes another's places, nothing stops for good."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inhouse.core.store import Store
from inhouse.release.keys import create_key
from inhouse.release.registry import Registry, open_registry
from inhouse.release.stored import StoredResponse, get_response, put_response
from inhouse.serve import kept_responses
from inhouse.serve.background import MOST, MOST_OF_KEY, MOST_TOLD, Background, growing
from inhouse.serve.errors import ApiError
from inhouse.serve.http import Call
from inhouse.serve.kept_responses import KeptResponses
from inhouse.serve.routes import Services
from inhouse.serve.routes.responses import Asking, _begin, cancel, delete

OWN = ("batches", "batch leases", "tidy files", "tidy responses")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(Store(tmp_path))


def services_of(registry: Registry, background: Background) -> Services:
    deployments = SimpleNamespace(names=lambda: [])
    kept = KeptResponses(registry.engine, 1, background.makes, deadline_s=600)
    found = SimpleNamespace(background=background, responses=kept, deployments=deployments, caller=lambda *_: None)
    return cast(Services, found)


def call_of(key: Any, own: str) -> Call:
    async def reply(*_: Any) -> None: ...

    return cast(Call, SimpleNamespace(key=key, parts={"id": own}, reply=reply))


def test_response_is_ended_by_its_own_key_and_no_name_reaches_the_gateways_tasks(registry: Registry) -> None:
    (_, mine), (_, other) = create_key(registry.engine, "mine"), create_key(registry.engine, "other")
    shown = {"id": "resp_1", "status": "in_progress", "background": True, "error": None}
    for name in ("resp_1", "resp_2"):
        body = {"response": {**shown, "id": name, "model": "m", "created_at": int(time.time()),
            "previous_response_id": None}, "items": [], "worker": "elsewhere|1|1"}  # fmt: skip
        put_response(registry.engine, StoredResponse(name, mine.id, "m", int(time.time()), None, "in_progress", body))

    async def play() -> None:
        background = Background()
        services = services_of(registry, background)
        for name in OWN:
            background.start(name, asyncio.sleep(60))
        for name in ("resp_1", "resp_2"):
            background.reserve(mine.id, name)
            background.respond(mine.id, name, asyncio.sleep(60))
        tasks = {task.get_name(): task for task in asyncio.all_tasks()}
        for route in (delete, cancel):
            for name in (*OWN, "resp_1"):
                with pytest.raises(ApiError) as error:
                    await route(services, call_of(other, name))
                assert error.value.status == 404
        assert not await background.end(other.id, "resp_1") and not await background.end(mine.id, "batches")
        assert not any(tasks[name].cancelling() for name in (*OWN, "resp_1", "resp_2"))
        await delete(services, call_of(mine, "resp_1"))
        await cancel(services, call_of(mine, "resp_2"))
        await asyncio.sleep(0)
        assert tasks["resp_1"].cancelled() and tasks["resp_2"].cancelled()
        assert not any(tasks[name].done() for name in OWN)
        await background.stop()

    asyncio.run(play())
    kept = get_response(registry.engine, mine.id, "resp_2", 0)
    assert kept is not None and kept.status == "cancelled"
    assert get_response(registry.engine, mine.id, "resp_1", 0) is None


def test_what_is_being_written_when_a_response_is_ended_is_written_before(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, mine = create_key(registry.engine, "mine")
    kept, begun = KeptResponses(registry.engine, 1, lambda *_: True, deadline_s=600), threading.Event()
    shown = {"id": "resp_1", "status": "in_progress", "background": True, "error": None, "model": "m",
        "created_at": int(time.time()), "previous_response_id": None}  # fmt: skip

    def slow(*told: Any) -> None:
        if told[1].status == "in_progress":
            begun.set()
            time.sleep(0.2)
        put_response(*told)

    async def play() -> None:
        background = Background()
        services = services_of(registry, background)
        await kept.put(mine.id, shown | {"status": "queued"}, [])
        monkeypatch.setattr(kept_responses, "put_response", slow)
        background.reserve(mine.id, "resp_1")
        background.respond(mine.id, "resp_1", kept.put(mine.id, shown, []))
        await asyncio.to_thread(begun.wait, 10)
        await cancel(services, call_of(mine, "resp_1"))
        await asyncio.sleep(0.3)

    asyncio.run(play())
    found = get_response(registry.engine, mine.id, "resp_1", 0)
    assert found is not None and found.status == "cancelled"


def test_responses_are_bounded_by_key_and_in_all_and_a_place_comes_back() -> None:
    async def play() -> None:
        background = Background()
        for number in range(MOST):
            background.reserve(number // MOST_OF_KEY, str(number))
        for key in (0, MOST):
            with pytest.raises(ApiError) as error:
                background.reserve(key, "one more")
            assert error.value.status == 429
        background.release(0, "0")
        with pytest.raises(ApiError):
            background.reserve(1, "one more")  # this key has its own bound
        background.reserve(0, "one more")
        background.respond(0, "one more", asyncio.sleep(0))
        for _ in range(1000):  # until it is done, and its place free
            await asyncio.sleep(0.01)
            with suppress(ApiError):
                background.reserve(0, "next")
                break
        else:
            pytest.fail("its place did not come back")
        background.start("batches", asyncio.sleep(60))
        assert background.tell("webhook", asyncio.sleep(60))
        await background.stop()

    asyncio.run(play())


def test_refused_background_response_leaves_no_row_and_a_failed_one_no_place(registry: Registry) -> None:
    _, mine = create_key(registry.engine, "mine")
    shown = {"id": "resp_1", "model": "m", "created_at": int(time.time()), "previous_response_id": None}
    body = SimpleNamespace(stream=False, user=None, safety_identifier=None, model="m", background=True)
    asking = cast(Asking, SimpleNamespace(body=body, shown=shown, keep=True, items=[]))

    async def play() -> None:
        background = Background()
        services = services_of(registry, background)
        for number in range(MOST_OF_KEY):
            background.reserve(mine.id, str(number))
        with pytest.raises(ApiError) as error:
            await _begin(services, call_of(mine, ""), asking)
        assert error.value.status == 429
        assert get_response(registry.engine, mine.id, "resp_1", 0) is None
        background.release(mine.id, "0")

        async def put(*_: Any) -> None:
            raise OSError("full")

        broken = cast(Services, SimpleNamespace(**{**vars(services), "responses": SimpleNamespace(put=put)}))
        with pytest.raises(OSError, match="full"):
            await _begin(broken, call_of(mine, ""), asking)
        background.reserve(mine.id, "free again")

    asyncio.run(play())


@pytest.mark.parametrize("broken", [KeyError("bug"), ApiError(503, "temporarily_unavailable", "not now")])
@pytest.mark.parametrize("registry_too", [False, True])
def test_background_response_that_breaks_has_failed_whatever_broke_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, broken: Exception, registry_too: bool
) -> None:
    _, mine = create_key(registry.engine, "mine")
    shown = {"id": "resp_1", "model": "m", "created_at": int(time.time()), "previous_response_id": None,
        "status": "in_progress", "temperature": 1.0}  # fmt: skip
    body = SimpleNamespace(stream=False, user=None, safety_identifier=None, model="m", background=True)
    asking = cast(Asking, SimpleNamespace(body=body, shown=shown, keep=True, items=[], prepare=None))

    def full(*_: Any) -> None:
        raise OSError("full")

    async def run(*_: Any) -> None:
        if registry_too:
            monkeypatch.setattr(kept_responses, "put_response", full)
        raise broken

    async def play() -> Any:
        background = Background()
        services = services_of(registry, background)
        services.pipeline = cast(Any, SimpleNamespace(run=run))
        await _begin(services, call_of(mine, ""), asking)
        async with asyncio.timeout(10):
            while background.makes(mine.id, "resp_1"):
                await asyncio.sleep(0.01)
        return (await services.responses.get(mine.id, "resp_1")).body["response"]

    found = asyncio.run(play())
    assert found["status"] == "failed" and found["error"]["code"] == "server_error"
    assert "bug" not in found["error"]["message"]


def test_announcements_are_dropped_when_too_many_are_on_their_way(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        background = Background()
        assert all(background.tell(str(number), asyncio.sleep(60)) for number in range(MOST_TOLD))
        assert not background.tell("webhook batch_1", asyncio.sleep(60))
        await background.stop()
        await asyncio.sleep(0)
        assert background.tell("webhook batch_2", asyncio.sleep(0))
        await background.stop()

    asyncio.run(play())
    assert "webhook batch_1 is dropped" in caplog.text


def test_pauses_grow_and_are_bounded() -> None:
    assert [growing(times) for times in (0, 1, 2)] == [0.5, 1.0, 2.0] and growing(10**6) == 60.0
