"""New training rows: what every such step promises, and synonyms whose sense is sure."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_augment import CHINESE, ENGLISH, generated_rows, grow, pieces_of, variants_of, write_wordnet

from inhouse.core.errors import UserError
from inhouse.core.plugins import operators, source_digest
from inhouse.data.augment import is_variant, similarity, words_of
from inhouse.data.lexicons import wordnet, zh_words

LOCAL = ("synonyms", "grammar", "counterfactual")
EVERY = (*LOCAL, "paraphrase", "back_translation")
SCHEMA = {
    "parent": pl.UInt64,
    "child": pl.UInt32,
    "slot": pl.UInt32,
    "name": pl.String,
    "text": pl.String,
    "answer": pl.Boolean,
}


# Every step


@pytest.mark.parametrize("use", EVERY)
def test_augmenting_step_keeps_the_contract_of_its_shape(use: str) -> None:
    operator = operators("cleaner")[use]
    assert operator.function("SHAPE") == "expand"
    assert callable(operator.function("expand"))
    assert all(field.description for name, field in operator.params.model_fields.items() if name != "use")
    assert source_digest(operator.module)


@pytest.mark.parametrize("use", LOCAL)
@settings(max_examples=12, deadline=None)
@given(number=st.integers(0, 999), count=st.integers(0, 9), batch=st.integers(1, 4), copies=st.integers(1, 3))
def test_new_rows_do_not_depend_on_batches(
    use: str, number: int, count: int, batch: int, copies: int, tmp_path_factory: Any
) -> None:
    folder = Path(tmp_path_factory.getbasetemp())
    pieces = pieces_of(generated_rows(Random(number), count))
    whole = grow(use, pieces, folder, copies=copies)
    parts = [pieces.filter(pl.col("row").is_between(n, n + batch - 1)) for n in range(1, count + 1, batch)]
    cut = pl.concat([pl.DataFrame(schema=SCHEMA), *(grow(use, part, folder, copies=copies) for part in parts)])
    assert whole.schema == SCHEMA
    assert whole.equals(cut)


@pytest.mark.parametrize("use", LOCAL)
def test_new_rows_have_the_shape_of_their_parents_and_are_all_different(use: str, tmp_path: Path) -> None:
    pieces = pieces_of(generated_rows(Random(7), 30))
    grown = grow(use, pieces, tmp_path, copies=3)
    columns = ["slot", "name", "answer"]
    parents = {row: frame.select(columns).rows() for (row,), frame in pieces.group_by("row", maintain_order=True)}
    texts = {row: {tuple(frame["text"])} for (row,), frame in pieces.group_by("row")}
    numbers: dict[int, list[int]] = {}
    for (parent, child), frame in grown.group_by("parent", "child", maintain_order=True):
        assert frame.select(columns).rows() == parents[parent]
        assert tuple(frame["text"]) not in texts[parent]
        texts[parent].add(tuple(frame["text"]))
        numbers.setdefault(parent, []).append(child)
    assert len(numbers) > 20
    assert all(found == list(range(len(found))) for found in numbers.values())


@pytest.mark.parametrize("use", LOCAL)
def test_share_chooses_rows_by_hash_so_that_a_larger_share_only_adds(use: str, tmp_path: Path) -> None:
    pieces = pieces_of([[("user", "He said the large car isn't his.")]] * 300)
    chosen = [set(grow(use, pieces, tmp_path, share=share)["parent"]) for share in (0.2, 0.5, 1.0)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert 35 <= len(chosen[0]) <= 90 and len(chosen[2]) == 300
    assert chosen[0] != set(grow(use, pieces, tmp_path, seed=1, share=0.2)["parent"])


@pytest.mark.parametrize("use", ["synonyms", "grammar"])
def test_system_turns_tools_and_answers_stay_as_they_are(use: str, tmp_path: Path) -> None:
    text = "We build the large house and it is not ready."
    row = [("system", text), ("user", text), ("tool", text), ("assistant", text)]
    grown = grow(use, pieces_of([row]), tmp_path)
    changed = {name for name, new in zip(grown["name"], grown["text"], strict=True) if new != text}
    assert changed == {"user"}
    answered = {
        name
        for name, new in grow(use, pieces_of([row]), tmp_path, answers=True).select("name", "text").rows()
        if new != text
    }
    assert answered == {"user", "assistant"}


@pytest.mark.parametrize("use", LOCAL)
def test_row_with_nothing_to_change_gives_no_copy(use: str, tmp_path: Path) -> None:
    for text in ("", "42", "`he is not big`", "https://he.is/large and {his} <her> his_car", "12:30 → ok"):
        assert grow(use, pieces_of([[("user", text)]]), tmp_path, copies=2).is_empty(), text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("use", LOCAL)
@pytest.mark.parametrize("part", ["a-", "什么", "her ", "x.", "{", "a'", "`", "Please tell it "])
def test_endless_lines_take_linear_time(use: str, part: str, tmp_path: Path) -> None:
    text = part * (100_000 // len(part))
    grow(use, pieces_of([[("user", text)]]), tmp_path)


# Similarity


def slow_similarity(a: str, b: str) -> float:
    a, b = "".join(a.casefold().split()), "".join(b.casefold().split())
    if a == b:
        return 1.0
    scores = []
    for n in (1, 2, 3):
        x, y = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (a, b))
        if x or y:
            scores.append(2 * (x & y).total() / (x.total() + y.total()))
    return sum(scores) / len(scores)


@settings(max_examples=200, deadline=None)
@given(st.text("ab 中文😀", max_size=12), st.text("abA 中文😀", max_size=12))
def test_similarity_agrees_with_a_slow_reference(a: str, b: str) -> None:
    assert similarity(a, b) == pytest.approx(slow_similarity(a, b))
    assert similarity(a, b) == pytest.approx(similarity(b, a))


def test_variant_is_another_text_within_the_range() -> None:
    assert not is_variant("same", "same", 0, 1)
    assert not is_variant("nearly the same", "nearly the sane", 0, 0.5)
    assert is_variant("nearly the same", "nearly the sane", 0.5, 1)


def test_words_in_code_names_and_addresses_are_not_found() -> None:
    text = "A car, `car`, my_car, car2, x.car, www.car.com, car@x.com, {car}, <car>, /car, car-wash, C#car $car$ car."
    found = [word.start for word in words_of(text, {"car"})]
    assert found == [2, len(text) - 4]


# English synonyms


@pytest.fixture(scope="module")
def small_wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


def test_wordnet_gives_words_whose_sense_and_part_of_speech_are_sure(small_wordnet: Path) -> None:
    lexicon = wordnet.read(small_wordnet)
    found = {word: [synonym for synonym, _ in entry.synonyms] for word, entry in lexicon.words.items()}
    assert found == {
        "car": ["automobile"],
        "cars": ["automobiles"],
        "automobile": ["car"],
        "automobiles": ["cars"],
        "wagon": ["cart"],
        "wagons": ["carts"],
        "cart": ["wagon"],
        "carts": ["wagons"],
        "buy": ["purchase"],
        "buys": ["purchases"],
        "buying": ["purchasing"],  # no -ed: bought is irregular
        "purchase": ["buy"],
        "purchases": ["buys"],
        "purchasing": ["buying"],
        "big": ["large"],
        "large": ["big"],
        "omit": ["exclude"],
        "omits": ["excludes"],
        "omitted": ["excluded"],
        "omitting": ["excluding"],
        "exclude": ["omit"],
        "excludes": ["omits"],
        "excluded": ["omitted"],
        "excluding": ["omitting"],
    }
    assert lexicon.terms == {"car wash"}


def test_lexicon_written_as_lines_reads_back_the_same(small_wordnet: Path) -> None:
    lexicon = wordnet.read(small_wordnet)
    assert wordnet.parsed(wordnet.lines_of(lexicon)) == lexicon


@pytest.mark.parametrize("broken", ["empty", "no_counts", "garbage"])
def test_folder_that_is_no_wordnet_is_refused(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / broken
    write_wordnet(folder)
    if broken == "empty":
        (folder / "data.noun").unlink()
    if broken == "no_counts":
        (folder / "cntlist.rev").unlink()
    if broken == "garbage":
        (folder / "index.verb").write_text("buy v\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        wordnet.read(folder)
    assert error.value.code == "data.wordnet" and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("word", "pos", "irregular", "wanted"),
    [
        ("city", "noun", [], {"plural": "cities"}),
        ("couch", "noun", [], {"plural": "couches"}),
        ("boy", "noun", [], {"plural": "boys"}),
        ("child", "noun", ["children"], {}),
        ("physics", "noun", [], {}),
        ("epoch", "noun", [], {}),
        ("use", "verb", [], {"s": "uses", "ing": "using", "ed": "used"}),
        ("carry", "verb", [], {"s": "carries", "ing": "carrying", "ed": "carried"}),
        ("play", "verb", [], {"s": "plays", "ing": "playing", "ed": "played"}),
        ("agree", "verb", [], {"s": "agrees", "ing": "agreeing", "ed": "agreed"}),
        ("tie", "verb", [], {"s": "ties", "ing": "tying", "ed": "tied"}),
        ("fix", "verb", [], {"s": "fixes", "ing": "fixing", "ed": "fixed"}),
        ("visit", "verb", [], {"s": "visits", "ing": "visiting", "ed": "visited"}),
        ("stop", "verb", ["stopped", "stopping"], {"s": "stops", "ing": "stopping", "ed": "stopped"}),
        ("choose", "verb", ["chose", "chosen"], {"s": "chooses", "ing": "choosing"}),
        ("begin", "verb", ["began", "begun", "beginning"], {"s": "begins", "ing": "beginning"}),
        ("large", "adj", [], {}),
    ],
)
def test_forms_of_a_word_are_those_of_a_grammar_book(
    word: str, pos: wordnet.Pos, irregular: list[str], wanted: dict[str, str]
) -> None:
    assert wordnet.forms(word, pos, irregular) == wanted


def test_bundled_lexicon_holds_words_of_one_form_with_other_words() -> None:
    lexicon = wordnet.bundled()
    assert len(lexicon.words) >= 350
    for word, entry in lexicon.words.items():
        assert word.islower() and entry.tags > 0 and entry.synonyms
        assert word not in [synonym for synonym, _ in entry.synonyms]
        assert all(synonym.isascii() and synonym.islower() for synonym, _ in entry.synonyms)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("We build the house.", {"We construct the house."}),
        ("Building the house is fun.", {"Constructing the house is fun."}),
        ("The building is new.", set()),  # a noun
        ("They build up strength.", set()),  # no object after the verb
        ("A large garden.", {"A big garden."}),
        ("An immense garden.", set()),  # neither `an vast` nor `an huge`
        ("The large and small ones.", set()),  # no noun after the adjective
        ("by and large true", set()),
        ("The vast majority left.", set()),
        ("However, he left.", {"Nevertheless, he left.", "Nonetheless, he left."}),
        ("However big it is.", set()),
        ("LARGE garden", set()),
        ("a Large Hadron", set()),  # a name
        ("Large Hadron", set()),
        ("Large gardens.", {"Big gardens."}),
        ("a large-scale test", set()),
        ("Lawyers and doctors.", {"Attorneys and physicians.", "Attorneys and doctors.", "Lawyers and physicians."}),
        ("It is often late.", {"It is frequently late."}),
    ],
)
def test_english_synonym_stands_only_where_it_fits(text: str, wanted: set[str], tmp_path: Path) -> None:
    found = variants_of("synonyms", text, tmp_path, change=1.0)
    assert found <= wanted if wanted else found == {text}


def test_lexicon_of_the_user_is_used_and_enters_the_recipe(small_wordnet: Path, tmp_path: Path) -> None:
    operator = operators("cleaner")["synonyms"]
    params = operator.params(lexicon=str(small_wordnet))
    text = "I buy the cars. The car wash is a large cart."
    found = variants_of("synonyms", text, tmp_path, change=1.0, lexicon=str(small_wordnet))
    assert found == {"I purchase the automobiles. The car wash is a big wagon."}
    external = operator.function("external")(params, tmp_path)
    assert list(external) == ["synonyms.lexicon"]
    assert operator.function("external")(operator.params(), tmp_path) == {}


def test_words_to_keep_and_rare_synonyms_are_left_alone(tmp_path: Path) -> None:
    text = "A large garden."
    assert variants_of("synonyms", text, tmp_path, keep=("Large",)) == {text}
    assert variants_of("synonyms", text, tmp_path, min_tags=1000) == {text}


def test_share_of_words_bounds_what_is_replaced(tmp_path: Path) -> None:
    text = " ".join(["They use the large sofa."] * 10)
    for share, most in ((0.02, 1), (0.1, 5), (1.0, 30)):
        [new] = grow("synonyms", pieces_of([[("user", text)]]), tmp_path, change=share)["text"]
        differing = sum(a != b for a, b in zip(text.split(), new.split(), strict=True))
        assert 1 <= differing <= most
    assert grow("synonyms", pieces_of([[("user", text)]]), tmp_path, min_similarity=1.0).is_empty()


# Chinese synonyms


def test_chinese_groups_are_many_and_of_words_of_one_kind() -> None:
    words = zh_words.bundled()
    lines = (Path(zh_words.__file__).parent / "zh_synonyms.txt").read_text(encoding="utf-8").splitlines()
    groups = [line for line in lines if not line.startswith("#")]
    assert len(groups) == len(set(groups)) >= 150
    assert all(others and word not in others for word, others in words.items())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("医生来了。", {"大夫来了。"}),
        ("请立即联系。", {"请立刻联系。", "请马上联系。"}),
        ("马上有人来。", {"马上有人来。"}),  # only ever put in: it may mean on horseback
        ("图书馆很大。", {"图书馆很大。"}),  # no part of a longer word
        ("`医生`", {"`医生`"}),
    ],
)
def test_chinese_synonym_replaces_whole_words(text: str, wanted: set[str], tmp_path: Path) -> None:
    assert variants_of("synonyms", text, tmp_path, change=1.0) <= wanted


def test_chinese_lexicon_of_the_user_may_be_groups_or_cilin(tmp_path: Path) -> None:
    lines = "# remark\n开心 高兴 > 快活\nAa01A01= 医生 大夫\nAa01A02# 医生 护士\nAa01A03@ 独一\nword 中文\n"
    (tmp_path / "words.txt").write_text(lines, encoding="utf-8")
    words = zh_words.read(tmp_path / "words.txt")
    assert words == {"开心": ("高兴", "快活"), "高兴": ("开心", "快活"), "医生": ("大夫",), "大夫": ("医生",)}
    assert variants_of("synonyms", "他很开心", tmp_path, zh_lexicon="words.txt") == {"他很高兴", "他很快活"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xfd", "独 # x".encode()])
def test_chinese_lexicon_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        variants_of("synonyms", "他很开心", tmp_path, zh_lexicon="words.txt")
    assert error.value.code == "data.zh_lexicon"


def test_examples_are_shown_with_s(tmp_path: Path) -> None:
    """Run with -s to read what the steps make of the sentences of truth_augment.py."""
    pieces = pieces_of([[("user", text)] for text in ENGLISH + CHINESE])
    for use in LOCAL:
        grown = grow(use, pieces, tmp_path, copies=2)
        for parent, text in zip(grown["parent"], grown["text"], strict=True):
            print(f"{use:15} {(ENGLISH + CHINESE)[parent - 1]}\n{'':15} {text}")
        assert grown["parent"].n_unique() >= 5
