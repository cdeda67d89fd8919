"""Hostile model files: hundreds of malformed ones refused with a reason, quickly, by a process that goes on."""

from __future__ import annotations

import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inhouse.core.errors import UserError
from inhouse.engines import llamacpp, template_check
from inhouse.engines.gguf_header import read_header
from inhouse.engines.llamacpp import LlamaCppSettings, start_server
from inhouse.engines.model_files import check_model, scan_model
from inhouse.engines.process import Child, Command
from inhouse.engines.template_check import check_template

U64 = 2**64 - 1
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
WIDTH, VOCABULARY = 32, 290


def write_model(path: Path, template: str = PLAIN) -> Path:
    """A whole one-layer Llama with a byte vocabulary, random weights, written by the gguf package."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *(f"word{n}" for n in range(VOCABULARY - 259))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (VOCABULARY - 259)]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
    chance = np.random.default_rng(0)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (64, WIDTH) for name in ("gate", "up")}
    shapes |= {"blk.0.ffn_down": (WIDTH, 64), "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", chance.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "tiny.gguf")


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def start(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def handmade_gguf() -> Iterator[bytes]:
    """One lie each: counts, lengths, types, shapes whose product wraps around (CVE-2025-53630), offsets, alignment."""
    room = bytes(4096)
    yield from (b"", b"G", b"GGUF", b"GGUG" + room, b"FUGG" + room, b"<html>", b"PK\x03\x04" + room, b"\x80\x04K\x01.")
    yield from (start(0, 0, version) + room for version in (0, 1, 4, 99, 2**31, 2**32 - 1, 0x03000000))
    for huge in (2**31, 2**32, 2**62, 2**63, U64, 20_001):
        yield start(huge, 0) + room
        yield start(0, huge) + room
        yield start(0, 1) + struct.pack("<Q", huge) + room
        yield start(0, 1) + key(b"a", 8, struct.pack("<Q", huge)) + room
        yield start(0, 1) + key(b"a", 9, struct.pack("<IQ", 4, huge)) + room
        yield start(0, 1) + key(b"a", 9, struct.pack("<IQ", 8, huge)) + room
        yield start(0, 1) + key(b"a", 9, struct.pack("<IQQ", 8, 1, huge)) + room
        yield start(0, 1) + key(b"a", 9, struct.pack("<IQ", 8, 65) + text(b"x") * 64 + struct.pack("<Q", huge)) + room
        yield start(1, 0) + struct.pack("<Q", huge) + room
        yield start(1, 0) + tensor(b"t", (huge,), 0, 0) + room
        yield start(1, 0) + tensor(b"t", (4, huge), 8, 0) + room
        yield start(1, 0) + tensor(b"t", (4,), 0, huge) + room
    for shape in ((2**32, 2**32), (2**31, 2**31, 4), (2**16,) * 4, (0,), (4, 0), (2**63, 2), (2**62 // 4 + 8,)):
        yield start(1, 0) + tensor(b"t", shape, 0, 0) + room
    yield from (start(1, 0) + tensor(b"t", (32,), kind, 0) + room for kind in (4, 5, 31, 36, 43, 255, 2**31, 2**32 - 1))
    yield from (start(0, 1) + key(b"a", kind, room) for kind in (13, 14, 255, 2**32 - 1))
    yield from (start(0, 1) + key(b"a", 9, struct.pack("<IQ", kind, 1)) + room for kind in (9, 13, 2**32 - 1))
    for alignment in (0, 1, 3, 7, 2**31, 2**32 - 1):
        yield start(0, 1) + key(b"general.alignment", 4, struct.pack("<I", alignment)) + room
    yield start(0, 1) + key(b"general.alignment", 8, text(b"32")) + room
    yield start(2, 0) + tensor(b"t", (4,), 0, 0) + tensor(b"t", (4,), 0, 32) + room
    yield start(2, 0) + tensor(b"t", (64,), 0, 0) + tensor(b"u", (4,), 0, 32) + room
    yield start(2, 0) + tensor(b"t", (4,), 0, 64) + tensor(b"u", (64,), 0, 0) + room
    yield start(1, 0) + tensor(b"t", (33,), 8, 0) + room
    yield start(1, 0) + tensor(b"t", (4,), 0, 5) + room
    yield start(1, 0) + text(b"t") + struct.pack("<I", 5) + room
    yield start(1, 0) + tensor(b"\xff\xfe", (4,), 0, 0) + room
    yield start(0, 2) + key(b"a", 4, bytes(4)) * 2 + room


def cut_gguf(whole: bytes, last: int) -> Iterator[bytes]:
    yield from (whole[: at * last // 40] for at in range(40))
    yield from (whole[:-cut] for cut in (len(whole) - last + 1, 4096, len(whole) - 24))


def handmade_safetensors() -> Iterator[bytes]:
    def file(header: object, data: int = 64, raw: bytes | None = None) -> bytes:
        body = json.dumps(header).encode() if raw is None else raw
        return struct.pack("<Q", len(body)) + body + bytes(data)

    def one(**changed: object) -> bytes:
        return file({"t": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changed})

    def two(left: list[int], right: list[int], data: int = 64) -> bytes:
        told = ((name, {"dtype": "U8", "shape": [at[1] - at[0]], "data_offsets": at}) for name, at in
                (("a", left), ("b", right)))  # fmt: skip
        return file(dict(told), data)

    whole = one()
    yield from (b"", b"\0", bytes(8), bytes(7), b"PK\x03\x04", b"\x80\x04K\x01." * 20)
    yield from (struct.pack("<Q", length) + bytes(64) for length in (65, 2**31, 2**32, 2**62, 2**63, U64))
    yield from (whole[:at] for at in range(0, len(whole) - 1, 9))
    yield whole + b"\0"
    yield from (one(dtype=kind) for kind in ("F33", "", None, 7, ["F32"], {}, "f32", "PICKLE"))
    yield from (one(shape=shape) for shape in ([-4, -4], [2**62, 4], [2**32, 2**32], [4], "44", None, [4.0, 4], [[4]],
                                               [True, 16], [1] * 17, {"a": 1}, [10**30]))  # fmt: skip
    yield from (one(data_offsets=at) for at in ([64, 0], [-64, 0], [0, 2**62], [0, 65], [1, 65], [0], [0, 32, 64],
                                                None, "0,64", [0.0, 64], [U64 - 63, U64 + 1], [0, 10**30]))  # fmt: skip
    yield from (two(*at) for at in (([0, 40], [32, 64]), ([0, 16], [32, 64]), ([0, 64], [0, 64]), ([8, 32], [32, 64])))
    yield two([0, 16], [16, 32])
    yield from (file(raw=raw, header=None) for raw in (b"[]", b"null", b"{", b"\xff\xfe", b'{"t":1}', b'{"t":{}}',
                b"[" * 50_000, b'{"a":' * 50_000, b'{"t":NaN}', b"1" * 5000, b"{}" + b"\0" * 8))  # fmt: skip
    entry = b'{"dtype":"U8","shape":[64],"data_offsets":[0,64]}'
    yield file(None, raw=b'{"t":' + entry + b',"t":' + entry + b"}")
    yield file({"__metadata__": {"a": 1}, "t": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}})
    yield file({"t" * 5000: {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}})


def refused(path: Path, content: bytes) -> tuple[UserError | None, float]:
    """What `check_model` says of these bytes, and how long that took."""
    path.write_bytes(content)
    began = time.process_time()
    found: UserError | None = None
    try:
        check_model(path)
    except UserError as error:
        found = error
    return found, time.process_time() - began


def test_every_malformed_gguf_is_refused_with_a_reason_within_a_second(good: Path, tmp_path: Path) -> None:
    header = read_header(good)
    last = max(t.offset + t.bytes for t in header.tensors)
    chance = random.Random(7)
    noise = [chance.randbytes(size) for size in (1, 3, 16, 100, 5000, 100_000)]
    noise += [b"GGUF\x03\0\0\0" + chance.randbytes(size) for size in (16, 100, 5000, 100_000)]
    files = [*handmade_gguf(), *cut_gguf(good.read_bytes(), last), *noise]
    assert len(files) >= 150
    for at, content in enumerate(files):
        error, seconds = refused(tmp_path / "bad.gguf", content)
        assert error is not None, f"file {at} was taken: {content[:80]!r}"
        assert error.code.startswith("gguf.") and str(tmp_path) in str(error), at
        assert seconds < 1.0
    check_model(good)


def test_every_malformed_safetensors_is_refused_with_a_reason_within_a_second(tmp_path: Path) -> None:
    files = list(handmade_safetensors())
    assert len(files) >= 60
    for at, content in enumerate(files):
        error, seconds = refused(tmp_path / "bad.safetensors", content)
        assert error is not None, f"file {at} was taken: {content[:80]!r}"
        assert error.code == "select.safetensors", at
        assert seconds < 1.0


def test_safetensors_taken_here_are_those_that_the_reference_takes(tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((3, 5), np.float16), "b": np.zeros((0, 4), np.float32), "c": np.ones(7)}, path)
    whole = path.read_bytes()
    chance = random.Random(11)
    taken = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.randint(0, 2)):
            content[chance.randrange(len(whole))] = chance.randrange(256)
        error, _ = refused(path, bytes(content))
        try:
            with safe_open(path, framework="np") as file:
                file.keys()
        except (SafetensorError, ValueError, UnicodeDecodeError):
            assert error is not None
            continue
        taken += error is None
    assert taken > 10


def test_gguf_with_changed_header_bytes_is_refused_or_says_what_lies_inside_the_file(
    good: Path, tmp_path: Path
) -> None:
    whole, head = good.read_bytes(), read_header(good).data_offset
    chance = random.Random(3)
    for _ in range(120):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4, 40))):
            content[chance.randrange(head)] = chance.randrange(256)
        path = tmp_path / "changed.gguf"
        path.write_bytes(content)
        began = time.process_time()
        try:
            header = read_header(path)
        except UserError as error:
            assert error.code.startswith("gguf.")
        else:
            assert all(t.offset >= 0 and t.offset + t.bytes <= len(whole) for t in header.tensors)
        assert time.process_time() - began < 1.0


def test_header_of_the_largest_size_allowed_is_read_soon(tmp_path: Path) -> None:
    words = text(b"x") * 1_999_000
    many = start(10_000, 10_000) + key(b"w", 9, struct.pack("<IQ", 8, 1_999_000) + words)
    many += b"".join(key(f"k{n}".encode(), 4, bytes(4)) for n in range(9_999))
    many += b"".join(tensor(f"t{n}".encode(), (8,), 0, 32 * n) for n in range(10_000)) + bytes(32 * 10_001)
    path = tmp_path / "many.gguf"
    path.write_bytes(many)
    began = time.process_time()
    assert len(read_header(path).tensors) == 10_000
    assert time.process_time() - began < 5.0  # 0.6 s; each line takes longer where coverage is measured


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (b"llama.feed_forward_length", struct.pack("<I", 2**31 - 1)),
        (b"llama.attention.head_count", struct.pack("<I", 0)),
        (b"tokenizer.ggml.bos_token_id", struct.pack("<I", 2**32 - 1)),
    ],
)
def test_lie_that_no_header_check_sees_ends_in_the_child_and_not_here(
    good: Path, tmp_path: Path, at: bytes, value: bytes
) -> None:
    content = bytearray(good.read_bytes())
    place = content.index(text(at)) + 8 + len(at) + 4
    content[place : place + len(value)] = value
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    check_model(path)
    try:
        server = start_server(path, LlamaCppSettings(threads=1, context_length=64), load_timeout_s=20)
    except UserError as error:
        assert error.code in ("llamacpp.not_loaded", "process.died")
    else:
        server.stop()  # llama.cpp takes it: then it must be able to live with it
        assert at == b"tokenizer.ggml.bos_token_id"


LOOP = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}"
)
BAD_TEMPLATES = {
    "a loop": (LOOP, "end"),
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "Python"),
    "a class in a branch never taken": ("{% if false %}{{ cycler.__init__.__globals__.os }}{% endif %}", "Python"),
    "a class by filter": ("{{ ''|attr('__class__') }}", "Python"),
    "a class by parts": ("{{ (''|attr('_' + '_class_' + '_')).mro() }}", "sandbox"),
    "a changed list": ("{% set _ = messages.append(1) %}", "sandbox"),
    "a long text": ("{{ 'a' * 10000000000 }}", "memory"),
    "a long range": ("{{ range(10**9) | list }}", "memory"),
    "much output": ("{% for a in range(99999) %}{{ 'abcdefghijklmnopqrstuvwxyz' }}{% endfor %}", "writes"),
    "a call of itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "itself"),
    "no jinja": ("{% for %}", "jinja"),
    "deep nesting": ("{{" + "(" * 30_000 + "1" + ")" * 30_000 + "}}", "nested"),
    "too long": ("a" * 300_000, "long"),
}


def spent_by_children() -> float:
    """CPU seconds: the machine may be busy with other tests."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_hostile_template_is_refused_with_its_reason_within_a_second(name: str) -> None:
    template, word = BAD_TEMPLATES[name]
    began = spent_by_children()
    with pytest.raises(UserError, match=word) as caught:
        check_template(template, "x.jinja")
    assert caught.value.code == "engines.template_refused"
    assert spent_by_children() - began < 1.0


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        "{{ raise_exception('roles must alternate') }}",
        "{% generation %}x{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}",
        "{{ tools | tojson(indent=2) }}{{ strftime_now('%Y') }}{{ bos_token }}{{ messages[9].content.strip() }}",
    ],
)
def test_template_that_is_usual_or_refuses_our_conversation_is_in_order(template: str) -> None:
    check_template(template, "x.jinja")


def test_template_seen_before_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    check_template(PLAIN, "x.jinja")
    monkeypatch.setattr(template_check.subprocess, "run", None)
    check_template(PLAIN, "y.jinja")


def test_template_that_stops_its_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_check.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="brought"):
        check_template("{{ 1 }} by a broken process", "x.jinja")


def test_engine_refuses_a_file_whose_template_loops_before_it_starts(tmp_path: Path) -> None:
    path = write_model(tmp_path / "loop.gguf", LOOP)
    with pytest.raises(UserError, match=r"loop\.gguf") as caught:
        start_server(path, LlamaCppSettings(threads=1))
    assert caught.value.code == "engines.template_refused"


def folder_with(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    return path


def weights(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3, np.float32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}'), "select.remote_code"),
        (lambda f: (f / "config.json").write_text("[" * 99_999), "select.config"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "select.config"),
        (lambda f: (f / "secret").symlink_to("/etc/passwd"), "select.symlink"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 90), "select.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "select.pickle"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}'),
            "select.config",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "select.incomplete",
        ),
        (lambda f: (f / "chat_template.jinja").write_text(LOOP), "engines.template_refused"),
        (
            lambda f: (f / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x.__class__ }}"})),
            "engines.template_refused",
        ),
        (
            lambda f: (f / "tokenizer_config.json").write_text(
                json.dumps({"chat_template": [{"name": "default", "template": PLAIN}, {"template": "{% if %}"}]})
            ),
            "engines.template_refused",
        ),
    ],
)
def test_folder_with_something_hostile_is_refused(tmp_path: Path, spoil: Callable[[Path], object], code: str) -> None:
    folder = folder_with(tmp_path / "m", config__json='{"model_type": "llama"}', chat_template__jinja=PLAIN)
    weights(folder)
    check_model(folder)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        check_model(folder)
    assert caught.value.code == code


def test_scan_of_a_folder_shows_everything_that_was_found(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", config__json='{"auto_map": {}}', chat_template__jinja="{{ a.__b__ }}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    (folder / "link").symlink_to("/etc/hostname")
    codes = {error.code for error in scan_model(folder)}
    assert codes == {"select.remote_code", "select.pickle", "select.symlink", "engines.template_refused"}
    with pytest.raises(UserError, match="4 reasons") as caught:
        check_model(folder)
    assert caught.value.code == "engines.model_refused" and "pytorch_model.bin" in str(caught.value)
    assert scan_model(folder / "pytorch_model.bin")[0].code == "select.pickle"


def test_engine_whose_control_tokens_cannot_be_told_leaves_no_child(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []

    def start(command: Command) -> Child:
        started.append(Child(command))
        return started[-1]

    def refuse(*told: object) -> None:
        raise UserError("gguf.damaged", path=good, at=0, reason="it has 20001 control tokens")

    monkeypatch.setattr(llamacpp, "Child", start)
    monkeypatch.setattr(llamacpp, "control_of", refuse)
    with pytest.raises(UserError) as error:
        start_server(good, LlamaCppSettings(context_length=64))
    assert error.value.code == "gguf.damaged" and [child.running for child in started] == [False]
