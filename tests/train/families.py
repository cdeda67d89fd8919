"""Tiny random models of every family that training promises to work with, all with one small tokenizer."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact
from inhouse.core.protocols import Input

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
ROUTED = {**GROUPED, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """One architecture: its `model_type` in transformers, and settings that make it tiny."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    causal: bool = True


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", GROUPED),
    "yi": Family("llama", {**GROUPED, "rope_theta": 5_000_000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu"}),
    "qwen2": Family("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": Family("qwen3", {**GROUPED, "head_dim": 16}),
    "glm": Family("glm", {**GROUPED, "head_dim": 16, "attention_bias": True}),
    "glm4": Family("glm4", {**GROUPED, "head_dim": 16, "attention_bias": True}),
    "mistral": Family("mistral", {**GROUPED, "sliding_window": 24}),
    "mixtral": Family("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": Family("qwen2_moe", {**ROUTED, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": Family("qwen3_moe", {**ROUTED, "head_dim": 16}),
    "falcon": Family("falcon", {**SMALL, "alibi": False}),
    "falcon_alibi": Family("falcon", {**SMALL, "alibi": True}),
    "gpt2": Family("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "opt": Family("opt", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bert": Family("bert", SMALL, causal=False),
}


def make_family(name: str, tokenizer: Path, folder: Path) -> Path:
    """A Hugging Face folder with a random model of the family, and the tokenizer of another folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    family = FAMILIES[name]
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.for_model(
        family.kind,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **family.settings,
    )
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if family.causal else AutoModelForMaskedLM
    kind.from_config(config).save_pretrained(folder)
    for file in TOKENIZER:
        if (tokenizer / file).exists():
            shutil.copy(tokenizer / file, folder / file)
    return folder


def make_lively(tiny: Path, folder: Path) -> Path:
    """The tiny model with larger embeddings: tied and as small as drawn, they allow no sure answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def as_input(folder: Path, **facts: Any) -> Input:
    """A model folder as an artifact."""
    header = {"format": "safetensors", "main": ".", "name": "tiny", **facts}
    record = Artifact(
        id="m", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="",
        facts={"model": header},
    )  # fmt: skip
    return Input(record, folder)
