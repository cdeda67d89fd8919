"""Measure the demo on this machine: a first run in an empty workspace, then second runs with everything cached.

    python bench/demo/run.py [--repeat 5]

Prints wall and CPU seconds and the peak memory of all processes together (proportional set size).
The package index is used once before the clock starts, so that downloads do not count.
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
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "examples" / "desk-routing" / "inhouse.yaml"
TARGETS = {"first_s": 300.0, "peak_gb": 4.0, "second_s": 3.0}


def tree_memory(pid: int) -> int:
    """Proportional set size of a process and everything below it, in bytes."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def measure(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Run a command; wall seconds, CPU seconds of it and its descendants, peak memory of them together."""
    before, began = os.times(), time.monotonic()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            peak[0] = max(peak[0], tree_memory(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = child.wait()
    wall = time.monotonic() - began
    done.set()
    watcher.join()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with {code}")
    return {"wall_s": wall, "cpu_s": cpu, "peak_gb": peak[0] / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="cached runs")
    repeat = parser.parse_args().repeat
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        env = {**os.environ, "INHOUSE_WORKSPACE": str(workspace)}
        inhouse = [sys.executable, "-m", "inhouse"]
        subprocess.run([*inhouse, "data", "build", str(PROJECT)], env=env, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(workspace / "objects")
        command = [*inhouse, "run", str(PROJECT), "--ask"]
        first = measure(command, env)
        again = [measure(command, env) for _ in range(repeat)]
        shown = subprocess.run([*command[:-1], "--json"], env=env, capture_output=True, text=True, check=True)
        steps = {k: v["seconds"] for k, v in json.loads(shown.stdout)["facts"].items()}
    walls = [a["wall_s"] for a in again]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {commit.stdout.strip()}")
    print(f"first run:  {first['wall_s']:.1f} s wall, {first['cpu_s']:.1f} s CPU, peak {first['peak_gb']:.2f} GB")
    print("  " + " · ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items()))
    print(f"second run: {statistics.median(walls):.2f} s wall (n={repeat}, {min(walls):.2f} to {max(walls):.2f})")
    found = {"first_s": first["wall_s"], "peak_gb": first["peak_gb"], "second_s": statistics.median(walls)}
    for name, target in TARGETS.items():
        print(f"{'met ' if found[name] <= target else 'MISS'} {name} {found[name]:.2f} (target {target})")


if __name__ == "__main__":
    main()
