"""Stretched positions and windows of attention: in the tuned model, in its GGUF file, and refused where unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_training import context, train_params, write_dataset

from inhouse.compress.convert import convert
from inhouse.compress.convert_child import check_positions
from inhouse.compress.parity import adapter_logits
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.engines import llamacpp
from inhouse.engines.gguf_header import read_header
from inhouse.engines.llamacpp import LlamaCppSettings, start_server
from inhouse.engines.rope import RopeScaling, longest_text, scale_rope, shaped_like, window_attention
from inhouse.engines.transformers import open_model
from inhouse.train import stage
from inhouse.train.card import about_reach

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TURNS = [Message(role="user", content="oil wheat 银行 " * 20), Message(role="assistant", content="crude")]
LONG = Row(id="0", messages=TURNS, source="s", offset=0)


@pytest.fixture(scope="module")
def stretched(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Input, Input]:
    """The tiny model trained with YaRN from 64 to 256 positions, and its base."""
    work = tmp_path_factory.mktemp("stretched")
    asked = train_params(rope_scaling=YARN, max_steps=3, turns="all")
    given = context(tiny_llama, write_dataset(work / "data"), work)
    made = stage.run(asked, given)
    record = given.inputs["base"].record.model_copy(update={"facts": made.facts})
    return given.inputs["base"], Input(record, work / "out")


def test_rope_scaling_of_a_training_stands_in_the_merged_config(stretched: tuple[Input, Input]) -> None:
    _, tuned = stretched
    config = json.loads((tuned.path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert {name: config["rope_parameters"][name] for name in YARN} == YARN
    assert config["max_position_embeddings"] == 256
    assert tuned.record.facts["model"]["context_length"] == 256


def test_adapter_on_the_base_reads_positions_as_the_merged_model_does(stretched: tuple[Input, Input]) -> None:
    base, tuned = stretched
    logits = adapter_logits(base, tuned, [LONG])
    assert logits is not None
    engine = open_model(tuned, dtype="fp32", threads=1)
    ids = engine.token_ids(LONG.prompt)
    assert len(ids) > 64  # the stretching shows
    assert (engine.all_logits(ids)[-1] - logits[0]).abs().max() < 1e-3


def test_card_says_how_positions_are_stretched(stretched: tuple[Input, Input]) -> None:
    said = (stretched[1].path / "README.md").read_text(encoding="utf-8")
    assert "yarn, factor 4, from 64 positions" in said and "up to 256" in said and "sliding_window" not in said


def test_card_says_how_far_attention_looks_back() -> None:
    window = {"sliding_window": 4096, "layer_types": ["sliding_attention"], "rope_parameters": {"rope_type": "default"}}
    assert "Attention sees the last 4,096 tokens" in about_reach(window)
    assert about_reach({**window, "sliding_window": None}) == ""


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"sliding_window": 32}, 32),
        ({"sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]}, 32),
        ({"sliding_window": 32, "use_sliding_window": False}, None),
        ({"sliding_window": 32, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": None}, None),
        ({}, None),
    ],
)
def test_window_that_a_gguf_file_does_not_carry_is_told(
    config: dict[str, Any], window: int | None, gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    told = Events(tmp_path / "events.jsonl")
    convert(tmp_path, gguf, "tiny", told)  # the file is there: only what it carries is looked at
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines() if window else []
    assert [json.loads(line)["facts"] for line in lines] == ([{"name": "tiny", "window": window}] if window else [])
    assert (tmp_path / "events.jsonl").exists() == bool(window)


@pytest.fixture(scope="module")
def gguf(stretched: tuple[Input, Input], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stretched model as llama.cpp reads it."""
    target = tmp_path_factory.mktemp("gguf") / "f16.gguf"
    convert(stretched[1].path / "merged", target, "tiny", Events())
    return target


def test_gguf_of_a_stretched_model_reads_as_transformers_does(stretched: tuple[Input, Input], gguf: Path) -> None:
    _, tuned = stretched
    found = read_header(gguf).metadata
    assert found["llama.rope.scaling.type"] == "yarn" and found["llama.rope.scaling.factor"] == 4.0
    assert found["llama.rope.scaling.original_context_length"] == 64 and found["llama.context_length"] == 256
    facts = tuned.record.facts["model"] | {"format": "gguf", "main": gguf.name}
    exported = Input(tuned.record.model_copy(update={"facts": {"model": facts}}), gguf.parent)
    expected = open_model(tuned, dtype="fp32", threads=1).next_logprobs([LONG.prompt], 20)[0]
    engine = llamacpp.open_model(exported, threads=1, context_length=256)
    try:
        assert len(engine.token_ids(LONG.prompt)) > 128
        given = engine.next_logprobs([LONG.prompt], 200)[0]
    finally:
        engine.close()
    assert max(abs(given[token] - value) for token, value in expected.items()) < 0.02


def test_llamacpp_takes_a_context_as_long_as_positions_are_stretched(gguf: Path) -> None:
    scaling = RopeScaling(rope_type="linear", factor=2, original_max_position_embeddings=64)
    server = start_server(gguf, LlamaCppSettings(context_length=2000, threads=1, rope_scaling=scaling))
    try:
        assert server.context_length == 128 and server.healthy()
    finally:
        server.stop()
    dynamic = LlamaCppSettings(threads=1, rope_scaling=RopeScaling(rope_type="dynamic", factor=2))
    with pytest.raises(UserError, match="linear and yarn"):
        start_server(gguf, dynamic)


def test_dynamic_scaling_is_not_converted_without_a_word(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    check_positions(tiny_llama, "tiny")
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = scale_rope(plain, RopeScaling(rope_type="dynamic", factor=2))
    assert longest_text(model.config) == 1024 and model.config.max_position_embeddings == 512
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        check_positions(tmp_path, "tiny")
    assert error.value.code == "rope.dynamic_gguf"


def test_attention_window_equals_a_mask_by_hand(stretched: tuple[Input, Input]) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    plain = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_hidden_layers=2, **sizes)).eval()
    ids = torch.randint(0, 50, (1, 40))
    seen = torch.ones(40, 40).tril().triu(-7).bool()[None, None]  # each sees eight: itself and seven before
    with torch.inference_mode():
        expected = plain(ids, attention_mask=torch.where(seen, 0.0, torch.finfo(torch.float32).min)).logits
        found = window_attention(plain, 8)(ids, use_cache=False).logits
        full = plain(ids).logits
    assert (found - expected).abs().max() < 1e-5 < (full - expected).abs().max()


def test_shapes_that_an_architecture_lacks_are_refused(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    llama = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(UserError, match="no sliding window"):
        window_attention(llama, 16)
    stretched = scale_rope(llama, RopeScaling(factor=2))
    with pytest.raises(UserError, match="stretched already"):
        scale_rope(stretched, RopeScaling(factor=2))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="no rotary positions"):
        scale_rope(gpt2, RopeScaling(factor=2))
    assert shaped_like(llama, tiny_llama) is llama


def test_attention_window_of_a_training_is_refused_by_its_setting(tiny_llama: Path, tmp_path: Path) -> None:
    given = context(tiny_llama, write_dataset(tmp_path / "data"), tmp_path)
    with pytest.raises(UserError) as error:
        stage.run(train_params(attention_window=16), given)
    assert error.value.code == "rope.no_window"
