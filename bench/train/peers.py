"""Install the peers of the training benchmark, each into its own environment, at pinned versions.

    python bench/train/peers.py [--work .inhouse/bench] [--torch 2.13.0]

torch is the one that this machine's index gives for the plain requirement; where that is a build for GPUs, add the
CPU index by PIP_EXTRA_INDEX_URL. LLaMA-Factory is installed without its own dependencies, which name torchvision and
torchaudio: beside a CPU torch from another index the two do not load. peer_llamafactory.txt lists what training needs
of the others; a module of the name torchaudio that holds nothing stands in for the one import of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"
BARE = {"trl": (), "llamafactory": ("llamafactory==0.9.5",)}  # what is installed without its dependencies
STUB = '"""Stands in for torchaudio, which LLaMA-Factory imports even where no audio is read."""\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--torch", default="2.13.0", help="version of torch on all sides")
    options = parser.parse_args()
    for name in BARE:
        install(name, options.work / "peers" / name, options.torch)
        print(f"{name}: {options.work / 'peers' / name}")


def install(name: str, folder: Path, torch: str) -> None:
    """Make the environment, install what the requirements file names, and check that the peer can be imported."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"torch=={torch}", "-r", str(HERE / f"peer_{name}.txt")], check=True)
    if BARE[name]:
        subprocess.run([*pip, "--no-deps", *BARE[name]], check=True)
        stand_in(folder)
    wanted = {"trl": "import trl", "llamafactory": "import llamafactory.train.tuner"}[name]
    subprocess.run([str(python), "-c", wanted], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stand_in(folder: Path) -> None:
    """Write the empty torchaudio."""
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "torchaudio").mkdir(exist_ok=True)
    (packages / "torchaudio" / "__init__.py").write_text(STUB, encoding="utf-8")


if __name__ == "__main__":
    main()
