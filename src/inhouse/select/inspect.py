"""What a model is, read from its header alone: a GGUF file, or config.json beside safetensors. Nothing is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.engines import safetensors_header
from inhouse.engines.classifier import labels_in
from inhouse.engines.gguf_header import ArrayValue, GgufHeader
from inhouse.engines.model_files import (
    PICKLES,
    check_folder_templates,
    check_gguf,
    indexed_weights,
    read_config,
    read_json,
    refuse_links,
    refuse_pickles,
)
from inhouse.sources.hub import is_wanted

# Families that training, conversion and serving were tried with; `model_type` of transformers.
FAMILIES = frozenset(
    {
        "bert", "falcon", "gemma", "gemma2", "glm", "glm4", "gpt2", "gpt_neox", "granite", "llama", "mistral",
        "mixtral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "roberta", "smollm3",
    }
)  # fmt: skip
# llama.cpp's names for the same families.
GGUF_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gptneox": "gpt_neox", "chatglm": "glm"}
# One fact, the names that different families give it.
KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "vocabulary": ("vocab_size",),
    "context_length": ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_used": ("num_experts_per_tok",),
}


def inspect(path: Path, trusted: bool = False) -> ModelFacts:
    """The facts of a .gguf file or a model folder, after checking that opening it later is safe.

    `main` is relative to the folder that will hold the model. `trusted`: code that a folder brings may be run.
    Raises gguf.*, engines.template_refused, select.pickle, select.remote_code, select.foreign_code, select.symlink,
    select.safetensors, select.no_model, select.adapter, select.choose_file, select.config, select.split.
    """
    if path.is_dir():
        refuse_links(path)
        return _inspect_folder(path, trusted)
    if path.suffix.lower() in PICKLES:
        raise UserError("select.pickle", path=path, file=path.name)
    if path.suffix.lower() == ".safetensors":
        raise UserError("select.config", path=path.parent / "config.json", reason="give the folder, not the file")
    return inspect_gguf(path)


def _inspect_folder(folder: Path, trusted: bool) -> ModelFacts:
    if (folder / "config.json").is_file():
        return inspect_folder(folder, trusted)
    found = sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return inspect_gguf(found[0])
    if found:
        raise UserError("select.choose_file", path=folder, files=", ".join(p.name for p in found[:12]))
    if (folder / "adapter_config.json").is_file():
        named = read_json(folder / "adapter_config.json")
        base = named.get("base_model_name_or_path") if isinstance(named, dict) else None
        raise UserError("select.adapter", path=folder, base=base if isinstance(base, str) and base else "?")
    refuse_pickles(folder)
    raise UserError("select.no_model", path=folder)


def inspect_gguf(path: Path) -> ModelFacts:
    """The facts of one GGUF file."""
    header = check_gguf(path)
    if (header.number("split.count") or 1) > 1:
        raise UserError("select.split", path=path, parts=header.number("split.count"))
    native = header.text("general.architecture") or "unknown"
    experts = header.number(f"{native}.expert_count") or None
    used = header.number(f"{native}.expert_used_count") if experts else None
    sizes = {t.name: t.elements for t in header.tensors}
    return ModelFacts(
        format="gguf",
        main=path.name,
        name=plain_name(header.text("general.name") or path.stem),
        architecture=_gguf_family(native, experts),
        parameters=sum(sizes.values()),
        active_parameters=active_parameters(sizes, experts, used),
        layers=header.number(f"{native}.block_count"),
        hidden=header.number(f"{native}.embedding_length"),
        heads=header.number(f"{native}.attention.head_count"),
        kv_heads=header.number(f"{native}.attention.head_count_kv") or header.number(f"{native}.attention.head_count"),
        vocabulary=_gguf_vocabulary(header, native),
        context_length=header.number(f"{native}.context_length"),
        experts=experts,
        experts_used=used,
        tensor_types=_counted(t.type for t in header.tensors),
        bytes=header.bytes,
        chat_template=bool(header.text("tokenizer.chat_template")),
    )


def _gguf_family(native: str, experts: int | None) -> str:
    if native == "llama" and experts:
        return "mixtral"  # llama.cpp stores it as a llama with experts
    return GGUF_NAMES.get(native, native)


def _gguf_vocabulary(header: GgufHeader, native: str) -> int | None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, ArrayValue) else header.number(f"{native}.vocab_size")


def inspect_folder(folder: Path, trusted: bool = False) -> ModelFacts:
    """The facts of a Hugging Face folder: config.json and the headers of its safetensors files."""
    config = read_config(folder / "config.json", trusted)
    check_folder_templates(folder)
    weights = _weight_files(folder)
    tensors = [t for path in weights for t in safetensors_header.read_header(path)]
    sizes = {t.name: t.elements for t in tensors}
    numbers = {key: _number(config, names) for key, names in KEYS.items()}
    family = str(config.get("model_type", "unknown"))
    experts, used = numbers["experts"], numbers["experts_used"]
    return ModelFacts(
        format="safetensors",
        main=".",
        name=_name(config, folder),
        architecture=family,
        parameters=sum(sizes.values()),
        active_parameters=active_parameters(sizes, experts, used),
        tensor_types=_counted(t.type for t in tensors),
        bytes=sum(p.stat().st_size for p in weights),
        chat_template=_has_template(folder),
        remote_code="auto_map" in config,
        labels=labels_in(config),
        **{**numbers, "kv_heads": _kv_heads(config, numbers)},
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; those that an index names must all be there."""
    if (listed := indexed_weights(folder)) is not None:
        return listed
    found = sorted(p for p in folder.glob("*.safetensors") if is_wanted(p.name))
    if not found:
        refuse_pickles(folder)
        raise UserError("select.no_model", path=folder)
    return found


def _number(config: Mapping[str, Any], names: Iterable[str]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _kv_heads(config: Mapping[str, Any], numbers: Mapping[str, int | None]) -> int | None:
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else numbers["heads"]
    return numbers["kv_heads"] or numbers["heads"]


def _name(config: Mapping[str, Any], folder: Path) -> str:
    given = config.get("_name_or_path")
    return plain_name(Path(given).name if isinstance(given, str) and given.strip("/. ") else folder.resolve().name)


def plain_name(text: str) -> str:
    """A name that may stand in a file's name: a header is untrusted, and others name files after it."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-")[:80] or "model"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    loaded = read_json(settings) if settings.is_file() else {}
    return isinstance(loaded, dict) and bool(loaded.get("chat_template"))


def active_parameters(sizes: Mapping[str, int], experts: int | None, used: int | None) -> int | None:
    """Weights that one token passes through: all but the experts that were not chosen."""
    total = sum(sizes.values())
    if not experts or not used:
        return total
    in_experts = sum(n for name, n in sizes.items() if ".experts." in name or "_exps." in name)
    return total - in_experts + in_experts * used // experts


def _counted(types: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(types).items()))
