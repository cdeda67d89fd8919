"""Progress on a terminal and in a log: passes by name, rates of this run's work, and no line wider than 80 columns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from inhouse.cli.watch import Bars, Lines
from inhouse.core.messages import use_language
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data.settings import DataParams
from inhouse.data.stage import located_of, perform

START = 1_700_000_000.0
Event = dict[str, Any]


@pytest.fixture(autouse=True)
def english() -> None:
    use_language("en")


def event(at: float, kind: str, stage: str = "dataset", **facts: Any) -> Event:
    return {"t": START + at, "event": kind, "stage": stage, **facts}


def progress(seconds: float, done: float, total: float | None, step: str = "read", unit: str = "MB") -> Event:
    return event(seconds, "stage.progress", done=done, total=total, unit=unit, step=step)


class Screen:
    """A terminal of a given width with a clock that stands still."""

    def __init__(self, width: int = 80) -> None:
        self.console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, height=20)
        self.bars = Bars(self.console, clock=lambda: START + self.seconds)
        self.seconds = 0.0

    def see(self, *events: Event) -> list[str]:
        for item in events:
            self.seconds = item["t"] - START
            self.bars(item)
        with self.console.capture() as seen:
            self.console.print(self.bars)
        return seen.get().splitlines()


BEGUN = event(0, "stage.started", index=0, count=1, recipe="abc")


def test_bar_at_80_columns_shows_pass_amount_rate_and_time_left_whole() -> None:
    (line,) = Screen().see(BEGUN, progress(2, 0, 5000, "steps 1/2"), progress(12, 400, 5000, "steps 1/2"))
    assert cell_len(line) <= 80
    assert "dataset · steps 1/2 · 400/5,000 MB · 40.0 MB/s · 1:55 left" in line
    assert line.endswith("0:00:12")


def test_a_new_pass_has_its_own_rate_and_the_stage_goes_on_counting() -> None:
    screen = Screen()
    screen.see(BEGUN, progress(0, 0, 10), progress(10, 10, 10))
    (line,) = screen.see(progress(10, 0, 60, "steps 1/1"), progress(13, 6, 60, "steps 1/1"))
    assert "2.0 MB/s · 27 s left" in line and line.endswith("0:00:13") and "✓" not in line


def test_rate_after_a_resumed_build_counts_only_what_was_done_now() -> None:
    (line,) = Screen().see(BEGUN, progress(1, 9000, 10000), progress(11, 9050, 10000))
    assert "5.0 MB/s · 3:10 left" in line
    (line,) = Screen().see(BEGUN, progress(1, 10000, 10000))
    assert "MB/s" not in line and "left" not in line


def test_finished_stage_says_how_long_all_of_it_took() -> None:
    end = event(15, "stage.finished", id="0123456789", seconds=15.2, bytes=2_500_000)
    (line,) = Screen().see(BEGUN, progress(1, 0, 10), progress(14.5, 10, 10, "write"), end)
    assert line.split() == ["✓", "dataset", "·", "2.5", "MB", "·", "01234567", "0:00:15"]


def test_cached_stage_and_notes_are_told() -> None:
    screen = Screen()
    (line,) = screen.see(event(0, "stage.cached", id="0123456789"))
    assert "already made (01234567)" in line and "✓" in line
    screen.see(event(1, "note", code="data.licence_unknown", facts={"source": "[b]news"}))
    file = screen.console.file
    assert isinstance(file, io.StringIO) and "[b]news" in file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 80, 120])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_lines_are_never_wider_than_the_terminal(width: int, language: str) -> None:
    use_language(language)
    screen = Screen(width)
    started = event(0, "stage.started", stage="exported_predictions", index=0, count=1, recipe="abc")
    long = [
        event(n, "stage.progress", "exported_predictions", done=n * 1000, total=123456, unit="answers", loss=1.5)
        for n in range(1, 4)
    ]
    (line,) = screen.see(started, *long)
    assert cell_len(line) <= width and line.endswith("0:00:03")


def told(*events: Event) -> list[str]:
    out = io.StringIO()
    lines = Lines(out)
    for item in events:
        lines(item)
    return out.getvalue().splitlines()


def test_log_lines_have_rate_unit_and_time_left() -> None:
    steady = [progress(seconds, 4 * seconds, 400) for seconds in range(31)]
    assert told(BEGUN, *steady) == [
        "… dataset",
        "  dataset · read · 40.0/400.0 MB · 4.0 MB/s · 1:30 left",
        "  dataset · read · 80.0/400.0 MB · 4.0 MB/s · 1:20 left",
        "  dataset · read · 120.0/400.0 MB · 4.0 MB/s · 1:10 left",
    ]


def test_log_line_of_a_pass_that_just_began_ends_without_a_dangling_dot() -> None:
    lines = told(BEGUN, progress(0, 0, 4), progress(11, 0, 40, "near_dedup"), progress(40, 9, None, "news", "rows"))
    assert lines[1:] == ["  dataset · near_dedup · 0.0/40.0 MB", "  dataset · news · 9 rows"]


def test_log_of_bytes_counts_in_megabytes() -> None:
    lines = told(BEGUN, progress(0, 0, 5e8, "", "bytes"), progress(20, 1e8, 5e8, "", "bytes"))
    assert lines[1] == "  dataset · 100.0/500.0 MB · 5.0 MB/s · 1:20 left"


@pytest.fixture
def built(tmp_path: Path) -> Iterator[list[list[Event]]]:
    """The events of a real build, and of a second one that finds the first one's work."""
    rows = [json.dumps({"text": f"the rate of week {n} was cut by {n * 7 % 50} points"}) for n in range(4000)]
    (tmp_path / "news.jsonl").write_text("\n".join(rows), encoding="utf-8")
    near = {"use": "near_dedup"}
    params = DataParams.model_validate({"sources": "news.jsonl", "steps": [near, "length"], "shape": "text"})
    logs = []
    for number in range(2):
        events = Events(tmp_path / f"events-{number}")
        events.emit("stage.started")
        context = Context(
            {}, tmp_path / "out", tmp_path / "scratch", tmp_path / "s", tmp_path, events, 0, True, "internal"
        )
        perform(params, located_of(params, context), context, shard_bytes=20_000)
        assert events.path is not None
        logs.append([json.loads(line) for line in events.path.read_text("utf-8").splitlines()])
    yield logs


def test_events_of_a_real_build_name_short_passes_and_tell_what_was_there(built: list[list[Event]]) -> None:
    first, again = ([e for e in log if e["event"] == "stage.progress"] for log in built)
    passes = list(dict.fromkeys(e["step"] for e in first))
    assert passes[:4] == ["read", "steps 1/2", "near_dedup", "steps 2/2"] and passes[-1] == "write"
    for name in passes:
        assert next(e["done"] for e in first if e["step"] == name) == 0
    assert all(e["done"] == e["total"] for e in again)
    for log in built:
        screen = Screen()
        for item in log:
            (line,) = screen.see({**item, "stage": "dataset"})
            assert cell_len(line) <= 80
    assert "MB/s" not in line
