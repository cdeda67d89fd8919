"""What inhouse and the peers make of damaged input: one bad file beside a good one, and which good rows come out.

    python bench/data/bad_input.py [--work .inhouse/bench]

Every good row should be kept. `died` is an exit status other than 0: nothing came out, also of the good file.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import yaml
from ours import built
from run import ENV, HERE, WORK, no_network

ROWS = 20
LONG_BYTES = 64 << 20
TEXT = "The quick brown fox jumps over the lazy dog, and 敏捷的棕色狐狸跳过了懒狗。 " * 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    print("| good rows kept of | inhouse | data-juicer | datatrove |\n|---|---|---|---|")
    for case, make in CASES.items():
        name, data, good = make()
        cells = [ours(name, data, work), *(tried(command, name, data, work) for command in (juicer, datatrove))]
        print(f"| {case} ({ROWS + good}) | " + " | ".join(cells) + " |", flush=True)


def row(number: int) -> bytes:
    """A good row."""
    return json.dumps({"name": f"bad/{number}", "text": f"{number} {TEXT}"}, ensure_ascii=False).encode() + b"\n"


def among(bad: bytes, name: str = "bad.jsonl") -> tuple[str, bytes, int]:
    """A file with a bad line between good ones."""
    half = ROWS // 2
    return name, b"".join([*map(row, range(half)), bad + b"\n", *map(row, range(half, ROWS))]), ROWS


def cut_gzip() -> tuple[str, bytes, int]:
    """A gzip file whose end is missing; the rows before it can be read."""
    lines = b"".join(
        json.dumps({"name": f"bad/{n}", "text": os.urandom(400).hex()}).encode() + b"\n" for n in range(400)
    )
    data = gzip.compress(lines)[: 1 << 16]
    whole = gzip.GzipFile(fileobj=io.BytesIO(data))
    read = b""
    try:
        while part := whole.read1(1024):
            read += part
    except EOFError:
        pass
    return "bad.jsonl.gz", data, read.count(b"\n")


def cut_parquet() -> tuple[str, bytes, int]:
    """A Parquet file without its footer: no row can be read."""
    buffer = io.BytesIO()
    pl.DataFrame({"name": [f"bad/{n}" for n in range(ROWS)], "text": [TEXT] * ROWS}).write_parquet(buffer)
    return "bad.parquet", buffer.getvalue()[:-20], 0


def gb18030() -> tuple[str, bytes, int]:
    """A file in the encoding of many Chinese systems."""
    return "bad.jsonl", b"".join(row(n).decode().encode("gb18030") for n in range(ROWS)), ROWS


CASES: dict[str, Callable[[], tuple[str, bytes, int]]] = {
    "a line that is not UTF-8": lambda: among(b'{"name": "x", "text": "caf\xe9 au lait"}'),
    "a broken JSON line": lambda: among(b'{"name": "x", "text": "no end'),
    "a line of 64 MB": lambda: among(b'{"name": "x", "text": "' + b"long " * (LONG_BYTES // 5) + b'"}'),
    "a lone surrogate": lambda: among(b'{"name": "x", "text": "half of a pair: \\ud83d"}'),
    "a null text": lambda: among(b'{"name": "x", "text": null}'),
    "an empty file": lambda: ("bad.jsonl", b"", 0),
    "a GB18030 file": gb18030,
    "a cut gzip file": cut_gzip,
    "a cut Parquet file": cut_parquet,
}


def ours(name: str, data: bytes, work: Path) -> str:
    """How many good rows inhouse kept."""
    folder = beside_good(name, data, work)
    return str(built(folder, str(folder / "in"), [], work).height)


def tried(command: Callable[[Path, Path], list[str]], name: str, data: bytes, work: Path) -> str:
    """How many good rows a peer kept, or that it died."""
    folder = beside_good(name, data, work)
    env = {**os.environ, **ENV, "HF_HOME": str(folder / "hf")}
    done = subprocess.run([*no_network(), *command(folder, work / "peers")], env=env, capture_output=True)
    (folder / "log.txt").write_bytes(done.stdout + done.stderr)
    if done.returncode:
        return "died"
    rows = [json.loads(line) for file in (folder / "out").glob("*.jsonl") for line in file.open("rb")]
    names = {item.get("name", item.get("id")) for item in rows}
    return str(sum(str(found).startswith(("bad/", "good/")) for found in names))


def beside_good(name: str, data: bytes, work: Path) -> Path:
    """A folder whose folder `in` holds the bad file and a good one."""
    folder = work / "runs" / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    (folder / "in" / name).write_bytes(data)
    good = b"".join(row(n).replace(b'"bad/', b'"good/') for n in range(100, 100 + ROWS))
    (folder / "in" / "good.jsonl").write_bytes(good)
    return folder


def juicer(folder: Path, peers: Path) -> list[str]:
    """data-juicer, one cheap step."""
    recipe = yaml.safe_load((HERE / "peer_juicer.yaml").read_text(encoding="utf-8"))
    recipe["process"] = [{"text_length_filter": {"min_len": 1}}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    options = {"config": folder / "recipe.yaml", "dataset_path": folder / "in", "export_path": folder / "out/0.jsonl"}
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return [str(peers / "juicer" / "bin" / "dj-process"), *flags, "--np", "1"]


def datatrove(folder: Path, peers: Path) -> list[str]:
    """datatrove, one cheap step. Its reader for JSON lines is given all files, for it does not choose by ending."""
    python = str(peers / "datatrove" / "bin" / "python")
    return [python, str(HERE / "peer_datatrove.py"), str(folder / "in"), str(folder), "1", "whitespace", "pii"]


if __name__ == "__main__":
    main()
