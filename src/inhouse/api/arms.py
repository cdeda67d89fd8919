"""Trainings of a comparison, each in a child process of its own; what is measured once is kept."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from inhouse.api import jobs
from inhouse.api.request import Request
from inhouse.api.training import Training, TrainingRequest, open_training
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.errors import Cancelled, InhouseError, UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.messages import known, text
from inhouse.core.protocols import Input
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.core.store import write_durably
from inhouse.dataset import read_rows, write_rows
from inhouse.train.compare import Arm, Measured, measure_arm
from inhouse.train.held_out import share_of
from inhouse.train.learning import Learning
from inhouse.train.params import TrainParams
from inhouse.train.planning import refuse_base
from inhouse.train.privacy import refuse_private
from inhouse.train.search import measured_on

FOLDER = "compare"  # of the workspace
VERSION = "2"  # of what is measured, and how
LEAST_ROWS, LEAST_HELD = 8, 4
BASE = "base"  # what the base is called as it is


class CompareRequest(TrainingRequest):
    """Which training is compared, on how many rows held back, and for how long."""

    minutes: float = Field(10, gt=0, le=7 * 24 * 60, description="no training begins after so many minutes")
    rows: int = Field(100, ge=8, le=100_000, description="rows held back that each model is measured on, at most")
    again: bool = Field(False, description="measure anew what was measured before")


class Given(Frozen):
    """An artifact, and the folder that is read for it."""

    record: Artifact
    path: Path


class ArmRequest(Request):
    """One training, and what it reads."""

    arm: Arm
    inputs: dict[str, Given]


class Refused(Frozen):
    """Why a training cannot be run here."""

    code: str
    message: str


class Outcome(NamedTuple):
    """What came of a training: measured, or refused; and whether it was known before."""

    measured: Measured | None
    refused: Refused | None = None
    kept: bool = False


class Held(Frozen):
    """The rows of a comparison."""

    train: int = Field(description="rows to learn from, held-out ones taken off")
    rows: int = Field(description="rows held back that were measured on")
    part: str = Field(description="valid: the dataset's own part; train: a share of the training rows, not learned")


def measure_one(request: ArmRequest, events: Events) -> Measured:
    """Train once and measure; the work of a child process."""
    inputs = {role: Input(given.record, given.path) for role, given in request.inputs.items()}
    return measure_arm(request.arm, inputs, events)


class Turn(NamedTuple):
    """Which training of a comparison it is, how many there are, and the rows that are to be learned from here on."""

    number: int
    total: int
    rows_left: int


Runner = Callable[[ArmRequest, Callable[[dict[str, Any]], None]], Measured]


def in_child(request: ArmRequest, watch: Callable[[dict[str, Any]], None]) -> Measured:
    """`measure_one` in a process of its own."""
    return jobs.attach(measure_one, request, watch)


@dataclass
class Comparison:
    """Trainings on parts of the same rows, measured on the same rows held back."""

    request: CompareRequest
    training: Training
    train: list[Row]
    held: list[Row]
    part: str
    events: Events
    deadline: float
    run: Runner = in_child
    told: set[str] = field(default_factory=set)
    kept: int = 0
    spent: float = 0.0  # seconds of the trainings that were run now
    learned: int = 0  # rows of these, each training's counted

    @property
    def about(self) -> Held:
        """The rows, for a result."""
        return Held(train=len(self.train), rows=len(self.held), part=self.part)

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

    def measure(self, arm: Arm, rows: Sequence[Row], turn: Turn) -> Outcome:
        """Train on these rows, or find what it came to before. What cannot be run here is refused with the reason."""
        whole, cut = (self.folder / f"{self._key(one, rows)}.json" for one in (_unhurried(arm), arm))
        path = whole if whole.exists() else cut
        if path.exists() and not self.request.again:
            self.kept += 1
            return Outcome(Measured.model_validate_json(path.read_text(encoding="utf-8")), kept=True)
        foretold = 0.0 if arm.most_s is not None else self._foretold(len(rows))
        if self.left() <= foretold:
            error = UserError("compare.no_time", minutes=f"{self.request.minutes:g}")
            return Outcome(None, Refused(code=error.code, message=str(error)))
        self._tell(arm, turn)
        began = time.monotonic()
        try:
            measured = self._run(arm, rows, cut.with_suffix(""))
        except Cancelled:
            raise
        except InhouseError as error:
            return Outcome(None, Refused(code=error.code, message=str(error)))
        self.spent += time.monotonic() - began
        self.learned += len(rows)
        write_durably(cut if measured.ended == "out_of_time" else whole, measured.model_dump_json())
        return Outcome(measured)

    def _foretold(self, rows: int) -> float:
        """Seconds of a training on so many rows, by those that were run; 0 before any was."""
        return self.spent / self.learned * rows if self.learned else 0.0

    def _tell(self, arm: Arm, turn: Turn) -> None:
        """Which training begins, and about how long all will still take."""
        left = ceil(self._foretold(turn.rows_left) / 60)
        word, _, rest = arm.name.partition(" ")
        name = f"{text(code) if known(code := f'step.{word}') else word} {rest}".rstrip()
        if left:
            self.events.note("compare.next", name=name, number=turn.number, count=turn.total, minutes=left)
        else:
            self.events.note("compare.first", name=name, number=turn.number, count=turn.total)

    @property
    def folder(self) -> Path:
        """Where results are kept."""
        return self.request.store.root / FOLDER

    def _run(self, arm: Arm, rows: Sequence[Row], folder: Path) -> Measured:
        """Write the rows as a dataset of their own, and train on them."""
        shutil.rmtree(folder, ignore_errors=True)  # of a comparison that was killed
        folder.mkdir(parents=True)
        try:
            write_rows(folder, "train", rows)
            write_rows(folder, "valid", self.held)
            given = {
                role: Given(record=one.record, path=folder if role == "dataset" else one.path.absolute())
                for role, one in self.training.inputs.items()
            }
            asked = ArmRequest(workspace=self.request.workspace, offline=True, arm=arm, inputs=given)
            return self.run(asked, self._watch)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _watch(self, event: dict[str, Any]) -> None:
        """Pass on how far the training is, and what it notes for the first time."""
        self.events.check()
        if event["event"] == "stage.progress":
            self.events.progress(event["done"], event["total"], event["unit"], step=event.get("step", ""))
        elif event["event"] == "note" and (heard := hash_json([event["code"], event["facts"]])) not in self.told:
            self.told.add(heard)
            self.events.emit("note", code=event["code"], facts=event["facts"])

    def _key(self, arm: Arm, rows: Sequence[Row]) -> str:
        inputs = {role: given.record.id for role, given in self.training.inputs.items() if role != "dataset"}
        return hash_json([VERSION, arm.model_dump(mode="json"), inputs, _digest(rows), _digest(self.held)])[:24]


def _unhurried(arm: Arm) -> Arm:
    """The same without an end: a training that came to its end is the same whatever time it was given."""
    return arm.model_copy(update={"most_s": None})


def _digest(rows: Sequence[Row]) -> str:
    """A hash of rows with all they hold."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row.model_dump_json().encode())
    return found.hexdigest()


def dumped(params: TrainParams) -> dict[str, Any]:
    """Settings as they cross into another process."""
    return params.model_dump(mode="json")


def cannot(outcome: Outcome) -> UserError:
    """The error where the training is refused that all others are compared with."""
    return UserError("compare.cannot", reason=outcome.refused.message if outcome.refused else "")


def open_comparison(request: CompareRequest, events: Events, command: str) -> Comparison:
    """A project's training with its rows parted into those to learn and those to measure on; never the test part.

    Raises compare.few_rows, privacy.no_trials with the `command`, and what the base or the rows' labels are refused
    for.
    """
    training = open_training(request, events)
    refuse_private(training.params, command)
    refuse_base(training.inputs["base"], training.params)
    dataset = training.inputs["dataset"]
    rows = list(read_rows(dataset.path, "train"))
    share = measured_on(training.params, dataset).eval_share
    held, part = list(read_rows(dataset.path, "valid")), "valid"
    if share is not None:
        rows, held = share_of(rows, share, training.seed)
        part = "train"
    held = held[: request.rows]
    if len(rows) < LEAST_ROWS or len(held) < LEAST_HELD:
        raise UserError("compare.few_rows", train=len(rows), held=len(held), least=LEAST_ROWS, least_held=LEAST_HELD)
    # The labels of a classifier are those of all rows: a small part, or one without a slice, may lack some.
    objective = Learning(training.params.objective).completed([*rows, *held]).params
    training = replace(training, params=training.params.model_copy(update={"objective": objective}))
    return Comparison(request, training, rows, held, part, events, time.monotonic() + request.minutes * 60)
