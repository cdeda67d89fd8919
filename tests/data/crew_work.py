"""What worker processes are given to do: in a module that they can import by themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.data.tasks import Finished


def fail(number: int) -> Finished:
    """The number, but for 3 an error."""
    if number == 3:
        raise UserError("data.empty", source="s", place="p")
    return Finished(Path(str(number)))


def sleep(seconds: float) -> Finished:
    """Take so long."""
    time.sleep(seconds)
    return Finished(Path("slept"))


def wait(number: int) -> Finished:
    """The number, after a moment."""
    time.sleep(0.05)
    return Finished(Path(str(number)))


def die(number: int) -> Finished:
    """End as a process does that the system kills, unless it is the one that runs the tests."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(number)
