"""How a dataset that was built, or would be, looks on a terminal: what was read, kept, dropped, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import escape, table
from inhouse.core.messages import known, text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.data_check import Checked, Sample
    from inhouse.api.run import BuiltDataset
    from inhouse.core.rows import Row

Line = tuple[str, str]
MOST_CHARS = 600  # of a text that is shown; --json has the whole
MOST_REASONS = 5  # of a build; a check shows all
NO_STEP = {"shape": "cell.data.blank", "mix": "cell.data.mix"}  # what drops rows and is no step of the project


def reason(code: str) -> str:
    """Why a row is not in the dataset, in words; the code itself where nobody gave words."""
    return text(f"data.reason.{code}") if known(f"data.reason.{code}") else code


def counts(facts: Mapping[str, Any], most: int | None, console: Console) -> None:
    """Read and made rows against those kept, dropped and unusable, so that they add up, each with its reasons."""
    gone, bad = facts["dropped"], facts["rejected"]
    kept = facts["read"] + facts.get("made", 0) - gone["total"] - bad["total"]
    written = sum(facts["rows"].values())
    parts = [(f"  {part}", n) for part, n in facts["rows"].items() if n]
    rows = [(text("cell.read"), facts["read"])]
    if facts.get("made"):
        rows.append((text("cell.data.made"), facts["made"]))
    rows.append((text("cell.data.kept_rows"), kept))
    if written != kept:
        rows.append((text("cell.data.written"), written))
    rows += [*parts, (text("cell.data.dropped_rows"), gone["total"]), *_most(_dropped(gone), most)]
    rows += [(text("cell.rejected"), bad["total"])]
    rows += _most([(f"  {reason(code)}", n) for code, n in bad["reasons"].items()], most)
    table(console, text("cell.data"), f">{text('cell.rows')}", rows=[(name, f"{n:,}") for name, n in rows])


def _dropped(gone: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What each step dropped, by reason, in order of the steps."""
    named = [(_step(number, step["step"]), step["reasons"]) for number, step in enumerate(gone["steps"], 1)]
    return [(f"  {name}: {reason(code)}", n) for name, reasons in named for code, n in reasons.items()]


def _step(number: int, name: str) -> str:
    return text(NO_STEP[name]) if name in NO_STEP else f"{number} {name}"


def _most(found: list[tuple[str, int]], most: int | None) -> list[tuple[str, int]]:
    """The largest of them in their order, and the others as one line."""
    if most is None or len(found) <= most + 1:
        return found
    order = sorted(range(len(found)), key=lambda place: (-found[place][1], place))
    shown = [found[place] for place in sorted(order[:most])]
    rest = order[most:]
    return [*shown, (f"  {text('cell.data.more', count=len(rest))}", sum(found[place][1] for place in rest))]


def built(result: BuiltDataset, console: Console) -> None:
    """A dataset with its numbers, where its card lies, and what to type next."""
    name = text("cell.data.dataset", name=result.name)
    cached = f"  [dim]{text('cell.data.nothing_new')}[/]" if result.cached else ""
    console.print(f"[bold]{name}[/]  {result.id[:12]}{cached}")
    counts(result.facts, MOST_REASONS, console)
    console.print(text("cell.data.card", path=result.card), markup=False)
    console.print(f"\n{text('cell.next')}")
    for command, told in _next(result):
        console.print(f"  [bold]{escape(command)}[/]  [dim]{escape(told)}[/]")


def _next(result: BuiltDataset) -> Iterator[Line]:
    where = "" if result.workspace == Path.cwd() / ".inhouse" else f" --workspace {result.workspace}"
    yield f"inhouse data why --dataset {result.name} {result.sources[0]}:0{where}", text("cli.data.why")
    if result.before is not None:
        yield f"inhouse data diff {result.before} {result.name}{where}", text("cli.data.diff")
    yield f"inhouse data list{where}", text("cli.data.list")


def checked(result: Checked, console: Console) -> None:
    """What a build would keep and drop, with the first rows."""
    counts(result.summary, None, console)
    for bad in result.rejected:
        console.print(f"[yellow]![/] {escape(bad)}")
    _left_out(result.summary["rejected"]["total"] - len(result.rejected), console)
    _samples(result.dropped, result.summary["dropped"]["steps"], console)
    for row in result.rows:
        _row(row, console)


def _left_out(count: int, console: Console) -> None:
    if count > 0:
        console.print(f"  [dim]{text('cell.data.more_rows', count=count)}[/]")


def _samples(samples: Sequence[Sample], steps: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The first rows of each step and reason."""
    for number, step in enumerate(steps, 1):
        for code, count in step["reasons"].items():
            found = [s for s in samples if (s.step, s.reason, s.number) == (step["step"], code, number)]
            for gone in found:
                place = f"{escape(gone.place)} [dim]{gone.id}[/]"
                name = f"{_step(number, gone.step)}: {reason(code)}"
                console.print(f"[red]−[/] {escape(name)} · {place} {escape(gone.begins)}")
            _left_out(count - len(found) if found else 0, console)


def _row(row: Row, console: Console) -> None:
    """A conversation turn by turn; a plain document is its text alone."""
    for message in row.messages:
        if len(row.messages) > 1:
            console.print(f"[bold]{message.role}[/] ", end="")
        said = message.content or ""
        cut = said if len(said) <= MOST_CHARS else f"{said[:MOST_CHARS]}… ({len(said):,})"
        console.print(cut, markup=False)
    console.print()
