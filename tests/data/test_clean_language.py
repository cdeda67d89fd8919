"""language: codes, samples against full text, short texts, scripts of Chinese."""

from __future__ import annotations

import random
import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from truth_mojibake import SENTENCES

from inhouse.core.errors import UserError
from inhouse.core.messages import known
from inhouse.data.kernels import scripts
from inhouse.data.kernels.buffers import flat
from inhouse.data.operators import language
from inhouse.data.operators.around import Around
from inhouse.data.operators.language import Language, drop_reason, external, measure

AROUND = Around(0, Path("."), Path("."), True)
TRADITIONAL = "今天天氣很好，我們一起去公園散步吧。請把檔案儲存為這種編碼，否則會出現亂碼。"
CANTONESE = "佢哋喺度做緊乜嘢呀？我哋今日唔去返工，聽日先至去啦。"
HAN = frozenset(map(chr, range(0x4E00, 0xA000)))


def figures(texts: list[str], **params: Any) -> pl.DataFrame:
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    return measure(frame, Language(**params), AROUND)


def reasons(texts: list[str], **params: Any) -> list[str | None]:
    return drop_reason(figures(texts, **params), Language(**params)).to_list()


def long_texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Documents of some 5,000 characters in one language each, with numbers and line ends between the sentences."""
    lot = random.Random(seed)
    made = []
    for number in range(count):
        code = sorted(SENTENCES)[number % len(SENTENCES)]
        sentences = []
        while sum(map(len, sentences)) < 5000:
            sentences += [lot.choice(SENTENCES[code]), str(lot.randrange(10**6)), "\n"]
        made.append((code, " ".join(sentences)))
    return made


def test_language_of_long_texts_is_found_from_them_and_from_a_sample() -> None:
    made = long_texts(100, seed=3)
    found = figures([text for _, text in made], sample_chars=None)
    assert [code.split("-")[0] for code in found["code"]] == [code for code, _ in made]
    assert found["code"].equals(figures([text for _, text in made], sample_chars=1000)["code"])
    assert not found["short"].any()
    assert found["confidence"].is_between(0.3, 1).all()


def test_language_of_a_sample_agrees_with_the_full_text_of_package_documentation() -> None:
    """Documentation of installed packages; the benchmark measures the same on 30,000 documents."""
    prose = (".md", ".rst", "METADATA")  # of .txt many are tables of numbers
    paths = [
        f.locate() for d in distributions() for f in d.files or [] if f.name.endswith(prose) and f.locate().is_file()
    ]
    texts = [text for path in paths if len(text := Path(path).read_text("utf-8", errors="replace")[:40_000]) > 2000]
    assert len(texts) >= 100
    full, sample = figures(texts, sample_chars=None), figures(texts, sample_chars=1000)
    assert (full["code"] == sample["code"]).mean() >= 0.985


@pytest.mark.parametrize(
    ("text", "keep", "wanted"),
    [
        (SENTENCES["en"][0], ("en",), None),
        (SENTENCES["de"][0], ("en", "zh"), "other_language"),
        (SENTENCES["zh"][2], ("zh",), None),
        (SENTENCES["zh"][2], ("zh-hans",), None),
        (SENTENCES["zh"][2], ("zh-hant",), "other_language"),
        (TRADITIONAL, ("zh-hant",), None),
        (TRADITIONAL, ("zh",), None),
        (TRADITIONAL, ("zh-hans",), "other_language"),
        ("中文本文一二三四五六七八九十大小人口手足", ("zh-hant",), None),
        (CANTONESE, ("zh",), None),
        ("ok", ("zh",), None),
        ("12345 67890 !!!" * 40, ("en",), None),
        ("", ("en",), None),
    ],
)
def test_language_keeps_what_is_wanted(text: str, keep: tuple[str, ...], wanted: str | None) -> None:
    assert reasons([text], keep=keep, at_least=0.2) == [wanted]
    assert wanted is None or known(f"data.reason.{wanted}")


def test_language_below_the_confidence_is_dropped_and_short_texts_only_when_strict() -> None:
    mixed = "Der Hund und the dog et le chien y el perro ed il cane"
    assert reasons([mixed], keep=(figures([mixed])["code"][0],), at_least=0.99) == ["language_unsure"]
    assert known("data.reason.language_unsure")
    assert reasons(["Guten Tag", "12"], keep=("zh",)) == [None, None]
    assert reasons(["Guten Tag", "12"], keep=("zh",), strict=True) == ["other_language", "other_language"]


def test_language_without_letters_is_undetermined() -> None:
    found = figures(["", "12 34", "中"])
    assert found["code"].to_list()[:2] == ["und", "und"]
    assert found["short"].all()


def test_letters_are_counted_as_regular_expressions_do() -> None:
    letters, syllables = re.compile(r"[^\W\d_]"), re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]")
    texts = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x34000), *range(0x34000, 0x110000, 50))]
    texts += ["", "a1_é", "12 我们", "x" * 50]
    wanted = [min(len(letters.findall(text)) + 2 * len(syllables.findall(text)), 30) for text in texts]
    data, offsets = flat(pl.Series(texts))
    found = scripts.count_letters(data, offsets, scripts.weights(), 30)
    assert np.minimum(found, 30).tolist() == wanted
    some = np.append(offsets[:0x3200:50], offsets[-4:])
    slow = scripts.count_letters.py_func(data, some, scripts.weights(), 30)
    assert np.array_equal(slow, scripts.count_letters(data, some, scripts.weights(), 30))


def test_chinese_characters_of_one_script_are_counted() -> None:
    def only(text: str, encoding: str, other: str) -> int:
        return sum(bool(c.encode(encoding, "ignore")) and not c.encode(other, "ignore") for c in text if c in HAN)

    texts = [TRADITIONAL, CANTONESE, *SENTENCES["zh"], "", "abc é 😀", "中", "\u9fff\U00020000", "国国國"]
    data, offsets = flat(pl.Series(texts))
    found = scripts.lean(data, offsets, scripts.sides())
    assert found.tolist() == [only(text, "gb2312", "big5") - only(text, "big5", "gb2312") for text in texts]
    assert np.array_equal(scripts.lean.py_func(data, offsets, scripts.sides()), found)


def test_language_does_not_depend_on_the_batch() -> None:
    texts = [text for _, text in long_texts(10, seed=4)] + ["", "kurz"]
    sample = figures(texts, sample_chars=500)
    assert sample.equals(pl.concat([figures([text], sample_chars=500) for text in texts]))
    whole = figures(texts, sample_chars=None)
    assert whole.equals(pl.concat([figures([text], sample_chars=None) for text in texts]))
    assert figures([]).schema == whole.schema


@pytest.mark.parametrize("code", ["english", "cn", "zh-hanz", "EN"])
def test_unknown_language_codes_are_refused(code: str) -> None:
    with pytest.raises(ValidationError, match=f"no language has the code '{code}'"):
        Language(keep=(code,))


def test_language_model_is_part_of_the_recipe_and_its_loss_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert len(external(Language(), Path("."))["lid.176.ftz"]) == 64
    whole = language._model_file().read_bytes()
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lid\.176\.ftz") as error:
        external(Language(), tmp_path)
    assert error.value.code == "data.no_language_model"
    broken = tmp_path / "lid.176.ftz"
    monkeypatch.setattr(language, "_model_file", lambda: broken)
    for data in (b"not a model", whole[:-1], whole.replace(b"__label__de\0", b"__label__xx\0")):
        broken.write_bytes(data)
        language._model.cache_clear()
        with pytest.raises(UserError, match="missing or damaged"):
            figures(["Some text that has enough letters."])
    language._model.cache_clear()


def test_chinese_among_latin_letters_is_no_japanese_and_japanese_stays_that() -> None:
    chinese = [
        "WeChat Pay 和 Alipay 都付不了款，怎么办", "Windows Server 2019 安装 SQL Server 失败",
        "调用 getUserInfo 接口返回 NullPointerException", "Excel VLOOKUP 公式返回 #N/A 怎么处理",
        "临时来访人员[NAME]，证件[CN_RESIDENT_ID]，请放行",
    ]  # fmt: skip
    assert reasons(chinese) == [None] * len(chinese)
    japanese = ["東京都庁の展望台", "株式会社日本総合研究所", "日本語能力試験一級合格", "今日はとても良い天気ですね"]
    assert reasons(japanese) == ["other_language"] * len(japanese)
    assert figures(chinese)["code"].to_list() == ["zh-hans"] * len(chinese)
