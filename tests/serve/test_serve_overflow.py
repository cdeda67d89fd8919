"""What goes to another endpoint when too many wait here, and what never does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from serve_endpoint import Endpoint, workspace_with_two_releases

from inhouse.core.serving import Ask, Constraint, Sampling
from inhouse.release.rules import Overflow, Rules
from inhouse.release.settings import ServeParams
from inhouse.serve import overflow
from inhouse.serve.overflow import Overflows, holds_personal_data
from inhouse.serve.pool import Pool
from inhouse.serve.router import Way

RULE = Overflow(url="http://127.0.0.1:9", model="big", queue=4)
CLEAN = "Which desk handles crude oil?"


NESTED: dict[str, Any] = {}
for _ in range(3000):
    NESTED = {"items": NESTED}
HELLO = [{"role": "user", "content": "Hello"}]


def chat(content: str, **more: Any) -> Ask:
    return Ask(Sampling(4), messages=[{"role": "user", "content": content, **more}])


def way(waiting: int, rule: Overflow | None = RULE, adapter: str | None = None) -> Way:
    deployment = SimpleNamespace(rules=Rules(overflow=rule))
    target = SimpleNamespace(admission=SimpleNamespace(waiting=waiting))
    return cast(Way, SimpleNamespace(serving=SimpleNamespace(deployment=deployment), target=target, adapter=adapter))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Overflows:
    """An overflow whose endpoint answers."""
    made = Overflows(300.0)
    pool = cast(Pool, SimpleNamespace(could_answer=lambda ask: True))
    monkeypatch.setattr(made, "pool", lambda rule: pool)
    return made


def goes(overflows: Overflows, asked: Way, ask: Ask, background: bool = False) -> bool:
    rule = asked.serving.deployment.rules.overflow
    return rule is not None and asyncio.run(overflows.beyond(rule, asked, ask, background)) is not None


def test_request_goes_elsewhere_only_when_so_many_wait(there: Overflows) -> None:
    assert [goes(there, way(waiting), chat(CLEAN)) for waiting in (0, 3, 4, 9)] == [False, False, True, True]
    assert not goes(there, way(9, rule=None), chat(CLEAN))


@pytest.mark.parametrize(
    "ask",
    [
        chat("Mail ann.lee@example.org about it"),
        chat("我的手机号是13812345678"),
        chat("", tool_calls=[{"function": {"arguments": '{"to": "ann.lee@example.org"}'}}]),
        chat("", tool_calls=[{"function": {"arguments": '{"note": "to\\n13812345678"}'}}]),
        chat("Hello", name="ann.lee@example.org"),
        Ask(Sampling(4), messages=HELLO, tools=[{"function": {"description": "mails ann.lee@example.org"}}]),
        Ask(Sampling(4), messages=HELLO, constraint=Constraint("json_schema", '{"title": "ann.lee@example.org"}')),
        Ask(Sampling(4, stop=("ann.lee@example.org",)), messages=HELLO),
        Ask(Sampling(4), messages=HELLO, tools=[NESTED]),
        Ask(Sampling(4), prompt="Call 13812345678"),
        Ask(Sampling(4), prompt=[1, 2, 3]),
    ],
    ids=[
        *("email", "chinese-phone", "tool-call", "line-in-a-call", "name", "tool", "schema", "stop", "nested"),
        *("completion", "token-ids"),
    ],
)
def test_request_with_personal_data_stays(there: Overflows, ask: Ask) -> None:
    assert holds_personal_data(ask) and not goes(there, way(9), ask)


def test_what_can_wait_or_only_this_release_can_answer_stays(there: Overflows) -> None:
    assert not goes(there, way(9), chat(CLEAN), background=True)
    assert not goes(there, way(9, adapter="legal"), chat(CLEAN))
    biased = Ask(Sampling(4, logit_bias={5: 1.0}), messages=HELLO)  # token 5 of another model is another one
    assert not goes(there, way(9), biased) and goes(there, way(9), Ask(Sampling(4), messages=HELLO))


def test_nothing_leaves_where_personal_data_cannot_be_found(
    there: Overflows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overflow, "SEARCHER", "no_such_package")
    assert not goes(there, way(9), chat(CLEAN)) and not goes(there, way(9), chat(CLEAN))
    assert len([r for r in caplog.records if "overflow" in r.message]) == 1


def test_endpoint_is_looked_for_before_the_first_request_has_to_go_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was by the first one that had to, so that the whole first burst after a start waited here."""
    looked: list[str] = []
    monkeypatch.setattr(overflow, "remote", lambda number, asked, silence_s: looked.append(asked.url))
    made = Overflows(300.0)
    assert not goes(made, way(0), chat(CLEAN)) and len(looked) == 1
    assert not goes(made, way(0), chat(CLEAN)) and len(looked) == 1


def test_endpoint_that_is_not_there_gets_nothing() -> None:
    async def scene() -> None:
        overflows = Overflows(300.0)
        asked = way(9)
        rule = asked.serving.deployment.rules.overflow
        assert rule is not None and await overflows.beyond(rule, asked, chat(CLEAN), False) is None
        await overflows.close()

    asyncio.run(scene())


class Failing:
    """An endpoint that lists its model, and answers nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def start(self, status: int) -> str:
        """Its address; every question gets `status`."""
        failing = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200 if self.path.endswith("/models") else 404)

            def do_POST(self) -> None:
                failing.asked += 1
                self.rfile.read(int(self.headers["content-length"]))
                self.answer(status)

            def answer(self, status: int) -> None:
                body = json.dumps(
                    {"object": "list", "data": [{"id": "big", "max_model_len": 4096}], "error": {"message": "no"}}
                ).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def failing() -> Iterator[Failing]:
    made = Failing()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize("status", [400, 429, 500])
def test_request_that_the_endpoint_does_not_answer_waits_here_instead(
    status: int, tmp_path: Path, smollm2_gguf: Path, launch_on: Callable[..., Endpoint], failing: Failing
) -> None:
    registry = workspace_with_two_releases(tmp_path, smollm2_gguf)
    rule = Overflow(url=failing.start(status), model="big", queue=1)
    registry.set_rules("desk", Rules(overflow=rule), "test")
    served = launch_on(registry, ServeParams(port=0, parallel=1, queue=16))
    asked = {"model": "desk", "messages": HELLO, "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}
    headers = {"authorization": f"Bearer {served.key}", "cache-control": "no-cache"}

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(headers=headers, timeout=60) as client:
            url = f"{served.url}/v1/chat/completions"
            free = {"model": "desk", "messages": HELLO, "max_tokens": 8}
            return await asyncio.gather(*(client.post(url, json=asked if n % 2 else free) for n in range(10)))

    try:
        for turn in range(20):
            if turn > 2 and failing.asked > 3:  # it was found, and then its circuit is open
                break
            replies = asyncio.run(burst())
            assert [reply.status_code for reply in replies] == [200] * 10, [reply.text for reply in replies]
            assert not any("x-inhouse-overflow" in reply.headers for reply in replies)
    finally:
        served.stop()
    assert failing.asked > 3
