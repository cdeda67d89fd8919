"""Which limits count for a row: those that its step really judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inhouse.data.traces import Trace, traces

ENGLISH = "The committee has decided that the price of the bread is to be cut in the next week. " * 5
CHINESE = "委员会已经决定，下周将降低面包的价格，这是一个很好的消息。今天的天气也很好。" * 4


def traced(folder: Any, step: dict[str, Any], text: str) -> tuple[Trace, str | None]:
    """The trace of one row among others, and why it was dropped."""
    others = [{"text": f"{ENGLISH} {n}"} for n in range(30)]
    folder.jsonl("a.jsonl", [{"text": text}, *others])
    ran = folder.run({"sources": "a.jsonl", "steps": [step], "shape": "text", "split": {"test": 0.3}})
    dropped = {item["id"]: item["reason"] for item in ran.dropped()}
    ids = _ids(ran.out, step["use"])
    (row,) = (id_ for id_ in ids if ids[id_] == 0)
    (trace,) = traces(ran.out, ran.facts, row)
    return trace, dropped.get(row)


def _ids(out: Path, use: str) -> dict[str, int]:
    import polars as pl

    kept = [pl.read_parquet(path).select("id", "offset") for path in out.glob("t*-*.parquet")]
    gone = pl.read_parquet(out / "dropped.parquet").select("id", "offset")
    return dict(pl.concat([*kept, gone]).iter_rows())


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_limits_of_another_script_are_not_shown(folder: Any, text: str) -> None:
    trace, reason = traced(folder, {"use": "symbols"}, text)
    assert reason is None and trace.broken == ()
    words = {"letter_words", "mean_word_chars"}
    signs = {"letters", "marks"}
    assert (signs if text == CHINESE else words) <= set(trace.limits)
    assert not (words if text == CHINESE else signs) & set(trace.limits)
    assert {"hash_ratio", "stop_words"} <= set(trace.limits) and "digits" not in trace.limits
    assert trace.limits["mean_word_chars"] == "≥ 3.0, ≤ 10.0" if text == ENGLISH else True


def test_short_texts_are_not_judged_by_function_words(folder: Any) -> None:
    trace, reason = traced(folder, {"use": "symbols"}, "Bread prices dropped sharply yesterday")
    assert reason is None and trace.figures["stop_words"] < 2
    assert "stop_words" not in trace.limits


def test_only_the_limits_that_a_dropped_row_breaks_are_broken(folder: Any) -> None:
    trace, reason = traced(folder, {"use": "symbols"}, "### ## # # a b c " * 30)
    assert reason == "many_hashes"
    assert "hash_ratio" in trace.broken and "bullet_lines" not in trace.broken
    assert set(trace.broken) <= set(trace.limits)


def test_only_settings_that_differ_from_the_defaults_are_shown(folder: Any) -> None:
    trace, _ = traced(folder, {"use": "length", "max_words": 500}, "Bread prices dropped")
    assert trace.limits == {"chars": "≥ 1", "words": "≤ 500"} and trace.settings == {}
    trace, _ = traced(folder, {"use": "pii", "types": ["email"]}, "write to zhang@qq.com")
    assert trace.settings == {"types": ["email"]} and trace.notes


def test_step_that_this_version_does_not_know_shows_figures_without_limits(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"text": f"{ENGLISH} {n}"} for n in range(30)])
    step = {"use": "length", "min_chars": 5}
    ran = folder.run({"sources": "a.jsonl", "steps": [step], "shape": "text", "split": {"test": 0.3}})
    row = next(iter(_ids(ran.out, "length")))
    for changed in ({"use": "length", "min_hours": 3}, {"use": "lengthy"}):
        old = {**ran.facts, "steps": [changed]}
        if changed["use"] == "lengthy":
            (ran.out / "figures" / "01-length.parquet").rename(ran.out / "figures" / "01-lengthy.parquet")
        (trace,) = traces(ran.out, old, row)
        assert trace.figures["words"] and trace.limits == {} and trace.broken == ()
