"""Tables and plain values on a console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from inhouse.cli.terminal import plain
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console


class Mark(str):
    """Text with colours in it; every other value is shown as it is, whatever brackets it holds."""

    __slots__ = ()


LEAST = 10  # characters that every other column gets before the first one stays on one line


def escape(value: str) -> str:
    """A value without meaning to the console."""
    from rich.markup import escape as escape_markup

    return escape_markup(plain(value))


def size(count: float) -> str:
    """Bytes for a person: `812 bytes`, `4.3 KB`, `61.2 MB`; K and M are decimal."""
    if count < 1000:
        return f"{count:.0f} {text('cell.bytes')}"
    return f"{count / 1e3:.1f} KB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def table(console: Console, *columns: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table; columns whose name begins with '>' are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    first = max((cell_len(row[0]) for row in rows), default=0)
    whole = first + LEAST * (len(columns) - 1) <= console.width
    for column in columns:
        align: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        grid.add_column(column.lstrip(">"), justify=align, overflow="fold", no_wrap=whole and column is columns[0])
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Mark) else escape(cell) for cell in row))
    console.print(grid)
