"""Facts of a model from its header, against models that transformers itself builds and saves."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inhouse.core.errors import UserError
from inhouse.engines import safetensors_header
from inhouse.select.inspect import FAMILIES, active_parameters, inspect, plain_name

SMALL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **SMALL,
}
MOE = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
CONFIGS = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA,
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": MOE,
    "glm": {**LLAMA, "head_dim": 8},
    "glm4": {**LLAMA, "head_dim": 8},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **SMALL},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SMALL},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **SMALL,
    },
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **SMALL,
    },
}
KV_HEADS = {"falcon": 1, "gpt2": 4, "opt": 4, "bert": 4}


@pytest.mark.parametrize("family", CONFIGS)
def test_folder_of_a_family_has_the_facts_that_transformers_built(family, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.for_model(family, **CONFIGS[family])
    kind = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    model = kind.from_config(config)
    model.save_pretrained(tmp_path / family)
    facts = inspect(tmp_path / family)
    assert family in FAMILIES
    assert (facts.format, facts.main, facts.architecture, facts.name) == ("safetensors", ".", family, family)
    assert facts.parameters == model.num_parameters()
    assert (facts.layers, facts.hidden, facts.heads, facts.vocabulary) == (2, 32, 4, 64)
    assert facts.kv_heads == KV_HEADS.get(family, 2)
    assert facts.tensor_types.keys() == {"F32"}
    assert facts.bytes == (tmp_path / family / "model.safetensors").stat().st_size
    if family in ("mixtral", "qwen3_moe"):
        in_experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
        assert (facts.experts, facts.experts_used) == (4, 2)
        assert facts.active_parameters == facts.parameters - in_experts // 2
    else:
        assert facts.active_parameters == facts.parameters


def test_chat_template_of_a_folder_is_found(tiny_llama):
    assert inspect(tiny_llama).chat_template
    assert inspect(tiny_llama).context_length == 512


@pytest.mark.real
def test_facts_of_the_real_gguf(smollm2_gguf):
    facts = inspect(smollm2_gguf)
    assert (facts.format, facts.main, facts.architecture) == ("gguf", smollm2_gguf.name, "llama")
    assert (facts.parameters, facts.layers, facts.hidden, facts.heads, facts.kv_heads) == (134_515_008, 30, 576, 9, 3)
    assert (facts.vocabulary, facts.context_length, facts.chat_template) == (49152, 8192, True)
    assert facts.tensor_types == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    assert facts.name == "Smollm2-135M-8k-Lc100K-Mix1-Ep2"


def test_gguf_llama_with_experts_is_a_mixtral(write_gguf, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", llama__expert_count=4, llama__expert_used_count=1, llama__vocab_size=7)
    facts = inspect(path)
    assert (facts.architecture, facts.experts, facts.experts_used) == ("mixtral", 4, 1)
    assert (facts.parameters, facts.active_parameters, facts.vocabulary) == (128, 80, 7)


def test_name_in_a_header_cannot_lead_out_of_a_folder(write_gguf, tmp_path):
    assert inspect(write_gguf(tmp_path / "m.gguf")).name == "evil-name"
    assert plain_name("///") == "model"
    assert plain_name("通义 千问/1.5") == "通义-千问-1.5"


def test_folder_with_one_gguf_is_that_model(write_gguf, tmp_path):
    write_gguf(tmp_path / "m.gguf")
    assert inspect(tmp_path).main == "m.gguf"


def test_folder_with_two_gguf_asks_for_one(write_gguf, tmp_path):
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    assert _code(tmp_path) == "select.choose_file"


def test_part_of_a_split_gguf_is_refused(write_gguf, tmp_path):
    assert _code(write_gguf(tmp_path / "m.gguf", split__count=3)) == "select.split"


def _code(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect(path)
    assert str(caught.value)
    return caught.value.code


def write_folder(folder: Path, config: object = None, header: object = None, data: bytes = bytes(16)) -> Path:
    """A Hugging Face folder with one tensor of four F32 weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    entry = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    write_safetensors(folder / "model.safetensors", header or entry, data)
    return folder


def write_safetensors(path: Path, header: object, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_folder_with_little_in_its_configuration_is_read(tmp_path):
    facts = inspect(write_folder(tmp_path / "m", {"model_type": "llama", "_name_or_path": "org/My Model"}))
    assert (facts.name, facts.parameters, facts.layers, facts.chat_template) == ("My-Model", 4, None, False)


def test_text_part_of_a_larger_configuration_is_read(tmp_path):
    config = {"model_type": "mistral3", "text_config": {"model_type": "mistral", "hidden_size": 32}}
    facts = inspect(write_folder(tmp_path / "m", config))
    assert (facts.architecture, facts.hidden) == ("mistral", 32)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"])
def test_folder_with_only_pickled_weights_is_refused(name, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert _code(tmp_path) == "select.pickle"
    (tmp_path / "config.json").unlink()
    assert _code(tmp_path) == "select.pickle"
    assert _code(tmp_path / name) == "select.pickle"


def test_folder_with_pickles_beside_safetensors_is_read(tmp_path):
    (write_folder(tmp_path / "m") / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert inspect(tmp_path / "m").parameters == 4


@pytest.mark.parametrize(
    "config",
    [{"model_type": "llama", "auto_map": {"AutoModel": "modeling.Evil"}}, {"model_type": "chatglm"}],
)
def test_model_that_needs_its_own_code_is_refused(config, tmp_path):
    assert _code(write_folder(tmp_path / "m", config)) == "select.remote_code"


def test_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    folder = write_folder(tmp_path / "m")
    os.symlink("/etc/hostname", folder / "notes.txt")
    assert _code(folder) == "select.symlink"


def test_link_inside_the_folder_is_allowed(tmp_path):
    folder = write_folder(tmp_path / "m")
    os.symlink("config.json", folder / "generation_config.json")
    assert inspect(folder).parameters == 4


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_broken_configuration_is_refused(text, tmp_path):
    (write_folder(tmp_path / "m") / "config.json").write_text(text)
    assert _code(tmp_path / "m") == "select.config"


def test_configuration_larger_than_any_real_one_is_refused(tmp_path):
    with (write_folder(tmp_path / "m") / "config.json").open("wb") as f:
        f.truncate(65 * 2**20)
    assert _code(tmp_path / "m") == "select.config"


def test_empty_folder_holds_no_model(tmp_path):
    assert _code(tmp_path) == "select.no_model"
    (tmp_path / "config.json").write_text("{}")
    assert _code(tmp_path) == "select.no_model"


def test_lone_safetensors_file_asks_for_its_folder(tmp_path):
    assert _code(write_folder(tmp_path / "m") / "model.safetensors") == "select.config"


def test_index_that_names_missing_files_is_refused(tmp_path):
    folder = write_folder(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}))
    assert _code(folder) == "select.incomplete"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    assert inspect(folder).parameters == 4


@pytest.mark.parametrize("value", [[], {"weight_map": {"w": "../../etc/passwd"}}, {"weight_map": {"w": 1}}, {}])
def test_index_that_misleads_is_refused(value, tmp_path):
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))
    assert _code(folder) == "select.config"


def _one(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b"[" * 100_000,
        {"w": 1},
        {"w": {"dtype": "F32"}},
        _one(dtype="F99"),
        _one(shape="x"),
        _one(shape=[-1, -4]),
        _one(shape=[2**61, 2**61]),
        _one(shape=[True, 4]),
        _one(data_offsets=[0]),
        _one(data_offsets=[0, 999]),
        _one(data_offsets=[16, 0]),
        _one(data_offsets=[0, 8]),
    ],
)
def test_safetensors_that_mislead_are_refused(header, tmp_path):
    assert _code(write_folder(tmp_path / "m", header=header)) == "select.safetensors"


@pytest.mark.parametrize("raw", [b"", b"\1\0\0", struct.pack("<Q", 2**63), struct.pack("<Q", 1000) + b"{}"])
def test_safetensors_whose_header_exceeds_the_file_are_refused(raw, tmp_path):
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(raw)
    assert _code(folder) == "select.safetensors"


def test_half_byte_types_are_counted(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F4", "shape": [4, 8], "data_offsets": [0, 16]}}
    path = write_safetensors(tmp_path / "a.safetensors", header, bytes(16))
    assert safetensors_header.read_header(path)[0].elements == 32


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_give_a_user_error_or_tensors(data, tmp_path):
    good = write_folder(tmp_path / "m") / "model.safetensors"
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        assert all(t.elements >= 0 for t in safetensors_header.read_header(path))
    except UserError as error:
        assert error.code == "select.safetensors"


def test_active_parameters_without_a_count_are_all():
    assert active_parameters({"a": 3, "b.experts.w": 4}, None, None) == 7
    assert active_parameters({"a": 3, "b.experts.w": 4}, 4, 1) == 4
