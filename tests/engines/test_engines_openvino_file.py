"""Files that are written anew for OpenVINO: the same values, metadata byte for byte, once, whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from inhouse.core.errors import UserError
from inhouse.engines import openvino_file
from inhouse.engines.gguf_header import read_header

Q = GGMLQuantizationType
TYPES = ("Q5_0", "Q4_1", "Q5_1", "Q8_0", "F16", "F32")
WIDTH = 576  # of SmolLM2-135M: no multiple of 256, so that its K-quants hold Q5_0


def k_blocks(kind: Q, count: int) -> Any:
    """Random blocks of a K-quant, which the library reads but does not write; the two scales are small numbers."""
    size = {Q.Q4_K: 144, Q.Q5_K: 176, Q.Q6_K: 210}[kind]
    blocks = np.random.default_rng(5).integers(0, 256, (count, size), dtype=np.uint8)
    scales = np.full((count, 2), 0.01, np.float16).view(np.uint8)
    if kind == Q.Q6_K:
        blocks[:, -2:] = scales[:, :2]
    else:
        blocks[:, :4] = scales
    return blocks.reshape(1, -1)


def written(path: Path, *kinds: str) -> Path:
    draw = np.random.default_rng(3)
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "木", "x" * 100])
    for index, kind in enumerate(kinds):
        type_ = Q[kind]
        name = f"blk.{index}.ffn_down.weight"
        if kind.endswith("_K"):
            writer.add_tensor(name, k_blocks(type_, 3), raw_dtype=type_)
            continue
        values = draw.normal(size=(3, WIDTH)).astype(np.float32)
        raw = None if kind in ("F16", "F32") else type_
        writer.add_tensor(name, quants.quantize(values, type_), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values(path: Path) -> dict[str, tuple[str, Any]]:
    found = {}
    for tensor in GGUFReader(path).tensors:
        found[tensor.name] = (tensor.tensor_type.name, quants.dequantize(tensor.data, tensor.tensor_type))
    return found


def readable(source: Path, folder: Path) -> Path:
    return openvino_file.readable(source, read_header(source), folder)


def test_a_file_of_known_types_is_read_as_it_is(tmp_path: Path) -> None:
    source = written(tmp_path / "m.gguf", "Q8_0", "F16", "Q6_K")
    assert readable(source, tmp_path / "cache") == source
    assert openvino_file.extra_bytes(source) == 0
    assert not (tmp_path / "cache").exists()


def test_q5_0_is_kept_bit_for_bit_and_others_to_eight_bits(tmp_path: Path) -> None:
    source = written(tmp_path / "m.gguf", *TYPES, "Q4_K", "Q5_K")
    target = readable(source, tmp_path / "cache")
    before, after = values(source), values(target)
    assert list(before) == list(after)
    assert openvino_file.written_bytes(read_header(source)) == target.stat().st_size
    assert openvino_file.extra_bytes(source) == max(0, target.stat().st_size - source.stat().st_size) > 0
    for (kind, old), (new_kind, new) in zip(before.values(), after.values(), strict=True):
        assert new_kind == (kind if kind in openvino_file.READ else "Q8_0")
        if kind == "Q5_0" or kind in openvino_file.READ:
            assert np.array_equal(old, new)
        largest = np.abs(old.reshape(-1, 32)).max(1, keepdims=True)
        # Half a step of 1/127 of the largest number, and the rounding of its scale to float16.
        assert (np.abs(old - new).reshape(-1, 32) <= largest * (1 / 254 + 1 / 1024)).all()
    old_header, new_header = read_header(source), read_header(target)
    begin = old_header.tensors_offset
    assert source.read_bytes()[:begin] == target.read_bytes()[:begin]
    assert begin == new_header.tensors_offset > 0


def test_large_tensors_are_written_in_pieces_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "m.gguf", "Q5_0", "Q5_K")
    whole = readable(source, tmp_path / "whole").read_bytes()
    monkeypatch.setattr(openvino_file, "PIECE", 256)
    assert readable(source, tmp_path / "pieces").read_bytes() == whole


def test_a_file_is_written_once_for_each_content(tmp_path: Path) -> None:
    source = written(tmp_path / "m.gguf", "Q5_0")
    cache = tmp_path / "cache"
    first = readable(source, cache)
    stamp = first.stat().st_mtime_ns
    assert readable(source, cache) == first
    assert first.stat().st_mtime_ns == stamp
    changed = written(tmp_path / "n.gguf", "Q5_0", "Q5_0")
    os.replace(changed, source)
    assert readable(source, cache) != first


def aged(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def test_copies_that_nobody_used_for_a_month_are_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    unused, used, other, new = (
        readable(written(tmp_path / f"{number}.gguf", *["Q5_0"] * number), cache) for number in (1, 2, 3, 4)
    )
    for path, days in ((unused, 31), (used, 31), (other, 29)):
        aged(path, days)
    readable(tmp_path / "2.gguf", cache)
    assert sorted(cache.glob("*.gguf")) == sorted([used, other, new])
    readable(tmp_path / "3.gguf", cache)  # `used` counts by its use, not by when it was written
    assert used.is_file()
    again = readable(tmp_path / "1.gguf", cache)
    assert again == unused and again.is_file()


def test_parts_of_processes_that_were_killed_are_removed(tmp_path: Path) -> None:
    source, cache = written(tmp_path / "m.gguf", "Q5_0"), tmp_path / "cache"
    cache.mkdir()
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    dead, alive, mine = (cache / f"abc.1.{pid}.part" for pid in (gone.pid, os.getppid(), os.getpid()))
    fresh = cache / f"def.1.{gone.pid}.part"  # perhaps of another container, which is writing it
    for part in (dead, alive, mine, fresh):
        part.write_text("x")
    for part in (dead, alive, mine):
        aged(part, 1)
    target = readable(source, cache)
    assert target.is_file() and alive.is_file() and fresh.is_file()
    assert not dead.exists() and not mine.exists()


def test_without_space_nothing_is_written_and_the_error_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "m.gguf", "Q4_1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(UserError) as caught:
        readable(source, tmp_path / "cache")
    assert caught.value.code == "openvino.no_space"
    assert not list((tmp_path / "cache").glob("*.gguf"))


def test_writing_that_breaks_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(piece: bytes, kind: str) -> bytes:
        raise OSError(28, "No space left on device")

    source = written(tmp_path / "m.gguf", "Q4_1")
    monkeypatch.setattr(openvino_file, "as_q8_0", fails)
    with pytest.raises(UserError) as caught:
        readable(source, tmp_path / "cache")
    assert caught.value.code == "store.no_space"
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".json"]


def test_the_cache_lies_in_the_workspace_or_with_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert openvino_file.kept_in(None) == tmp_path / "inhouse" / "openvino"
    assert openvino_file.kept_in(tmp_path / "serve") == tmp_path / "serve" / "openvino"
