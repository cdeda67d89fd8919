"""Training curves for TensorBoard and MLflow, through transformers' own callbacks."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.run import Events

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from inhouse.train.watch import Watched

Tracker = Literal["tensorboard", "mlflow"]
BOARD = "tensorboard"
UNTRUE = ("_per_second", "train_loss")  # speeds in batches for samples; a mean over what came after a resume


@contextmanager
def tracking(to: Sequence[Tracker], folder: Path, run: Watched) -> Iterator[list[TrainerCallback]]:
    """Callbacks that report to what is asked for; closed at the end, however it comes.

    TensorBoard's files go to `folder`; points after the step that is resumed from, of a run cut off, no longer count.
    """
    with ExitStack() as stack:
        openers = {
            "tensorboard": lambda: _tensorboard(folder, run.resumed, run.events),
            "mlflow": lambda: _mlflow(run.offline),
        }
        yield [_told(stack.enter_context(openers[name]()), run.epochs) for name in dict.fromkeys(to)]


def _told(callback: Any, epochs: float) -> TrainerCallback:
    """The callback with what the trainer cannot know: to it all the run is one epoch, and a batch is a sample."""
    usual = callback.on_log

    def on_log(args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        told = {name: value for name, value in (logs or {}).items() if not name.endswith(UNTRUE)}
        if "epoch" in told:
            told["epoch"] = epochs * state.global_step / state.max_steps
        usual(args, state, control, logs=told, **more)

    callback.on_log = on_log
    found: TrainerCallback = callback
    return found


def check_trackers(to: Sequence[Tracker], offline: bool) -> None:
    """Raise what keeps `to` from being reported to: extra.missing, train.mlflow_unset, _offline, _unreachable."""
    if "tensorboard" in to:
        require("track", "tensorboard")
    if "mlflow" in to:
        require("track", "mlflow")
        mlflow: Any = importlib.import_module("mlflow")
        if not mlflow.is_tracking_uri_set():
            raise UserError("train.mlflow_unset")
        uri = str(mlflow.get_tracking_uri())
        if offline and uri.startswith(("http:", "https:", "databricks")):
            raise UserError("train.mlflow_offline", uri=uri)
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
        except mlflow.exceptions.MlflowException as error:
            raise UserError("train.mlflow_unreachable", uri=uri, reason=str(error)) from error


def keep_curves(scratch: Path, out: Path) -> None:
    """Put the TensorBoard files, if there are any, into the artifact: measured/tensorboard."""
    if (scratch / BOARD).exists():
        shutil.copytree(scratch / BOARD, out / "measured" / BOARD, dirs_exist_ok=True)


class Scalars:
    """A TensorBoard writer of numbers only: the callback also offers all arguments, local paths among them."""

    def __init__(self, folder: Path, resumed: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(folder), purge_step=resumed + 1 if resumed else None)

    def add_text(self, *_: Any) -> None:
        """Leave texts out."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write one number."""
        self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write to the disk what is held back."""
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self.writer.close()


@contextmanager
def _tensorboard(folder: Path, resumed: int, events: Events) -> Iterator[TrainerCallback]:
    check_trackers(("tensorboard",), False)
    from transformers.integrations import TensorBoardCallback

    events.note("train.tensorboard", folder=str(folder))
    writer = Scalars(folder, resumed)
    try:
        yield TensorBoardCallback(writer)
    finally:
        writer.close()


@contextmanager
def _mlflow(offline: bool) -> Iterator[TrainerCallback]:
    check_trackers(("mlflow",), offline)
    mlflow: Any = importlib.import_module("mlflow")
    from transformers.integrations import MLflowCallback

    ours = mlflow.active_run() is None
    failed = True
    try:
        yield MLflowCallback()
        failed = False
    finally:
        if failed and ours and mlflow.active_run() is not None:
            mlflow.end_run("FAILED")
