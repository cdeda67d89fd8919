"""Documents in the order of a cross-encoder, beside what transformers computes for each pair alone."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inhouse.engines.backend import EngineSettings
from inhouse.engines.classifier import labels_in
from inhouse.engines.label_serving import LabelServing
from inhouse.engines.transformers_child import load
from inhouse.engines.transformers_serving import start
from inhouse.serve.direct import Borrowed
from inhouse.serve.measured import Measured
from inhouse.serve.requests import Limits
from inhouse.serve.routes import rerank

QUERY = "the bank"
DOCUMENTS = ["the bank of the river", "a", "grain and money and the bank", "[SEP] the bank", "money"]
LONG = "the bank of the river and the grain " * 20


def encoder(folder: Path, tokens: Path, labels: int | tuple[str, ...], **told: Any) -> Path:
    """A small BERT with random weights, wide apart so that scores differ, and a tokenizer that marks both texts."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokens)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5,
        id2label=dict(enumerate([f"label {n}" for n in range(labels)] if isinstance(labels, int) else labels)), **told,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("one"), tiny_llama, 1)


def opened(folder: Path) -> Any:
    asked = {
        "model": str(folder),
        "threads": 1,
        "context_length": 128,
        "parallel": 4,
        "adapters": {},
        "dtype": "fp32",
    }
    return load(asked)


def direct(folder: Path, query: str, document: str, label: int = 1, **more: Any) -> tuple[float, int]:
    """Score (of two labels, this one's share) and tokens of one pair, as transformers' documentation computes it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    told = AutoTokenizer.from_pretrained(folder)(query, document, return_tensors="pt", **more)
    with torch.inference_mode():
        logits = model(**told).logits[0].tolist()
    ahead = logits[0] if len(logits) == 1 else logits[label] - logits[1 - label]
    return 1 / (1 + math.exp(-ahead)), told["input_ids"].shape[1]


def test_pairs_read_together_score_as_each_read_alone(one: Path) -> None:
    engine = opened(one)
    assert engine.capabilities.rerank
    found = engine.score_pairs([(QUERY, document) for document in DOCUMENTS])
    alone = [direct(one, QUERY, document, split_special_tokens=True) for document in DOCUMENTS]
    assert found.scores == pytest.approx([score for score, _ in alone], abs=1e-4)
    assert found.tokens == sum(tokens for _, tokens in alone) and found.cut == ()
    assert max(found.scores) - min(found.scores) > 0.01


@pytest.mark.parametrize(
    ("labels", "told", "fits"),
    [
        (("not_duplicate", "duplicate"), {}, 1),
        (("Entailment", "not_entailment"), {}, 0),  # as GLUE has it
        (2, {"sentence_transformers": {"version": "5.1.0"}}, 1),
        (("LABEL_0", "LABEL_1"), {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1),
    ],
)
def test_of_two_labels_of_pairs_the_share_of_the_one_that_fits_is_the_score(
    tiny_llama: Path, tmp_path: Path, labels: Any, told: dict[str, Any], fits: int
) -> None:
    folder = encoder(tmp_path, tiny_llama, labels, **told)
    found = opened(folder).score_pairs([(QUERY, DOCUMENTS[0])])
    assert found.scores == pytest.approx([direct(folder, QUERY, DOCUMENTS[0], fits)[0]], abs=1e-4)


@pytest.mark.parametrize("labels", [("negative", "positive"), ("ham", "spam"), 2, ("LABEL_0", "LABEL_1"), 3])
def test_a_classifier_of_something_else_is_no_cross_encoder(tiny_llama: Path, tmp_path: Path, labels: Any) -> None:
    engine = opened(encoder(tmp_path, tiny_llama, labels))
    assert isinstance(engine, LabelServing) and not engine.capabilities.rerank


def test_one_output_without_a_name_is_a_cross_encoder(one: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nameless"
    shutil.copytree(one, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": 1}))
    engine = opened(folder)
    assert engine.capabilities.rerank and engine.engine.labels == ("LABEL_0",)
    assert engine.score_pairs([(QUERY, "a")]).scores == pytest.approx([direct(one, QUERY, "a")[0]], abs=1e-4)


def test_labels_without_names_are_transformers_own_within_reason() -> None:
    headed: dict[str, Any] = {"architectures": ["BertForSequenceClassification"]}
    assert labels_in(headed) == ("LABEL_0", "LABEL_1")  # what transformers leaves out of its file
    assert labels_in(headed | {"num_labels": 3, "id2label": None}) == ("LABEL_0", "LABEL_1", "LABEL_2")
    for wrong in (10**12, 0, -1, "2", None):
        assert labels_in(headed | {"num_labels": wrong}) == ()
    assert labels_in({"architectures": ["BertModel"], "num_labels": 1}) == ()


def test_pairs_and_vectors_leave_alone_how_chats_are_read_at_the_same_time(one: Path) -> None:
    engine = opened(one)
    chats = engine.engine.tokenizer.backend_tokenizer  # both are read on threads of their own

    def state() -> tuple[bool, Any]:
        return chats.encode_special_tokens, chats.truncation

    for special in (True, False):
        engine.tokenize("a", special)
        before = state()
        assert before == (not special, None)
        assert engine.score_pairs([(QUERY, LONG)]).cut == (0,) and state() == before
        assert len(engine.embed([QUERY])[0]) == 1 and state() == before


def test_a_pair_that_is_too_long_is_cut_and_told(one: Path) -> None:
    found = opened(one).score_pairs([(QUERY, DOCUMENTS[0]), (QUERY, LONG)])
    score, tokens = direct(one, QUERY, LONG, truncation=True, max_length=64)
    assert found.cut == (1,) and tokens == 64
    assert found.scores[1] == pytest.approx(score, abs=1e-4)


@pytest.fixture(scope="module")
def child(one: Path) -> Iterator[Any]:
    running = start(one, EngineSettings(context_length=128, parallel=4, threads=1), "cross")
    yield running
    running.stop()


def test_a_served_cross_encoder_scores_one_query_with_many_documents_in_parts(child: Any, one: Path) -> None:
    documents = [*DOCUMENTS * 8, LONG]  # more than are read at once

    async def scene() -> tuple[rerank.Compared, rerank.Compared, int]:
        engine = child.open()
        lent = Borrowed(engine, Limits(128, 4, 16, 0.0), "r:v1", Measured())
        many = await rerank._read_together(lent, [QUERY], documents)
        several = await rerank._read_together(lent, [QUERY, "money"], ["money", QUERY])
        await engine.close()
        return many, several, lent.seen.usage.prompt

    many, several, spent = asyncio.run(scene())
    assert child.capabilities.rerank
    assert many.told == {"method": "cross_encoder", "truncated": [len(documents) - 1]}
    assert many.scores[:5] == pytest.approx(
        [direct(one, QUERY, d, split_special_tokens=True)[0] for d in DOCUMENTS], abs=0.05
    )
    assert many.scores[5:10] == pytest.approx(many.scores[:5], abs=1e-3)
    assert len(several.scores) == 2 and several.told == {"method": "cross_encoder"}
    assert spent == many.tokens + several.tokens and many.usage["total_tokens"] == many.tokens
