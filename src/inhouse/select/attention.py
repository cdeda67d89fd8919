"""How a model attends, from its header alone: heads, the bytes that a token of its cache takes, window, positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.model import ModelFacts
from inhouse.engines.gguf_header import GgufHeader
from inhouse.engines.gguf_header import read_header as read_gguf
from inhouse.engines.model_files import read_json
from inhouse.engines.rope import FULL, SLIDING, window_of
from inhouse.select.memory import kv_cache_bytes

ENCODERS = frozenset({"bert", "roberta", "distilbert", "deberta", "deberta-v2", "electra", "xlm-roberta"})
COMPRESSED = "kv_lora_rank"  # keys and values are kept as something smaller: the formula below does not hold
HEAD = ("head_dim", "attention_head_size")
# Of so many layers the last one sees all, where the header has a window and names no pattern; of others all have it.
PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt-oss": 2, "gpt_oss": 2, "cohere2": 4}


class Attention(Frozen):
    """How a model attends and tells positions. None: the header does not say, or the model has no such thing."""

    layers: int
    heads: int
    kv_heads: int = Field(description="fewer than heads: query heads share keys and values in groups (GQA)")
    head_size: int = Field(description="numbers of a key, and of a value")
    heads_per_kv_head: int
    kv_bytes_per_token: int | None = Field(description="keys and values of all layers in 16 bits; None: keeps no such")
    kv_bytes_at_context: int | None = Field(description="of one text as long as context_length")
    sliding_window: int | None = Field(None, description="tokens that a layer looks back over; None: over all")
    sliding_layers: int = Field(0, description="layers that have the window")
    context_length: int | None = Field(None, description="longest text by the header, scaling counted in")
    positions: str | None = Field(None, description="default, linear, dynamic, yarn, llama3, …; None: not rotary")
    rope_theta: float | None = None
    rope_factor: float | None = Field(None, description="how many times positions are stretched")
    native_context: int | None = Field(None, description="longest text before positions were stretched")


def attention_of(facts: ModelFacts, path: Path) -> Attention | None:
    """The facts of the model that lies in `path`; None where its header does not tell heads and layers."""
    if facts.format == "remote" or not (facts.layers and facts.heads):
        return None
    if facts.format == "gguf":
        return _of_gguf(facts, read_gguf(path / facts.main))
    found = read_json(path / facts.main / "config.json")
    config = found.get("text_config") if isinstance(found.get("text_config"), dict) else found
    return _of_config(facts, config)


def _made(facts: ModelFacts, head_size: int, kept: bool, more: Mapping[str, Any]) -> Attention:
    """What both formats share. `kept`: the model keeps keys and values as they are."""
    layers, heads = facts.layers or 0, facts.heads or 1
    kv_heads = facts.kv_heads or heads
    per_token = kv_cache_bytes(layers, kv_heads, head_size, 1) if kept else None
    length = more.get("context_length")
    window, windowed = more.get("sliding_window"), more.get("sliding_layers", 0)
    whole = None
    if per_token is not None and length:
        seen = layers * length if not window else (layers - windowed) * length + windowed * min(window, length)
        whole = per_token // layers * seen
    return Attention(
        layers=layers, heads=heads, kv_heads=kv_heads, head_size=head_size, heads_per_kv_head=heads // kv_heads,
        kv_bytes_per_token=per_token, kv_bytes_at_context=whole, **more,
    )  # fmt: skip


def _of_config(facts: ModelFacts, config: Mapping[str, Any]) -> Attention:
    sizes = [config[name] for name in HEAD if isinstance(config.get(name), int)]
    size = sizes[0] if sizes else (facts.hidden or 0) // (facts.heads or 1)
    window = window_of(config)
    kept = facts.architecture not in ENCODERS and COMPRESSED not in config
    more = {"sliding_window": window, "sliding_layers": _windowed(config, facts.layers or 0) if window else 0}
    return _made(facts, size, kept, more | _positions(config, facts.context_length))


def _windowed(config: Mapping[str, Any], layers: int) -> int:
    """Layers that have the window; where none is named, all (of Qwen those behind the first ones)."""
    kinds = config.get("layer_types")
    if isinstance(kinds, Sequence) and kinds:
        return sum(kind == SLIDING for kind in kinds)
    if config.get("use_sliding_window"):
        first = config.get("max_window_layers")
        return max(0, layers - first) if isinstance(first, int) else layers
    return layers - layers // PATTERNS[kind] if (kind := config.get("model_type")) in PATTERNS else layers


def _positions(config: Mapping[str, Any], length: int | None) -> dict[str, Any]:
    """Rotary positions as transformers writes them now (rope_parameters) and did before (rope_scaling)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get(FULL, rope) if isinstance(rope, dict) else {}
    theta = rope.get("rope_theta") or config.get("rope_theta")
    if not rope and theta is None:
        return {"context_length": length, "native_context": length}
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    factor = _number(rope.get("factor")) if kind != "default" else None
    native = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or length
    if kind == "dynamic" and length and factor:  # transformers keeps the native length here
        length = int(length * factor)
    return {
        "context_length": length, "positions": kind, "rope_theta": _number(theta), "rope_factor": factor,
        "native_context": native if isinstance(native, int) else length,
    }  # fmt: skip


def _of_gguf(facts: ModelFacts, header: GgufHeader) -> Attention:
    name = header.text("general.architecture") or ""
    size = header.number(f"{name}.attention.key_length") or (facts.hidden or 0) // (facts.heads or 1)
    window = header.number(f"{name}.attention.sliding_window") or None
    layers = facts.layers or 0
    windowed = layers - layers // PATTERNS[name] if name in PATTERNS else layers
    kept = facts.architecture not in ENCODERS and header.number(f"{name}.attention.{COMPRESSED}") is None
    theta = _number(header.metadata.get(f"{name}.rope.freq_base"))
    rotary = theta is not None or header.number(f"{name}.rope.dimension_count") is not None
    kind = header.text(f"{name}.rope.scaling.type") or "default"
    kind = "default" if kind == "none" else kind
    factor = _number(header.metadata.get(f"{name}.rope.scaling.factor")) if kind != "default" else None
    native = header.number(f"{name}.rope.scaling.original_context_length") or facts.context_length
    more: dict[str, Any] = {
        "sliding_window": window, "sliding_layers": windowed if window else 0,
        "context_length": facts.context_length, "positions": kind if rotary else None, "rope_theta": theta,
        "rope_factor": factor, "native_context": native,
    }  # fmt: skip
    return _made(facts, size, kept, more)


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None
