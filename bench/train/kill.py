"""Kill training everywhere and see whether it comes back bit for bit: the long form of test_train_resume.py.

    .venv/bin/python bench/train/kill.py [--every N] [--timed N] [--threads N]

For each setting below a run that is left alone, then one killed (SIGKILL) before each N-th change to a file of its
work folder, and some killed at random seconds; each is resumed and must end in the same files and the same curves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "train"
SETTINGS = {
    "plain, dropout": {},
    "accumulation, evaluation, early stopping": {
        "eval_steps": 2, "eval_share": 0.25, "early_stopping_patience": 2, "gradient_accumulation_steps": 2,
        "num_train_epochs": 12, "save_steps": 4, "learning_rate": 0.05,
    },
    "bf16, one checkpoint kept, evaluation at every step": {
        "precision": "bf16", "save_total_limit": 1, "save_steps": 1, "eval_steps": 1, "eval_share": 0.25,
        "max_steps": 8,
    },
}  # fmt: skip
SAME = ("out", "losses", "evaluations", "best_step", "steps", "tokens", "left")


def tiny(folder: Path) -> tuple[Path, Path]:
    """The model and the dataset of the tests."""
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "import conftest; from tiny_training import write_dataset\n"
        "root = Path(sys.argv[1])\n"
        "class Factory:\n"
        "    def mktemp(self, name):\n"
        "        (root / name).mkdir(); return root / name\n"
        "getattr(conftest.tiny_llama, '__wrapped__', None)(Factory())\n"
        "write_dataset(root / 'dataset')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder), str(TESTS.parent), str(TESTS)], check=True)
    return folder / "tiny-llama", folder / "dataset"


def drive(places: tuple[Path, Path, Path], threads: int, settings: dict[str, object], moments: list[str]) -> list[dict]:
    """What tests/train/killing.py found at each moment."""
    plan = json.dumps({"threads": threads, "settings": settings, "moments": moments})
    command = [sys.executable, str(TESTS / "killing.py"), *map(str, places), plan]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "INHOUSE_THREADS": str(threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="kill before every N-th change to a file")
    parser.add_argument("--timed", type=int, default=20, help="kills at random seconds, for each setting")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    chooser, wrong = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        model, dataset = tiny(Path(folder))
        places = (model, dataset, Path(folder) / "work")
        for name, settings in SETTINGS.items():
            began = time.monotonic()
            (whole,) = drive(places, asked.threads, settings, ["none"])
            lasted = time.monotonic() - began
            moments = [f"file:{at}" for at in range(1, whole["changes"] + 1, asked.every)]
            moments += [f"after:{chooser.uniform(0, lasted):.3f}" for _ in range(asked.timed)]
            found = drive(places, asked.threads, settings, moments)
            bad = [run["moment"] for run in found if any(run[key] != whole[key] for key in SAME)]
            killed = [run for run in found if run["killed"]]
            resumed = sum(run["resumed_from"] > 0 for run in killed)
            print(
                f"{name}: {whole['steps']} steps, {len(killed)} kills, {resumed} resumed from a checkpoint, "
                f"{len(killed) - resumed} from the beginning, {len(bad)} different {bad} "
                f"({asked.threads} threads, {time.monotonic() - began:.0f} s)",
                flush=True,
            )
            wrong += len(bad)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
