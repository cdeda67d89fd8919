"""Run a downloader in a child process: it can be cancelled, and it ends when this process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from inhouse.core.run import Events
from inhouse.core.settings import child_environment

POLL_S = 0.3
START = """
import runpy, sys
from inhouse.core.run import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
name = sys.argv.pop(1)
sys.argv[0] = name
runpy.run_module(name, run_name="__main__")
"""


def run_module(arguments: Sequence[str], folder: Path, events: Events) -> tuple[int, str]:
    """Run `python -m <arguments>`; returns the exit status and all it printed.

    Progress is the bytes that arrive below `folder`, which also holds the child's temporary files: a kill -9
    leaves nothing in /tmp.
    """
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    environment = child_environment(offline=False) | {"TMPDIR": str(scratch), "PYTHONIOENCODING": "utf-8"}
    log = scratch / "output.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
        try:
            _watch(child, folder, events)
        finally:
            child.kill()
            child.wait()
    return child.returncode, log.read_text(encoding="utf-8", errors="replace")


def _watch(child: subprocess.Popen[bytes], folder: Path, events: Events) -> None:
    while child.poll() is None:
        events.progress(_bytes_below(folder), None, "bytes")
        try:
            child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):  # the child renames files while we look; os.walk does not mind
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
