"""Build a dataset with inhouse as a user would, and read its rows back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import yaml
from run import no_network


def built(folder: Path, source: str, steps: list[object], work: Path) -> pl.DataFrame:
    """The rows (file, offset, text) of a dataset made of plain documents; rejected rows never stop the build."""
    data = {"sources": [{"name": "all", "from": source}], "shape": "text", "steps": steps}
    project = {"version": 1, "name": "truth", "data": {**data, "split": {"test": 0}, "fail_above": 1}}
    (folder / "inhouse.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    python = work / "peers" / "inhouse" / "bin" / "python"
    env = {**os.environ, "INHOUSE_WORKSPACE": str(folder / "workspace")}
    command = [str(python), "-m", "inhouse", "data", "build", str(folder / "inhouse.yaml"), "--json", "--offline"]
    done = subprocess.run([*no_network(), *command], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"inhouse ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    card = Path(json.loads(done.stdout[done.stdout.index("{") :])["dataset"]["card"])
    return pl.read_parquet(card.parent / "train-*.parquet").select("file", "offset", "text")
