"""How the results of the data commands look on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import Mark, escape, table
from inhouse.core.messages import known, text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.data import Versions
    from inhouse.api.unfinished import Cleaned
    from inhouse.data.diff import Difference, Gone, Ids
    from inhouse.data.export import Exported
    from inhouse.data.traces import Trace
    from inhouse.data.why import RowText, Why

MOST_CHARS = 600  # of a text that is shown; --json has the whole
SHOWN_ID = 8  # characters of an id: `data why` takes as few as 4
COLOURS = {"kept": "green", "dropped": "red", "rejected": "red"}


def datasets(result: Versions, console: Console) -> None:
    """The versions of a workspace."""
    if not result.versions:
        console.print(text("cell.data.no_versions"))
        return
    rows = [
        (v.name, v.id[:SHOWN_ID], _local(v.created), _counted(v.rows), ", ".join(v.sources)) for v in result.versions
    ]
    columns = (text("cell.data"), "id", text("cell.created_at"), text("cell.rows"), text("cell.data.sources"))
    table(console, *columns, rows=rows)


def _local(moment: str) -> str:
    """A time of the log as date and minute where the user is."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def why(result: Why, console: Console) -> None:
    """One row's fate, with the figures that decided it."""
    row = result.row
    console.print(f"[bold]{escape(row.id or '-')}[/]  {escape(_place(row))}  [dim]{result.dataset}[/]")
    console.print(f"[{COLOURS[result.fate]}]{escape(_fate(result))}[/]")
    for words in _relations(result):
        console.print(escape(words))
    for trace in result.traces:
        _trace(trace, console)
    if row.texts:
        _texts(text("cell.data.text"), row.texts, console)
    if result.stays is not None:
        console.print(f"\n{escape(text('cell.data.stays', row=_named(result.stays)))}")
        _texts("", result.stays.texts, console)
    if result.original is not None:
        _texts(text("cell.data.original"), tuple(result.original.items()), console)
    elif result.missing:
        console.print(f"[dim]{escape(text(f'cell.data.{result.missing}', dataset=result.dataset))}[/]")


def _place(row: RowText) -> str:
    return f"{row.source}/{row.file}:{row.offset}" if row.offset is not None else ""


def _named(row: RowText) -> str:
    part = text("cell.data.not_there") if row.part is None else row.part
    return f"{row.id} {_place(row)} ({part})"


def _fate(result: Why) -> str:
    if result.fate == "kept":
        label = f" · {result.row.label}" if result.row.label is not None else ""
        return text("cell.data.kept", part=result.row.part) + label
    if result.fate == "dropped":
        if not result.number:  # no step of the project
            return text("cell.data.left_by_mix" if result.step == "mix" else "cell.data.left", reason=result.told)
        return text("cell.data.dropped", number=result.number, step=result.step, reason=result.told)
    detail = f" ({result.detail})" if result.detail else ""
    line = "-" if result.line is None else str(result.line)
    return text("cell.data.rejected", line=line, reason=f"{result.told}{detail}") + f"  {result.excerpt}".rstrip()


def _relations(result: Why) -> Iterator[str]:
    if result.copies > 1:
        yield text("cell.data.repeated", count=result.copies)
    if result.parent is not None:
        yield text("cell.data.parent", row=_named(result.parent))
    if result.children:
        yield text("cell.data.children", rows=", ".join(result.children))


def _trace(trace: Trace, console: Console) -> None:
    console.print(f"\n[bold]{escape(trace.step)}[/]", end="")
    others = ", ".join(f"{name}: {_value(value)}" for name, value in trace.settings.items())
    console.print(f"  [dim]{escape(others)}[/]" if others else "")
    rows = [(name, _value(value), _limit(trace, name)) for name, value in trace.figures.items()]
    if rows:
        table(console, text("cell.figure"), f">{text('cell.value')}", text("cell.data.limit"), rows=rows)
    for note in trace.notes:
        shown = ", ".join(f"{_named_note(name)}: {_value(value)}" for name, value in note.items() if value is not None)
        console.print(f"  {escape(text('cell.data.note', note=shown))}")


def _limit(trace: Trace, figure: str) -> str:
    limit = trace.limits.get(figure, "")
    return Mark(f"[red]✗ {escape(limit)}[/]") if figure in trace.broken else limit


def _named_note(name: str) -> str:
    return text(f"cell.note.{name}") if known(f"cell.note.{name}") else name


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _texts(title: str, texts: Sequence[tuple[str, str]], console: Console) -> None:
    if title:
        console.print(f"\n{title}")
    for name, said in texts:
        cut = said if len(said) <= MOST_CHARS else f"{said[:MOST_CHARS]}… ({len(said):,})"
        console.print(f"  [bold]{escape(name)}[/] ", end="")
        console.print(cut, markup=False)


def difference(result: Difference, console: Console) -> None:
    """What changed between two versions."""
    console.print(f"[bold]{result.first} → {result.second}[/]")
    rows = [(s.name, text(f"cell.data.source_{s.change}"), f"{s.rows[0]:,}", f"{s.rows[1]:,}") for s in result.sources]
    if rows:
        counted = (f">{text('cell.data.read_in', name=name)}" for name in (result.first, result.second))
        table(console, text("cell.data.source"), text("cell.data.change"), *counted, rows=rows)
    changed = [(s.setting, _setting(s.first), _setting(s.second)) for s in result.settings]
    if changed:
        table(console, text("cell.data.setting"), result.first, result.second, rows=changed)
    counts = [(part, f"{n:,}", f"{m:,}", f"{m - n:+,}") for part, (n, m) in result.rows.items() if n or m]
    table(console, text("cell.rows"), f">{result.first}", f">{result.second}", ">±", rows=counts)
    moves = [
        (text("cell.data.same"), f"{result.same:,}", ""),
        *([(text("cell.data.renumbered"), f"{result.renumbered:,}", "")] if result.renumbered else []),
        *_gone_rows(result.first, result.only_first),
        *_gone_rows(result.second, result.only_second),
        *_changed_rows(result),
    ]
    table(console, text("cell.data.became"), f">{text('cell.rows')}", text("cell.data.samples"), rows=moves)


def _setting(value: object) -> str:
    return "—" if value is None else _value(value)


def _gone_rows(name: str, found: Sequence[Gone]) -> Iterator[tuple[str, str, str]]:
    for gone in found:
        fate = text(f"cell.data.fate_{gone.fate}", step=gone.step or "", reason=gone.told or "")
        yield text("cell.data.only", name=name, fate=fate), f"{gone.count:,}", _sample(gone)


def _changed_rows(result: Difference) -> Iterator[tuple[str, str, str]]:
    for name, found in (("text_changed", result.text_changed), ("label_changed", result.label_changed)):
        if found.count:
            yield text(f"cell.data.{name}"), f"{found.count:,}", _sample(found)
    for moved in result.moved:
        yield text("cell.data.moved", first=moved.first, second=moved.second), f"{moved.count:,}", _sample(moved)


def _sample(found: Ids) -> str:
    more = " …" if len(found.ids) < found.count else ""
    return " ".join(row[:SHOWN_ID] for row in found.ids) + more


def exported(result: Exported, console: Console) -> None:
    """The files of a copy, and what to type next."""
    console.print(f"[green]+[/] {escape(str(result.folder))}  {_counted(result.rows)}")
    for path in (result.dvc, result.mlflow):
        if path is not None:
            console.print(f"[green]+[/] {escape(str(path))}")
    if result.dvc is not None:
        console.print(Mark(f"[dim]{escape(text('cell.data.dvc_next', pointer=result.dvc))}[/]"))
    if result.logged is not None:
        console.print(escape(text("cell.data.logged", run=result.logged)))
    elif result.not_logged is not None:
        console.print(escape(text(f"cell.data.{result.not_logged}")))


def cleaned(result: Cleaned, console: Console) -> None:
    """How much was removed."""
    console.print(text("cell.data.cleaned", folders=result.folders, megabytes=round(result.bytes / 1e6, 1)))


def _counted(rows: Mapping[str, int]) -> str:
    return " + ".join(f"{count:,} {part}" for part, count in rows.items() if count)


VIEWS: dict[str, Callable[[Any, Console], None]] = {
    "datasets": datasets,
    "why": why,
    "difference": difference,
    "exported": exported,
    "cleaned": cleaned,
}
