"""Labels and reviews on a terminal: what was found, and a conversation of texts and keys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from inhouse.api import review as api
from inhouse.cli import views
from inhouse.core.errors import UserError
from inhouse.core.messages import text

if TYPE_CHECKING:
    from inhouse.data.label.review.queue import Task

MOST_KEYS = 9  # with more labels a number has several digits and needs Enter
SHOWN_CHARS = 4000
ANSWERED, SKIPPED, BACK, ENDED = "answered", "s", "u", "q"


def review_next(request: api.ReviewerRequest, as_json: bool) -> None:
    """Label one text after the other; with --set or --json there is no conversation."""
    if request.set or as_json:
        views.show("review_tasks", api.review_next(request), as_json)
        return
    desk = api.open_desk(request)
    Conversation(desk, desk.answer, blind=True).go_through(desk.next)


def review_adjudicate(request: api.ReviewerRequest, as_json: bool) -> None:
    """Settle one dispute after the other; with --set or --json there is no conversation."""
    if request.set or as_json:
        views.show("review_tasks", api.review_adjudicate(request), as_json)
        return
    desk = api.open_desk(request)
    Conversation(desk, desk.settle, blind=False).go_through(lambda: next(_left(desk), None))


def _left(desk: api.Desk) -> Iterator[Task]:
    return (task for task in desk.disputed() if task.asked.id not in desk.skipped)


class Conversation:
    """Shows texts and takes a key for each."""

    def __init__(self, desk: api.Desk, decide: Callable[[str, str], Task], *, blind: bool) -> None:
        from rich.console import Console

        self.desk = desk
        self.decide = decide
        self.blind = blind
        self.labels = desk.queue.labels
        self.console = Console(highlight=False, soft_wrap=True)
        self.done: list[Task] = []

    def go_through(self, following: Callable[[], Task | None]) -> None:
        """One text after the other until there is none, or the reviewer ends it."""
        count = 0
        task = following()
        while task is not None:
            outcome = self._one(task)
            if outcome == ENDED:
                break
            if outcome == BACK and self.done:
                task, count = self.done.pop(), count - 1
                continue
            if outcome == ANSWERED:
                self.done.append(task)
                count += 1
            task = following()
        name = self.desk.queue.name
        self.console.print(text("review.ended", count=count, left=self.desk.left(), queue=name), markup=False)

    def _one(self, task: Task) -> str:
        """Show a text and take answers until one counts."""
        self._show(task)
        while True:
            said = self._read()
            label = self._label(said, task)
            if label is None and said in self._commands():
                outcome = self._commands()[said]
                if outcome == SKIPPED:
                    self.desk.skipped.add(task.asked.id)
                return outcome
            if label is None:
                self.console.print(text("review.keys_again"), markup=False)
                continue
            try:
                self.decide(task.asked.id, label)
            except UserError as error:  # someone else was quicker: tell it, go on with the next text
                self.console.print(str(error), style="yellow", markup=False)
                return SKIPPED
            self.console.print(f"→ {label}", style="green", markup=False)
            return ANSWERED

    def _show(self, task: Task) -> None:
        asked = task.asked
        self.console.print(f"\n[dim]{asked.id[:8]}[/]")
        self.console.print(asked.text[:SHOWN_CHARS], markup=False)
        if asked.given is not None:
            self.console.print(text("review.given", label=asked.given), style="dim", markup=False)
        if asked.suggestion is not None:
            shown = text("review.suggested", label=asked.suggestion, by=asked.suggested_by or "-")
            self.console.print(shown, style="dim", markup=False)
        if not self.blind:
            for reviewer, label in task.answers:
                self.console.print(f"{reviewer}: {label}", style="cyan", markup=False)
        keys = "   ".join(f"{number} {label}" for number, label in enumerate(self.labels, 1))
        self.console.print(keys or text("review.write"), style="bold", markup=False)
        self.console.print(
            text("review.keys", skip=self._key("s"), undo=self._key("u"), quit=self._key("q")), style="dim"
        )

    def _key(self, letter: str) -> str:
        return letter if self.labels else f"/{letter}"

    def _commands(self) -> dict[str, str]:
        return {self._key(letter): letter for letter in (SKIPPED, BACK, ENDED)}

    def _label(self, said: str, task: Task) -> str | None:
        """The label meant: its number or itself; nothing but Enter takes the suggestion."""
        if not said:
            return task.asked.suggestion
        if not self.labels:
            return None if said in self._commands() else said
        if said.isdecimal() and 1 <= int(said) <= len(self.labels):
            return self.labels[int(said) - 1]
        return said if said in self.labels and said not in self._commands() else None

    def _read(self) -> str:
        """One key on a terminal where one key is enough, else a line; the end of input ends the conversation."""
        if self.labels and len(self.labels) <= MOST_KEYS and sys.stdin.isatty():
            import click

            key = click.getchar()
            return self._key(ENDED) if key in ("\x03", "\x04", "\x1b") else key.strip()
        line = sys.stdin.readline()
        return line.strip() if line else self._key(ENDED)
