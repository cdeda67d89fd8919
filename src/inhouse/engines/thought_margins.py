"""White space around thoughts: llama.cpp tells it, with the thought and with the answer, and other engines do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from inhouse.core.serving import Delta


async def without_margins(pieces: AsyncGenerator[list[Delta], None]) -> AsyncGenerator[list[Delta], None]:
    """The pieces of answers without the white space around their thoughts; an answer without one is left as it is."""
    choices: defaultdict[int, _Margins] = defaultdict(_Margins)
    async with aclosing(pieces):
        async for deltas in pieces:
            yield [choices[delta.index].read(delta) for delta in deltas]


class _Margins:
    def __init__(self) -> None:
        self._held = ""  # white space, which may stand inside of the thought
        self._begun = self._thought = self._answers = False

    def read(self, delta: Delta) -> Delta:
        if delta.reasoning is not None:
            self._thought = True
            told = self._held + delta.reasoning if self._begun else delta.reasoning.lstrip()
            kept = told.rstrip()
            self._held, self._begun = told[len(kept) :], self._begun or bool(kept)
            delta.reasoning = kept or None
        if self._thought and not self._answers and delta.text:
            delta.text = delta.text.lstrip()
            self._answers = bool(delta.text)
        return delta
