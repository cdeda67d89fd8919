"""What is told of requests: metrics, stages by id, the request log, quotas, OpenTelemetry."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from inhouse.core.errors import UserError
from inhouse.core.serving import Ask, Delta, Sampling, Usage
from inhouse.core.store import Store
from inhouse.guard import ready
from inhouse.release.keys import Key, Limits, create_key
from inhouse.release.registry import Registry, open_registry
from inhouse.release.request_records import read_records
from inhouse.release.settings import LogParams
from inhouse.serve.errors import ApiError
from inhouse.serve.measured import Measured
from inhouse.serve.metrics import Gauges, Metrics
from inhouse.serve.quotas import DailyUse, Quotas, _refusal
from inhouse.serve.request_log import RequestLog, redacted, remove_old
from inhouse.serve.watchers import RECENT, Watchers


def answered(request_id: str = "r1", tenant: str = "1") -> Measured:
    """A request of 5 prompt and 3 answer tokens, 2 s in the queue, 1 s until the first token, 0.5 s after it."""
    seen = Measured(request_id, "ann", tenant, "desk:v1", "desk", "llamacpp", "/v1/chat/completions", "miss", 200)
    seen.add([Delta("a")])
    seen.add([Delta("b", finish="stop"), Delta(tokens=0, usage=Usage(5, 3, cached=2))])
    seen.admitted, seen.first, seen.last = seen.began + 2, seen.began + 3, seen.began + 3.5
    seen.gaps, seen.ended, seen.asked_tokens = [0.5], seen.began + 3.6, 64
    return seen


def no_gauges() -> Metrics:
    return Metrics(Gauges(list))


def samples(text: bytes) -> dict[str, float]:
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_hold_every_figure_of_a_request_under_its_labels() -> None:
    metrics = no_gauges()
    metrics.observe(answered())
    found = samples(metrics.text())
    who = {"engine": "llamacpp", "model_name": "desk:v1"}

    def of(name: str, **labels: str) -> float:
        return found["inhouse_" + name + json.dumps(who | labels, sort_keys=True)]

    assert of("requests_total", key="ann", status="200") == 1
    assert of("prompt_tokens_total", key="ann") == 5 and of("generation_tokens_total", key="ann") == 3
    assert (of("prefix_cache_queries_total"), of("prefix_cache_hits_total")) == (5, 2)
    assert of("request_success_total", finished_reason="stop") == 1
    assert of("time_to_first_token_seconds_sum") == pytest.approx(3)
    assert of("request_queue_time_seconds_sum") == pytest.approx(2)
    assert of("request_prefill_time_seconds_sum") == pytest.approx(1)
    assert of("request_decode_time_seconds_sum") == pytest.approx(0.5)
    assert of("inter_token_latency_seconds_bucket", le="0.4") == 0
    assert of("inter_token_latency_seconds_bucket", le="0.5") == 1
    assert of("e2e_request_latency_seconds_bucket", le="+Inf") == 1
    assert of("request_params_max_tokens_sum") == 64
    assert found['inhouse_answer_cache_total{"model_name": "desk:v1", "result": "miss"}'] == 1


def test_metrics_come_under_vllms_names_too_where_it_is_asked_for() -> None:
    metrics = Metrics(Gauges(lambda: [("num_requests_running", "Running.", {("desk:v1", "-"): 2.0})]), vllm_names=True)
    metrics.observe(answered())
    text = metrics.text().decode()
    assert 'vllm:num_requests_running{engine="-",model_name="desk:v1"} 2.0' in text
    assert "vllm:time_to_first_token_seconds_bucket" in text and "vllm:request_success_total" in text
    assert "vllm:" not in no_gauges().text().decode()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_metrics_please_promtool() -> None:
    metrics = Metrics(Gauges(lambda: [("num_requests_running", "Running.", {("m", "e"): 1.0})]), price_per_hour=2.0)
    metrics.enter()
    metrics.leave()
    metrics.observe(answered())
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics.text(), capture_output=True, check=False)
    assert (checked.returncode, checked.stderr + checked.stdout) == (0, b"")


def test_requests_that_get_no_answer_count_by_status_and_not_as_tokens() -> None:
    metrics = no_gauges()
    seen = Measured(model="desk:v1", status=499, key="ann")
    metrics.observe(seen)
    found = samples(metrics.text())
    assert found['inhouse_request_cancelled_total{"engine": "-", "model_name": "desk:v1"}'] == 1
    assert not any("tokens" in name for name in found)


def test_cost_is_the_busy_time_at_the_stated_price(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = Metrics(Gauges(list), price_per_hour=3.6)
    assert metrics.cost_per_1k() is None
    metrics.enter()
    metrics.enter()  # two at once: the machine is busy once
    now[0] += 10
    metrics.leave()
    metrics.leave()
    now[0] += 50  # idle time is not the requests'
    for _ in range(4):
        metrics.observe(answered())
    assert metrics.busy_s() == 10
    assert metrics.cost_per_1k() == pytest.approx(3.6 / 3600 * 10 / 4 * 1000)


def test_stages_of_a_recent_request_are_told_to_its_key_only() -> None:
    watchers = Watchers(no_gauges(), None, None)
    watchers.finished(answered("r1", "1"))
    found = watchers.recent("r1", "1")
    assert found is not None and found.stages()["prefill_s"] == 1.0
    assert watchers.recent("r1", "2") is None and watchers.recent("r1", None) is found
    watchers.finished(answered("r1", "2"))  # another key's request with the same id
    for number in range(RECENT):
        watchers.finished(answered(f"x{number}", "2"))
    assert watchers.recent("r1", "1") is found and watchers.recent("r1", "2") is None


def test_request_whose_client_left_counts_what_it_was_sent() -> None:
    seen = Measured(key="ann", model="desk:v1", engine="llamacpp", status=499)
    seen.turn()
    seen.prompt_guess = 30
    for _ in range(5):
        seen.add([Delta("word")])
    watchers = Watchers(no_gauges(), None, None)
    watchers.finished(seen)
    assert (seen.usage.prompt, seen.usage.answer) == (30, 5)
    assert "inhouse_generation_tokens_total" in watchers.metrics.text().decode()


def test_metrics_tell_a_key_nothing_of_others() -> None:
    metrics = no_gauges()
    for name in ("ann", "bob"):
        seen = answered()
        seen.key = name
        metrics.observe(seen)
    told = metrics.text(("bob", "1"))
    assert b'key="bob"' in told and b'key="ann"' not in told
    assert b'key="ann"' in metrics.text()


def test_metrics_of_a_revoked_key_are_not_those_of_the_next_with_its_name() -> None:
    metrics = no_gauges()
    metrics.observe(answered(tenant="1"))
    assert b'key="ann"' in metrics.text(("ann", "1"))
    assert b'key="ann"' not in metrics.text(("ann", "2"))  # it has asked for nothing yet
    metrics.observe(answered(tenant="2"))
    found = samples(metrics.text(("ann", "2")))
    assert next(value for name, value in found.items() if name.startswith("inhouse_requests_total")) == 1
    assert b'key="ann"' not in metrics.text(("ann", "1"))


def test_counts_of_arms_are_kept_while_the_registry_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from inhouse.core.errors import UserError
    from inhouse.release.arms import Arm, Release
    from inhouse.release.results import Counters
    from inhouse.serve import trials

    saved: list[int] = []
    busy = [True]

    def add(engine: object, deployment: str, found: object) -> None:
        if busy[0]:
            raise UserError("release.busy", path="x", seconds=5)
        saved.extend(counters.requests for _, counters in found)  # type: ignore[attr-defined]

    monkeypatch.setattr(trials, "add_results", add)
    kept = trials.Trials(SimpleNamespace(engine=None))  # type: ignore[arg-type]
    arm = Arm(Release(1, "r", 1, "a", True, ""), 1000, "live", "")
    kept.count("desk", arm, answered())
    with pytest.raises(UserError):
        kept.save()
    kept.count("desk", arm, answered())
    busy[0] = False
    kept.save()
    kept.save()
    assert saved == [2] and Counters().requests == 0


def test_log_holds_a_line_a_request_and_nothing_that_was_said(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "logs", LogParams())
    watchers = Watchers(no_gauges(), log, None)
    for number in range(3):
        watchers.finished(answered(f"r{number}"))
    log.close()
    records = list(read_records(tmp_path))
    assert [r["request_id"] for r in records] == ["r2", "r1", "r0"]
    assert records[0]["key"] == "ann" and records[0]["answer_tokens"] == 3 and records[0]["queue_s"] == 2.0
    assert "content" not in records[0]


def test_log_with_content_masks_personal_data(tmp_path: Path) -> None:
    assert redacted("nothing here") == "nothing here"  # compiled on first use, for longer than closing waits
    log = RequestLog(tmp_path / "logs", LogParams(content="redacted"))
    watchers = Watchers(no_gauges(), log, None)
    seen = answered()
    seen.ask = Ask(Sampling(8), messages=[{"role": "user", "content": "Write to ann.lee@example.org"}])
    seen.said = "Call 13812345678 now"
    watchers.finished(seen)
    log.close()
    assert watchers.keeps_content and seen.ask is None
    content = next(read_records(tmp_path))["content"]
    assert content == {"prompt": "user: Write to [email]", "answer": "Call [phone] now"}


def test_log_samples_successes_and_keeps_every_failure(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, LogParams(sample=0))
    assert log.wants(failed=True) and not log.wants(failed=False)
    log.close()
    off = RequestLog(tmp_path, LogParams(enabled=False))
    assert not off.wants(failed=True)
    off.close()


def test_log_begins_another_file_when_one_is_full_and_removes_the_oldest(tmp_path: Path) -> None:
    params = LogParams(file_mb=1e-6)
    for _ in range(3):
        log = RequestLog(tmp_path, params)
        log.add(answered().facts())
        log.close()
    files = sorted(tmp_path.iterdir())
    assert [f.name[-10:] for f in files] == ["0001.jsonl", "0002.jsonl", "0003.jsonl"]
    old = time.time() - 40 * 86_400
    os.utime(files[0], (old, old))
    remove_old(tmp_path, LogParams(keep_days=30))
    assert sorted(tmp_path.iterdir()) == files[1:]
    remove_old(tmp_path, LogParams(keep_mb=1e-6))
    assert sorted(tmp_path.iterdir()) == files[2:]


def test_log_goes_on_behind_its_newest_file_when_the_first_ones_of_the_day_are_removed(tmp_path: Path) -> None:
    params = LogParams(file_mb=1e-6)
    for number in range(5):
        log = RequestLog(tmp_path, params)
        log.add(answered().facts() | {"request_id": str(number)})
        log.close()
        if number == 2:
            for file in sorted(tmp_path.iterdir())[:2]:
                file.unlink()
    files = sorted(tmp_path.iterdir())
    assert [f.name[-10:-6] for f in files] == ["0003", "0004", "0005"]
    assert [json.loads(f.read_text())["request_id"] for f in files] == ["2", "3", "4"]
    newest = files[-1].rename(files[-1].with_name(files[-1].name.replace("0005", "10000")))
    remove_old(tmp_path, LogParams(keep_mb=1e-6))
    assert list(tmp_path.iterdir()) == [newest]  # though by its name it would come first


def test_log_survives_a_cut_line_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "requests-20260101-0001.jsonl").write_text('{"request_id": "a"}\n{"reque')
    assert [r["request_id"] for r in read_records(tmp_path)] == ["a"]
    (tmp_path / "file").write_text("")
    metrics = no_gauges()
    log = RequestLog(tmp_path / "file" / "logs", LogParams(), lambda count: metrics.log_dropped.add((), count))
    assert "inhouse_request_log_dropped_total 0.0" in metrics.text().decode()
    log.add({"request_id": "b"})
    log.close()
    assert "inhouse_request_log_dropped_total 1.0" in metrics.text().decode()


def test_log_leaves_content_out_where_it_cannot_be_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("inhouse.guard.pii.find", broken)
    log = RequestLog(tmp_path / "logs", LogParams(content="redacted"))
    for number in range(2):
        log.add({"request_id": f"r{number}", "content": {"prompt": "Write to ann.lee@example.org", "answer": ""}})
    log.close()
    records = list(read_records(tmp_path))
    assert [(r["request_id"], r["content"]) for r in records] == [("r1", None), ("r0", None)]
    assert "cannot be masked" in caplog.text and "ann.lee" not in caplog.text


@pytest.mark.parametrize("kept", [True, False])
def test_finder_of_personal_data_is_compiled_apart_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(ready, "place_beside", lambda _: tmp_path)
    monkeypatch.setattr(ready.subprocess, "run", lambda argv, **_: started.append(argv))
    if kept:
        (tmp_path / "kernels_1").mkdir()
        (tmp_path / "kernels_1" / "scan.scan-359.py311.nbi").touch()
    ready.compile_apart()
    assert len(started) == (0 if kept else 1)
    assert not started or "os.nice(19)" in started[0][-1]


def test_requests_of_the_log_are_found_by_what_went_wrong(tmp_path: Path) -> None:
    from inhouse.api.requests import OneRequest, RequestsRequest, list_requests, show_request
    from inhouse.core.errors import UserError

    log = RequestLog(tmp_path / "logs", LogParams())
    watchers = Watchers(no_gauges(), log, None)
    slow, failed = answered("slow"), answered("failed-request")
    failed.status, failed.error, failed.began = 503, "overloaded", failed.began + 3
    for seen in (answered("first"), slow, failed):
        watchers.finished(seen)
    log.close()

    def ids(**asked: object) -> list[str]:
        found = list_requests(RequestsRequest(workspace=tmp_path, **asked))  # type: ignore[arg-type]
        return [line.request_id for line in found.requests]

    assert ids() == ["failed-request", "slow", "first"] and ids(last=1) == ["failed-request"]
    assert ids(failed=True) == ["failed-request"] and ids(deployment="other") == [] and len(ids(by="ann")) == 3
    assert ids(slower_s=1e6) == []
    assert show_request(OneRequest(workspace=tmp_path, id="failed-request")).error == "overloaded"
    with pytest.raises(UserError) as unknown:
        show_request(OneRequest(workspace=tmp_path, id="nobody's"))
    assert unknown.value.code == "serve.request_not_logged"


def key(**limits: int) -> Key:
    return Key("ann", "ih-1", "", None, None, 7, Limits(**limits))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(Store(tmp_path / "workspace"))


def test_requests_beyond_the_minutes_quota_get_429_with_the_time_to_wait(registry: Registry) -> None:
    async def scene() -> None:
        quotas = Quotas(registry.engine)
        for _ in range(2):
            await quotas.check(key(requests_per_minute=2))
            await quotas.enter(key(requests_per_minute=2))
        with pytest.raises(ApiError):
            await quotas.check(key(requests_per_minute=2))
        with pytest.raises(ApiError) as refused:
            await quotas.enter(key(requests_per_minute=2))
        assert refused.value.status == 429 and "requests_per_minute" in refused.value.message
        assert 1 <= int(dict(refused.value.headers)[b"retry-after"]) <= 60
        await quotas.enter(Key("bob", "ih-2", "", None, None, 8, Limits(requests_per_minute=2)))

    asyncio.run(scene())


def test_time_to_wait_is_never_told_too_short() -> None:
    assert [_refusal("tokens_per_minute", 9, wait).retry_after_s for wait in (0.2, 9.2, 40.0)] == [1, 10, 40]


def test_request_that_another_limit_refuses_is_none_of_the_minutes_requests(registry: Registry) -> None:
    async def scene() -> None:
        quotas, used_up = Quotas(registry.engine), key(requests_per_minute=2, tokens_per_day=10)
        await quotas.enter(used_up)
        await quotas.spend(used_up, 10)
        for _ in range(3):
            with pytest.raises(ApiError) as refused:
                await quotas.enter(used_up)
            assert "tokens_per_day" in refused.value.message
        await quotas.enter(key(requests_per_minute=2))  # the operator has raised the day's limit

    asyncio.run(scene())


@pytest.mark.parametrize("name", ["tokens_per_minute", "tokens_per_day"])
def test_key_that_has_used_up_its_tokens_is_refused_after_the_request_that_did(name: str, registry: Registry) -> None:
    async def scene() -> None:
        quotas = Quotas(registry.engine)
        mine = key(**{name: 100})
        await quotas.enter(mine)
        await quotas.spend(mine, 60)
        await quotas.enter(mine)
        await quotas.spend(mine, 60)
        with pytest.raises(ApiError) as refused:
            await quotas.enter(mine)
        assert name in refused.value.message

    asyncio.run(scene())


def test_days_tokens_survive_a_restart(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mine = create_key(registry.engine, "ann", limits=Limits(tokens_per_day=100))
    first = DailyUse(registry.engine)
    first.spend(mine, 70)
    first.save()
    first.spend(mine, 10)
    assert first.tokens(mine) == 80
    second = DailyUse(registry.engine)  # another gateway, or this one started again
    assert second.tokens(mine) == 70
    first.save()
    first.save()
    assert DailyUse(registry.engine).tokens(mine) == 80
    monkeypatch.setattr("inhouse.serve.quotas._day", lambda: "2999-01-01")
    assert first.tokens(mine) == 0


def test_arms_counts_are_saved_and_a_bad_canary_is_taken_back(registry: Registry) -> None:
    from inhouse.release.arms import Arm, Deployment, Release
    from inhouse.release.rules import CanaryRules, Rules
    from inhouse.serve.trials import Trials

    old, new = (Release(n, "r", n, "a", True, "") for n in (1, 2))
    live, canary = Arm(old, 900, "live", ""), Arm(new, 100, "canary", "")
    rules = Rules(canary=CanaryRules(min_requests=10, window_s=1))
    found = Deployment("desk", old, None, "", 1, (live, canary), rules)
    calls: list[str] = []

    class Spy:
        engine = registry.engine

        def roll_back_canary(self, name: str, arm: Arm, reason: str, actor: str) -> None:
            calls.append(f"{name} {arm.release.label} {reason}")

        def advance_canary(self, name: str, arm: Arm, weight: int, actor: str) -> None:
            calls.append(f"advance {weight}")

    trials = Trials(Spy())  # type: ignore[arg-type]
    trials.look(found)  # the window begins
    for status in (200, 503, 503, 400, 499):
        seen = answered()
        seen.status = status
        trials.count("desk", canary, seen)
        trials.count("desk", live, answered())
    trials.look(found)
    assert len(calls) == 1 and calls[0].startswith("desk r:v2 errors")
    trials.look(Deployment("desk", old, None, "", 2, (live,), rules))
    trials.look(found)
    trials._windows["desk"].began -= 2
    for _ in range(10):
        aside = answered()
        aside.aside = True  # a count of tokens
        trials.count("desk", canary, aside)
    trials.look(found)
    assert len(calls) == 1
    for _ in range(10):
        trials.count("desk", canary, answered())
    trials._windows["desk"].began -= 2
    trials.look(found)
    assert calls[1] == "advance 250"


def test_canary_whose_clients_give_up_is_slow_and_taken_back(registry: Registry) -> None:
    from inhouse.release.arms import Arm, Deployment, Release
    from inhouse.release.rules import CanaryRules, Rules
    from inhouse.serve.trials import Trials

    old, new = (Release(n, "r", n, "a", True, "") for n in (1, 2))
    live, canary = Arm(old, 900, "live", ""), Arm(new, 100, "canary", "")
    found = Deployment("desk", old, None, "", 1, (live, canary), Rules(canary=CanaryRules(min_requests=5)))
    calls: list[str] = []
    spy = SimpleNamespace(
        engine=registry.engine, roll_back_canary=lambda name, arm, reason, actor: calls.append(reason)
    )
    trials = Trials(spy)  # type: ignore[arg-type]
    trials.look(found)
    for _ in range(6):
        left = answered()
        left.status, left.ended = 499, left.began + 60
        trials.count("desk", canary, left)
        trials.count("desk", live, answered())
    trials.look(found)
    assert len(calls) == 1 and calls[0].startswith("latency")


def test_copy_for_a_shadow_is_nobodys_request() -> None:
    from inhouse.serve.pipeline import Caller, NoReply, Pipeline

    told: list[Measured] = []

    async def within(ask: Any, reply: Any, going: Any, flight: Any) -> None:
        assert isinstance(reply, NoReply)

    release = SimpleNamespace(id=2, label="desk:v2")
    arm, target = SimpleNamespace(release=release), SimpleNamespace(release=release)
    deployment = SimpleNamespace(arms=[arm], rules=SimpleNamespace(guard=()))
    way = SimpleNamespace(deployment="desk", serving=SimpleNamespace(deployment=deployment))
    caller = Caller(SimpleNamespace(id=7, name="ann"), "r1")  # type: ignore[arg-type]
    pipeline = SimpleNamespace(
        _within=within,
        _tell=lambda name, arm, seen: told.append(seen),
        deployments=SimpleNamespace(leave=lambda target: None),
    )
    asyncio.run(Pipeline._shadow(pipeline, way, target, None, caller))  # type: ignore[arg-type]
    (seen,) = told
    assert (seen.key, seen.tenant, seen.route, seen.status) == ("-", "", "shadow", 200)
    watchers = Watchers(no_gauges(), None, None)
    watchers.finished(seen)
    assert watchers.recent("r1-shadow", "7") is None
    assert 'key="ann"' not in watchers.metrics.text().decode()


def test_tokens_that_are_answered_with_vectors_are_counted() -> None:
    seen = Measured(key="ann", model="desk:v1", engine="llamacpp", status=200, route="/v1/embeddings")
    seen.turn()
    seen.usages = [Usage(42, 0)]
    metrics = no_gauges()
    metrics.observe(seen)
    found = samples(metrics.text())
    assert [value for name, value in found.items() if name.startswith("inhouse_prompt_tokens_total")] == [42]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("store.no_space", path="x", free_mb=0), 507),
        (OperationalError("insert", {}, Exception("database or disk is full")), 507),
        (OperationalError("insert", {}, Exception("database is locked")), 503),
        (UserError("store.read_only", path="x"), 503),
    ],
)
def test_full_disk_is_told_from_what_may_pass(error: Any, status: int) -> None:
    from inhouse.serve.gateway import unable

    assert unable(error).status == status


def test_answers_that_no_guard_looked_at_do_not_thin_out_the_alarms(registry: Registry) -> None:
    from inhouse.release.arms import Arm, Deployment, Release
    from inhouse.release.rules import CanaryRules, Rules
    from inhouse.serve.trials import Trials

    old, new = (Release(n, "r", n, "a", True, "") for n in (1, 2))
    live, canary = Arm(old, 900, "live", ""), Arm(new, 100, "canary", "")
    rules = Rules(canary=CanaryRules(min_requests=10, max_alarm_rate=0.1))
    calls: list[str] = []
    spy = SimpleNamespace(
        engine=registry.engine, roll_back_canary=lambda name, arm, reason, actor: calls.append(reason)
    )
    trials = Trials(spy)  # type: ignore[arg-type]
    found = Deployment("desk", old, None, "", 1, (live, canary), rules)
    trials.look(found)
    for arm, alarms, count in ((canary, ("prompt-leak",), 4), (canary, (), 16), (canary, None, 80), (live, (), 20)):
        for _ in range(count):
            seen = answered()
            seen.alarms = alarms
            trials.count("desk", arm, seen)
    trials.look(found)
    assert calls == ["alarms: 4 alarms in 20 answers looked at, live 0 in 20"]


def test_spans_and_metrics_carry_the_conventions_names_and_no_content() -> None:
    trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from inhouse.serve.tracing import Tracing

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = trace_sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = Tracing(provider.get_tracer("t"), MeterProvider([reader]).get_meter("t"))
    failed = answered()
    failed.status, failed.error, failed.finish = 503, "engine_unavailable", None
    traced, torn = answered(), answered()
    traced.parent, torn.parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"00-no trace\xff"
    for seen in (answered(), failed, traced, torn):
        tracing(seen)
    good, bad, within, alone = spans.get_finished_spans()
    assert good.parent is None and alone.parent is None
    assert (within.parent.trace_id, within.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert within.context.trace_id == within.parent.trace_id
    assert good.name == "chat desk" and good.attributes["gen_ai.response.model"] == "desk:v1"
    assert good.attributes["gen_ai.usage.input_tokens"] == 5 and good.attributes["gen_ai.usage.output_tokens"] == 3
    assert good.attributes["gen_ai.response.finish_reasons"] == ("stop",) and good.attributes["inhouse.queue_s"] == 2.0
    assert good.end_time - good.start_time == pytest.approx(3.6e9, rel=0.01)
    assert bad.attributes["error.type"] == "engine_unavailable" and not bad.status.is_ok
    data = reader.get_metrics_data()
    names = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert names == {
        "gen_ai.server.request.duration",
        "gen_ai.client.operation.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    }
