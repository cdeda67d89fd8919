"""Thoughts before an answer, told apart from it: for engines that pass on what a model writes as it is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from inhouse.core.serving import Delta
from inhouse.core.thoughts import CLOSE, OPEN

MAY_CLOSE = re.compile(r"\s*(?:<(?:/(?:t(?:h(?:i(?:nk?)?)?)?)?)?)?\Z")  # white space, and what may begin the tag


class ThoughtReader:
    """Turn `<think>…</think>` at the beginning of an answer into deltas of `reasoning`, as llama.cpp does itself.

    White space around the thought is left out, and an empty thought leaves nothing. An answer that begins otherwise
    is passed on as it is. One for each choice.
    """

    def __init__(self) -> None:
        self._kept = ""  # not yet known to be thought or answer
        self._at: Literal["start", "thought", "between", "answer"] = "start"
        self._begun = False  # some of the thought was told

    def read(self, delta: Delta) -> Delta:
        """The same delta with its text as thought or as answer."""
        if self._at == "answer":
            return delta
        self._kept += delta.text
        last = delta.finish is not None
        text = self._first(last) if self._at == "start" else ""
        thought = self._thought(last) if self._at == "thought" else ""
        if self._at == "between":
            text, self._kept = self._kept.lstrip(), ""
            self._at = "answer" if text else "between"
        return replace(delta, text=text, reasoning=thought or None)

    def _first(self, last: bool) -> str:
        """The answer's beginning where it is no thought."""
        bare = self._kept.lstrip()
        if bare.startswith(OPEN):
            self._kept, self._at = bare.removeprefix(OPEN), "thought"
        elif last or not OPEN.startswith(bare):
            text, self._kept, self._at = self._kept, "", "answer"
            return text
        return ""

    def _thought(self, last: bool) -> str:
        end = self._kept.find(CLOSE)
        if end >= 0:
            told, self._kept, self._at = self._kept[:end].rstrip(), self._kept[end + len(CLOSE) :], "between"
        elif last:
            told, self._kept = self._kept.rstrip(), ""
        else:
            found = MAY_CLOSE.search(self._kept)
            hold = found.start() if found else len(self._kept)
            told, self._kept = self._kept[:hold], self._kept[hold:]
        if not self._begun:
            told = told.lstrip()
            self._begun = bool(told)
        return told
