"""What is told while training runs, and what stops it."""

from __future__ import annotations

import time
from math import isfinite
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.run import Events, peak_memory
from inhouse.train.checkpoint import settle
from inhouse.train.params import TrainParams


def watcher(events: Events, params: TrainParams, folder: Path, tokens_per_step: float) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Tell the events how training goes, stop when the user asks, and settle checkpoints."""

        started, first = 0.0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            rate = (state.global_step - self.first) * tokens_per_step / max(1e-9, time.monotonic() - self.started)
            events.progress(state.global_step, state.max_steps, "steps", tokens_per_s=round(rate, 1))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "grad_norm" in logs:
                if not isfinite(float(logs["grad_norm"])):
                    raise UserError("train.diverged", step=state.global_step, learning_rate=params.learning_rate)
                facts = {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm")}
                events.emit("train.step", step=state.global_step, memory_bytes=peak_memory(), **facts)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            settle(folder, state.global_step, params.save_total_limit)

    return Watcher()
