"""Patterns that meet untrusted text: RE2 only, which takes time linear in the text whatever it holds."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from inhouse.core.plugins import require

RESULT_DEPENDS_ON = ("google-re2",)


@cache
def pattern(source: str) -> Any:
    """The compiled pattern. Its classes are ASCII, so what is glued to Chinese text is found."""
    require("data", "re2")
    return import_module("re2").compile(source)


def matches(source: str, text: str) -> bool:
    """Whether the pattern is found anywhere in the text."""
    return pattern(source).search(text.encode()) is not None  # of bytes it need not count characters


def begins(source: str, text: str) -> str:
    """What the pattern matches at the beginning of the text; empty for nothing."""
    raw = text.encode()
    found = pattern(source).match(raw)
    return raw[: found.end()].decode() if found else ""
