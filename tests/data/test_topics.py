"""Topics: planted ones are told apart, the same every time, and the card shows them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project_folder import Folder

from inhouse.core.messages import catalogue
from inhouse.data import card
from inhouse.data.settings import DataParams
from inhouse.data.stage import located_of, perform
from inhouse.data.topics import LENGTH, MAX_TERMS, Vectors, _first_centres, _grouped, _vectors, topics

ENGLISH = {
    "kitchen": "flour butter oven recipe sugar knead dough bake salt whisk",
    "football": "striker goal referee league penalty coach stadium defender match corner",
    "space": "orbit rocket telescope planet launch satellite comet galaxy crater probe",
    "court": "judge verdict lawyer appeal witness statute plaintiff sentence tribunal defendant",
}
CHINESE = {
    "厨房": "面粉 黄油 烤箱 食谱 白糖 揉捏 面团 烘焙 食盐 搅拌",
    "足球": "前锋 进球 裁判 联赛 点球 教练 球场 后卫 比赛 角旗",
    "太空": "轨道 火箭 望远 行星 发射 卫星 彗星 银河 陨石 探测",
    "法院": "法官 判决 律师 上诉 证人 法条 原告 刑期 庭审 被告",
}
FILLER = {
    "en": "people said many things were quite good today while others went home early after work on monday",
    "zh": "大家 今天 觉得 事情 已经 很好 然后 回到 家里 继续 工作 朋友 说道 晚上 明天 一起",
}


def planted(language: str, rows: int, seed: int) -> list[tuple[str, str]]:
    """Topic and text of every row: a third of the words are the topic's."""
    draw = random.Random(seed)
    words = {name: terms.split() for name, terms in (ENGLISH if language == "en" else CHINESE).items()}
    found = []
    for at in range(rows):
        name = list(words)[at % len(words)]
        said = draw.choices(words[name], k=10) + draw.choices(FILLER[language].split(), k=20)
        draw.shuffle(said)
        found.append((name, (" " if language == "en" else "").join(said)))
    return found


def assigned(texts: list[str]) -> list[int]:
    """The group of each of the sorted texts, as `topics` groups them."""
    _, vectors = _vectors(texts)
    return _grouped(vectors, 4)[0].tolist()  # type: ignore[no-any-return]


def adjusted_rand(left: list[Any], right: list[Any]) -> float:
    """By hand (Hubert and Arabie 1985): pairs of rows that both groupings put together, corrected for chance."""
    both = sum(comb(n, 2) for n in Counter(zip(left, right, strict=True)).values())
    a, b = (sum(comb(n, 2) for n in Counter(side).values()) for side in (left, right))
    expected = a * b / comb(len(left), 2)
    return (both - expected) / ((a + b) / 2 - expected)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seed", range(10))
def test_topics_planted_are_told_apart(language: str, seed: int) -> None:
    rows = planted(language, 128, seed)
    assert adjusted_rand([name for name, _ in rows], assigned([text for _, text in rows])) >= 0.9


@pytest.mark.parametrize(("language", "words"), [("en", ENGLISH), ("zh", CHINESE)])
def test_topics_are_named_by_words_of_one_planted_topic(language: str, words: dict[str, str]) -> None:
    found = topics([text for _, text in planted(language, 128, 7)])
    assert [topic["rows"] for topic in found] == [32] * 4
    assert sum(topic["share"] for topic in found) == pytest.approx(1)
    of = [{next(n for n, w in words.items() if term in w.split()) for term in topic["terms"][:3]} for topic in found]
    assert all(len(names) == 1 for names in of) and len(set.union(*of)) == 4


def test_topics_of_both_languages_in_one_dataset_are_told_apart() -> None:
    rows = planted("en", 400, 1) + planted("zh", 400, 2)
    found = topics([text for _, text in rows])
    assert sum(topic["rows"] for topic in found) == 800
    assert all(len({term.isascii() for term in topic["terms"]}) == 1 for topic in found)


def test_topics_of_texts_in_another_order_and_of_a_second_run_are_the_same() -> None:
    texts = [text for _, text in planted("en", 150, 3) + planted("zh", 150, 4)]
    found = topics(texts)
    assert found == topics(texts)
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        assert topics(texts) == found


def test_topics_of_few_texts_are_none() -> None:
    texts = [text for _, text in planted("en", 49, 5)]
    assert topics(texts) == topics([]) == []
    assert topics([*texts, ""]) == []
    assert topics([*texts, texts[0]]) != []


@pytest.mark.parametrize("text", ["the and of that have with", "", "的了是在和", "🙂 12 345", "一", "a b c"])
def test_topics_leave_out_texts_that_say_nothing(text: str) -> None:
    assert topics([text] * 80) == []
    texts = [said for _, said in planted("en", 80, 6)]
    found = topics(texts + [text] * 20)
    assert sum(topic["rows"] for topic in found) == 80
    assert sum(topic["share"] for topic in found) == pytest.approx(0.8, abs=0.001)


def test_topics_of_texts_that_share_no_term_are_none() -> None:
    letters = random.Random(1)
    assert topics(["".join(letters.choices("abcdefgh", k=12)) for _ in range(200)]) == []


def test_terms_hold_no_digit_no_address_and_no_function_word() -> None:
    texts = ["the mails of Ann.Smith@example.org and user77name or 13800138000 from dough"] * 30 + ["了不起的面包"] * 30
    terms, _ = _vectors(texts)
    assert terms == ["dough", "mails", "不起", "面包"]


def test_terms_are_the_words_and_pairs_that_a_slow_count_finds() -> None:
    texts = [text for _, text in planted("zh", 60, 8)]
    slow = Counter(pair for text in texts for pair in {a + b for a, b in pairwise(text)})
    terms, vectors = _vectors(texts)
    wanted = {pair for pair, count in slow.items() if 3 <= count <= 30}
    assert set(terms) <= wanted
    assert len(wanted - set(terms)) < 40  # those of stop words, such as 已经
    assert vectors.width == len(terms)


def test_terms_of_very_many_are_the_commonest() -> None:
    draw = random.Random(4)
    words = ["".join(draw.choices("abcdefghij", k=9)) for _ in range(7000)]
    texts = [" ".join(words[at % 7000] for at in range(start, start + 90)) for start in range(0, 21000, 70)]
    counts = Counter(word for text in texts for word in set(text.split()) if len(word) == 9)
    terms, vectors = _vectors(texts)
    assert vectors.width == len(terms) == MAX_TERMS
    assert min(counts[term] for term in terms) >= max(counts[word] for word in counts.keys() - set(terms))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=50, max_size=70), st.integers(0, 100))
def test_topics_of_any_texts_are_shares_of_rows(texts: list[str], times: int) -> None:
    found = topics(texts + texts[:3] * times)
    assert all(0 < topic["share"] <= 1 and len(topic["terms"]) <= 5 and topic["rows"] > 0 for topic in found)
    assert sum(topic["rows"] for topic in found) <= len(texts) + 3 * times


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_products_and_sums_are_those_of_whole_matrices(seed: int) -> None:
    draw = np.random.default_rng(seed)
    columns = np.array([draw.permutation(9)[:4] for _ in range(6)])
    weights = draw.integers(0, LENGTH, (6, 4))
    whole = np.zeros((6, 9), np.int64)
    whole[np.arange(6)[:, None], columns] = weights
    vectors, others = Vectors(columns, weights, 9), draw.integers(0, LENGTH, (9, 3))
    groups = draw.integers(0, 3, 6)
    assert (vectors.products(others) == whole @ others).all()
    assert (vectors.sums(groups, 3) == np.array([whole[groups == group].sum(axis=0) for group in range(3)]).T).all()


def test_first_centres_of_equal_texts_are_that_text() -> None:
    vectors = Vectors(np.zeros((60, 2), np.int64), np.tile([LENGTH, 0], (60, 1)), 1)
    assert (_first_centres(vectors, 3, 1) == LENGTH).all()


def test_dataset_and_card_tell_topics_of_the_final_texts(folder: Folder) -> None:
    told = [{"text": f"{text} mail jane{n % 3}doe@example.org"} for n, (_, text) in enumerate(planted("en", 130, 9))]
    folder.jsonl("a.jsonl", told)
    context = folder.context()
    params = DataParams.model_validate({"sources": "a.jsonl", "steps": [{"use": "pii"}]})
    facts = perform(params, located_of(params, context), context).facts
    assert sum(topic["rows"] for topic in facts["topics"]) == 130
    english, chinese = card.card(facts).split("\n---\n")
    assert "## Topics" in english and "## 主题" in chinese
    for topic in facts["topics"]:
        assert f"| {topic['share']:.1%} | {', '.join(topic['terms'])} |" in english
        assert f"| {topic['share']:.1%} | {'、'.join(topic['terms'])} |" in chinese
    assert "jane" not in english
    assert "## Topics" not in card.card({**facts, "topics": []})
    assert catalogue()["card.data.topics_note"]["zh"] in chinese


def test_card_of_a_dataset_of_an_earlier_version_has_no_topics(folder: Folder, tmp_path: Path) -> None:
    folder.jsonl("a.jsonl", [{"text": f"row {n} of it"} for n in range(5)])
    context = folder.context()
    params = DataParams.model_validate({"sources": "a.jsonl"})
    facts = perform(params, located_of(params, context), context).facts
    assert facts["topics"] == []
    assert "Topics" not in card.card({name: value for name, value in facts.items() if name != "topics"})
