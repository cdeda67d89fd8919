"""How a GGUF file stretches the positions that its model knows, as a transformers model is told.

Keys: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Llama 3's scaling stands in no key: llama.cpp's converter
writes what each frequency is divided by into the tensor rope_freqs.weight.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.engines.gguf_header import GgufHeader

FREQUENCIES = "rope_freqs.weight"
# The same in every model that has this scaling; the factor is the file's.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
NEAR = 1e-3


def rope_of(path: Path, header: GgufHeader) -> dict[str, Any]:
    """`rope_parameters` without the base; empty where positions are not stretched.

    Raises torch.gguf_rope for a way that is not known here: the model would be another one without it.
    """
    told = f"{header.text('general.architecture')}.rope.scaling"
    kind = header.text(f"{told}.type") or "none"
    if any(tensor.name == FREQUENCIES for tensor in header.tensors):
        if kind != "none":
            raise _unknown(path, f"{FREQUENCIES}, {kind}")
        return _llama3(path, header)
    if kind == "none":
        return {}
    factor = header.metadata.get(f"{told}.factor")
    if kind not in ("linear", "yarn") or not isinstance(factor, float) or _further(header, told):
        raise _unknown(path, kind)
    found: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        before = header.number(f"{told}.original_context_length")
        if before is None:
            raise _unknown(path, kind)
        found["original_max_position_embeddings"] = before
    return found


def refuse_scaled(path: Path, header: GgufHeader) -> None:
    """Raise torch.gguf_rope where positions are stretched in any way."""
    kind = header.text(f"{header.text('general.architecture')}.rope.scaling.type") or "none"
    tensors = [tensor.name for tensor in header.tensors if tensor.name.startswith("rope_f")]
    if kind != "none" or tensors:
        raise _unknown(path, ", ".join([kind, *tensors]))


def _further(header: GgufHeader, told: str) -> list[str]:
    """Keys that change the scaling beyond its kind, factor and length."""
    known = {f"{told}.{name}" for name in ("type", "factor", "original_context_length", "finetuned")}
    return [key for key in header.metadata if key.startswith(f"{told}.") and key not in known]


def _llama3(path: Path, header: GgufHeader) -> dict[str, Any]:
    import numpy

    tensor = next(tensor for tensor in header.tensors if tensor.name == FREQUENCIES)
    if tensor.type != "F32":
        raise _unknown(path, FREQUENCIES)
    held = numpy.fromfile(path, numpy.float32, tensor.elements, offset=tensor.offset).tolist()
    native = header.text("general.architecture")
    base = header.metadata.get(f"{native}.rope.freq_base", 10_000.0)
    factor = max(held)
    wanted = _divisors(float(str(base)), len(held), factor)
    if any(not math.isclose(one, other, rel_tol=NEAR) for one, other in zip(held, wanted, strict=True)):
        raise _unknown(path, FREQUENCIES)
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _divisors(base: float, count: int, factor: float) -> list[float]:
    """What Llama 3 divides each frequency by: nothing where waves are short, `factor` where they are long."""
    low, high, length = LLAMA3.values()
    found = []
    for place in range(count):
        waves = length / (2 * math.pi * base ** (place / count))  # in the length that was trained
        smooth = min(1.0, max(0.0, (waves - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _unknown(path: Path, kind: str) -> UserError:
    return UserError("torch.gguf_rope", path=path.name, kind=kind)
