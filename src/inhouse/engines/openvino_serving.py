"""OpenVINO GenAI as an engine that serves: continuous batching over a GGUF file, in a child process of ours."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.settings import usable_cores
from inhouse.engines.backend import EngineSettings
from inhouse.engines.gguf_header import GgufHeader
from inhouse.engines.model_files import check_gguf
from inhouse.engines.openvino_file import KNOWN, extra_seconds, kept_in, needs_writing
from inhouse.engines.process import Child, python_module
from inhouse.engines.wire import WireBackend, backend

NAME = "openvino"
# What the GGUF reader of openvino_genai 2026.4 turns into a graph, without its preview switches.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOKENIZERS = ("gpt2",)  # byte-level BPE: checked against llama.cpp token by token
BLOCK_TOKENS = 32  # of the paged KV cache, on CPUs
SPARE_BLOCKS = 8


class OpenVinoSettings(Params):
    """How OpenVINO holds and runs a model."""

    cache_mb: int = Field(1024, ge=16, description="memory for the KV cache of all requests and of known prefixes")
    batch_tokens: int = Field(512, ge=32, description="most tokens in one step; smaller = shorter stalls for others")
    kv_precision: Literal["u8", "f16"] = Field("u8", description="numbers of the KV cache; f16 needs 1.7x the memory")
    precision: Literal["auto", "f32", "bf16"] = Field(
        "auto",
        description="numbers that are multiplied; auto = the fastest of this CPU, f32 = as transformers computes",
    )
    properties: dict[str, str | int] = Field({}, description="further properties of OpenVINO's CPU plugin, by name")
    prefix_cache: bool = Field(True, description="keep the KV cache of prompts for those that begin alike")


@dataclass(frozen=True)
class Shape:
    """What decides how large a model's KV cache is."""

    layers: int
    kv_heads: int
    head_size: int

    def bytes_per_token(self, precision: str) -> float:
        """KV cache bytes of one token; u8 keeps a scale and a zero point a channel of keys and a row of values."""
        values = 2 * self.head_size * (2 if precision == "f16" else 1)
        scales = 0.0 if precision == "f16" else 8 + 8 * self.head_size / BLOCK_TOKENS
        return self.layers * self.kv_heads * (values + scales)


def start(source: Path, settings: EngineSettings, name: str, own: OpenVinoSettings | None = None) -> WireBackend:
    """Load a GGUF file in a child. A context longer than the model was made for is cut.

    A file of types that OpenVINO does not read is written once more, as Q8_0, in the cache.
    Raises openvino.unsupported, openvino.cache, openvino.no_space, openvino.not_loaded, process.load_timeout,
    process.died, and what `check_gguf` raises.
    """
    require("openvino", "openvino_genai", "jinja2")
    own = own or OpenVinoSettings()
    header = check_gguf(source)
    _supported(header, source)
    trained = header.number(f"{header.text('general.architecture')}.context_length")
    context = min(settings.context_length, trained or settings.context_length)
    asked = own.model_dump() | {
        "model": str(source),
        "context_length": context,
        "parallel": settings.parallel,
        "threads": settings.threads or usable_cores(),
        "blocks": cache_blocks(_shape(header), own, context),
        "cache": str(kept_in(settings.cache)),
        "parent": os.getpid(),
    }
    seconds = settings.load_timeout_s + (extra_seconds(source) if needs_writing(header) else 0)
    command = python_module("OpenVINO", "inhouse.engines.openvino_child", json.dumps(asked), seconds)
    child = Child(command)
    return backend(NAME, child, child.wait_ready(), settings.silence_s)


def cache_blocks(shape: Shape, own: OpenVinoSettings, context: int) -> int:
    """Blocks of the KV cache that fit `cache_mb`. Raises openvino.cache when one full request does not."""
    block = BLOCK_TOKENS * shape.bytes_per_token(own.kv_precision)
    blocks = int(own.cache_mb * 2**20 / block)
    least = math.ceil(context / BLOCK_TOKENS) + SPARE_BLOCKS
    if blocks < least:
        needed = math.ceil(least * block / 2**20)
        raise UserError("openvino.cache", cache_mb=own.cache_mb, needed_mb=needed, context=context)
    return blocks


def _supported(header: GgufHeader, path: Path) -> None:
    found = header.text("general.architecture")
    tokenizer = header.text("tokenizer.ggml.model")
    types = sorted({tensor.type for tensor in header.tensors} - set(KNOWN))
    if found not in ARCHITECTURES:
        raise UserError(
            "openvino.unsupported", path=path.name, what=f"architecture {found}", known=", ".join(ARCHITECTURES)
        )
    if tokenizer not in TOKENIZERS:
        raise UserError(
            "openvino.unsupported", path=path.name, what=f"tokenizer {tokenizer}", known=", ".join(TOKENIZERS)
        )
    if types:
        raise UserError("openvino.unsupported", path=path.name, what=", ".join(types), known=", ".join(KNOWN))


def _shape(header: GgufHeader) -> Shape:
    of = f"{header.text('general.architecture')}."
    heads = header.number(f"{of}attention.head_count") or 1
    size = header.number(f"{of}attention.key_length") or (header.number(f"{of}embedding_length") or heads) // heads
    kv_heads = header.number(f"{of}attention.head_count_kv") or heads
    return Shape(header.number(f"{of}block_count") or 1, kv_heads, size)
