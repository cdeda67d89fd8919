"""Compare methods of training on the user's own base, rows and machine, beside what articles claim of them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from inhouse.api.arms import BASE, CompareRequest, Comparison, Held, Outcome, Turn, cannot, dumped, open_comparison
from inhouse.api.claims import Claim, claims
from inhouse.api.compare_figures import Quality, apart, quality
from inhouse.core.artifact import Frozen
from inhouse.core.run import Events
from inhouse.train.compare import LOOKED_AT, Arm, Ended, Look, Measured, reached
from inhouse.train.memory import Machine, Split, machine
from inhouse.train.params import TrainParams
from inhouse.train.rivals import CHECKPOINTED, METHODS, Method, checkpointed, with_method

LOOKS = 5  # measurements on the way to the end
SPENT_TRAINING = 0.5  # of the minutes: loading and measuring take the rest
MOST = 3.0  # times the seconds that LoRA was given: a slower method is cut off there
WEIGHTS = {"lora": 1.0, CHECKPOINTED: 1.4, "full": 1.5, "qlora": 2.5, "prompt": 1.0}  # of their times, to share minutes


class BenchTrainRequest(CompareRequest):
    """Which methods, and how far each is trained."""

    steps: int | None = Field(None, ge=4, description="optimiser steps of each method; absent: as many as time allows")
    method: tuple[Method, ...] = Field(METHODS, description="methods to compare; LoRA always is one of them")


class MethodLine(Frozen):
    """One method: what it took here, and what it came to. Differences are its own minus LoRA's, on the same rows."""

    name: str
    refused: str | None = None
    learning_rate: float | None = None
    ended: Ended | None = None
    trainable: int | None = None
    total: int | None = None
    steps: int | None = None
    planned: int | None = None
    tokens: int | None = None
    train_s: float | None = None
    tokens_per_s: float | None = None
    tokens_per_cpu_s: float | None = None
    split: Split | None = None
    quality: Quality = Quality()
    versus_lora: Quality = Quality()
    reached_s: float | None = Field(None, description="seconds of training until LoRA's last loss; None: not reached")
    looks: tuple[Look, ...] = ()


class BenchTrain(Frozen):
    """Methods side by side, and what articles claim beside what was measured here."""

    lines: tuple[MethodLine, ...]
    claims: tuple[Claim, ...]
    held: Held
    looked_at: int = Field(description="loss on the way to the end that the others are to reach, in rows")
    precision: str
    machine: Machine
    kept: int = Field(description="trainings that were measured before")


def bench_train(request: BenchTrainRequest, events: Events) -> BenchTrain:
    """LoRA, full tuning, QLoRA and a tuned prompt on your base, rows and machine: memory, speed, quality.

    Raises compare.few_rows, and what keeps LoRA from being trained here.
    """
    bench = open_comparison(request, events, "bench train")
    settings = _settings(bench.training.params, request)
    arms = list(settings)
    first = bench.measure(_arm("lora", settings["lora"], request, bench), bench.train, _turn(bench, 1, len(arms) + 1))
    if first.measured is None:
        raise cannot(first)
    base_arm = Arm(name=BASE, params=dumped(settings["lora"]), seed=bench.training.seed, steps=0, most_s=0)
    outcomes = {BASE: bench.measure(base_arm, bench.train, _turn(bench, 2, len(arms) + 1)), "lora": first}
    for number, name in enumerate(arms[1:], 3):
        arm = _arm(name, settings[name], request, bench).model_copy(update={"steps": first.measured.planned})
        outcomes[name] = bench.measure(arm, bench.train, _turn(bench, number, len(arms) + 1))
    lines = tuple(_line(name, outcome, settings.get(name), first.measured) for name, outcome in outcomes.items())
    measured = {name: outcome.measured for name, outcome in outcomes.items() if outcome.measured}
    return BenchTrain(
        lines=lines, claims=claims(measured), held=bench.about, looked_at=min(LOOKED_AT, len(bench.held)),
        precision=first.measured.precision, machine=machine(), kept=bench.kept,
    )  # fmt: skip


def _settings(params: TrainParams, request: BenchTrainRequest) -> dict[str, TrainParams]:
    """The settings of every training, LoRA first."""
    if request.steps is not None:
        params = params.model_copy(update={"max_steps": request.steps})
    lora = with_method(params, "lora")
    found = {"lora": checkpointed(lora, False), CHECKPOINTED: checkpointed(lora, True)}
    others = (method for method in METHODS if method in request.method and method != "lora")
    return found | {method: checkpointed(with_method(params, method), False) for method in others}


def _arm(name: str, params: TrainParams, request: BenchTrainRequest, bench: Comparison) -> Arm:
    seconds = request.minutes * 60 * SPENT_TRAINING / sum(WEIGHTS.values())
    asked: dict[str, Any] = {"fit_s": seconds, "most_s": seconds * MOST}
    if request.steps is not None:
        asked = {"steps": request.steps, "most_s": request.minutes * 60}
    looks = 0 if name == CHECKPOINTED else LOOKS
    return Arm(
        name=name, params=dumped(params), seed=bench.training.seed, looks=looks, quality=looks > 0, **asked
    )  # fmt: skip


def _turn(bench: Comparison, number: int, count: int) -> Turn:
    return Turn(number, count, len(bench.train) * (count - number + 1))


def _line(name: str, outcome: Outcome, params: TrainParams | None, lora: Measured) -> MethodLine:
    found = outcome.measured
    if found is None:
        return MethodLine(name=name, refused=outcome.refused.message if outcome.refused else None)
    if params is None:
        versus = apart([found.rows], [lora.rows])
        return MethodLine(name=name, total=found.total, quality=quality([found.rows]), versus_lora=versus)
    end = lora.looks[-1].loss if lora.looks else None
    return MethodLine(
        name=name,
        learning_rate=params.learning_rate,
        quality=quality([found.rows]),
        versus_lora=apart([found.rows], [lora.rows]) if found is not lora and found.rows else Quality(),
        reached_s=None if end is None else reached(found.looks, end),
        **{field: getattr(found, field) for field in SAME},
    )


SAME = (
    "ended", "trainable", "total", "steps", "planned", "tokens", "train_s", "tokens_per_s", "tokens_per_cpu_s",
    "split", "looks",
)  # fmt: skip
