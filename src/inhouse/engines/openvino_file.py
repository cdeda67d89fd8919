"""A GGUF file for OpenVINO: its own, or an equal one in the types that its reader knows, written once and kept.

K-quants of narrow models hold Q5_0 (a row of 576 numbers is no multiple of 256), which ends OpenVINO's reader, and of
types with a zero point it makes another model. Q8_0 holds Q5_0 bit for bit: the same blocks and scales. What else there
is becomes Q8_0 as llama.cpp's quantiser rounds: off by at most 1/254 of the largest number of each block of 32.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from inhouse.core.compiled import UNUSED_S
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import FileHashes
from inhouse.core.run import process_mark
from inhouse.core.settings import cache_home
from inhouse.core.store import disk_errors, sync_folder
from inhouse.engines.gguf_header import TYPES, GgufHeader, Tensor, read_header

Array = Any  # numpy.ndarray of uint8: numpy is loaded only when a file is written
VERSION = 1  # of what is written; part of the file's name
# What the reader of openvino_genai 2026.4 takes as it is.
READ = ("F32", "F16", "BF16", "Q4_0", "Q6_K", "Q8_0")
# What is written anew as Q8_0. Of Q4_1 and Q4_K its reader rounds the zero points: against transformers in full
# precision, log-probabilities of SmolLM2-135M were off by up to 1.4 (Q4_1) and 0.67 (Q4_K_M, mean 0.068). The same
# Q4_K_M written anew: 0.049, mean 0.005, which is less than the 8-bit KV cache and bf16 add (0.25, mean 0.03).
REWRITTEN = ("Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K")
KNOWN = (*READ, *REWRITTEN)
NUMBER = {name: number for number, (name, _, _) in TYPES.items()}
PIECE = 2**19  # weights at a time: 20 MB of memory
SPARE_BYTES = 256 * 2**20  # stays free on the disk
WRITTEN_S = 60  # a part that was written to since is left alone: a process of another container shows no pid here
BYTES_PER_S = 10 * 2**20  # of the source, at the least: how much longer loading may take for it


def kept_in(cache: Path | None) -> Path:
    """The folder of files for OpenVINO, in the workspace's or the user's cache."""
    return (cache or cache_home() / "inhouse") / "openvino"


def needs_writing(header: GgufHeader) -> bool:
    """Whether a file holds types that are written anew."""
    return any(tensor.type in REWRITTEN for tensor in header.tensors)


def extra_seconds(source: Path) -> float:
    """How much longer loading may take when the file must be written."""
    return source.stat().st_size / BYTES_PER_S


def extra_bytes(source: Path) -> int:
    """How many more bytes than its file the model takes in OpenVINO. Raises as `read_header`."""
    header = read_header(source)
    return max(0, written_bytes(header) - header.bytes) if needs_writing(header) else 0


def readable(source: Path, header: GgufHeader, folder: Path) -> Path:
    """The file itself where OpenVINO reads its types, else an equal one in `folder`, written when it is not there.

    Removes what nobody has used for 30 days, and what processes that were killed had written in part.
    Raises openvino.no_space, store.*.
    """
    if not needs_writing(header):
        return source
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # The content's hash: a file that was changed in place must not be answered with the old weights.
        target = folder / f"{FileHashes(folder / 'hashes.json').of(source)}.{VERSION}.gguf"
        if target.is_file():
            with suppress(OSError):  # another user's, or removed now
                os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        _tidy(folder, target)
        if not target.is_file():
            _write(source, header, target)
    return target


def written_bytes(header: GgufHeader) -> int:
    """How large the file becomes."""
    kinds = ((tensor, _type_of(tensor)) for tensor in header.tensors)
    return header.data_offset + sum(_aligned(_bytes_as(tensor, kind), _step(header)) for tensor, kind in kinds)


def _tidy(folder: Path, wanted: Path) -> None:
    now = time.time()
    for path in folder.glob("*.*"):
        with suppress(OSError):  # another server tidies too, or it is another user's
            stat = path.stat()
            unused = path.suffix == ".gguf" and path != wanted and now - max(stat.st_atime, stat.st_mtime) > UNUSED_S
            broken = path.suffix == ".part" and now - stat.st_mtime > WRITTEN_S and _is_dead(path)
            if unused or broken:
                path.unlink()


def _is_dead(part: Path) -> bool:
    pid = part.name.split(".")[-2]
    return not pid.isdecimal() or int(pid) == os.getpid() or process_mark(int(pid)) is None


def _write(source: Path, header: GgufHeader, target: Path) -> None:
    needed = written_bytes(header)
    free = shutil.disk_usage(target.parent).free
    if free < needed + SPARE_BYTES:
        raise UserError("openvino.no_space", path=target.parent, needed_mb=needed >> 20, free_mb=free >> 20)
    part = target.with_suffix(f".{os.getpid()}.part")  # two servers may write it at once: each its own
    try:
        with source.open("rb") as read, part.open("wb") as out:
            _write_header(read, header, out)
            for tensor in header.tensors:
                for piece in _pieces(read, tensor):
                    out.write(piece)
                _pad(out, _step(header))
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
        sync_folder(target.parent)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _write_header(read: BinaryIO, header: GgufHeader, out: BinaryIO) -> None:
    """The metadata byte for byte, then the tensors' new types and places."""
    read.seek(0)
    out.write(read.read(header.tensors_offset))
    place = 0
    for tensor in header.tensors:
        name, kind = tensor.name.encode(), _type_of(tensor)
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        out.write(struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", NUMBER[kind], place))
        place += _aligned(_bytes_as(tensor, kind), _step(header))
    _pad(out, _step(header))


def _pieces(read: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    """The bytes of a tensor in the type that OpenVINO reads."""
    _, block, size = TYPES[NUMBER[tensor.type]]
    step = PIECE // block * size
    read.seek(tensor.offset)
    for begin in range(0, tensor.bytes, step):
        piece = read.read(min(step, tensor.bytes - begin))
        yield piece if tensor.type in READ else as_q8_0(piece, tensor.type)


def as_q8_0(piece: bytes, kind: str) -> bytes:
    """Whole blocks of a type as Q8_0: Q5_0 exactly, others rounded to 8 bits."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    if kind == "Q5_0":
        return _q5_0_as_q8_0(np.frombuffer(piece, np.uint8).reshape(-1, TYPES[NUMBER[kind]][2]))
    row = np.frombuffer(piece, np.uint8).reshape(1, -1)  # of one row: the library loops in Python over rows
    values = quants.dequantize(row, GGMLQuantizationType[kind])
    return bytes(quants.quantize(values, GGMLQuantizationType.Q8_0).tobytes())


def _q5_0_as_q8_0(blocks: Array) -> bytes:
    """Blocks (n, 22): a float16 scale, the fifth bits of 32 numbers, their lower four bits; 16 stands for 0."""
    import numpy as np

    high = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little") << 4
    low = np.concatenate([blocks[:, 6:] & 15, blocks[:, 6:] >> 4], axis=1)
    numbers = (high | low) - np.uint8(16)  # wraps around to the bytes of int8
    return bytes(np.concatenate([blocks[:, :2], numbers], axis=1).tobytes())


def _type_of(tensor: Tensor) -> str:
    return tensor.type if tensor.type in READ else "Q8_0"


def _bytes_as(tensor: Tensor, kind: str) -> int:
    _, block, size = TYPES[NUMBER[kind]]
    return tensor.elements // block * size


def _step(header: GgufHeader) -> int:
    return header.number("general.alignment") or 32


def _aligned(count: int, step: int) -> int:
    return -(-count // step) * step


def _pad(out: BinaryIO, step: int) -> None:
    out.write(bytes(-out.tell() % step))
