"""What serving survives, at full length: each fault's figures beside their bars.

    python bench/soak/run.py                       # everything; half an hour
    python bench/soak/run.py overload --minutes 1
    python bench/soak/run.py soak replicas --json soak.json

The short forms are tests/serve/test_serve_survival.py and run with every test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from scenes import ROOT, SCENES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="scene", help=", ".join(SCENES) + "; none: all")
    parser.add_argument("--minutes", type=float, help="instead of the usual length of each")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    wanted = [name for name in given.scenes if name != "all"] or list(SCENES)
    if unknown := [name for name in wanted if name not in SCENES]:
        parser.error(f"no such scene: {', '.join(unknown)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found = {"commit": commit.stdout.strip(), "scenes": {}}
    print(f"commit {found['commit']}\n\n| | measured | must be | |\n|---|---|---|---|", flush=True)
    held = True
    for name in wanted:
        scene, usual = SCENES[name]
        began = time.monotonic()
        rows = scene(usual if given.minutes is None else given.minutes)
        for row in rows:
            print(
                f"| {name}: {row.what} | {row.measured} | {row.bar} | {'held' if row.held else 'MISSED'} |", flush=True
            )
            held &= row.held
        found["scenes"][name] = {"wall_s": round(time.monotonic() - began, 1), "rows": [asdict(row) for row in rows]}
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
