"""Word lists of the data build. They are plain facts about languages, put together for this package.

function_words.json: the commonest function words of each language; those of English are the eight that the Gopher
rules name (Rae et al. 2021, appendix A.1.1). stop_words.json: words that say little about a text's subject.
language_codes.json: the answers that a model for telling languages can give.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path


@cache
def word_lists(name: str) -> dict[str, tuple[str, ...]]:
    """The words of each language of the list `name`."""
    path = Path(__file__).with_name(f"{name}.json")
    return {code: tuple(words.split()) for code, words in json.loads(path.read_text(encoding="utf-8")).items()}
