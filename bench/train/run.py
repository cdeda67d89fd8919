"""Measure training and its peers on the same rows, back to back, with the network off.

    python bench/train/model.py && python bench/train/rows.py && python bench/train/peers.py   # once
    python bench/train/run.py [SUBJECT ...] [--steps 23] [--repeat 3] [--threads 2] ...
    python bench/train/run.py --ladder       # the steps of our speed, each on and off
    python bench/train/run.py --losses       # loss curves of 50 steps beside a plain fp32 step

In every round each subject runs once, in a process of its own. Speed is what the process did between the end of its
third step and the end of its last one: useful tokens (pairs for DPO), padding left out, per CPU-second and per
second. Tables go to standard output and every run to WORK/train/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from inhouse.core.settings import child_environment
from inhouse.engines.waiting import SLEEPING
from inhouse.flow.jobs import threads

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"
OURS = "ours"


@dataclass(frozen=True)
class Subject:
    """A side in one of its variants. `peer` names its environment, None is the one that runs this."""

    script: str
    variant: str
    peer: str | None = None


SUBJECTS: dict[str, Subject] = {
    OURS: Subject("ours.py", "as-it-comes"),
    "ours-half": Subject("ours.py", "half"),
    "trl": Subject("peer_trl.py", "as-it-comes", "trl"),
    "trl-half": Subject("peer_trl.py", "half", "trl"),
    "trl-open": Subject("peer_trl.py", "open", "trl"),
    "trl-best": Subject("peer_trl.py", "best", "trl"),
    "trl-flat": Subject("peer_trl.py", "flat", "trl"),
    "trl-packed": Subject("peer_trl.py", "packed", "trl"),
    "llamafactory": Subject("peer_llamafactory.py", "as-it-comes", "llamafactory"),
    "llamafactory-best": Subject("peer_llamafactory.py", "best", "llamafactory"),
    "llamafactory-packed": Subject("peer_llamafactory.py", "packed", "llamafactory"),
    "plain": Subject("plain.py", "bf16"),
    "plain-autocast": Subject("plain.py", "bf16-autocast"),
    "ours-dpo": Subject("ours.py", "dpo"),
    "trl-dpo": Subject("peer_dpo.py", "as-it-comes", "trl"),
    "trl-dpo-best": Subject("peer_dpo.py", "best", "trl"),
    "ours-unshared": Subject("ours.py", "unshared"),
    "ours-unpacked": Subject("ours.py", "unpacked"),
    "ours-fp32": Subject("ours.py", "fp32"),
    "ours-fp32-unshared": Subject("ours.py", "fp32-unshared"),
    "ours-fp32-unpacked": Subject("ours.py", "fp32-unpacked"),
    "plain-fp32": Subject("plain.py", "fp32"),
}
LADDER = ["fp32-padded", "bf16-padded", "labels", "packed", "fused", "shared"]
BESIDE = ["masked", "checkpointed"]
SUBJECTS |= {name: Subject("steps.py", name) for name in [*LADDER, *BESIDE]}
MAIN = [
    OURS,
    "trl",
    "llamafactory",
    "plain",
    "plain-autocast",
    "trl-best",
    "trl-flat",
    "trl-packed",
    "llamafactory-best",
]
LOSSES = ["ours-fp32", "ours-fp32-unshared", "ours-fp32-unpacked", "plain-fp32"]
# What a ratio must reach (issue 3): speed of ours over theirs.
WANTED = {"trl": 3.2, "llamafactory": 2.3, "plain": 1.8, "plain-autocast": 1.8, "trl-dpo": 2.5, "trl-dpo-best": 2.5}
WANTED |= dict.fromkeys(("trl-best", "trl-flat", "trl-packed", "llamafactory-best", "llamafactory-packed"), 1.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="; ".join(SUBJECTS))
    parser.add_argument("--steps", type=int, help="default: 23, and 50 for losses")
    parser.add_argument("--size", type=int, default=8, help="rows of a batch")
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--asleep", action="store_true", help="peers' threads sleep while they wait, as ours do")
    parser.add_argument("--ladder", action="store_true", help="measure the steps of our speed, each on and off")
    parser.add_argument("--losses", action="store_true", help="compare loss curves instead of speed")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--note", default="", help="what else to remember of this measurement")
    options = parser.parse_args()
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    print(f"{machine()}, {options.threads} threads. {options.note}", flush=True)
    print((options.work / "train" / "rows.json").read_text(encoding="utf-8"))
    options.steps = options.steps or (50 if options.losses else 23)
    if options.losses:
        print(compare_losses(measure_all(options.subjects or LOSSES, 1, options)))
        return
    names = options.subjects or ([*LADDER, *BESIDE] if options.ladder else MAIN)
    runs = measure_all(names, options.repeat, options)
    print(table(runs), *filter(None, [ratios(runs), rungs(runs)]), sep="\n\n")


def measure_all(subjects: list[str], rounds: int, options: argparse.Namespace) -> list[dict]:
    """Every subject once in every round."""
    runs = []
    for number in range(1, rounds + 1):
        for name in subjects:
            run = {"subject": name, "round": number, **once(SUBJECTS[name], options)}
            print(f"round {number} load {os.getloadavg()[0]:.1f}: {shown(run)}", flush=True)
            remember(run, options)
            runs.append(run)
    return runs


def once(subject: Subject, options: argparse.Namespace) -> dict:
    """Run a side in a process of its own and read its figures."""
    folder = options.work / "train" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / "result.json", folder / f"{subject.script}-{subject.variant}.log"
    out.unlink(missing_ok=True)
    python = options.work / "peers" / subject.peer / "bin" / "python" if subject.peer else Path(sys.executable)
    asked = {"variant": subject.variant, "steps": options.steps, "warm": options.warm, "threads": options.threads}
    asked |= {"size": options.size, "work": options.work, "out": out, "started": time.time()}
    flags = [part for key, value in asked.items() for part in (f"--{key}", str(value))]
    with log.open("wb") as written:
        command = [*no_network(), str(python), str(HERE / subject.script), *flags]
        # This checkout is what is measured, whatever the environment has installed.
        env = {**os.environ, **({} if subject.peer else {"PYTHONPATH": str(ROOT / "src")})}
        if subject.script in ("ours.py", "steps.py"):  # as the product starts a training: in a job
            env = child_environment(offline=True) | env | threads()
        if options.asleep:
            env |= SLEEPING
        code = subprocess.run(command, stdout=written, stderr=subprocess.STDOUT, cwd=folder, env=env).returncode
    if code or not out.exists():
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        sys.exit(f"{subject.script} {subject.variant} ended with {code}\n{tail}")
    return json.loads(out.read_text(encoding="utf-8"))


def no_network() -> list[str]:
    """What puts a command into a network namespace of its own, with nothing in it."""
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return []


def table(runs: list[dict]) -> str:
    """Medians of the runs, a line per subject, in Markdown."""
    lines = [
        "| subject | useful tokens (DPO: pairs) per CPU-s | per second | peak MB | to first step s | loss, last 5 |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["subject"] for run in runs):
        own = [run for run in runs if run["subject"] == name]
        last = [loss for loss in own[0]["losses"][-5:] if loss is not None]
        cells = [
            name,
            *(spread([run[key] for run in own], 1) for key in ("units_per_cpu_s", "units_per_s")),
            spread([run["peak_mb"] for run in own], 0),
            spread([run["first_step_s"] for run in own], 1),
            f"{statistics.mean(last):.4f}" if last else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(runs: list[dict]) -> str:
    """Ours over each other side, round by round: speed and memory."""
    lines = ["| ours against | times as fast, per CPU-s | wanted | peak memory, ours / theirs |", "|---|---|---|---|"]
    names = dict.fromkeys(run["subject"] for run in runs)
    for name in names:
        mine = "ours-dpo" if "dpo" in name else OURS
        if name.startswith("ours") or mine not in names:
            continue
        pairs = list(zip(of(runs, mine), of(runs, name), strict=True))
        speed = [a["units_per_cpu_s"] / b["units_per_cpu_s"] for a, b in pairs]
        memory = [a["peak_mb"] / b["peak_mb"] for a, b in pairs]
        lines.append(f"| {name} | {spread(speed, 2)} | {WANTED.get(name, '')} | {spread(memory, 2)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def rungs(runs: list[dict]) -> str:
    """Each step of the ladder against the one before it, and the share of the machine's bf16 matrix peak."""
    lines = ["| step | times as fast as the one before | share of the bf16 matrix peak |", "|---|---|---|"]
    before = {**dict(zip(LADDER[1:], LADDER, strict=False)), "masked": "labels", "checkpointed": "shared"}
    for name in dict.fromkeys(run["subject"] for run in runs if "share_of_peak" in run):
        own, other = of(runs, name), of(runs, before.get(name, ""))
        gains = [a["units_per_cpu_s"] / b["units_per_cpu_s"] for a, b in zip(own, other, strict=False)]
        shares = spread([100 * run["share_of_peak"] for run in own], 1)
        lines.append(f"| {name} | {spread(gains, 2) if gains else ''} | {shares} % |")
    return "\n".join(lines) if len(lines) > 2 else ""


def of(runs: list[dict], name: str) -> list[dict]:
    """The runs of a subject in the order of the rounds."""
    return [run for run in runs if run["subject"] == name]


def compare_losses(runs: list[dict]) -> str:
    """How far the loss of each subject is from the last one's, step by step."""
    against = runs[-1]
    lines = [
        f"| subject | largest difference to {against['subject']} | at step | first | last |",
        "|---|---|---|---|---|",
    ]
    for run in runs[:-1]:
        gaps = [abs(a - b) for a, b in zip(run["losses"], against["losses"], strict=True)]
        first, last = run["losses"][0], run["losses"][-1]
        lines.append(f"| {run['subject']} | {max(gaps):.2e} | {gaps.index(max(gaps)) + 1} | {first:.4f} | {last:.4f} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """The median with its range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def shown(run: dict) -> str:
    """A run in a line."""
    return (
        f"{run['subject']}: {run['units_per_cpu_s']} per CPU-s, {run['units_per_s']} per s, {run['peak_mb']:.0f} MB, "
        f"first step after {run['first_step_s']} s"
    )


def remember(run: dict, options: argparse.Namespace) -> None:
    """Append a run to results.jsonl."""
    facts = {"time": round(time.time()), "machine": machine(), "note": options.note, "load": os.getloadavg()[0]}
    with (options.work / "train" / "results.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps({**facts, **run}) + "\n")


def machine() -> str:
    """Processor, cores and commit."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, commit {commit.stdout.strip()}"


if __name__ == "__main__":
    main()
