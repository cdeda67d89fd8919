"""Texts for people, in English and Chinese: one JSON file per room, both languages side by side.

`{"data.empty": {"en": "...", "zh": "..."}}`; placeholders are `str.format` fields and equal in both languages
(a test holds this). The language is set once per process by a face; `settings` gives the default.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from inhouse.core.settings import settings

Language = Literal["en", "zh"]
_chosen: list[Language] = []


def use_language(language: str) -> None:
    """Choose the language of every later text in this process: 'en' or 'zh'."""
    _chosen[:] = ["zh" if language.lower().startswith("zh") else "en"]


def language() -> Language:
    """The language in use: the one chosen, else the environment's (INHOUSE_LANG, LC_ALL, LC_MESSAGES, LANG)."""
    if not _chosen:
        use_language(settings().language)
    return _chosen[0]


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """Every text by code, read from the JSON files beside this one."""
    texts: dict[str, dict[str, str]] = {}
    for path in sorted(Path(__file__).parent.glob("*.json")):
        texts.update(json.loads(path.read_text(encoding="utf-8")))
    return texts


def known(code: str) -> bool:
    """Whether the catalogue has a text for `code`."""
    return code in catalogue()


def text(code: str, /, **facts: Any) -> str:
    """The text of `code` in the language in use, its placeholders filled from `facts`."""
    return catalogue()[code][language()].format(**facts)
