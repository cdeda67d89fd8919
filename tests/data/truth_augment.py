"""Sentences for the steps that make new rows, and a WordNet of a few words in WordNet's own file format."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from inhouse.core.plugins import operators
from inhouse.data.operators.around import Around

ENGLISH = (
    "Please cancel my order and refund the money.",
    "I don't know why it isn't working, it's a new phone.",
    "We build the house quickly, but the large garden isn't ready.",
    "She told him that her mother had bought a huge sofa for her brother.",
    "The lawyer gave him a lengthy answer and he thanked her.",
    "How do I reset my password? You are not allowed to do it twice.",
    "Mr. Smith and his wife often visit their son.",
)
CHINESE = (
    "请问如何申请退款？",
    "他的妈妈告诉我，医生建议立即购买这种药。",
    "如果您购买的商品有质量问题，请立即联系客服。",
    "王先生和李女士昨日到达了北京。",
    "麻烦您帮我查一下订单什么时候发货？",
)
# word, part of speech, senses as (synset, tags); synsets are the words of one meaning.
WORDS: dict[tuple[str, str], list[tuple[str, int]]] = {
    ("car", "noun"): [("auto", 70), ("wagon", 2)],
    ("automobile", "noun"): [("auto", 15)],
    ("wagon", "noun"): [("wagon", 4)],
    ("cart", "noun"): [("wagon", 3)],
    ("buy", "verb"): [("buy", 50)],
    ("purchase", "verb"): [("buy", 30)],
    ("big", "adj"): [("big", 100)],
    ("large", "adj"): [("big", 130)],
    ("fast", "adj"): [("quick", 20)],
    ("quick", "adj"): [("quick", 12)],
    ("fast", "adv"): [("quickly", 25)],  # two parts of speech: never taken
    ("bank", "noun"): [("bank", 25), ("shore", 24), ("heap", 23)],  # no sense is the most frequent by far: never taken
    ("depository", "noun"): [("bank", 3)],
    ("omit", "verb"): [("omit", 8)],
    ("exclude", "verb"): [("omit", 15)],
    ("car_wash", "noun"): [("wash", 0)],
    ("obscure", "adj"): [("dim", 9)],
    ("dim", "adj"): [("dim", 1)],  # tagged too rarely to be put in
}
IRREGULAR = {"verb": ["bought buy", "omitted omit", "omitting omit"], "noun": [], "adj": [], "adv": []}
LICENCE = "  1 This line stands for WordNet's licence, which is indented.\n"


def write_wordnet(folder: Path) -> Path:
    """The words above as data.*, index.*, *.exc and cntlist.rev (wndb(5WN), cntlist(5WN))."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}
    counts = []
    for pos, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        synsets = sorted({name for (_, p), senses in WORDS.items() if p == pos for name, _ in senses})
        offsets = {name: f"{100 + place:08d}" for place, name in enumerate(synsets)}
        data, index = LICENCE, LICENCE
        for name in synsets:
            members = [w for (w, p), senses in WORDS.items() if p == pos and name in dict(senses)]
            listed = " ".join(f"{word} 0" for word in members)
            data += f"{offsets[name]} 00 {letter} {len(members):02x} {listed} 001 @ 00000001 n 0000 | a gloss  \n"
        for (word, p), senses in sorted(WORDS.items()):
            if p == pos:
                at = " ".join(offsets[name] for name, _ in senses)
                tagged = sum(1 for _, tags in senses if tags)
                index += f"{word} {letter} {len(senses)} 1 @ {len(senses)} {tagged} {at}  \n"
                for number, (_, tags) in enumerate(senses, 1):
                    counts += [f"{word}%{numbers[pos]}:00:00:: {number} {tags}\n"] if tags else []
        (folder / f"data.{pos}").write_text(data, encoding="utf-8")
        (folder / f"index.{pos}").write_text(index, encoding="utf-8")
        (folder / f"{pos}.exc").write_text("".join(f"{line}\n" for line in IRREGULAR[pos]), encoding="utf-8")
    (folder / "cntlist.rev").write_text("".join(counts), encoding="utf-8")
    return folder


def pieces_of(rows: list[list[tuple[str, str]]], first: int = 1) -> pl.DataFrame:
    """The pieces of rows given as lists of (role, text); an assistant's turn is an answer."""
    flat = [(first + n, slot, role, text) for n, row in enumerate(rows) for slot, (role, text) in enumerate(row)]
    return pl.DataFrame(
        {
            "row": pl.Series([item[0] for item in flat], dtype=pl.UInt64),
            "slot": pl.Series([item[1] for item in flat], dtype=pl.UInt32),
            "name": pl.Series([item[2] for item in flat], dtype=pl.String),
            "text": pl.Series([item[3] for item in flat], dtype=pl.String),
            "answer": pl.Series([item[2] == "assistant" for item in flat], dtype=pl.Boolean),
        }
    )


def grow(
    use: str, pieces: pl.DataFrame, folder: Path, seed: int = 0, offline: bool = True, **params: Any
) -> pl.DataFrame:
    """What the step `use` makes of the pieces."""
    operator = operators("cleaner")[use]
    around = Around(seed, folder, folder / "cache", offline)
    grown: pl.DataFrame = operator.function("expand")(pieces, operator.params(**params), around)
    return grown


def variants_of(use: str, text: str, folder: Path, seeds: int = 8, **params: Any) -> set[str]:
    """Every form that the step gives a text under several seeds; the text itself when it gives none."""
    pieces = pieces_of([[("user", text)]])
    found = {t for seed in range(seeds) for t in grow(use, pieces, folder, seed, **params)["text"]}
    return found or {text}


def generated_rows(random: Random, count: int) -> list[list[tuple[str, str]]]:
    """Conversations of sentences from the lists above."""
    rows = []
    for _ in range(count):
        said = [random.choice(ENGLISH + CHINESE) for _ in range(random.randint(1, 3))]
        rows.append(
            [("system", "Please be kind to him."), ("user", " ".join(said)), ("assistant", random.choice(ENGLISH))]
        )
    return rows
