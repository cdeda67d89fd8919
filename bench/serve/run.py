"""Measure serving beside its peers: every side in a process of its own, interleaved, medians over rounds.

    python bench/serve/gguf_files.py && python bench/serve/peers.py   # once
    python bench/serve/run.py [ROW ...] [--kind q8_0] [--rounds 3] [--threads 2] [--quick]

Rows: tokens prompt (real model, beside llama.cpp's own server) · paced plain cached (the gateway over an engine that
computes nothing, beside a raw ASGI relay and LiteLLM's proxy) · gone · start. CPU is that of the gateway's process
alone, from /proc; the load generator and the engine are counted apart. Every run goes to WORK/serve/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "src"))

from rows import BARS, ROWS, Bar, Run, Work, measured  # noqa: E402

WORK = ROOT / ".inhouse" / "bench"
SHOWN = (
    "tokens_per_s", "ttft_ms_p50", "ttft_ms_p95", "gap_ms_p50", "us_per_token", "per_s", "us_per_request", "ms_p50",
    "ms_p95", "first_token_s", "failed",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(ROWS))
    parser.add_argument("--kind", default="q8_0", choices=("q8_0", "q4_k_m"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--asleep", action="store_true", help="the peer's threads sleep while they wait, as ours do "
                        "where other programs run")  # fmt: skip
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--note", default="", help="what else to remember of this measurement")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if options.asleep:
        os.environ["BENCH_ASLEEP"] = "1"
    folder = options.work / "serve"
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(folder, options.kind, options.threads, options.rounds, options.quick)
    print(f"{machine()}, {options.threads} threads, {options.kind}. {options.note}", flush=True)
    runs: list[Run] = []
    for name in options.rows or ROWS:
        for run in ROWS[name](work):
            print(shown(run), flush=True)
            remember(run, folder, options.note)
            runs.append(run)
    print(table(runs))


def table(runs: list[Run]) -> str:
    """Every bar that was measured, in Markdown."""
    lines = ["| measure | ours | other | found | must be | |", "|---|---|---|---|---|---|"]
    for bar in BARS:
        if (found := measured(bar, runs)) is not None:
            lines.append(_line(bar, *found))
    return "\n".join(lines)


def _line(bar: Bar, own: float, other: float | None) -> str:
    value = own if other is None else own - other if bar.against == "direct" else own / other
    met = value >= bar.bound if bar.at_least else value <= bar.bound
    unit = "" if other is None or bar.against == "direct" else " x"
    sign = "at least" if bar.at_least else "at most"
    against = "" if other is None else f"{other:.4g} ({bar.against})"
    bound = f"{sign} {bar.bound:g}{unit}"
    return f"| {bar.title} | {own:.4g} | {against} | {value:.3g}{unit} | {bound} | {'met' if met else 'MISSED'} |"


def shown(run: Run) -> str:
    """A run in a line."""
    where = " ".join(f"{k}={run[k]}" for k in ("clients", "part", "streamed") if k in run)
    figures = " ".join(f"{k}={run[k]:.4g}" for k in SHOWN if k in run)
    return f"{run['row']} round {run['round']} load {os.getloadavg()[0]:.1f} {run['side']:12} {where} {figures}"


def remember(run: Run, folder: Path, note: str) -> None:
    """Append a run to results.jsonl."""
    facts = {"time": round(time.time()), "machine": machine(), "note": note, "load": os.getloadavg()[0]}
    with (folder / "results.jsonl").open("a", encoding="utf-8") as f:
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
