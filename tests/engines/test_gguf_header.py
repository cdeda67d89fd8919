"""The GGUF header reader against the gguf package as the independent writer and reader."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inhouse.core.errors import UserError
from inhouse.engines.gguf_header import TYPES, ArrayValue, items, read_header


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A GGUF of three tensors and every kind of metadata, written by the gguf package."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_block_count(2)
    writer.add_float32("f", 0.5)
    writer.add_bool("yes", True)
    writer.add_int64("minus", -3)
    writer.add_array("names", [f"token{i}" for i in range(100)])
    writer.add_array("numbers", list(range(100)))
    writer.add_tensor("a.weight", np.ones((4, 64), dtype=np.float32))
    writer.add_tensor("b.weight", np.ones((3, 64), dtype=np.float16))
    quantised = gguf.quants.quantize(np.ones((2, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("c.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_of_a_good_file_equals_what_was_written(small):
    header = read_header(small)
    assert header.version == 3
    assert header.text("general.architecture") == "llama"
    assert header.number("llama.block_count") == 2
    assert (header.metadata["f"], header.metadata["yes"], header.metadata["minus"]) == (0.5, True, -3)
    assert header.metadata["names"] == ArrayValue(100, tuple(f"token{i}" for i in range(64)))
    assert header.metadata["numbers"] == ArrayValue(100, tuple(range(64)))
    assert header.number("numbers") == 63
    assert header.text("f") is None
    assert header.number("general.name") is None
    assert header.number("absent") is None


def test_items_of_an_array_are_all_of_it_in_order(small):
    header = read_header(small)
    assert items(small, header, "names") == [f"token{i}" for i in range(100)]
    assert items(small, header, "numbers") == list(range(100))
    assert items(small, header, "general.architecture") == [] == items(small, header, "absent")


def test_an_array_with_a_text_that_is_not_utf8_is_told_where_it_stands(small):
    held = small.read_bytes()
    broken = small.with_name("broken.gguf")
    broken.write_bytes(held.replace(b"token99", b"token\xff9"))
    with pytest.raises(UserError) as error:
        items(broken, read_header(broken), "names")
    assert error.value.code == "gguf.damaged"
    assert held[error.value.facts["at"] + 8 :].startswith(b"token99")


def _assert_equals_gguf_package(path: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(path)
    expected = [
        (t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in reader.tensors
    ]
    header = read_header(path)
    assert [(t.name, t.shape, t.type, t.offset, t.bytes) for t in header.tensors] == expected
    assert sum(t.elements for t in header.tensors) == sum(int(t.n_elements) for t in reader.tensors)


def test_tensors_of_a_good_file_equal_the_gguf_package(small):
    _assert_equals_gguf_package(small)


@pytest.mark.real
def test_tensors_of_the_real_model_equal_the_gguf_package(smollm2_gguf):
    _assert_equals_gguf_package(smollm2_gguf)
    assert sum(t.elements for t in read_header(smollm2_gguf).tensors) == 134_515_008


def test_type_table_equals_the_gguf_package():
    import gguf.constants as c

    theirs = {int(t): (t.name, *c.GGML_QUANT_SIZES[t]) for t in c.GGMLQuantizationType}
    assert {k: v for k, v in theirs.items() if k in TYPES} == TYPES


def _write(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _start(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def _tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


U64 = 2**64 - 1
BAD = {
    "too many tensors": _start(U64, 0),
    "too many keys": _start(0, U64),
    "long key": _start(0, 1) + struct.pack("<Q", U64),
    "key not utf-8": _start(0, 1) + _key(b"\xff\xfe", 4, bytes(4)),
    "key twice": _start(0, 2) + _key(b"a", 4, bytes(4)) * 2,
    "unknown value type": _start(0, 1) + _key(b"a", 99, b""),
    "array of arrays": _start(0, 1) + _key(b"a", 9, struct.pack("<IQ", 9, 1)),
    "huge array": _start(0, 1) + _key(b"a", 9, struct.pack("<IQ", 4, U64)),
    "huge text array": _start(0, 1) + _key(b"a", 9, struct.pack("<IQ", 8, U64)),
    "long text in an array": _start(0, 1) + _key(b"a", 9, struct.pack("<IQQ", 8, 1, U64)),
    "five dimensions": _start(1, 0) + _tensor(b"t", (1, 1, 1, 1, 1), 0, 0) + bytes(64),
    "no dimensions": _start(1, 0) + _tensor(b"t", (), 0, 0) + bytes(64),
    "empty dimension": _start(1, 0) + _tensor(b"t", (4, 0), 0, 0) + bytes(64),
    "product overflows": _start(1, 0) + _tensor(b"t", (2**32, 2**33), 0, 0) + bytes(64),
    "unknown type": _start(1, 0) + _tensor(b"t", (4,), 77, 0) + bytes(64),
    "removed type": _start(1, 0) + _tensor(b"t", (32,), 4, 0) + bytes(64),
    "partial block": _start(1, 0) + _tensor(b"t", (33,), 8, 0) + bytes(640),
    "unaligned": _start(1, 0) + _tensor(b"t", (4,), 0, 5) + bytes(640),
    "beyond the file": _start(1, 0) + _tensor(b"t", (4096,), 0, 0) + bytes(64),
    "offset beyond the file": _start(1, 0) + _tensor(b"t", (4,), 0, 2**63) + bytes(64),
    "same name": _start(2, 0) + _tensor(b"t", (4,), 0, 0) + _tensor(b"t", (4,), 0, 32) + bytes(640),
    "overlap": _start(2, 0) + _tensor(b"t", (16,), 0, 0) + _tensor(b"u", (4,), 0, 32) + bytes(640),
    "alignment 3": _start(0, 1) + _key(b"general.alignment", 4, struct.pack("<I", 3)),
    "alignment text": _start(0, 1) + _key(b"general.alignment", 8, _text(b"32")),
    "only magic": b"GGUF",
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_file_is_refused_with_a_reason(name, tmp_path):
    path = _write(tmp_path / "bad.gguf", BAD[name])
    with pytest.raises(UserError) as caught:
        read_header(path)
    assert caught.value.code == "gguf.damaged"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>not found</html>", b"PK\x03\x04"])
def test_file_of_another_kind_is_not_gguf(content, tmp_path):
    with pytest.raises(UserError) as caught:
        read_header(_write(tmp_path / "x.gguf", content))
    assert caught.value.code == "gguf.not_gguf"


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_version_is_named(version, tmp_path):
    with pytest.raises(UserError) as caught:
        read_header(_write(tmp_path / "x.gguf", _start(0, 0, version)))
    assert caught.value.code == "gguf.version"


@pytest.mark.parametrize("name", ["none.gguf", ""])
def test_missing_file_is_named(name, tmp_path):
    with pytest.raises(UserError) as caught:
        read_header(tmp_path / name)
    assert caught.value.code == "gguf.missing"


def test_version_2_is_read(tmp_path, small):
    raw = bytearray(small.read_bytes())
    raw[4] = 2
    assert read_header(_write(tmp_path / "v2.gguf", bytes(raw))).version == 2


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_gives_a_user_error_or_a_header_within_bounds(data, small, tmp_path):
    raw = bytearray(small.read_bytes())
    head = read_header(small).data_offset
    for _ in range(data.draw(st.integers(0, 5))):
        raw[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    path = _write(tmp_path / "fuzz.gguf", bytes(raw[:cut]))
    tracemalloc.start()
    began = time.process_time()
    try:
        header = read_header(path)
        assert all(t.offset + t.bytes <= cut for t in header.tensors)
    except UserError as error:
        assert error.code.startswith("gguf.")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - began < 1.0
    assert peak < 4 * 2**20
