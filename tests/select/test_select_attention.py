"""How a model attends, from its header: against caches that transformers itself fills, and headers written by hand."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_model_inspect import CONFIGS

from inhouse.api.models import Model
from inhouse.cli.model_views import model as view
from inhouse.core.messages import use_language
from inhouse.core.model import ModelFacts
from inhouse.select.attention import Attention, attention_of
from inhouse.select.inspect import inspect, inspect_gguf

TOKENS = 5


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "bert"])
def test_cache_of_a_family_takes_the_bytes_that_transformers_fills(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **CONFIGS[family])).half()
    model.save_pretrained(tmp_path)
    found = attention_of(inspect(tmp_path), tmp_path)
    with torch.no_grad():
        cache = model(torch.ones(1, TOKENS, dtype=torch.long), use_cache=True).past_key_values
    kept = sum(part.numel() * part.itemsize for layer in cache.layers for part in (layer.keys, layer.values))
    assert found is not None and found.kv_bytes_per_token == kept / TOKENS
    assert found.heads == found.kv_heads * found.heads_per_kv_head
    assert (found.positions is None) == (family in ("gpt2", "opt"))


def facts(**more: Any) -> ModelFacts:
    plain: dict[str, Any] = {
        "format": "safetensors", "main": ".", "name": "m", "architecture": "llama", "layers": 4, "heads": 8,
        "kv_heads": 2, "hidden": 64, "context_length": 1000,
    }  # fmt: skip
    return ModelFacts.model_validate(plain | more)


def told(folder: Path, config: dict[str, Any], **more: Any) -> Attention:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = attention_of(facts(**more), folder)
    assert found is not None
    return found


def test_encoder_and_compressed_keys_have_no_cache_of_this_form(tmp_path: Path) -> None:
    assert told(tmp_path, {}, architecture="bert").kv_bytes_per_token is None
    assert told(tmp_path, {"kv_lora_rank": 512}).kv_bytes_at_context is None


def test_window_bounds_the_cache_of_the_layers_that_have_it(tmp_path: Path) -> None:
    each = 2 * 2 * 2 * 8  # a key and a value, two heads of 8 numbers in 16 bits
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    found = told(tmp_path, {"sliding_window": 100, "layer_types": kinds})
    assert (found.sliding_window, found.sliding_layers) == (100, 3)
    assert found.kv_bytes_at_context == each * (3 * 100 + 1000)
    assert told(tmp_path, {"sliding_window": 100}).kv_bytes_at_context == each * 4 * 100
    qwen = {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3}
    assert told(tmp_path, qwen).sliding_layers == 1
    assert told(tmp_path, qwen | {"use_sliding_window": False}).sliding_window is None
    assert told(tmp_path, {"sliding_window": 100, "model_type": "gemma2"}).sliding_layers == 2


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"rope_theta": 1e4}, ("default", None, 1000, 1000)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1e4}, ("linear", 4.0, 1000, 1000)),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}},
         ("yarn", 4.0, 250, 1000)),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ("dynamic", 2.0, 1000, 2000)),
        ({"rope_parameters": {"full_attention": {"rope_type": "llama3", "factor": 8.0}, "sliding_attention": {}}},
         ("llama3", 8.0, 1000, 1000)),
        ({"rope_parameters": {"rope_type": "yarn", "factor": float("inf")}}, ("yarn", None, 1000, 1000)),
        ({}, (None, None, 1000, 1000)),
    ],
)  # fmt: skip
def test_stretched_positions_are_told_with_their_native_length(
    config: dict[str, Any], wanted: tuple[Any, ...], tmp_path: Path
) -> None:
    found = told(tmp_path, config)
    assert (found.positions, found.rope_factor, found.native_context, found.context_length) == wanted


def gguf(path: Path, name: str = "llama", scaled: bool = True) -> Path:
    import numpy as np
    from gguf import GGUFWriter, RopeScalingType

    writer = GGUFWriter(path, name)
    writer.add_block_count(4)
    writer.add_embedding_length(64)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_context_length(1000)
    if scaled:
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(250)
        writer.add_sliding_window(100)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_header_tells_heads_window_and_scaling(tmp_path: Path) -> None:
    found = attention_of(inspect_gguf(gguf(tmp_path / "a.gguf")), tmp_path)
    assert found is not None
    assert (found.heads, found.kv_heads, found.head_size, found.kv_bytes_per_token) == (8, 2, 16, 2 * 4 * 2 * 16 * 2)
    assert (found.positions, found.rope_factor, found.native_context, found.rope_theta) == ("yarn", 4.0, 250, 10000.0)
    assert (found.sliding_window, found.sliding_layers) == (100, 4)
    gemma = attention_of(inspect_gguf(gguf(tmp_path / "b.gguf", "gemma3")), tmp_path)
    assert gemma is not None and gemma.sliding_layers == 4
    plain = attention_of(inspect_gguf(gguf(tmp_path / "c.gguf", scaled=False)), tmp_path)
    assert plain is not None and (plain.positions, plain.sliding_window) == (None, None)


def test_remote_model_and_one_without_heads_tell_nothing(tmp_path: Path) -> None:
    assert attention_of(facts(format="remote"), tmp_path) is None
    assert attention_of(facts(heads=None), tmp_path) is None


def shown(attention: Attention | None, language: str, **more: Any) -> str:
    use_language(language)
    console = Console(width=120, file=StringIO())
    view(Model(id="i", path=Path("p"), facts=facts(**more), attention=attention, licences=(), source={}), console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_view_shows_how_a_model_attends_in_both_languages(tmp_path: Path) -> None:
    scaled = told(
        tmp_path,
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250},
         "sliding_window": 100},
    )  # fmt: skip
    said = shown(scaled, "en", parameters=5000, active_parameters=100, tensor_types={"F32": 3}, bytes=12_000)
    for words in ("8 query heads share 2", "(4 each), 8 numbers", "0.25 KiB a token", "100 tokens in 4 of 4 layers",
                  "stretched: yarn × 4 from 250 tokens", "1,000 tokens", "F32 × 3", "12.0 KB"):  # fmt: skip
        assert words in said
    assert "4 层中有 4 层只看最近 100 个 token" in shown(scaled, "zh")
    own = told(tmp_path, {"rope_theta": 5e5}, kv_heads=8, context_length=None)
    said = shown(own, "en")
    assert "keys and values of its own" in said and "base 500,000, not stretched" in said
    assert "every layer sees the whole text" in said
    assert "not rotary" in shown(told(tmp_path, {}, architecture="bert"), "en")
    assert "Attention" not in shown(None, "en", layers=None)
