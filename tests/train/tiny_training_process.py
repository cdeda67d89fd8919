"""Train the tiny model in a process of its own; killed by itself at the moment that the test asks for.

Usage: tiny_training_process.py MODEL DATASET WORK MOMENT, where MOMENT is `none`, `step:N` or `save:N:EVENT`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tiny_training import context, train_params


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Die when a file of checkpoint N is opened for writing (save) or after step N (step)."""
    kind, _, rest = moment.partition(":")
    if kind == "save":
        step, _, name = rest.partition(":")

        def hook(event: str, args: tuple[object, ...]) -> None:
            if event == "open" and f"checkpoint-{step}/{name}" in str(args[0]) and str(args[1]) != "r":
                die()

        sys.addaudithook(hook)
    elif kind == "step":
        import inhouse.core.run

        plain = inhouse.core.run.Events.progress

        def progress(self: object, done: float, total: float | None = None, unit: str = "", **facts: object) -> None:
            plain(self, done, total, unit, **facts)
            if unit == "steps" and done == int(rest):
                die()

        inhouse.core.run.Events.progress = progress


if __name__ == "__main__":
    model, dataset, work, moment = sys.argv[1:]
    arm(moment)
    from inhouse.train.stage import run

    made = run(train_params(), context(Path(model), Path(dataset), Path(work)))
    print(made.facts["resumed_from"])
