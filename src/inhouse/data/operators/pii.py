"""Find personal data in texts and mask it, replace it or drop the row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.params import OneOf, Params
from inhouse.core.plugins import operator_of, require
from inhouse.core.settings import settings
from inhouse.data.operators.around import Around
from inhouse.guard.spans import TYPES, PiiType, Span, settle

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"
REMOVED = "pii"
LEAST_KEY = 16
Action = Literal["mask", "partial", "replace", "drop"]
Hide = Callable[[str, PiiType], str]


class Pii(Params):
    """Mask phones, resident ids, bank cards, e-mails, network addresses, passports, plates, names, addresses, chat ids.

    Chinese and English. Beside the dataset stands a table of what was found: row, slot, place, type, action and
    score, never a value.
    """

    use: Literal["pii"] = "pii"
    types: tuple[PiiType, ...] = Field(TYPES, min_length=1, description="what to look for")
    action: Action = Field(
        "mask",
        description="mask: write the placeholder; partial: hide most characters; replace: the same stand-in for the "
        "same value, by a key in INHOUSE_PII_KEY; drop: drop the row",
    )
    actions: dict[PiiType, Action] = Field({}, description="other actions, type by type")
    placeholder: str = Field("[{type}]", max_length=64, description="{type} becomes the type in capitals")
    private_addresses: bool = Field(True, description="also network addresses that are private or for documentation")
    at_least: float = Field(0.5, ge=0, le=1, description="least score; checksums score 1, a surname before a title 0.6")
    recognisers: tuple[Annotated[Params, OneOf("recogniser")], ...] = Field((), description="more detectors, by name")

    @field_validator("placeholder")
    @classmethod
    def _has_no_other_field(cls, value: str) -> str:
        rest = value.replace("{type}", "")
        if any(c in "{}" or c.isdigit() or c == "@" for c in rest):
            raise ValueError(say("problem.placeholder"))
        return value

    def action_of(self, type: PiiType) -> Action:
        """What is done with a type."""
        return self.actions.get(type, self.action)


def change(pieces: pl.DataFrame, params: Pii, around: Around) -> tuple[pl.Series, pl.DataFrame]:
    """The texts without personal data (null drops the row), and where it was: row, slot, start, end, type, ..."""
    require("data", "polars")
    import polars as pl

    hide = _hide(params)
    found = _find(pieces["text"], params, around)
    touched = sorted(found)
    # Only texts that hold something become Python strings: most do not.
    old = pieces["text"].gather(touched).to_list()
    put = [[hide(text[s.start : s.end], s.type) for s in found[n]] for n, text in zip(touched, old, strict=True)]
    new = [_hidden(text, found[n], params, values) for n, text, values in zip(touched, old, put, strict=True)]
    changed = pieces["text"].scatter(touched, pl.Series(new, dtype=pl.String)) if touched else pieces["text"]
    notes = pl.DataFrame(
        [
            (number, *span, _done(params, text[span.start : span.end] == value, span.type))
            for number, text, values in zip(touched, old, put, strict=True)
            for span, value in zip(found[number], values, strict=True)
        ],
        schema={"at": pl.UInt32, "start": pl.UInt32, "end": pl.UInt32, "type": pl.String, "score": pl.Float64}
        | {"action": pl.String},
        orient="row",
    )
    where = pieces.select("row", "slot")[notes["at"]] if notes.height else pieces.select("row", "slot").clear()
    return changed, where.hstack(notes.select("start", "end", "type", "action", "score"))


def external(params: Pii, project_dir: Path) -> dict[str, str]:
    """A fingerprint of the key where values are replaced by it, and of what recognisers read."""
    found: dict[str, str] = {}
    if _replaces(params):
        import hashlib

        found["pii.key"] = hashlib.sha256(b"inhouse pii key\0" + _key()).hexdigest()[:16]
    for number, recogniser in enumerate(params.recognisers):
        told = operator_of("recogniser", recogniser).function("external")(recogniser, project_dir)
        found |= {f"pii.recogniser.{number}.{name}": value for name, value in told.items()}
    return found


def _replaces(params: Pii) -> bool:
    return any(params.action_of(type) == "replace" for type in params.types)


def _key() -> bytes:
    key = (settings().pii_key or "").encode()
    if len(key) < LEAST_KEY:
        raise UserError("guard.pii_key", least=LEAST_KEY)
    return key


def _hide(params: Pii) -> Hide:
    """How a value is hidden, by the action of its type."""
    from inhouse.guard.masks import partial
    from inhouse.guard.surrogates import replacement

    key = _key() if _replaces(params) else b""

    def hide(value: str, type: PiiType) -> str:
        action = params.action_of(type)
        if action == "replace":
            return replacement(value, type, key)
        return partial(value, type) if action == "partial" else params.placeholder.replace("{type}", type.upper())

    return hide


def _done(params: Pii, same: bool, type: PiiType) -> str:
    """What was done with a value; a stand-in of an earlier run is kept."""
    action = params.action_of(type)
    return "kept" if same and action == "replace" else action


def _hidden(text: str, spans: list[Span], params: Pii, values: list[str]) -> str | None:
    if any(params.action_of(span.type) == "drop" for span in spans):
        return None
    parts, last = [], 0
    for span, value in zip(spans, values, strict=True):
        parts += [text[last : span.start], value]
        last = span.end
    return "".join([*parts, text[last:]])


def _find(column: pl.Series, params: Pii, around: Around) -> dict[int, list[Span]]:
    from inhouse.data.kernels.buffers import flat
    from inhouse.guard.pii import Wanted, find_all

    wanted = Wanted(frozenset(params.types), params.private_addresses, params.at_least)
    found = find_all(*flat(column), wanted)
    for recogniser in params.recognisers:
        recognise = operator_of("recogniser", recogniser).function("recognise")
        for number, spans in enumerate(recognise(column.fill_null("").to_list(), recogniser, around)):
            more = [s for s in spans if s.type in wanted.types and s.score >= wanted.at_least]
            if more:
                found[number] = settle([*found.get(number, []), *more])
    return found
