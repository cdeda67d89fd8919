"""Labelling by rules and by a model: votes, decisions, figures, files."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chat_server import Reply, chat_server
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import cohen_kappa_score

from inhouse.core.agreement import agreement, wilson
from inhouse.core.errors import MissingExtra, UserError
from inhouse.core.plugins import operators
from inhouse.core.run import Events
from inhouse.data.label.apply import label_rows, write_labelled
from inhouse.data.label.errors import FindErrors, find_errors
from inhouse.data.label.items import Item, Items, labels_of, text_id
from inhouse.data.label.model import Place, checked_rows
from inhouse.data.label.settings import LabelParams
from inhouse.data.label.vote import rule_names, vote

LABELS = ("a", "b", "c")


def item(text: str, label: str | None = None, **fields: Any) -> Item:
    return Item(text_id(text), text, label, {"text": text, **fields})


def params(*rules: dict[str, Any], **more: Any) -> LabelParams:
    return LabelParams.model_validate({"labels": LABELS, "rules": rules, **more})


def keyword(label: str, *words: str, **more: Any) -> dict[str, Any]:
    return {"use": "keyword", "label": label, "any": words, **more}


def votes_of(rule: dict[str, Any], *texts: str) -> list[str | None]:
    made = params(rule).rules[0]
    return operators("rule")[rule["use"]].function("votes")(pl.DataFrame({"text": texts}), made).to_list()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "answers", False, Events())


# Rules


@pytest.mark.parametrize(
    ("word", "text", "hit"),
    [
        ("spam", "SPAM!", True),
        ("spam", "spammer", False),
        ("spam", "antispam", False),
        ("spam", "请spam我", True),
        ("spam", "spam_filter", False),
        ("退款", "我要退款吗", True),
        ("café", "cafés", False),
        ("café", "café退款", True),
        ("caf", "café", False),
        ("c++", "use C++ now", True),
        ("a.b", "axb", False),
        ("refund me", "Refund\n  ME", True),
        ("спам", "это спам", True),
        ("спам", "спамер", False),
        ("5g", "用5G手机", True),
        ("[x]", "say [x]", True),
    ],
)
def test_keyword_rule_matches_whole_words_of_spaced_scripts(word: str, text: str, hit: bool) -> None:
    assert votes_of(keyword("a", word), text) == ["a" if hit else None]


@settings(max_examples=150, deadline=None)
@given(st.text("ab 退.+", min_size=1, max_size=5).filter(str.strip), st.text("ab 退.+_", max_size=12))
def test_keyword_rule_agrees_with_a_scan_by_hand(word: str, text: str) -> None:
    word = " ".join(word.split())
    shown = " ".join(text.split())

    def bounded(edge: str, neighbour: str) -> bool:
        return not (edge in "ab" and neighbour in "ab_" and neighbour)

    expected = any(
        shown[at : at + len(word)] == word
        and bounded(word[0], shown[at - 1 : at] if at else "")
        and bounded(word[-1], shown[at + len(word) : at + len(word) + 1])
        for at in range(len(shown))
    )
    assert votes_of(keyword("a", word), text) == ["a" if expected else None]


def test_keyword_rule_with_thousands_of_words_still_compiles() -> None:
    words = [f"word{n}" for n in range(3000)] + [f"词{n}" for n in range(3000)]
    assert votes_of(keyword("a", *words), "see word2999", "词7好", "none") == ["a", "a", None]


def test_rules_unless_takes_the_vote_back() -> None:
    assert votes_of(keyword("a", "refund", unless=["no refund"]), "refund", "no refund") == ["a", None]
    rule = {"use": "regex", "label": "b", "any": [r"\d{3}", "^x"], "unless": ["000"]}
    assert votes_of(rule, "123", "xy", "000", "12") == ["b", "b", None, None]


def test_column_rule_votes_by_value_and_names_a_column_that_is_missing(place: Place) -> None:
    rule = {"use": "column", "column": "stars", "labels": {"5": "a", "1": "b", "true": "c"}}
    rows = (item("x", stars=5), item("y", stars="1"), item("z", stars=3), item("w", stars=True), item("v"))
    found, _ = label_rows(Items(rows, 0), params(rule), place)
    assert [row.label for row in found] == ["a", "b", None, "c", None]
    with pytest.raises(UserError) as raised:
        label_rows(Items((item("x", other=1),), 0), params(rule), place)
    assert raised.value.code == "label.no_column" and "other" in str(raised.value)


def test_regex_rule_that_cannot_be_read_is_named(place: Place) -> None:
    with pytest.raises(UserError) as raised:
        label_rows(Items((item("x"),), 0), params({"use": "regex", "label": "a", "any": ["(?=x)"]}), place)
    assert raised.value.code == "label.pattern" and "(?=x)" in str(raised.value)


def test_rule_that_votes_for_an_unknown_label_is_refused(place: Place) -> None:
    with pytest.raises(UserError) as raised:
        label_rows(Items((item("x"),), 0), params(keyword("other", "x")), place)
    assert raised.value.code == "label.unknown_vote"


def test_rule_from_another_package_takes_part(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    import sys
    from importlib.metadata import EntryPoint
    from types import ModuleType

    source = """
from typing import Literal
import polars as pl
from inhouse.core.params import Params

class LengthRule(Params):
    use: Literal["short"] = "short"
    name: str | None = None
    weight: float = 1.0
    chars: int

def votes(rows, params):
    return rows.select(pl.when(pl.col("text").str.len_chars() < params.chars).then(pl.lit("a"))).to_series()
"""
    module = ModuleType("their_rule")
    monkeypatch.setitem(sys.modules, "their_rule", module)
    exec(source, module.__dict__)
    point = EntryPoint("short", "their_rule", "inhouse.rule")
    monkeypatch.setattr("inhouse.core.plugins.entry_points", lambda group: [point] if group == "inhouse.rule" else [])
    operators.cache_clear()
    try:
        rule = operators("rule")["short"].params(chars=3)
        with_rule = LabelParams(labels=LABELS).model_copy(update={"rules": (rule,)})
        found, figures = label_rows(Items((item("ab"), item("abc")), 0), with_rule, place)
    finally:
        operators.cache_clear()
    assert [row.label for row in found] == ["a", None]
    assert figures.rules[0].name == "short"


# Deciding


@pytest.mark.parametrize(("how", "label"), [("majority", "b"), ("first", "a"), ("weights", "a")])
def test_decide_chooses_between_votes(how: str, label: str, place: Place) -> None:
    rules = (keyword("a", "x", weight=3), keyword("b", "x"), keyword("b", "x", name="again"), keyword("c", "y"))
    found, _ = label_rows(Items((item("x y"),), 0), params(*rules, decide=how), place)
    assert found[0].label == label


def test_decide_leaves_a_tie_open(place: Place) -> None:
    rules = (keyword("a", "x"), keyword("b", "y"))
    rows = (item("x y"), item("x"), item("y x", "a"))
    found, figures = label_rows(Items(rows, 0), params(*rules), place)
    assert [(row.label, row.by) for row in found] == [(None, None), ("a", "rules"), ("a", "given")]
    assert (figures.ties, figures.open, figures.given, figures.by_rules) == (1, 1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("xyz ", min_size=1, max_size=5).filter(str.strip), st.sampled_from([None, *LABELS])),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from(["majority", "first", "weights"]),
)
def test_rule_figures_agree_with_counting_by_hand(rows: list[tuple[str, str | None]], how: str) -> None:
    rules = {"x": "a", "y": "b", "z": "a"}
    made = params(*(keyword(label, word, weight=2 if word == "z" else 1) for word, label in rules.items()), decide=how)
    items = [item(text, label) for text, label in rows]
    voted = vote(items, LABELS, made, Events())
    table = [[label if word in text.split() else None for word, label in rules.items()] for text, _ in rows]
    for number, rule in enumerate(voted.figures):
        mine = [(cast, given) for cast, (_, given) in zip(table, rows, strict=True) if cast[number]]
        judged = [(cast, given) for cast, given in mine if given]
        assert rule.voted == len(mine) and rule.coverage == len(mine) / len(rows)
        assert rule.overlaps == sum(sum(v is not None for v in cast) > 1 for cast, _ in mine) / len(rows)
        assert rule.conflicts == sum(len({v for v in cast if v}) > 1 for cast, _ in mine) / len(rows)
        assert (rule.judged, rule.correct) == (len(judged), sum(cast[number] == given for cast, given in judged))
        if judged:
            assert (rule.low, rule.high) == wilson(rule.correct, rule.judged)
    weights = {"majority": (1, 1, 1), "weights": (1, 1, 2)}
    for cast, decided in zip(table, voted.decided, strict=True):
        if how == "first":
            assert decided == next((v for v in cast if v), None)
            continue
        sums: Counter[str] = Counter()
        for label, weight in zip(cast, weights[how], strict=True):
            if label:
                sums[label] += weight
        best = [label for label, total in sums.items() if total == max(sums.values())]
        assert decided == (best[0] if len(best) == 1 else None)


def test_rules_that_would_be_called_alike_are_numbered() -> None:
    made = params(keyword("a", "x"), keyword("a", "y"), keyword("a", "z", name="mine"))
    assert rule_names(made) == ["keyword:a", "keyword:a#2", "mine"]


def test_labels_are_those_stated_or_those_found() -> None:
    rules = [keyword("b", "x"), {"use": "column", "column": "n", "labels": {"1": "d"}}]
    rows = [item("x", "a"), item("y")]
    assert labels_of(rows, LabelParams.model_validate({"rules": rules})) == ("a", "b", "d")
    assert labels_of(rows, params(*rules)) == LABELS


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["a", "a"]},
        {"labels": ["a"]},
        {"rules": [keyword("a", " ")]},
        {"ask": {"endpoint": {"model": "m"}, "prompt": "Label it."}},
        {"ask": {"endpoint": {"model": "m"}, "at_least": 0.5}},
        {"rules": ["nothing"]},
    ],
)
def test_label_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LabelParams.model_validate(wrong)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (LabelParams(), "label.nothing_to_do"),
        (LabelParams.model_validate({"rules": [keyword("a", "x")]}), "label.few_labels"),
    ],
)
def test_labelling_without_rules_or_labels_is_refused(made: LabelParams, code: str, place: Place) -> None:
    with pytest.raises(UserError) as raised:
        label_rows(Items((item("x"),), 0), made, place)
    assert raised.value.code == code


@pytest.mark.parametrize("package", ["polars", "sklearn"])
def test_labelling_without_its_packages_says_what_to_install(
    package: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == package else object())
    with pytest.raises(MissingExtra) as raised:
        if package == "polars":
            label_rows(Items((item("x"),), 0), params(keyword("a", "x")), place)
        else:
            find_errors([item("x", "a")], FindErrors(), Events())
    assert raised.value.exit_code == 4 and "pip install" in str(raised.value)


# The model


def answering(body: dict[str, Any], number: int) -> Reply | str:
    text = body["messages"][-1]["content"]
    if "refuse" in text:
        return Reply(status=400, raw="filtered")
    return json.dumps({"why": "因为", "label": text[0], "confidence": 0.9 if "sure" in text else 0.2})


def asking(url: str, **more: Any) -> dict[str, Any]:
    return {"endpoint": {"base_url": url, "model": "m", "wait_s": 0.01}, "confidence": True, "explain": True, **more}


def test_model_labels_what_rules_left_open(place: Place, tmp_path: Path) -> None:
    rows = (item("x"), item("b sure"), item("c"), item("a refuse"), item("b given", "b"), item("c given", "a"))
    with chat_server(answering) as server:
        made = params(keyword("a", "x"), ask=asking(server.url, at_least=0.5))
        found, figures = label_rows(Items(rows, 0), made, place)
        again, _ = label_rows(Items(rows[::-1], 0), made, Place(place.cache, False, Events()))
        assert len(server.seen) == 5 + 1  # kept answers are not asked for again, refusals are
        system = server.seen[0]["messages"][0]["content"]
        schema = server.seen[0]["response_format"]["json_schema"]["schema"]
    assert "a, b, c" in system
    assert list(schema["properties"]) == ["why", "label", "confidence"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)
    assert [(r.label, r.by) for r in found] == [
        ("a", "rules"), ("b", "model"), (None, None), (None, None), ("b", "given"), ("a", "given"),
    ]  # fmt: skip
    assert [r.label for r in again] == [r.label for r in found][::-1]
    model = figures.model
    assert model is not None and (model.asked, model.labelled, model.unsure, model.failed) == (5, 1, 1, 1)
    assert "filtered" in (model.problem or "")
    assert model.agreement is not None and (model.agreement.same, model.agreement.rows) == (1, 2)
    written = write_labelled(tmp_path / "out" / "l.jsonl", found, made)
    lines = [json.loads(line) for line in (tmp_path / "out" / "l.jsonl").read_text("utf-8").splitlines()]
    assert written == len(lines) == 4
    assert lines[1] == {
        "text": "b sure",
        "label": "b",
        "label_by": "model",
        "label_confidence": 0.9,
        "label_why": "因为",
    }


def test_model_that_refuses_everything_raises(place: Place) -> None:
    rows = Items((item("a"), item("b")), 0)
    with (
        chat_server(lambda body, n: Reply(status=400, raw="no schema here")) as server,
        pytest.raises(UserError) as raised,
    ):
        label_rows(rows, params(ask=asking(server.url)), place)
    assert "no schema here" in str(raised.value)


def test_model_sees_the_beginning_of_a_long_text_only(place: Place) -> None:
    with chat_server(lambda body, n: '{"label": "a"}') as server:
        ask = {"endpoint": {"base_url": server.url, "model": "m"}, "max_chars": 3}
        label_rows(Items((item("中文文本"),), 0), params(ask=ask), place)
    assert server.questions == ["中文文"]


def test_checked_rows_do_not_depend_on_the_order_of_rows() -> None:
    rows = [item(str(n), "a" if n % 2 else None) for n in range(50)]
    chosen = {rows[n].id for n in checked_rows(rows, 7)}
    assert len(chosen) == 7 and all(rows[n].label for n in checked_rows(rows, 7))
    assert {rows[::-1][n].id for n in checked_rows(rows[::-1], 7)} == chosen


def test_written_rows_keep_a_lone_surrogate_of_another_column(tmp_path: Path, place: Place) -> None:
    rows = (item("x", other="\ud800"), item("y"))
    made = params(keyword("a", "x"))
    found, _ = label_rows(Items(rows, 0), made, place)
    assert write_labelled(tmp_path / "l.jsonl", found, made) == 1
    assert json.loads((tmp_path / "l.jsonl").read_text("utf-8"))["other"] == "\ud800"


# Agreement


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40))
def test_kappa_equals_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    found = agreement(pairs)
    assert found is not None
    ones, others = zip(*pairs, strict=True)
    if len({*ones, *others}) == 1:
        assert found.kappa is None and found.share == 1
        return
    assert found.kappa == pytest.approx(cohen_kappa_score(ones, others), abs=1e-12)
    assert found.kappa_low is not None and found.kappa_high is not None
    assert -1 <= found.kappa_low <= found.kappa + 1e-12 and found.kappa - 1e-12 <= found.kappa_high <= 1


def test_kappa_interval_of_a_worked_example() -> None:
    # 20 both yes, 5 yes/no, 10 no/yes, 15 both no: po 0.7, pe 0.5, kappa 0.4; half = 1.96 * sqrt(.21 / 50) / .5
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = agreement(pairs)
    assert found is not None and found.kappa == pytest.approx(0.4)
    half = 1.959964 * math.sqrt(0.7 * 0.3 / 50) / 0.5
    assert (found.kappa_low, found.kappa_high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-6)
    assert agreement([]) is None
