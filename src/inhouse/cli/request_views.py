"""How requests of the log look on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.requests import RequestLine, Requests

STAGES = ("queue_s", "prefill_s", "decode_s", "first_token_s", "total_s")


def requests(result: Requests, console: Console) -> None:
    """A line each; `requests show` tells the seconds of every stage."""
    if not result.requests:
        console.print(text("cell.no_requests"))
        return
    names = ("moment", "request", "release", "engine", "status", "tokens", "first", "total")
    table(console, *(text(f"cell.request_{name}") for name in names), rows=[_row(line) for line in result.requests])


def request(result: RequestLine, console: Console) -> None:
    """Everything that is known of one request."""
    for name, value in result.model_dump(exclude={"content"}).items():
        shown = _seconds(value) if name in STAGES else _shown(value)
        console.print(f"{name:15} {shown}", markup=False, highlight=False)
    for name, words in (result.content or {}).items():
        console.print(f"\n{name}:\n{words}", markup=False, highlight=False)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _row(line: RequestLine) -> tuple[str, ...]:
    moment = datetime.fromtimestamp(line.at).strftime("%d. %H:%M:%S")
    status = str(line.status) if line.error is None else f"{line.status} {line.error}"
    tokens = f"{line.prompt_tokens}+{line.answer_tokens}"
    engine = line.engine if line.cache in ("-", "miss") else line.cache
    times = (_seconds(line.first_token_s), _seconds(line.total_s))
    return moment, line.request_id[:8], line.release, engine, status, tokens, *times


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s" if value >= 10 else f"{value * 1000:.0f} ms"


VIEWS: dict[str, Callable[[Any, Console], None]] = {"requests": requests, "request": request}
