"""What all sides of the benchmark share: settings, rows, and the clock around the steps. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The same on every side. LoRA without dropout, so that nothing is drawn at random after the adapters.
SIZE = 8
RATE = 1e-3
SEED = 7
RANK, ALPHA = 16, 32
LONGEST = 1024
IGNORED = -100
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "llamafactory")


@dataclass(frozen=True)
class Settings:
    """The command line of a side. `started` is the time when its process was started, in epoch seconds."""

    work: Path
    variant: str
    steps: int
    warm: int
    threads: int
    size: int
    started: float
    out: Path

    @property
    def folder(self) -> Path:
        return self.work / "train"

    def model(self, name: str) -> str:
        return str(self.folder / f"smollm2-{name}")


def settings(variants: tuple[str, ...]) -> Settings:
    """Read the command line; threads are set before torch is imported."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parents[2] / ".inhouse" / "bench")
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=SIZE, help="rows of a batch")
    parser.add_argument("--started", type=float, default=time.time())
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    found = Settings(**vars(parser.parse_args()))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(found.threads)
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true"
    )
    return found


def read(path: Path, most: int | None = None) -> list[dict]:
    """The rows of a JSON lines file."""
    with path.open(encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return rows[:most]


def token_rows(asked: Settings) -> list[dict]:
    """The rows as ids and labels, as many as the steps need, again from the start when there are too few."""
    rows = read(asked.folder / "tokens.jsonl")
    wanted = asked.steps * asked.size
    return (rows * (wanted // len(rows) + 1))[:wanted]


def useful(rows: list[dict], asked: Settings) -> list[int]:
    """Tokens of the rows of each step, padding left out."""
    lengths = [len(row["input_ids"]) for row in rows]
    return [sum(lengths[at : at + asked.size]) for at in range(0, len(lengths), asked.size)]


@dataclass
class Clock:
    """CPU and wall seconds between the end of the last warm-up step and the end of the last step."""

    asked: Settings
    units: list[int]  # what each step is worth: useful tokens, or pairs
    losses: dict[int, float] = field(default_factory=dict)
    marks: dict[int, tuple[float, float]] = field(default_factory=dict)
    first_step_s: float = 0.0
    peak: float = 0.0
    each: tuple[float, float] = (0.0, 0.0)  # CPU and wall seconds that every unit took before the first step
    between: Callable[[], None] | None = None  # run behind every step, and not counted
    apart: tuple[float, float] = (0.0, 0.0)  # CPU and wall seconds that it took so far

    def step(self, done: int) -> None:
        """Say that step number `done` (from 1) has ended."""
        if done == 1:
            self.first_step_s = time.time() - self.asked.started
        before = (time.process_time(), time.perf_counter())
        self.marks[done] = (before[0] - self.apart[0], before[1] - self.apart[1])
        if done == self.asked.steps:
            self.peak = peak_mb()
        if self.between is not None:
            self.between()
            after = (time.process_time(), time.perf_counter())
            self.apart = (self.apart[0] + after[0] - before[0], self.apart[1] + after[1] - before[1])

    def write(self, side: str, **facts: object) -> None:
        """Write the figures of the run."""
        first, last = self.marks[self.asked.warm], self.marks[self.asked.steps]
        count = sum(self.units[self.asked.warm : self.asked.steps])
        cpu, wall = (end - begin + count * own for begin, end, own in zip(first, last, self.each, strict=True))
        shown = {
            key: value for key, value in asdict(self.asked).items() if key in ("variant", "steps", "warm", "threads")
        }
        result = {
            "side": side,
            **shown,
            "units": count,
            "cpu_s": round(cpu, 3),
            "wall_s": round(wall, 3),
            "units_per_cpu_s": round(count / cpu, 2),
            "units_per_s": round(count / wall, 2),
            "peak_mb": round(self.peak, 1),
            "first_step_s": round(self.first_step_s, 2),
            "losses": [self.losses.get(number) for number in range(1, self.asked.steps + 1)],
            "versions": versions(),
            **facts,
        }
        self.asked.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
        if self.asked.out != Path("/dev/stdout"):
            print({key: value for key, value in result.items() if key not in ("losses", "versions")}, file=sys.stderr)


def peak_mb() -> float:
    """The most memory that this process held so far, in MB (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def versions() -> dict[str, str]:
    """The packages that are installed here, of those that matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def callback(clock: Clock):
    """A callback of transformers' Trainer that tells the clock of steps and losses."""
    from transformers import TrainerCallback

    class Told(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            clock.step(state.global_step)

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                clock.losses[state.global_step] = float(logs["loss"])

    return Told()
