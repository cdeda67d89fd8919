"""Search learning rate and rank: short trials within minutes, judged on rows held back, the poor ones ended early."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.plugins import require
from inhouse.core.protocols import Input
from inhouse.core.run import Events, release_memory
from inhouse.dataset import part_files
from inhouse.train.brief import brief_job, brief_trainer
from inhouse.train.lint import rate_range
from inhouse.train.memory import machine
from inhouse.train.params import TrainParams
from inhouse.train.planning import steps_of
from inhouse.train.privacy import refuse_private
from inhouse.train.probe import calibrate
from inhouse.train.setup import Prepared, Texts, load_again, penalties_of, prepare

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as Asked
    from transformers import TrainerCallback

    from inhouse.train.loop import Job
    from inhouse.train.tokens import Sample

RANKS = (4, 8, 16, 32, 64)
LOOKS = 4  # measurements in a trial; after the first one a trial may be ended
STARTED = 3  # trials before any is ended early: there is no median of fewer
LEAST_STEPS = 8
MOST_VALID = 64  # rows that each measurement reads
HELD_BACK = 0.1  # of the training rows, where the dataset has no valid part
# Half of the time: measurements and loading take their part, and a search that ends early helps nobody less.
SPENT_TRAINING = 0.5
WORTH_STARTING = 0.8  # of the longest trial so far must be left of the budget
REACH = 3.0  # rates are searched this far beyond the range that is known to work

State = Literal["done", "ended_early", "diverged", "out_of_time"]


class TrialLine(Frozen):
    """One trial: what was tried, and the loss per learned token on rows held back."""

    number: int
    learning_rate: float
    r: int | None
    loss: float | None
    state: State
    seconds: float


class Searched(Frozen):
    """Every trial, best first, and what to set. `steps` each trial had of `whole` that the real run has."""

    trials: tuple[TrialLine, ...]
    overrides: tuple[str, ...]
    steps: int
    whole: int
    rows: int = Field(description="rows held back that were measured on")
    resumed: int = Field(description="trials that an earlier search had finished")


@dataclass(frozen=True)
class Budget:
    """How long, and how many trials at most. `folder` keeps what is known between searches."""

    minutes: float
    trials: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Bench:
    """What every trial shares."""

    base: Input
    texts: Texts
    job: Job
    params: TrainParams
    budget: Budget
    deadline: float


def search(params: TrainParams, inputs: Mapping[str, Input], budget: Budget, events: Events) -> Searched:
    """Try learning rates (and ranks, where the method has one), the project's own first; the test part is never read.

    An interrupted search goes on where it stopped. Raises train.search_too_short where no trial came to its end.
    """
    refuse_private(params, "train search")
    require("search", "optuna")
    deadline = time.monotonic() + budget.minutes * 60
    params = measured_on(params, inputs["dataset"])
    ready = prepare(params, inputs, budget.seed, events)
    params = params.model_copy(update={"objective": ready.learning.params})  # a classifier's labels are known now
    study, bench, whole = _open(ready, params, budget, deadline)
    steps, before, longest = int(study.user_attrs["steps"]), len(_finished(study)), 0.0
    while _more(study, budget.trials) and time.monotonic() + longest < deadline:
        started = time.monotonic()
        _try(bench, study, steps, events)
        longest = max(longest, WORTH_STARTING * (time.monotonic() - started))
    lines = sorted(map(_line, _finished(study)), key=lambda line: (line.state != "done", line.loss or inf))
    if not lines or lines[0].state != "done":
        raise UserError("train.search_too_short", minutes=f"{budget.minutes:g}", steps=steps)
    rows = len(bench.job.valid[:MOST_VALID])
    found = overrides(params, lines[0])
    return Searched(trials=tuple(lines), overrides=found, steps=steps, whole=whole, rows=rows, resumed=before)


def measured_on(params: TrainParams, dataset: Input) -> TrainParams:
    """The settings with rows held back: the dataset's valid part, absent a tenth of the training rows."""
    share = params.eval_share
    if share is None and not part_files(dataset.path, "valid"):
        share = HELD_BACK
    return params.model_copy(update={"eval_steps": 1, "eval_share": share})


def overrides(params: TrainParams, best: TrialLine) -> tuple[str, ...]:
    """What to type to train as the best trial did; lora_alpha keeps its ratio to r."""
    found = [f"train.learning_rate={best.learning_rate:.2g}"]
    if best.r is not None:
        found += [f"train.method.{name}={value:g}" for name, value in _ranked(params, best.r).items()]
    return tuple(found)


def _ranked(params: TrainParams, r: int) -> dict[str, float]:
    own = _method(params)
    return {"r": r, "lora_alpha": own["lora_alpha"] * r / own["r"]}


def _method(params: TrainParams) -> dict[str, Any]:
    found: dict[str, Any] = params.method.model_dump()
    return found


def _ranks(params: TrainParams) -> list[int]:
    return sorted({*RANKS, int(_method(params)["r"])})


def _open(ready: Prepared, params: TrainParams, budget: Budget, deadline: float) -> tuple[Study, Bench, int]:
    """The study of these settings and data, begun or gone on with; and the steps of the whole run."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    budget.folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{budget.folder / 'trials.db'}",
        study_name=_name(ready, params, budget),
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTED, n_warmup_steps=0),
    )
    begun = len(study.trials)  # a sampler that began with the same seed again would ask for the same again
    study.sampler = optuna.samplers.TPESampler(seed=budget.seed + begun, n_startup_trials=STARTED + 1)
    for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)  # its process was killed
    steps = steps_of(ready, params, budget.seed)
    if "steps" not in study.user_attrs or not _finished(study):  # a search that was too short has more time now
        study.set_user_attr("steps", _length(ready, steps, budget, deadline))
    own = {"learning_rate": params.learning_rate, **({"r": _method(params)["r"]} if _has_rank(params) else {})}
    if own not in [trial.params for trial in _finished(study)] + [_fixed(trial) for trial in _waiting(study)]:
        study.enqueue_trial(own)  # also where an earlier search was killed in it, or began from another rate
    return (
        study,
        Bench(ready.base, ready.texts, brief_job(ready, params, budget.seed), params, budget, deadline),
        len(steps),
    )


def _name(ready: Prepared, params: TrainParams, budget: Budget) -> str:
    """What tells searches apart: everything but what is searched; of lora_alpha its ratio to r, which trials keep."""
    settings = params.model_dump(mode="json", exclude={"learning_rate": True, "method": {"r", "lora_alpha"}})
    ranks = [_ranked(params, 1), _ranks(params)] if _has_rank(params) else []
    samples = [sample.ids for sample in ready.texts.samples.kept]
    return hash_json([ready.base.record.id, settings, ranks, samples, budget.seed])[:16]


def _length(ready: Prepared, steps: Sequence[Sequence[Sample]], budget: Budget, deadline: float) -> int:
    """Steps of a trial: so many that all trials go into the budget, by the pace of two measured steps.

    Never more than the real run has.
    """
    calibration = calibrate(ready, steps[0], machine().available).calibration
    tokens = sum(len(sample.ids) for step in steps for sample in step) / len(steps)
    pace = calibration.large.seconds / calibration.large.shape.tokens * tokens + calibration.update_s
    left = deadline - time.monotonic()
    return min(len(steps), max(LEAST_STEPS, int(SPENT_TRAINING * left / budget.trials / pace)))


def _rates(params: TrainParams) -> tuple[float, float]:
    low, high = rate_range(params)
    return min(low / REACH, params.learning_rate), max(high * REACH, params.learning_rate)


def _has_rank(params: TrainParams) -> bool:
    return {"r", "lora_alpha"} <= set(type(params.method).model_fields)


def _try(bench: Bench, study: Study, steps: int, events: Events) -> None:
    """One trial: train, measure on the way, and tell the study."""
    import optuna

    asked = study.ask()
    low, high = _rates(bench.params)
    rate = asked.suggest_float("learning_rate", low, high, log=True)
    changed: dict[str, Any] = {"learning_rate": rate, "max_steps": steps, "eval_steps": max(1, steps // LOOKS)}
    if _has_rank(bench.params):
        r = asked.suggest_categorical("r", _ranks(bench.params))
        changed["method"] = bench.params.method.model_copy(update=_ranked(bench.params, int(r)))
    params = bench.params.model_copy(update=changed)
    state, found = _train(bench, params, asked, events)
    asked.set_user_attr("state", state)
    if state == "done":
        study.tell(asked, found)
    elif state == "out_of_time":
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(asked, state=optuna.trial.TrialState.PRUNED)


def _train(bench: Bench, params: TrainParams, asked: Asked, events: Events) -> tuple[State, float]:
    """How a trial ended, and its last loss on the rows held back."""
    seed = bench.budget.seed
    release_memory()
    loaded = load_again(bench.base, params, seed)
    look = _Look()
    penalties = penalties_of(loaded.model, bench.texts, params)  # those of another trial hold on to its model
    job = replace(bench.job, valid=bench.job.valid[:MOST_VALID], penalties=penalties)
    with brief_trainer(loaded.model, params, job, [_callback(look, bench, asked, events)]) as trainer:
        try:
            trainer.train()
        except UserError as error:
            if error.code != "train.diverged":
                raise
            return "diverged", inf
    if look.state == "done" and not isfinite(look.loss):
        return "diverged", inf
    return look.state, look.loss


@dataclass
class _Look:
    """What a trial has come to so far."""

    state: State = "done"
    loss: float = inf
    looks: int = 0


def _callback(look: _Look, bench: Bench, asked: Asked, events: Events) -> TrainerCallback:
    from transformers import TrainerCallback

    class Judge(TrainerCallback):  # type: ignore[misc]
        """Report each measurement; end the trial when it is worse than the median, or the time is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            events.progress(state.global_step, state.max_steps, "steps", step=f"trial {asked.number + 1}")
            if time.monotonic() > bench.deadline:
                look.state, control.should_training_stop = "out_of_time", True

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
        ) -> None:
            look.loss, look.looks = float((metrics or {}).get("eval_loss", inf)), look.looks + 1
            asked.report(look.loss, look.looks)
            if look.state == "done" and state.global_step < state.max_steps and asked.should_prune():
                look.state, control.should_training_stop = "ended_early", True

    return Judge()


def _finished(study: Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


def _waiting(study: Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.WAITING])


def _fixed(trial: Any) -> dict[str, Any]:
    """What a trial that waits shall try."""
    found: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return found


def _more(study: Study, trials: int) -> bool:
    """Whether a trial is left: of so many, or the project's own, which is tried whatever was."""
    return len(_finished(study)) < trials or bool(_waiting(study))


def _line(trial: Any) -> TrialLine:
    last = trial.intermediate_values.get(max(trial.intermediate_values, default=0))
    loss = trial.value if trial.value is not None else last
    return TrialLine(
        number=trial.number + 1,
        learning_rate=trial.params["learning_rate"],
        r=trial.params.get("r"),
        loss=loss if loss is not None and isfinite(loss) else None,
        state=trial.user_attrs["state"],
        seconds=round(trial.duration.total_seconds(), 2),
    )
