"""The card and its pictures: what stands in them is what the files say, for any labels, in both languages."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.data import card, pictures
from inhouse.data.mix import MixParams, mix, report
from inhouse.data.pictures import WIDTH, draw
from inhouse.data.portrait import histogram, lengths_of, portrait
from inhouse.data.settings import DataParams
from inhouse.data.stage import located_of, perform, write
from inhouse.sources import licences

TEXT = "{http://www.w3.org/2000/svg}text"
ROWS = [{"text": f"the price of {w} rose in week {n}", "label": w} for w in ("gold", "小麦") for n in range(20)]
DATA = {
    "sources": [{"from": "news.jsonl", "licence": "Apache-2.0"}],
    "steps": [{"use": "length", "min_chars": 5}, "exact_dedup"],
    "shape": "classification",
    "split": {"test": 0.25},
    "fail_above": 0.1,
}


@pytest.fixture
def facts(folder: Any) -> dict[str, Any]:
    """dataset.json of a small build, with what the finished files add to it."""
    folder.jsonl(
        "news.jsonl", [*ROWS, ROWS[0], ROWS[1], {"text": "x", "label": "gold"}, {"text": None, "label": "gold"}]
    )
    context = folder.context()
    params = DataParams.model_validate(DATA)
    result = perform(params, located_of(params, context), context)
    write(result, context.out)
    return {**result.facts, **portrait(context.out, lengths_of(result.tables))}


def texts(picture: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(picture).iter(TEXT)]


def test_card_links_its_pictures_with_words_for_those_who_cannot_see_them(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    card.write(facts, tmp_path)
    written = (tmp_path / "README.md").read_text("utf-8")
    links = re.findall(r"!\[([^\]]+)\]\(pictures/(\w+\.svg)\)", written)
    assert {name for _, name in links} == {path.name for path in (tmp_path / "pictures").iterdir()}
    assert len(links) == 2 * 4
    assert sum(bool(re.search(r"[\u4e00-\u9fff]", alt)) for alt, _ in links) == 4
    assert "{" not in written.replace("`{`", "")


def test_card_and_pictures_are_the_same_bytes_again(facts: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        card.write(facts, tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_funnel_counts_down_from_read_to_kept(facts: dict[str, Any]) -> None:
    shown = texts(pictures.funnel(facts))
    assert shown[1:] == [
        "read · 读取", "44", "usable · 可用", "43 (-1)", "1. length", "42 (-1)", "2. exact_dedup", "40 (-2)",
        "kept · 保留", "40 (90.9%)",
    ]  # fmt: skip


def test_funnel_with_augmentation_and_mix_shows_what_the_mix_dropped_and_what_it_repeats() -> None:
    steps = [
        {"step": "length", "reasons": {"too_short": 5}}, {"step": "synonyms", "reasons": {}},
        {"step": "near_dedup", "reasons": {"near_duplicate": 14}}, {"step": "shape", "reasons": {}},
        {"step": "mix", "reasons": {"not_in_mix": 7}},
    ]  # fmt: skip
    changed = {
        "read": 20, "made": 10, "rejected": {"total": 0, "reasons": {}}, "dropped": {"total": 26, "steps": steps},
        "rows": {"train": 6, "valid": 0, "test": 2}, "mix": {"by": "rows"},
    }  # fmt: skip
    assert texts(pictures.funnel(changed))[1:] == [
        "read · 读取", "20", "1. length", "15 (-5)", "made · 增强", "25 (+10)", "2. synonyms", "25",
        "3. near_dedup", "11 (-14)", "mix · 配比", "4 (-7)", "repeats · 重复", "8 (+4)", "kept · 保留", "8",
    ]  # fmt: skip


def test_rows_of_the_card_add_up_with_augmentation_and_repeats(facts: dict[str, Any]) -> None:
    changed = {**facts, "made": 10, "rows": {"train": 60, "valid": 0, "test": 8}}
    told = card.card(changed)
    kept = 44 + 10 - facts["dropped"]["total"] - facts["rejected"]["total"]
    dropped, unusable = facts["dropped"]["total"], facts["rejected"]["total"]
    assert (
        f"44 rows were read and 10 were made from them: {kept} are kept, {dropped} were dropped by a step, "
        f"{unusable} could not be used. The mix repeats some: {kept} different rows, written 68 times." in told
    )
    assert f"{kept} 行不同的数据，共写入 68 行次" in told
    assert "different rows" not in card.card(facts)


def test_reasons_on_the_card_are_words_of_its_language(facts: dict[str, Any]) -> None:
    english, chinese = card.card(facts).split("\n---\n")
    assert "| length | too short | 1 |" in english and "too_short" not in english
    assert "too_short" not in chinese and "empty_text" not in chinese and "| 文本为空 | 1 |" in chinese


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=30, unique=True), st.integers(0, 10**9))
def test_pictures_of_any_labels_are_well_formed_and_stay_inside(labels: list[str], count: int) -> None:
    facts = {
        "read": count, "rejected": {"total": 0}, "dropped": {"steps": [{"step": labels[0], "reasons": {}}]},
        "rows": {"train": count, "valid": 1, "test": 0}, "labels": labels, "scripts": {"Latin": 1.0},
        "labels_per_part": {part: dict.fromkeys(labels, count) for part in ("train", "valid", "test")},
        "histogram": {"edges": [0, 1, 3], "parts": {"train": [count, 0], "valid": [0, 1], "test": [0, 0]}},
    }  # fmt: skip
    for picture in draw(facts).values():
        for node in ElementTree.fromstring(picture).iter():
            for name in ("x", "width"):
                assert 0 <= float(node.get(name, "0")) <= WIDTH
            if "width" in node.attrib and "x" in node.attrib:
                assert float(node.attrib["x"]) + float(node.attrib["width"]) <= WIDTH


def test_long_labels_are_cut_and_many_are_put_together(facts: dict[str, Any]) -> None:
    names = [
        "非常长的中文标签" * 9,
        "A label that goes on and on and on and on and on",
        *(f"label {n}" for n in range(30)),
    ]
    counts = {name: 9 - min(place, 8) for place, name in enumerate(names)}
    changed = {"labels": names, "labels_per_part": {"train": counts, "test": counts}, "rows": {"train": 9, "test": 9}}
    shown = texts(pictures.labels({**facts, **changed}))
    assert [name[-1] for name in shown if name.startswith(("非常长", "A label"))] == ["…", "…"]
    assert "+12 labels · 其余标签" in shown and "12 + 12" in shown


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["train", "valid", "test"]), st.integers(0, 2_000_000)), min_size=1))
def test_histogram_counts_every_row_in_its_bin(rows: list[tuple[str, int]]) -> None:
    measured = pl.DataFrame(rows, schema={"part": pl.String, "chars": pl.UInt32}, orient="row")
    found = histogram(measured)
    edges = found["edges"]
    for part, counts in found["parts"].items():
        slow = [sum(p == part and a <= n < b for p, n in rows) for a, b in pairwise(edges)]
        assert counts == slow
    assert sum(sum(counts) for counts in found["parts"].values()) == len(rows)


def test_languages_count_kept_rows_only_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    pl.DataFrame({"id": ["a", "b", "c", "d"], "code": ["zh", "en", "en", None]}).write_parquet(
        tmp_path / "figures" / "02-language.parquet"
    )
    pl.DataFrame({"id": ["a", "a#2", "b", "d"]}).write_parquet(tmp_path / "train-00000.parquet")
    found = portrait(tmp_path, pl.DataFrame({"part": ["train"], "chars": [3]}))
    assert found["languages"] == {"en": 1, "und": 1, "zh": 1}
    assert found["pii"] is None
    assert "en" in texts(pictures.languages({"languages": found["languages"], "scripts": {}}))


def test_personal_data_is_counted_by_type_and_action(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    notes = {"id": ["a", "a", "b"], "type": ["phone", "email", "phone"], "action": ["mask", "mask", "mask"]}
    pl.DataFrame(notes).write_parquet(tmp_path / "notes" / "01-pii.parquet")
    found = portrait(tmp_path, pl.DataFrame({"part": ["train"], "chars": [3]}))["pii"]
    assert found == {"rows": 2, "types": {"email": {"mask": 1}, "phone": {"mask": 2}}}
    steps = [*facts["steps"], {"use": "pii"}]
    told = card.card({**facts, "steps": steps, "pii": found})
    assert "| phone | mask | 2 |" in told and "2 行中发现个人信息" in told and "undoing the masking" in told
    assert "found none" in card.card({**facts, "steps": steps, "pii": None})
    assert "assume that there is some" in card.card(facts)


def test_duplicates_and_leaks_are_told_with_their_counts(facts: dict[str, Any]) -> None:
    assert "Rows removed as duplicates by `exact_dedup`: 2 (4.5% of those read)." in card.card(facts)
    steps = [
        {"step": "leaks", "reasons": {"leaks_test": 5}},
        {"step": "near_dedup", "reasons": {"near_duplicate_of_test": 3}},
    ]
    used = [{"use": "leaks"}, {"use": "near_dedup"}]
    told = card.card({**facts, "steps": used, "dropped": {"total": 8, "steps": steps}})
    assert "share passages with an evaluation set: 5." in told
    assert "repeat a row of the test or valid part: 3." in told
    assert "No step looked for duplicates." in card.card({**facts, "steps": []})


def test_mix_is_told_as_asked_and_achieved(facts: dict[str, Any]) -> None:
    rows = pl.DataFrame({"row": range(8), "source": ["a"] * 5 + ["b"] * 3, "part": ["train"] * 8, "tokens": [2] * 8})
    rows = rows.with_columns(pl.col("row").cast(pl.UInt64))
    params = MixParams.model_validate({"a": 1, "b": 3})
    found = report(rows, mix(rows, params, 1), params).model_dump()
    told = card.card({**facts, "mix": found})
    assert "| a | 25.00% | 25.00% | 1 | 1 | 1 |" in told and "tokens (estimated)" in told and "token 数（估算）" in told


def test_augmented_rows_are_told(facts: dict[str, Any]) -> None:
    assert "7 rows were made from other rows" in card.card({**facts, "made": 7})


@pytest.mark.parametrize(
    ("uses", "strictest", "words"),
    [
        (["any", "any"], "any", "name no purpose that is ruled out"),
        (["any", "unknown"], "unknown", "before the terms of `s1` are known"),
        (["unknown", "research"], "research", "Anything but research"),
        (["research", "evaluation"], "evaluation", "Anything but evaluation"),
    ],
)
def test_card_names_the_strictest_terms(facts: dict[str, Any], uses: list[str], strictest: str, words: str) -> None:
    sources = [{**facts["sources"][0], "name": f"s{n}", "allowed_use": use} for n, use in enumerate(uses)]
    changed = {**facts, "sources": sources}
    assert licences.strictest(uses) == strictest
    assert words in card.card(changed)


def test_card_says_what_the_labels_lack(facts: dict[str, Any]) -> None:
    assert "The commonest label of the training part has" in card.card(facts)
    missing = {part: {**counts, "oil": 0} for part, counts in facts["labels_per_part"].items()}
    told = card.card({**facts, "labels": [*facts["labels"], "oil"], "labels_per_part": missing})
    assert "Labels without any row in the training part: 1." in told
    empty = {part: dict.fromkeys(facts["labels"], 0) for part in facts["labels_per_part"]}
    assert "| gold | 0 | 0 |" in card.card({**facts, "labels_per_part": empty})


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (None, "10 % test"),
        ({"test": 0.2, "valid": 0.1, "group": "author", "time": None}, "rows with one value of `author`"),
        ({"test": 0.2, "valid": 0.1, "group": None, "time": "day"}, "the newest 20.0% by `day`"),
        ({"test": 0.2, "valid": 0.1}, "test 20.0%, valid 10.0%, by a hash"),
    ],
)
def test_card_says_how_rows_were_split(facts: dict[str, Any], split: Any, words: str) -> None:
    assert words in card.card({**facts, "split": split})


def test_card_lets_no_label_break_its_tables(facts: dict[str, Any]) -> None:
    names = ["a|b", "<script>", "two\nlines"]
    told = card.card(
        {**facts, "labels": names, "labels_per_part": {p: dict.fromkeys(names, 1) for p in ("train", "test")}}
    )
    assert "| a\\|b | 1 | 1 |" in told and "&lt;script>" in told and "| two lines | 1 | 1 |" in told


def test_card_has_the_numbers_of_reports_and_none_of_their_words(facts: dict[str, Any]) -> None:
    reports = {"02-rare_words": {"words": 12000, "rare": 7, "rarest": {"Mrs-Smith-1970": 1}}, "03-x": {"only": "text"}}
    told = card.card({**facts, "reports": reports})
    assert "- `02-rare_words`: words 12,000, rare 7\n" in told and "各步骤的统计" in told
    assert "Mrs-Smith-1970" not in told and "03-x" not in told
    assert "What steps counted" not in card.card(facts)
