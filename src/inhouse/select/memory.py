"""Estimate memory: weights, KV cache, training. Plain formulae, each with its source; meant to be right within 30 %."""

from __future__ import annotations

from typing import Literal

from inhouse.core.artifact import Frozen

Verdict = Literal["fits", "tight", "too_large"]
Method = Literal["lora", "full"]

# Bits a weight costs, block scales included: GGML_QUANT_SIZES of gguf (bytes per block x 8 / weights per block);
# q4_k_m is the mean of published files (4.85 for Llama 3 8B, llama.cpp tools/quantize/README.md).
BITS = {"f32": 32.0, "bf16": 16.0, "f16": 16.0, "q8_0": 8.5, "q4_k_m": 4.85, "q4_1": 5.0, "q4_0": 4.5}
RUNTIME_BYTES = 300 * 2**20  # an engine's process without a model (measured: llama.cpp about 150 MB, torch 450 MB)
TIGHT_FROM = 0.8  # of the memory: above it the machine begins to swap with anything else running


class Shape(Frozen):
    """What of a model the formulae need."""

    parameters: int
    layers: int
    kv_heads: int
    head_size: int
    hidden: int
    heads: int
    vocabulary: int


def weights_bytes(parameters: int, kind: str) -> int:
    """Bytes of the weights stored as `kind` (a key of BITS)."""
    return int(parameters * BITS[kind] / 8)


def kv_cache_bytes(layers: int, kv_heads: int, head_size: int, tokens: int) -> int:
    """Bytes of a 16-bit KV cache: a key and a value per layer, head and token.

    Pope et al. 2022, Efficiently Scaling Transformer Inference, section 3.3; Ainslie et al. 2023 for grouped heads.
    """
    return 2 * layers * kv_heads * head_size * tokens * 2


def serving_bytes(weights: int, cache: int) -> int:
    """Bytes that an engine needs to answer: weights, KV cache, and the process itself."""
    return weights + cache + RUNTIME_BYTES


def state_bytes(parameters: int, trained: int, method: Method) -> int:
    """Bytes of weights, gradients and Adam's two moments in fp32, without activations.

    16 bytes for a trained weight (4 weight + 4 gradient + 8 moments; Rajbhandari et al. 2020, ZeRO, section 3.1,
    counts the same 16 for mixed precision), 4 for a frozen one.
    """
    if method == "full":
        return 16 * parameters
    return 4 * parameters + 16 * trained


def activation_bytes(shape: Shape, batch: int, tokens: int) -> int:
    """Bytes of fp32 activations kept for the backward pass, logits included, no checkpointing.

    Korthikanti et al. 2022, Reducing Activation Recomputation, eq. 1: s b h (34 + 5 a s / h) a layer with 16-bit
    values; twice that in fp32. The logits and their gradient: 2 x 4 bytes x s b V.
    """
    layer = tokens * batch * shape.hidden * (34 + 5 * shape.heads * tokens / shape.hidden)
    return int(2 * shape.layers * layer + 8 * tokens * batch * shape.vocabulary)


def lora_parameters(shape: Shape, rank: int) -> int:
    """Weights that LoRA on all linear layers trains, to first order: 18 x rank x hidden a layer.

    Seven matrices (q k v o gate up down), each rank x (inputs + outputs), with a feed-forward width near 2.7 x
    hidden and narrow k and v (Hu et al. 2021, section 4.2).
    """
    return 18 * rank * shape.hidden * shape.layers


def training_bytes(shape: Shape, method: Method, batch: int, tokens: int) -> int:
    """Bytes that fine-tuning needs on this machine in fp32, at LoRA rank 16."""
    trained = shape.parameters if method == "full" else lora_parameters(shape, 16)
    state = state_bytes(shape.parameters, trained, method)
    return state + activation_bytes(shape, batch, tokens) + RUNTIME_BYTES


def verdict(needed: int, available: int) -> Verdict:
    """Whether `needed` bytes go into `available` bytes."""
    if needed > available:
        return "too_large"
    return "tight" if needed > TIGHT_FROM * available else "fits"
