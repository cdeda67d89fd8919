"""Have what finds personal data compiled before it is needed, where nobody waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from inhouse.core.compiled import place_beside

KERNELS = Path(__file__).parent / "kernels" / "scan.py"
WHOLE = "scan.scan-*.nbi"  # numba's note of the kernel that all others are parts of: it is compiled last
COMPILE = "import os; os.nice(19); from inhouse.guard.pii import find; find('')"


def compile_apart() -> None:
    """Compile it in a process of its own that gives way to every other, unless it is kept from an earlier time.

    Compiling takes 8 CPU-seconds and holds the interpreter's lock; loading what is kept takes 0.6. A thread of this
    process could not give way: it would be put off while it holds the lock that everybody waits for.
    """
    place = place_beside(str(KERNELS))
    if place is None or any(place.rglob(WHOLE)):
        return
    silent = subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", COMPILE], stdin=silent, stdout=silent, stderr=silent, check=False)
