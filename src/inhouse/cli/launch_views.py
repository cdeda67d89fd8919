"""How the result of `train launch` looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inhouse.cli.table import escape
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.launch import Launched


def launched(result: Launched, console: Console) -> None:
    """The files, what they start, and the command that starts it."""
    for path in result.files:
        console.print(f"[green]+[/] {escape(str(path))}")
    console.print(text("cell.launch_starts", processes=result.processes, strategy=result.strategy))
    console.print(text("cell.launch_unproven"))
    console.print(f"{text('cell.next')} {escape(result.command)}")
