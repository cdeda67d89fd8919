"""An answer's text from the bytes of its tokens: characters are never split, stop strings never shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of each token, gives the text that may be shown by now.

    What could be the beginning of a stop string is held back until it is clear. A character that is not whole when
    the answer ends is dropped; bytes that are no UTF-8 become U+FFFD.
    """

    __slots__ = ("_decode", "_held", "_stops", "stop")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stop: str | None = None  # the stop string that has come
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: bytes) -> str:
        """What may be shown after one more token; nothing comes after a stop string."""
        text = self._decode(piece)
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stop is not None

    def end(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` is a beginning of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if stop.startswith(text[len(text) - size :])), 0)
