"""A LoRA adapter that PEFT wrote, as the GGUF file that llama.cpp puts beside a base.

Names and the order of rows follow llama.cpp's convert_lora_to_gguf.py: `<tensor>.lora_a` (in, r) and `<tensor>.lora_b`
(r, out) as ggml orders dimensions; where the base's query and key rows were permuted for its rotary positions, so are
those of B. llama.cpp multiplies by alpha / r.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import FileHashes, hash_json
from inhouse.core.model import ModelFacts
from inhouse.core.plugins import require
from inhouse.core.store import Store, disk_errors
from inhouse.engines import safetensors_header
from inhouse.engines.gguf_header import GgufHeader, read_header
from inhouse.engines.model_files import read_json, refuse_links

if TYPE_CHECKING:
    import numpy as np

Array = Any  # numpy.ndarray of float32: numpy is loaded only when an adapter is written
VERSION = 1  # of the file this writes; part of the cache's key
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Architectures whose linear weights llama.cpp's converter renames only, and those where it permutes query and key too.
RENAMED = ("gemma", "gemma2", "gemma3", "olmo2", "phi3", "qwen2", "qwen3")
PERMUTED = ("granite", "llama", "smollm3")
# Settings of PEFT that change what an adapter computes, the value under which they do not, and what they are called.
PLAIN: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_dora": ((False, None), "DoRA"),
    "modules_to_save": ((None, []), "modules trained whole (modules_to_save)"),
    "bias": (("none", None), "trained biases"),
    "lora_bias": ((False, None), "trained biases"),
    "trainable_token_indices": ((None, [], {}), "trained token embeddings"),
    "layer_replication": ((None, []), "repeated layers"),
    "target_parameters": ((None, []), "adapted experts"),
    "alora_invocation_tokens": ((None, []), "activation by tokens (aLoRA)"),
    "fan_in_fan_out": ((False, None), "transposed weights (fan_in_fan_out)"),
    "use_qalora": ((False, None), "QA-LoRA"),
    "arrow_config": ((None,), "Arrow"),
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin that alter the base's own weights
NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class Pair:
    """One adapted weight: its tensor in the base, A (r, in), B (out, r), and by what B @ A is multiplied."""

    tensor: str
    a: Array
    b: Array
    scale: float


def adapter_for(store: Store, reference: str, base_gguf: Path) -> Path:
    """The GGUF adapter for a model artifact (its id) or a PEFT folder, on this base; made once for each content."""
    return gguf_adapter(peft_folder(store, reference, base_gguf), base_gguf, store.root / "adapters")


def peft_folder(store: Store, reference: str, base: Path) -> Path:
    """The PEFT folder of a model artifact (its id), or the one named itself; `base` is what it goes on."""
    folder = Path(reference)
    if (folder / CONFIG).is_file():
        return folder
    record = store.get(reference)
    adapter = ModelFacts.model_validate(record.facts.get("model", {})).adapter
    if adapter is None:
        raise UserError("engines.adapter_none", reference=reference)
    return store.path(record.id) / adapter


def gguf_adapter(folder: Path, base_gguf: Path, cache: Path) -> Path:
    """The GGUF adapter of a PEFT folder, from `cache` when the same was written there before."""
    _require_files(folder)
    header = read_header(base_gguf)
    shapes = [(t.name, t.shape) for t in header.tensors]
    hashes = FileHashes(cache / "hashes.json")
    content = [hashes.of(folder / name) for name in (CONFIG, WEIGHTS)]
    key = hash_json([VERSION, content, header.text("general.architecture"), _heads(header), shapes])
    out = cache / f"{key}.gguf"
    if not out.is_file():
        write_gguf_adapter(folder, base_gguf, out)
    return out


def write_gguf_adapter(folder: Path, base_gguf: Path, out: Path) -> None:
    """Write a PEFT LoRA folder as a GGUF adapter for a base, as float32; it appears whole or not at all.

    rsLoRA and settings per module (rank_pattern, alpha_pattern) are kept exactly. Raises engines.adapter_kind for what
    the format cannot hold, engines.adapter_base when the adapter does not fit the base, engines.adapter_family for an
    architecture whose order of rows is not known here, select.* and gguf.* for damaged files.
    """
    require("serve", "gguf", "numpy")
    _require_files(folder)
    refuse_links(folder)
    config = _read_config(folder)
    header = read_header(base_gguf)
    pairs = list(_pairs(folder, config, header))
    if not pairs:
        raise UserError("engines.adapter_base", adapter=folder.name, base=base_gguf.name, module="-")
    alpha = pairs[0].scale * pairs[0].a.shape[0]
    tensors: dict[str, Array] = {}
    for pair in pairs:
        own = pair.scale * pair.a.shape[0] / alpha  # 1 unless modules differ in their scale
        tensors[f"{pair.tensor}.lora_a"] = pair.a
        tensors[f"{pair.tensor}.lora_b"] = pair.b if own == 1 else pair.b * pair.b.dtype.type(own)
    _write(out, str(header.text("general.architecture")), alpha, tensors)


def check_adapter(path: Path) -> GgufHeader:
    """The header of a GGUF adapter; raise engines.adapter_file when the file is something else."""
    header = read_header(path)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    pairs = [name.removesuffix(".lora_a") for name in shapes if name.endswith(".lora_a")]
    good = bool(pairs) and all(
        len(shapes[f"{name}.lora_a"]) == 2 and len(shapes.get(f"{name}.lora_b", ())) == 2 for name in pairs
    )
    if not good or header.text("general.type") != "adapter" or header.text("adapter.type") != "lora":
        raise UserError("engines.adapter_file", path=path)
    return header


def _write(out: Path, architecture: str, alpha: float, tensors: dict[str, Array]) -> None:
    import gguf

    logging.getLogger("gguf").setLevel(logging.WARNING)  # what it writes is no news to whoever starts a server
    part = out.with_suffix(f".{os.getpid()}.part")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(part, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(out)


def _require_files(folder: Path) -> None:
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").exists():
        raise UserError("select.pickle", path=folder, file="adapter_model.bin")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError("engines.adapter_missing", path=folder, file=name)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError("select.config", path=folder / CONFIG, reason="it is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise UserError("engines.adapter_kind", adapter=folder.name, kind=str(config.get("peft_type"))[:40])
    for name, (plain, called) in PLAIN.items():
        if config.get(name) not in plain:
            raise UserError("engines.adapter_kind", adapter=folder.name, kind=called)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise UserError("engines.adapter_kind", adapter=folder.name, kind=f"init_lora_weights: {start[:40]}")
    return config


def _pairs(folder: Path, config: dict[str, Any], header: GgufHeader) -> Iterator[Pair]:
    """Every adapted weight under its name in the base, rows in the base's order."""
    weights = _read_weights(folder / WEIGHTS)
    architecture = header.text("general.architecture")
    if architecture not in (*RENAMED, *PERMUTED):
        known = ", ".join(sorted((*RENAMED, *PERMUTED)))
        raise UserError("engines.adapter_family", adapter=folder.name, architecture=str(architecture)[:40], known=known)
    bases = {tensor.name: tensor.shape for tensor in header.tensors}
    names = _tensor_names(architecture, header.number(f"{architecture}.block_count") or 0)
    for module in sorted(name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")):
        a = weights.pop(f"{module}.lora_A.weight")
        b = weights.pop(f"{module}.lora_B.weight", None)
        plain = module.removeprefix("base_model.model.")
        tensor = f"{names.get_name(plain)}.weight"
        fits = b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        if not fits or bases.get(tensor) != (a.shape[1], b.shape[0]) or tensor == "token_embd.weight":
            raise UserError("engines.adapter_base", adapter=folder.name, base=_base_name(header), module=plain[:80])
        if architecture in PERMUTED and tensor.endswith(("attn_q.weight", "attn_k.weight")):
            b = permute(b, _heads(header)[tensor.endswith("attn_k.weight")])
        yield Pair(tensor, a, b, _scale(folder, config, plain, a.shape[0]))
    if weights:
        left = min(weights).removeprefix("base_model.model.")
        raise UserError("engines.adapter_kind", adapter=folder.name, kind=f"weights beside A and B ({left[:80]})")


def _tensor_names(architecture: str, blocks: int) -> Any:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(arch, min(blocks, 1000))


def _base_name(header: GgufHeader) -> str:
    return (header.text("general.name") or header.text("general.architecture") or "?")[:80]


def _heads(header: GgufHeader) -> tuple[int, int]:
    """Heads of queries, and of keys and values."""
    prefix = f"{header.text('general.architecture')}.attention"
    heads = header.number(f"{prefix}.head_count") or 1
    return heads, header.number(f"{prefix}.head_count_kv") or heads


def permute(b: np.ndarray[Any, Any], heads: int) -> Array:
    """Rows (heads, 2, half) as (heads, half, 2): rotary pairs side by side, as llama.cpp's converter lays them."""
    out, rank = b.shape
    return b.reshape(heads, 2, out // heads // 2, rank).swapaxes(1, 2).reshape(out, rank).copy()


def _scale(folder: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """By what B @ A is multiplied: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    alpha = _own(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise UserError("select.config", path=folder / CONFIG, reason=f"its lora_alpha is {str(alpha)[:40]}")
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _own(pattern: Any, module: str, default: Any) -> Any:
    """A setting of one module. PEFT's patterns are expressions; those that it writes are names and ends of names."""
    for name, value in pattern.items() if isinstance(pattern, dict) else ():
        if module == name.removeprefix("^") or module.endswith(f".{name}"):
            return value
    return default


def _read_weights(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file as float32, its header checked first."""
    import numpy as np

    described = safetensors_header.read_header(path)
    found = {}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for tensor in described:
            if tensor.type not in NUMPY:
                raise UserError("select.safetensors", path=path, reason=f"{tensor.name[:80]!r} has type {tensor.type}")
            file.seek(start + tensor.begin)
            raw = np.frombuffer(file.read(tensor.end - tensor.begin), NUMPY[tensor.type]).reshape(tensor.shape)
            # bfloat16 is the upper half of a float32; numpy has no name for it.
            values = (raw.astype("<u4") << 16).view("<f4") if tensor.type == "BF16" else raw.astype("<f4")
            if not np.isfinite(values).all():
                raise UserError("select.safetensors", path=path, reason=f"{tensor.name[:80]!r} holds infinite weights")
            found[tensor.name] = values
    return found
