"""Install the peer of the gateway benchmark, LiteLLM's proxy, into its own environment at pinned versions.

    python bench/serve/peers.py [--work .inhouse/bench]

llama.cpp's own server needs no environment: it comes with xllamacpp, which inhouse uses too, so that both sides run the
same build of the engine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    folder = parser.parse_args().work / "peers" / "litellm"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [str(python), "-m", "pip", "install", "-q", "-c", str(HERE / "peer_litellm.txt"), "litellm[proxy]"]
    subprocess.run(command, check=True)
    print(f"litellm: {folder}")


if __name__ == "__main__":
    main()
