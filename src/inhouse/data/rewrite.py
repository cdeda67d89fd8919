"""New training rows that a model behind an endpoint has put in other words, and the gate that they must pass."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from inhouse.core.messages import text as say
from inhouse.core.rows import Message
from inhouse.data.augment import HAN, Copies, Piece, dice, grown, is_changeable, is_chosen, is_variant, rows_of
from inhouse.data.operators.around import Around
from inhouse.remote.endpoint import Endpoint, ask_many

if TYPE_CHECKING:
    import polars as pl

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
SURE, SURE_IF_SHORT = 0.5, 0.8  # confidence of the language model; short: under 20 letters


class Rewriting(Copies):
    """What every step has that asks a model for other words."""

    endpoint: Endpoint = Field(description="the model that is asked; every answer is kept and never asked for twice")
    min_similarity: float = Field(
        0.25, ge=0, le=1, description="below this the meaning is probably lost: 0 no character in common, 1 the same"
    )
    max_similarity: float = Field(0.95, ge=0, le=1, description="above this the new row teaches nothing new")
    same_numbers: bool = Field(True, description="refuse a new text in which a number of the old one is missing")
    keep: tuple[str, ...] = Field((), description="words that must still be there when the old text has them")
    answers: bool = Field(False, description="also rewrite the wanted answers")
    max_chars: int = Field(4000, ge=1, description="longer texts stay as they are")

    @model_validator(mode="after")
    def _range_is_open(self) -> Rewriting:
        if self.min_similarity > self.max_similarity:
            raise ValueError(say("problem.empty_range", least=self.min_similarity, most=self.max_similarity))
        return self


@dataclass(frozen=True, slots=True)
class Task:
    """A text that is to be put in other words, its language (None: unsure) and the lots of this copy."""

    text: str
    language: str | None
    lots: Random


Rewrite = Callable[[Sequence[Task]], Sequence[str | None]]


def rewritten(pieces: pl.DataFrame, params: Rewriting, around: Around, name: str, rewrite: Rewrite) -> pl.DataFrame:
    """The new rows; `rewrite` gives a new text for every task, None where the model had none.

    A text that fails the gate stays as it is in the copy; a copy in which all texts stay is left out.
    """
    places, texts = [], []
    for row, members in rows_of(pieces):
        for slot, piece in enumerate(members if is_chosen(row, params, around.seed, name) else ()):
            if _is_wanted(piece, params):
                places += [(row, number, slot) for number in range(params.copies)]
                texts += [piece.text] * params.copies
    codes = languages(texts, around)
    lots = [dice(around.seed, f"{name}:{slot}", row, number) for row, number, slot in places]
    tasks = [Task(text, code, lot) for text, code, lot in zip(texts, codes, lots, strict=True)]
    found = list(rewrite(tasks))
    kept = _allowed(tasks, found, params, around)
    new = {place: text for place, text in zip(places, kept, strict=True) if text is not None}

    def make(row: int, number: int, members: Sequence[Piece]) -> list[str]:
        return [new.get((row, number, slot), piece.text) for slot, piece in enumerate(members)]

    return grown(pieces, params, lambda row: is_chosen(row, params, around.seed, name), make)


def ask_each(
    told: str, questions: Sequence[dict[str, str] | None], params: Rewriting, around: Around
) -> list[str | None]:
    """The model's text for each question under one instruction; None stays None, as does what the model refuses.

    What differs stands in the question and not in the instruction, so that a step has one budget.
    """
    asked = [question for question in questions if question is not None]
    conversations = [
        [Message(role="system", content=told), Message(role="user", content=json.dumps(question, ensure_ascii=False))]
        for question in asked
    ]
    cache = around.cache / "answers"
    answers = iter(ask_many(params.endpoint, conversations, schema=SCHEMA, cache=cache, offline=around.offline))
    replies = (None if question is None else next(answers).text for question in questions)
    return [None if reply is None else json.loads(reply)["text"].strip() for reply in replies]


def languages(texts: Sequence[str], around: Around) -> list[str | None]:
    """The ISO 639 code of each text's language, None when it is too short to tell."""
    import polars as pl

    from inhouse.data.operators.language import Language, measure

    figures = measure(pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}), Language(), around)
    codes: list[str | None] = []
    said = figures.select("code", "confidence", "short").iter_rows()
    for text, (code, confidence, short) in zip(texts, said, strict=True):
        if HAN.search(text) and code.partition("-")[0] not in ("zh", "ja", "yue", "wuu"):
            codes.append("zh" if len(HAN.findall(text)) * 4 > len(text) else None)
        else:
            codes.append(code.partition("-")[0] if confidence >= (SURE_IF_SHORT if short else SURE) else None)
    return codes


def _is_wanted(piece: Piece, params: Rewriting) -> bool:
    return is_changeable(piece, params.answers) and bool(piece.text.strip()) and len(piece.text) <= params.max_chars


def _allowed(tasks: Sequence[Task], found: Sequence[str | None], params: Rewriting, around: Around) -> list[str | None]:
    """The texts that pass: alike enough, in the old language, with the old numbers and the words to be kept."""
    codes = languages([text or "" for text in found], around)
    kept = []
    for task, text, code in zip(tasks, found, codes, strict=True):
        same_language = task.language is None or code is None or task.language == code
        passes = text and same_language and _keeps(task.text, text, params)
        alike = passes and is_variant(task.text, text or "", params.min_similarity, params.max_similarity)
        kept.append(text if alike else None)
    return kept


def _keeps(old: str, new: str, params: Rewriting) -> bool:
    """Whether the numbers and the words to be kept are all there."""
    if params.same_numbers and _numbers(old) - _numbers(new):
        return False
    return all(word.casefold() in new.casefold() for word in params.keep if word.casefold() in old.casefold())


def _numbers(text: str) -> Counter[str]:
    return Counter(re.sub(r"[.,]", "", number) for number in NUMBER.findall(text))
