"""How rows look as tokens: what is learned, what is only read, and what is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from inhouse.cli.table import Mark, escape, table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from inhouse.api.tokens import Label, Token, TokenRow, Tokens

# Two shades for each, in turn, so that tokens can be told apart.
STYLES: dict[Label, tuple[str, str]] = {
    "learned": ("bold green", "green"), "context": ("", "dim"), "cut": ("red strike", "dim red strike"),
}  # fmt: skip
SIGNS: dict[Label, tuple[str, str]] = {"learned": ("⟦", "⟧"), "context": ("", ""), "cut": ("⟨", "⟩")}  # without colours
LABELS: tuple[Label, ...] = ("learned", "context", "cut")
FATES = (
    "dropped", "truncated", "answers_cut", "answers_dropped", "split", "questions_lost", "apart", "end_inside", "empty",
    "refused",
)  # fmt: skip
MOST_TOKENS = 600  # of a sample that is shown; --ids and --json have all


def tokens(result: Tokens, console: Console) -> None:
    """Counts of the part, what the colours mean, and the rows."""
    told = {"part": result.part, "dataset": result.dataset[:12], "model": result.model}
    console.print(f"[bold]{escape(text('cell.tokens.title', **told))}[/]")
    _counts(result, console)
    if not result.rows:
        return
    legend = [text(f"cell.tokens.{label}") for label in LABELS]
    console.print(_line([(legend[n], label, n) for n, label in enumerate(LABELS)], console, gap="  "))
    for row in result.rows:
        _row(row, result.ids, console)


def _counts(result: Tokens, console: Console) -> None:
    counts = result.counts
    share = counts["learned"] / counts["tokens"] if counts["tokens"] else 0.0
    rows = [(text(f"cell.tokens.{name}"), f"{counts[name]:,}") for name in ("rows", "samples", "tokens")]
    rows.append((text("cell.tokens.learned_tokens"), f"{counts['learned']:,} ({share:.1%})"))
    rows.append((text("cell.tokens.longest"), f"{counts['longest']:,}"))
    over = text("cell.tokens.over", most=f"{result.max_length:,}")
    rows.append((over, f"{counts['over_length']:,} ({result.over_length})" if counts["over_length"] else "0"))
    rows += [(f"  {text(f'cell.tokens.{name}')}", f"{counts[name]:,}") for name in FATES if counts[name]]
    table(console, text("cell.fact"), f">{text('cell.value')}", rows=rows)


def _row(row: TokenRow, with_ids: bool, console: Console) -> None:
    place = f"{row.source}/{row.file}:{row.offset}" if row.file else f"{row.source}:{row.offset}"
    for sample in row.samples:
        learned = sum(token.label == "learned" for token in sample.tokens)
        name = "" if sample.name == "sample" else f" · {text(f'cell.tokens.{sample.name}')}"
        told = text("cell.tokens.counted", tokens=len(sample.tokens), learned=learned)
        if sample.answer is not None:
            told = text("cell.tokens.answered", tokens=len(sample.tokens), answer=sample.answer)
        console.print(f"\n[bold]{escape(row.id)}[/]  [dim]{escape(place)}[/]{escape(name)}  {escape(told)}")
        if with_ids:
            _lines(sample.tokens, console)
            continue
        shown = [(visible(token.text), token.label, n) for n, token in enumerate(sample.tokens[:MOST_TOKENS])]
        console.print(_line(shown, console))
        if len(sample.tokens) > MOST_TOKENS:
            console.print(f"[dim]{escape(text('cell.tokens.more', count=len(sample.tokens) - MOST_TOKENS))}[/]")


def _lines(found: Sequence[Token], console: Console) -> None:
    """A line for every token."""
    head = (">#", ">id", text("cell.tokens.token"), text("cell.tokens.label"))
    rows = []
    for place, token in enumerate(found, 1):
        said = visible(token.text).replace("\n", "").replace(" ", "·") or "…"
        label, style = text(f"cell.tokens.{token.label}"), STYLES[token.label][0]
        cells = (said, label) if not style else tuple(Mark(f"[{style}]{escape(cell)}[/]") for cell in (said, label))
        rows.append((str(place), str(token.id), *cells))
    table(console, *head, rows=rows)


def visible(said: str) -> str:
    """A text with its line ends, tabs and other characters that do not show."""
    shown = said.replace("\n", "↵\n").replace("\t", "⇥").replace("\r", "␍")
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in shown)


def _line(pieces: Sequence[tuple[str, Label, int]], console: Console, gap: str = "") -> Text:
    """Tokens in colour; between signs where the console has no colours."""
    from rich.text import Text

    coloured = console.color_system is not None
    line = Text()
    for label, group in groupby(pieces, key=lambda piece: piece[1]):
        opens, closes = ("", "") if coloured else SIGNS[label]
        line.append(opens)
        for said, style in _styled(label, group):
            line.append(said, style=style if coloured else "")
        line.append(f"{closes}{gap}")
    return line


def _styled(label: Label, group: Iterator[tuple[str, Label, int]]) -> Iterator[tuple[str, str]]:
    return ((said, STYLES[label][place % 2]) for said, _, place in group)
