"""Make new training rows that say the same in another form: contractions, requests, particles, full stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.data.augment import TOKEN, Copies, Piece, expanded, is_changeable, replaced
from inhouse.data.lexicons.variants import Rule, variants
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "expand"
RULES: tuple[Rule, ...] = ("contractions", "phrases", "requests", "particles", "stops")

Edit = tuple[int, int, str]


class Grammar(Copies):
    """Add copies of training rows with some sentences in another form, by fixed rules in English and Chinese.

    contractions: do not and don't, it is a and it's a. phrases: for example and for instance, 如何 and 怎么.
    requests: how a request or question begins (can you, could you; 请问, 麻烦). particles: 吗 and 呢 at the end of
    questions. stops: the full stop that ends the text. Code, addresses and placeholders stay; answers do by default.
    """

    use: Literal["grammar"] = "grammar"
    rules: tuple[Rule, ...] = Field(RULES, min_length=1, description="which rules may be used")
    change: float = Field(0.5, gt=0, le=1, description="share of the places found that are changed, at least one")
    keep: tuple[str, ...] = Field((), description="words or phrases that are never changed")
    answers: bool = Field(False, description="also change the wanted answers")


def expand(pieces: pl.DataFrame, params: Grammar, around: Around) -> pl.DataFrame:
    """The new rows."""
    kept = tuple(word.casefold() for word in params.keep)

    def change(members: Sequence[Piece], lots: Random) -> list[str]:
        return [
            _varied(piece.text, params, kept, lots) if is_changeable(piece, params.answers) else piece.text
            for piece in members
        ]

    return expanded(pieces, params, around, params.use, change)


def _varied(text: str, params: Grammar, kept: Sequence[str], lots: Random) -> str:
    """The text with some of the possible changes, chosen by lot; never two that overlap."""
    edits = [edit for edit in _edits(text, params.rules, lots) if not _holds(text, edit, kept)]
    most = max(1, int(len(edits) * params.change))
    order = sorted(range(len(edits)), key=lambda place: (lots.random(), place))
    chosen: list[Edit] = []
    for place in order:
        if len(chosen) < most and not any(_overlap(edits[place], other) for other in chosen):
            chosen.append(edits[place])
    return replaced(text, chosen)


def _edits(text: str, rules: Sequence[Rule], lots: Random) -> Iterator[Edit]:
    """Every change that a rule allows, outside of code, addresses and placeholders."""
    barred = [(*match.span(), "") for match in TOKEN.finditer(text) if match.lastgroup == "protected"]
    lower = text.lower()
    for rule in RULES:
        for variant in variants()[rule] if rule in rules else ():
            if not any(need in lower for need in variant.needs):
                continue
            for match in variant.finds.finditer(text):
                new = match.expand(variant.gives[int(lots.random() * len(variant.gives))])
                edit = (match.start(), match.end(), new)
                if new != match.group() and not any(_overlap(edit, other) for other in barred):
                    yield edit


def _overlap(one: Edit, other: Edit) -> bool:
    """Whether two changes share a character, or begin at one place."""
    return one[0] == other[0] or (one[0] < other[1] and other[0] < one[1])


def _holds(text: str, edit: Edit, kept: Sequence[str]) -> bool:
    changed = text[edit[0] : edit[1]].casefold()
    return any(word in changed for word in kept)
