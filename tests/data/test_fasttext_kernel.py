"""Our reading of fastText models against fasttext-predict: the real model, made-up models, damaged files."""

from __future__ import annotations

import random
import struct
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import fasttext as reference
import numpy as np
import polars as pl
import pytest
from numba.core.dispatcher import Dispatcher
from truth_mojibake import SENTENCES

from inhouse.data.kernels import fasttext as kernel
from inhouse.data.kernels import fasttext_file
from inhouse.data.kernels.buffers import flat
from inhouse.data.kernels.fasttext_file import BadModel, read_model
from inhouse.data.operators.language import _model_file

ALPHABETS = (
    *("abcdefgh", "äöüßéèñç", "абвгдежз", "你好世界天气很好", "こんにちはカタ", "안녕하세요", "مرحبا", "नमस्ते", "ไทย"),
    *("😀😅👨\u200d👩❤️", "<>/s_label012", " \t\r\v\f\x00\n", "\u3000\xa0\u2028\x85"),
)
SPECIAL = ("</s>", "__label__en", "__label__xx", "__label__", "__labe", "<", ">", "")
Found = tuple[list[str], "np.ndarray[Any, Any]"]


@cache
def real_model() -> tuple[kernel.Model, list[str]]:
    return read_model(_model_file())


def ours(model: kernel.Model, labels: list[str], texts: list[str]) -> Found:
    numbers, scores = kernel.predict(model, *flat(pl.Series(texts, dtype=pl.String)))
    return [labels[number] for number in numbers], scores


def theirs(path: Path, texts: list[str]) -> Found:
    predict = reference.load_model(str(path)).predict
    found = [predict(text.replace("\n", " ")) for text in texts]
    labels = [label[0].removeprefix("__label__") for label, _ in found]
    return labels, np.minimum([score[0] for _, score in found], 1.0)


def documents(lot: random.Random) -> list[str]:
    """Pieces of the descriptions of installed packages."""
    texts = [d.read_text("METADATA") or "" for d in distributions()]
    return [
        text[(at := lot.randrange(len(text) + 1)) : at + lot.choice((5, 30, 200, 1000, 6000))]
        for text in sorted(texts)
        for _ in range(15)
    ]


def odd_texts(lot: random.Random, count: int) -> list[str]:
    """Short texts: of few alphabets, of any character, of any bytes, of words that mean something to fastText."""
    words = [word for lines in SENTENCES.values() for line in lines for word in line.split()]
    texts = []
    for _ in range(count // 4):
        letters = "".join(lot.sample(ALPHABETS, lot.randrange(1, 4)))
        texts.append("".join(lot.choices(letters, k=lot.randrange(60))))
        texts.append("".join(map(chr, lot.choices(range(0x20, 0xD800), k=lot.randrange(30)))) + chr(0x20000))
        texts.append(lot.randbytes(lot.randrange(80)).decode("utf-8", "ignore"))
        texts.append(" ".join(lot.choices([*words, *SPECIAL], k=lot.randrange(12))))
    return texts


def test_labels_of_many_texts_are_those_of_fasttext() -> None:
    lot = random.Random(5)
    texts = ["", " ", *documents(lot), *odd_texts(lot, 4000)]
    texts += [line for lines in SENTENCES.values() for line in lines]
    assert len(texts) >= 5000
    labels, scores = ours(*real_model(), texts)
    wanted, wanted_scores = theirs(_model_file(), texts)
    different = sum(a != b for a, b in zip(labels, wanted, strict=True))
    assert different <= len(texts) / 10_000
    assert np.abs(scores - wanted_scores).max() < 1e-4


def test_labels_of_very_long_words_and_texts_are_those_of_fasttext() -> None:
    lot = random.Random(6)
    many = " ".join(f"{lot.choice(('Haus', 'Baum', 'grün'))}{number}" for number in range(kernel.KNOWN + 5000))
    texts = ["天气很好我们去公园" * 20_000, many, "the cat " * 50_000, "</s> " + many, "é" * 100_000]
    labels, scores = ours(*real_model(), texts)
    wanted, wanted_scores = theirs(_model_file(), texts)
    assert labels == wanted
    assert np.abs(scores - wanted_scores).max() < 1e-4


def test_labels_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = odd_texts(random.Random(7), 400)
    labels, scores = ours(*real_model(), texts)
    alone = [ours(*real_model(), [text]) for text in texts]
    assert [label for label, _ in alone] == [[label] for label in labels]
    assert np.array_equal(np.concatenate([score for _, score in alone]), scores)
    monkeypatch.setattr(kernel, "PORTION", 3)
    monkeypatch.setattr(kernel, "KNOWN", 8)
    monkeypatch.setattr(kernel, "SLOTS", 16)
    few_labels, few_scores = ours(*real_model(), texts[::-1])
    assert few_labels[::-1] == labels
    assert np.array_equal(few_scores[::-1], scores)


def test_loops_uncompiled_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*odd_texts(random.Random(8), 60), "Die </s> Katze", "__label__en x", "ein " * 30]
    labels, scores = ours(*real_model(), texts)
    for module in (kernel, fasttext_file):
        for name, member in list(vars(module).items()):
            if isinstance(member, Dispatcher):
                monkeypatch.setattr(module, name, member.py_func)
    with np.errstate(over="ignore"):
        slow_labels, slow_scores = ours(*read_model(_model_file()), texts)
    assert slow_labels == labels
    assert np.allclose(slow_scores, scores, atol=1e-6)


def quantised(lot: np.random.Generator, rows: int, by_norm: bool, each: int) -> bytes:
    """A quantised matrix of 16 columns as fastText writes it, `each` columns to a code."""
    parts, last = -(-16 // each), 16 % each or each
    data = struct.pack("<??qqi", True, by_norm, rows, 16, rows * parts)
    data += lot.integers(0, 256, rows * parts, np.uint8).tobytes()
    data += struct.pack("<4i", 16, parts, each, last) + lot.normal(0, 1, 16 * 256).astype("<f4").tobytes()
    if by_norm:
        data += lot.integers(0, 256, rows, np.uint8).tobytes()
        data += struct.pack("<4i", 1, 1, 1, 1) + lot.random(256).astype("<f4").tobytes()
    return data


def write_model(path: Path, seed: int, by_norm: bool, each: int, counts: list[int]) -> Path:
    """A model of random numbers: words of SENTENCES, 20,000 n-grams, labels with these counts."""
    lot = np.random.default_rng(seed)
    words = ["</s>", *sorted({word for lines in SENTENCES.values() for line in lines for word in line.split()})]
    kept = 20_000 if seed else 0
    data = struct.pack("<ii12id", 793712314, 12, 16, 5, 5, 1, 5, 1, 1, 3, 2_000_000, 2, 4, 100, 1e-4)
    data += struct.pack("<iiiqq", len(words) + len(counts), len(words), len(counts), 1000, kept)
    for word in words:
        data += word.encode() + b"\0" + struct.pack("<qb", 5, 0)
    for number, count in enumerate(counts):
        data += f"__label__l{number}".encode() + b"\0" + struct.pack("<qb", count, 1)
    buckets = lot.choice(2_000_000, kept, replace=False)
    data += np.stack([buckets, lot.permutation(kept)], axis=1).astype("<i4").tobytes()
    data += quantised(lot, len(words) + kept, by_norm, each)
    data += struct.pack("<?qq", False, len(counts), 16) + lot.normal(0, 2, len(counts) * 16).astype("<f4").tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("seed", "by_norm", "each", "counts"),
    [
        (1, True, 2, [50, 40, 30, 20, 10]),
        (2, False, 2, [7] * 33),  # ties
        (3, False, 3, [900, 500, 500, 3, 3, 3, 1, 0, 0]),  # codes that do not divide the columns
        (4, True, 16, [2, 1]),
        (0, False, 4, [5, 4, 3]),  # no n-grams at all
    ],
)
def test_labels_by_a_made_up_model_are_those_of_fasttext(
    tmp_path: Path, seed: int, by_norm: bool, each: int, counts: list[int]
) -> None:
    path = write_model(tmp_path / "model.ftz", seed, by_norm, each, counts)
    texts = odd_texts(random.Random(seed), 300)
    labels, scores = ours(*read_model(path), texts)
    wanted, wanted_scores = theirs(path, texts)
    assert labels == wanted
    assert np.abs(scores - wanted_scores).max() < 1e-4
    assert len(set(labels)) > 1


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (0, 1, "not a fastText model"),
        (4, 11, "not a fastText model"),
        *[(place, 99, "another kind") for place in (8, 28, 32, 36, 40, 44, 48)],  # dim … longest n-gram
        (64, -1, "counts make no sense"),
        (68, 10**9, "counts make no sense"),
        (84, -1, "counts make no sense"),
        (92, 0x41414141, "words make no sense"),
    ],
)
def test_other_and_damaged_models_are_refused(tmp_path: Path, at: int, value: int, problem: str) -> None:
    data = bytearray(_model_file().read_bytes())
    struct.pack_into("<i", data, at, value)
    path = tmp_path / "model.ftz"
    path.write_bytes(data)
    with pytest.raises(BadModel, match=problem):
        read_model(path)


def test_cut_and_changed_models_are_refused_or_can_be_used(tmp_path: Path) -> None:
    """Whatever the file holds, no other exception and no reading beyond an array comes of it."""
    path, lot = tmp_path / "model.ftz", random.Random(9)
    good = write_model(path, 1, True, 2, [5, 4, 3]).read_bytes()
    refused = 0
    for turn in range(300):
        data = bytearray(good)
        if turn % 3 == 0:
            del data[lot.randrange(len(data)) :]
        for _ in range(turn % 3):
            data[lot.choice((lot.randrange(1500), lot.randrange(len(data))))] = lot.choice((0, 1, 127, 128, 255))
        path.write_bytes(data)
        try:
            model, labels = read_model(path)
        except BadModel:
            refused += 1
            continue
        _, scores = ours(model, labels, ["Der Hund und die Katze", "天气"])
        assert ((scores > 0) & (scores <= 1)).all()
    assert 100 <= refused < 300
    path.write_bytes(good + b"\0")
    with pytest.raises(BadModel, match="longer"):
        read_model(path)
