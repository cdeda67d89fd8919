"""What goes to another endpoint when too many wait here, and what never does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inhouse.core.serving import Ask, Sampling
from inhouse.release.rules import Overflow, Rules
from inhouse.serve import overflow
from inhouse.serve.overflow import Overflows, holds_personal_data
from inhouse.serve.pool import Pool
from inhouse.serve.router import Way

RULE = Overflow(url="http://127.0.0.1:9", model="big", queue=4)
CLEAN = "Which desk handles crude oil?"


def chat(content: str, **more: Any) -> Ask:
    return Ask(Sampling(4), messages=[{"role": "user", "content": content, **more}])


def way(waiting: int, rule: Overflow | None = RULE, adapter: str | None = None) -> Way:
    deployment = SimpleNamespace(rules=Rules(overflow=rule))
    target = SimpleNamespace(admission=SimpleNamespace(waiting=waiting))
    return cast(Way, SimpleNamespace(serving=SimpleNamespace(deployment=deployment), target=target, adapter=adapter))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Overflows:
    """An overflow whose endpoint answers."""
    made = Overflows()
    pool = cast(Pool, SimpleNamespace(ready=True))
    monkeypatch.setattr(made, "_pool", lambda rule: pool)
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
        Ask(Sampling(4), prompt="Call 13812345678"),
        Ask(Sampling(4), prompt=[1, 2, 3]),
    ],
    ids=["email", "chinese-phone", "tool-call", "completion", "token-ids"],
)
def test_request_with_personal_data_stays(there: Overflows, ask: Ask) -> None:
    assert holds_personal_data(ask) and not goes(there, way(9), ask)


def test_what_can_wait_or_only_this_release_can_answer_stays(there: Overflows) -> None:
    assert not goes(there, way(9), chat(CLEAN), background=True)
    assert not goes(there, way(9, adapter="legal"), chat(CLEAN))


def test_nothing_leaves_where_personal_data_cannot_be_found(
    there: Overflows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overflow, "SEARCHER", "no_such_package")
    assert not goes(there, way(9), chat(CLEAN)) and not goes(there, way(9), chat(CLEAN))
    assert len([r for r in caplog.records if "overflow" in r.message]) == 1


def test_endpoint_that_is_not_there_gets_nothing() -> None:
    async def scene() -> None:
        overflows = Overflows()
        asked = way(9)
        rule = asked.serving.deployment.rules.overflow
        assert rule is not None and await overflows.beyond(rule, asked, chat(CLEAN), False) is None
        await overflows.close()

    asyncio.run(scene())
