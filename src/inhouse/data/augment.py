"""What the steps that make new training rows share: which rows, by which lots, and the rows they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around
from inhouse.data.scripts import HAN_CLASS

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

ALL = 1 << 64
LONGEST_GRAM = 3
# Templates that every row shares and results of tools are not what a user wrote.
FIXED_ROLES = ("system", "tool")
PROTECTED = r"""
    ```.*?(?:```|\Z) | `[^`\n]+`                              # code
  | (?:https?://|www\.)[^\s\u3000-\u303F\uFF00-\uFFEF]+       # addresses of pages
  | [A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]+                      # and of people; bounded, or a-a-a-… takes forever
  | \{[^{}\n]*\} | <[^<>\n]{1,200}> | \$[^$\n]{1,200}\$       # placeholders, tags, formulas
  | [A-Za-z0-9_.~-]{0,100}[/\\][A-Za-z0-9_./\\~-]+             # paths
  | [A-Za-z_]*[0-9_][A-Za-z0-9_]*                             # numbers and identifiers
  | [A-Za-z]+(?:\.[A-Za-z]+)+                                 # dotted names
"""
WORD = r"[A-Za-z]+(?:['’][A-Za-z]+)*"
TOKEN = re.compile(rf"(?P<protected>{PROTECTED}) | (?P<word>{WORD})", re.VERBOSE | re.DOTALL)
HAN = re.compile(HAN_CLASS)
ENDS_SENTENCE = '.!?:;\n"“”()[]*#>•'


class Copies(Params):
    """How many new rows, and of which."""

    copies: int = Field(1, ge=1, le=20, description="new rows made of each chosen row")
    share: float = Field(1.0, gt=0, le=1, description="share of the training rows that get copies, chosen by a hash")


@dataclass(frozen=True, slots=True)
class Piece:
    """One text of a row: its role or column, and whether it is the wanted answer."""

    name: str
    text: str
    answer: bool


Change = Callable[[Sequence[Piece], Random], Sequence[str] | None]
Make = Callable[[int, int, Sequence[Piece]], Sequence[str] | None]


def expanded(pieces: pl.DataFrame, params: Copies, around: Around, name: str, change: Change) -> pl.DataFrame:
    """New rows made by `change` from the chosen rows: parent, child (0, 1, …), slot, name, text, answer.

    `change` gives the texts of all pieces of a row, or None when nothing can be changed. The lots depend on seed,
    operator and row only.
    """
    return grown(
        pieces,
        params,
        lambda row: is_chosen(row, params, around.seed, name),
        lambda row, number, members: change(members, dice(around.seed, name, row, number)),
    )


def grown(pieces: pl.DataFrame, params: Copies, chosen: Callable[[int], bool], make: Make) -> pl.DataFrame:
    """What `make(row, number, pieces)` makes of the chosen rows, less what equals the parent or an earlier child."""
    made: list[tuple[int, int, Sequence[Piece], Sequence[str]]] = []
    for row, members in rows_of(pieces):
        seen = {tuple(piece.text for piece in members)}
        for number in range(params.copies if chosen(row) else 0):
            texts = make(row, number, members)
            if texts is not None and tuple(texts) not in seen:
                made.append((row, len(seen) - 1, members, texts))
                seen.add(tuple(texts))
    return children(made)


def rows_of(pieces: pl.DataFrame) -> Iterator[tuple[int, list[Piece]]]:
    """The rows of a frame of pieces that is sorted by row and slot."""
    columns = (pieces[name].to_list() for name in ("row", "name", "text", "answer"))
    for row, group in groupby(zip(*columns, strict=True), key=lambda item: item[0]):
        yield row, [Piece(name, text, answer) for _, name, text, answer in group]


def children(made: Sequence[tuple[int, int, Sequence[Piece], Sequence[str]]]) -> pl.DataFrame:
    """The frame of new rows from (parent, child, pieces of the parent, new texts)."""
    import polars as pl

    flat = [
        (parent, child, slot, piece.name, text, piece.answer)
        for parent, child, members, texts in made
        for slot, (piece, text) in enumerate(zip(members, texts, strict=True))
    ]
    schema = {
        "parent": pl.UInt64,
        "child": pl.UInt32,
        "slot": pl.UInt32,
        "name": pl.String,
        "text": pl.String,
        "answer": pl.Boolean,
    }
    return pl.DataFrame(flat, schema=schema, orient="row")


def is_chosen(row: int, params: Copies, seed: int, name: str) -> bool:
    """Whether the row gets copies. More data later changes no row's lot."""
    return params.share >= 1 or _hash(f"{seed}:{name}:{row:016x}") < params.share * ALL


def dice(seed: int, name: str, row: int, number: int) -> Random:
    """The lots of one child of one row."""
    return Random(_hash(f"{seed}:{name}:{row:016x}:{number}"))


def _hash(key: str) -> int:
    require("data", "xxhash")
    import xxhash

    return xxhash.xxh3_64_intdigest(key.encode())


def is_changeable(piece: Piece, answers: bool) -> bool:
    """Whether a step may rewrite this piece: never system turns and tool results, answers only when asked to."""
    return piece.name not in FIXED_ROLES and (answers or not piece.answer)


def is_variant(old: str, new: str, least: float, most: float) -> bool:
    """Whether the new text is another one, and as alike as asked for."""
    return old != new and least <= similarity(old, new) <= most


def similarity(old: str, new: str) -> float:
    """How alike two texts are: Dice coefficient of their character n-grams, the mean of n = 1, 2, 3.

    Case and white space do not count. 1 for equal texts, 0 for texts without a common character. Works for every
    script, as character n-gram F-scores do (Popović 2015, chrF), but it is no chrF and is not reported as one.
    """
    a, b = ("".join(text.casefold().split()) for text in (old, new))
    if a == b:
        return 1.0
    scores = [_dice(a, b, n) for n in range(1, LONGEST_GRAM + 1) if len(a) >= n or len(b) >= n]
    return sum(scores) / len(scores)


def _dice(a: str, b: str, n: int) -> float:
    """Twice what two texts have in common by what they have in all, counted in n-grams."""
    require("data", "numpy")
    import numpy as np

    grams_a, grams_b = _grams(a, n), _grams(b, n)
    _, places = np.unique(np.concatenate((grams_a, grams_b)), return_inverse=True)
    kinds = int(places.max()) + 1
    counts_a = np.bincount(places[: len(grams_a)], minlength=kinds)
    counts_b = np.bincount(places[len(grams_a) :], minlength=kinds)
    return float(2 * np.minimum(counts_a, counts_b).sum() / len(places))


def _grams(text: str, n: int) -> NDArray[np.uint64]:
    """Every run of n characters as one number: 21 bits a character, so that no two runs are taken for one."""
    import numpy as np

    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    grams = np.zeros(max(0, len(points) - n + 1), np.uint64)
    for place in range(n):
        grams = (grams << np.uint64(21)) | points[place : place + len(grams)]
    return grams


@dataclass(frozen=True, slots=True)
class Word:
    """A Latin word of a text, and the words around: None where something else than one space lies between."""

    start: int
    end: int
    text: str
    before: str | None
    after: str | None
    beyond: str | None  # the word after the next
    begins: bool  # a sentence
    second: bool  # word of a sentence


def words_of(text: str, wanted: Container[str]) -> Iterator[Word]:
    """Those of the wanted words (lower case) that may be changed.

    None in code, addresses, placeholders, paths and identifiers, and none with a hyphen or a sign (well-known, C#).
    """
    tokens = list(TOKEN.finditer(text))
    for place, token in enumerate(tokens):
        if token.lastgroup != "word" or token.group().lower() not in wanted:
            continue
        if _is_glued(text, token.start(), token.end()):
            continue
        yield Word(
            start=token.start(),
            end=token.end(),
            text=token.group(),
            before=tokens[place - 1].group() if _touch(text, tokens, place) else None,
            after=tokens[place + 1].group() if _touch(text, tokens, place + 1) else None,
            beyond=tokens[place + 2].group() if _touch(text, tokens, place + 1, 2) else None,
            begins=_begins(text, tokens, place),
            second=place > 0 and _begins(text, tokens, place - 1),
        )


def _touch(text: str, tokens: Sequence[re.Match[str]], place: int, count: int = 1) -> bool:
    """Whether the token at `place` is one space from the one before, and so on for `count` tokens."""
    if place < 1 or place + count > len(tokens):
        return False
    return all(text[tokens[i - 1].end() : tokens[i].start()] == " " for i in range(place, place + count))


def _begins(text: str, tokens: Sequence[re.Match[str]], place: int) -> bool:
    """Whether a token is the first of a sentence."""
    gap = text[tokens[place - 1].end() if place else 0 : tokens[place].start()].strip(" ")
    return place == 0 or (bool(gap) and gap[-1] in ENDS_SENTENCE)


def _is_glued(text: str, start: int, end: int) -> bool:
    """Whether the word is a part of something with hyphens or signs, such as well-known or C#."""
    return (start > 0 and text[start - 1] in "-–'’@#&=") or (end < len(text) and text[end] in "-–@#&=+")


def listed(words: str) -> frozenset[str]:
    """The words of a string, for lists that are read more easily without quotes."""
    return frozenset(words.split())


def like(model: str, word: str) -> str:
    """`word` with a capital where `model` has one."""
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def replaced(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    """The text with (start, end, new) put in; edits do not overlap."""
    out, at = [], 0
    for start, end, new in sorted(edits):
        out += [text[at:start], new]
        at = end
    return "".join((*out, text[at:]))
