"""F16 GGUF -> a quantised GGUF, tensor by tensor, with libgguf's kernels and gguf's reader and writer."""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.store import disk_errors

if TYPE_CHECKING:
    import numpy as np

BLOCK = re.compile(r"blk\.(\d+)\.")
# Never quantised, after llama.cpp's llama-quant.cpp: small, and the model is sensitive to them.
KEPT = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d.weight")
# A K-quant needs rows of 256·n; what llama-quant.cpp takes instead when a tensor's rows are not.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ROWS_AT_ONCE = 8192  # bounds the float32 copy: an embedding of a large vocabulary is gigabytes


@dataclass(frozen=True)
class Mixture:
    """Which tensor type a file type uses where: the bulk, the output (and tied embedding), the sensitive layers."""

    file_type: str
    bulk: str
    output: str
    sensitive: str


MIXTURES = {
    "q8_0": Mixture("MOSTLY_Q8_0", "Q8_0", "Q8_0", "Q8_0"),
    "q6_k": Mixture("MOSTLY_Q6_K", "Q6_K", "Q6_K", "Q6_K"),
    "q5_k_m": Mixture("MOSTLY_Q5_K_M", "Q5_K", "Q6_K", "Q6_K"),
    "q5_0": Mixture("MOSTLY_Q5_0", "Q5_0", "Q6_K", "Q5_0"),
    "q4_k_m": Mixture("MOSTLY_Q4_K_M", "Q4_K", "Q6_K", "Q6_K"),
    "q4_0": Mixture("MOSTLY_Q4_0", "Q4_0", "Q6_K", "Q4_0"),
    "f16": Mixture("MOSTLY_F16", "F16", "F16", "F16"),
}


@dataclass(frozen=True)
class Quantised:
    """What was written: tensor type -> how many, and how many tensors had to take another type than wished for."""

    tensor_types: dict[str, int]
    fallbacks: int


def quantise(
    source: Path, target: Path, kind: str, metadata: Mapping[str, str | int], tick: Callable[[int, int], None]
) -> Quantised:
    """Write `source` (F16) as `target` in one of MIXTURES; `metadata` replaces or adds keys of the header.

    The bytes depend on the two files' contents alone. `tick(done, total)` counts tensors.
    """
    from gguf import GGUFReader, GGUFWriter, LlamaFileType

    reader = GGUFReader(source)
    mixture = MIXTURES[kind]
    wished = _types(reader.tensors, mixture)
    chosen = [_fitting(wish, tensor) for wish, tensor in zip(wished, reader.tensors, strict=True)]
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    changed = {**metadata, "general.file_type": int(LlamaFileType[mixture.file_type])}
    _copy_metadata(reader, writer, changed)
    with disk_errors(target):
        try:
            _write(reader, writer, chosen, tick)
        except OSError as error:
            if error.errno is None:  # numpy's tofile names no reason when it could not write everything
                raise OSError(errno.ENOSPC, "short write") from error
            raise
        finally:
            writer.close()
    fallbacks = sum(got != wish for got, wish in zip(chosen, wished, strict=True))
    return Quantised(dict(sorted(Counter(chosen).items())), fallbacks)


def _types(tensors: list[Any], mixture: Mixture) -> list[str]:
    """The type wished for each tensor, after llama-quant.cpp's rules."""
    layers = 1 + max((int(found[1]) for t in tensors if (found := BLOCK.match(t.name))), default=0)
    tied = all(t.name != "output.weight" for t in tensors)
    return [_type(t, mixture, layers, tied) for t in tensors]


def _type(tensor: Any, mixture: Mixture, layers: int, tied: bool) -> str:
    name = tensor.name
    if len(tensor.shape) < 2 or not name.endswith("weight") or name.endswith(KEPT):
        return str(tensor.tensor_type.name)
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return mixture.output
    block = BLOCK.match(name)
    if block and ("attn_v." in name or "ffn_down" in name) and _more_bits(int(block[1]), layers):
        return mixture.sensitive
    return mixture.bulk


def _more_bits(layer: int, layers: int) -> bool:
    """llama-quant.cpp's `use_more_bits`: the first and last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(wish: str, tensor: Any) -> str:
    """The wished type, or the nearest one that the row width allows."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    width = int(tensor.shape[0])  # ggml's order: the first dimension is the row
    for name in (wish, FALLBACK.get(wish, "F16"), "F16"):
        if width % GGML_QUANT_SIZES[GGMLQuantizationType[name]][0] == 0:
            return name
    return "F16"


def _copy_metadata(reader: Any, writer: Any, changed: Mapping[str, str | int]) -> None:
    from gguf import GGUFValueType

    whole = GGUFValueType.UINT32
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue  # the writer makes these itself
        kind = field.types[0]
        sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = changed.get(name, None)
        writer.add_key_value(name, field.contents() if value is None else value, kind, sub_type)
    for name in sorted(set(changed) - set(reader.fields)):
        value = changed[name]
        writer.add_key_value(name, value, GGUFValueType.get_type(value) if isinstance(value, str | bool) else whole)


def _write(reader: Any, writer: Any, chosen: list[str], tick: Callable[[int, int], None]) -> None:
    """Stream the tensors: at most one of them is in memory."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for tensor, name in zip(reader.tensors, chosen, strict=True):
        if name == tensor.tensor_type.name:
            writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes)
            continue
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        shape = (*tensor.data.shape[:-1], tensor.data.shape[-1] // weights * size)
        bytes_ = int(np.prod(shape, dtype=np.int64))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), bytes_, GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (tensor, name) in enumerate(zip(reader.tensors, chosen, strict=True)):
        writer.write_tensor_data(tensor.data if name == tensor.tensor_type.name else _rows(tensor.data, name))
        tick(done + 1, len(chosen))


def _rows(data: np.ndarray, kind: str) -> np.ndarray:
    import numpy as np
    from gguf import GGMLQuantizationType
    from libgguf import quantize_rows

    rows = data.reshape(-1, data.shape[-1])
    parts = [
        quantize_rows(rows[at : at + ROWS_AT_ONCE].astype(np.float32), GGMLQuantizationType[kind])
        for at in range(0, len(rows), ROWS_AT_ONCE)
    ]
    written = np.concatenate(parts)
    return written.view(np.uint8).reshape(*data.shape[:-1], -1)
