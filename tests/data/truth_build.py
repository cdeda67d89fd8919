"""Labelled news in English and Chinese on which every step that needs no model has something to do; from a seed."""

from __future__ import annotations

import random
from typing import Any

from truth_augment import CHINESE, ENGLISH
from truth_pairs import Writer

LABELS = ("money", "grain", "ship")
GERMAN = "Die Bank senkte gestern die Zinsen, weil die Wirtschaft des Landes seit Monaten nicht mehr wächst."
NOTICE = {
    "en": "All rights reserved by the editors of this page.",
    "zh": "本站内容未经编辑部书面许可不得以任何方式转载使用。",
}
PRIVATE = {
    "en": "Write to {name}@example.org or call +1 212 555 {number}.",
    "zh": "请联系13{number}{number}0，邮箱{name}@example.org。",
}
STEPS = [
    "fix_text",
    "normalize_space",
    {"use": "length", "min_chars": 30},
    "symbols",
    "repetition",
    {"use": "language", "keep": ["en", "zh"]},
    {"use": "pii", "types": ["phone", "email"]},
    "exact_dedup",
    "near_dedup",
    {"use": "leaks", "exact": "remove"},
    {"use": "boilerplate", "min_documents": 4},
    {"use": "rare_words", "action": "drop_documents", "max_share": 0.55},
    {"use": "synonyms", "share": 0.5},
    {"use": "grammar", "share": 0.5},
    {"use": "counterfactual", "share": 0.7},
    {"use": "words", "lower_case": False},
    {"use": "truncate", "max_chars": 300},
    "exact_dedup",
    {"use": "balance", "per_label": {"train": 60}},
]
DATA: dict[str, Any] = {
    "sources": [{"from": "a.jsonl"}, {"name": "b", "from": "b"}],
    "steps": STEPS,
    "shape": {"use": "classification", "prompt": "Which desk? {text}"},
    "split": {"test": 0.15, "valid": 0.1},
    "mix": {"a": 2, "b": 1, "by": "chars", "short": "repeat", "epochs": 3},
    "fail_above": 0.5,
}


class News:
    """Writes documents; each draws on those before it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.writers = {language: Writer(language, seed) for language in ("en", "zh")}
        self.before: dict[str, list[str]] = {"en": [], "zh": []}

    def rows(self, count: int) -> list[dict[str, str]]:
        """So many rows, of which about two in three are sound."""
        return [{"text": self._text(), "label": self.random.choice(LABELS)} for _ in range(count)]

    def _text(self) -> str:
        language = self.random.choice(("en", "zh"))
        text = self._plain(language)
        known = self.before[language]
        kind = self.random.choice((*KINDS, *["plain"] * len(KINDS) * 2))
        made = KINDS[kind](self, text, language, known) if kind in KINDS else text
        known.append(text if kind in KINDS else made)
        return made

    def _plain(self, language: str) -> str:
        units = self.writers[language].draw(self.random.randint(40, 70) if language == "en" else 120)
        said = self.random.choice(ENGLISH if language == "en" else CHINESE)
        return (" " if language == "en" else "").join([*units, said] if self.random.random() < 0.7 else units)

    def number(self) -> str:
        """Four digits."""
        return f"{self.random.randrange(10_000):04d}"


def _nearly(news: News, text: str, language: str, known: list[str]) -> str:
    """One before, with another word at its end."""
    return known[-1][:-3] + news.writers[language].draw(1)[0] if known else text


def _quoting(news: News, text: str, language: str, known: list[str]) -> str:
    """A text that holds a passage of one before."""
    if not known:
        return text
    old = news.random.choice(known[-6:])
    passage = " ".join(old.split()[:18]) if language == "en" else old[:40]
    return f"{text} {passage}"


KINDS: dict[str, Any] = {
    "broken": lambda news, text, language, known: text + " SchÃ¶ne GrÃ¼ÃŸe\u200b aus KÃ¶ln",
    "blank": lambda news, text, language, known: text.replace(" ", "  ") + "\n\n\n\n" + NOTICE[language][:9],
    "short": lambda news, text, language, known: text[:12],
    "marks": lambda news, text, language, known: "### ... !!! *** " * 8 + text[:20],
    "again": lambda news, text, language, known: "\n".join([text[:60]] * 6),
    "german": lambda news, text, language, known: GERMAN + text[:9] if language == "en" else GERMAN,
    "private": lambda news, text, language, known: (
        text + " " + PRIVATE[language].format(name="anna" + news.number(), number=news.number())
    ),
    "same": lambda news, text, language, known: known[-1] if known else text,
    "nearly": _nearly,
    "quoting": _quoting,
    "notice": lambda news, text, language, known: "\n".join((text[:30], NOTICE[language])),
    "rare": lambda news, text, language, known: (
        text[:60] + " " + " ".join(f"qx{news.number()}{n}vu" for n in range(30))
    ),
}
