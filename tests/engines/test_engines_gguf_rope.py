"""Stretched positions of GGUF files: the model that is read is the one that the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from inhouse.core.errors import UserError
from inhouse.engines.gguf_header import read_header
from inhouse.engines.gguf_rope import refuse_scaled, rope_of
from inhouse.engines.torch_gguf import gguf_model

HEADS, KV_HEADS, HIDDEN, FEED, VOCABULARY, POSITIONS = 4, 2, 64, 96, 50, 16_384
BASE = 500_000.0
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def model_with(rope: dict[str, Any]) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FEED, num_hidden_layers=1,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=POSITIONS,
        rope_parameters={"rope_theta": BASE, **rope}, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def divisors(factor: float) -> list[float]:
    """What each frequency is divided by, as transformers' own function has it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = model_with({"rope_type": "llama3", **LLAMA3, "factor": factor}).config
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    plain = BASE ** -(torch.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
    return (plain / found).tolist()


def write(path: Path, model: PreTrainedModel, divided: list[float] | None = None, **keys: Any) -> Path:
    kind_of = model.config.model_type
    writer = gguf.GGUFWriter(path, kind_of)
    for name, value in {
        "context_length": POSITIONS, "embedding_length": HIDDEN, "block_count": 1, "feed_forward_length": FEED,
        "head_count": HEADS, "head_count_kv": KV_HEADS, "layer_norm_rms_eps": 1e-6,
        "rope_dimension_count": HIDDEN // HEADS, "rope_freq_base": BASE, "vocab_size": VOCABULARY, **keys,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_token_list([f"t{n}" for n in range(VOCABULARY)])
    for name, tensor in model.state_dict().items():
        layer, kind = name.removesuffix(".weight").rpartition("model.layers.0.")[::2]
        values = tensor.numpy()
        if kind_of == "llama" and kind.endswith(("q_proj", "k_proj")):  # llama.cpp's order of rotary pairs
            heads = HEADS if "q_proj" in kind else KV_HEADS
            values = values.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(values.shape)
        before = "blk.0." if "layers.0" in name else ""
        writer.add_tensor(f"{before}{NAMES[kind or layer]}.weight", np.ascontiguousarray(values))
    if divided is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divided, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LINEAR = {"rope_scaling_type": gguf.RopeScalingType.LINEAR, "rope_scaling_factor": 4.0}
YARN = {"rope_scaling_type": gguf.RopeScalingType.YARN, "rope_scaling_factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "default"}, {}),
        ({"rope_type": "linear", "factor": 4.0}, LINEAR),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
            {**YARN, "rope_scaling_orig_ctx_len": 4096},
        ),
        ({"rope_type": "llama3", **LLAMA3}, {"divided": divisors(8.0)}),
    ],
    ids=["plain", "linear", "yarn", "llama3"],
)
def test_model_of_a_file_reads_positions_as_the_model_that_was_written(
    tmp_path: Path, rope: dict[str, Any], keys: dict[str, Any]
) -> None:
    model = model_with(rope)
    found = gguf_model(write(tmp_path / "m.gguf", model, **keys), torch.float32).eval()
    assert found.config.rope_parameters["rope_type"] == rope["rope_type"]
    ids = torch.arange(300).remainder(VOCABULARY)[None]
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, model(ids).logits, atol=1e-4)
        if keys:
            other = model_with({"rope_type": "default"})
            assert not torch.allclose(other(ids).logits, model(ids).logits, atol=1e-2)


@pytest.mark.parametrize(
    "keys",
    [
        {"divided": [1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]},
        {"divided": divisors(8.0), **LINEAR},
        {"rope_scaling_type": gguf.RopeScalingType.LONGROPE, "rope_scaling_factor": 4.0},
        {"rope_scaling_type": gguf.RopeScalingType.LINEAR},
        YARN,
        {**YARN, "rope_scaling_orig_ctx_len": 4096, "rope_scaling_attn_factors": 1.3},
    ],
    ids=["other divisors", "both", "longrope", "no factor", "no length", "another factor"],
)
def test_positions_stretched_in_an_unknown_way_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = write(tmp_path / "m.gguf", model_with({"rope_type": "default"}), **keys)
    with pytest.raises(UserError) as error:
        gguf_model(path, torch.float32)
    assert error.value.code == "torch.gguf_rope" and "m.gguf" in str(error.value)
    with pytest.raises(UserError):
        refuse_scaled(path, read_header(path))


def test_scaling_of_kind_none_is_none(tmp_path: Path) -> None:
    model = model_with({"rope_type": "default"})
    path = write(tmp_path / "m.gguf", model, rope_scaling_type=gguf.RopeScalingType.NONE)
    assert rope_of(path, read_header(path)) == {}
    refuse_scaled(path, read_header(path))


def test_heads_of_another_size_than_usual_are_read(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FEED, num_hidden_layers=1, head_dim=32,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        rope_parameters={"rope_theta": BASE, "rope_type": "default"},
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    path = write(tmp_path / "q.gguf", model, key_length=32, value_length=32, rope_dimension_count=32)
    found = gguf_model(path, torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, model(ids).logits, atol=1e-4)
