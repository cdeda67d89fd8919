"""The loop of a model that is cut over the ranks (tensor or pipeline parallel): every rank steps its own part.

transformers' trainer carries neither here: accelerate refuses tensor parallel without a GPU, and has no pipeline for
training. What it does otherwise (AdamW, schedule, clipping, logs, checkpoints) is done in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inhouse.train.checkpoint import find_complete, settle
from inhouse.train.divergence import Divergence, diverged, loss_rose
from inhouse.train.loop import Job, Trained, plan_steps
from inhouse.train.parallel.group import clip, device, local, tell
from inhouse.train.params import TrainParams
from inhouse.train.spans import Sample
from inhouse.train.watch import Pace, memory_now

if TYPE_CHECKING:
    import torch


STATE = "trainer_state.json"


class Side(Protocol):
    """This rank's part of the model. `apart`: its parameters are no other rank's, but for `copy`, which is one's."""

    apart: bool
    copy: torch.nn.Parameter | None

    def backward(self, batches: Sequence[Sequence[Sample]]) -> float: ...


@dataclass
class Course:
    """Where the run is: what a checkpoint holds besides weights."""

    step: int = 0
    since: float = 0.0  # losses summed since the last log
    logged: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    judged: int = 0  # points of the curve, by this process
    rise: Divergence | None = None

    def judge(self, params: TrainParams, folder: Path) -> None:
        """Raises train.loss_rose where the curve so far has left for good."""
        self.rise = self.rise or Divergence(params.divergence_factor, params.divergence_patience)
        gone = [self.rise.add(int(point["step"]), point["loss"]) for point in self.losses[self.judged :]]
        self.judged = len(self.losses)
        if gone[-1]:
            raise loss_rose(self.rise, self.losses[-1], folder)


@dataclass(frozen=True)
class Hands:
    """What moves the weights: the trained parameters by name, their optimiser, and its schedule."""

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any


def train_cut(model: torch.nn.Module, params: TrainParams, job: Job) -> Trained:
    """Train in place, from the newest complete checkpoint when there is one; rank 0 alone tells and settles."""
    import torch
    import torch.distributed as dist

    from inhouse.train.parallel.pipeline import PipelineSide
    from inhouse.train.parallel.tensor import TensorSide

    assert params.parallel is not None
    plan = plan_steps(params, job)
    every = params.gradient_accumulation_steps
    steps = ceil(len(plan) / every)
    model.to(device()).train()
    side: Side = TensorSide(model, job) if params.parallel.kind == "tp" else PipelineSide(model, job)
    hands = _hands(model, params, steps)
    # Ranks that hold the same activations must drop the same ones; those of other layers need not.
    torch.manual_seed(job.seed + (dist.get_rank() if side.apart else 0))
    folder = job.scratch / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    resume: Path | None = tell(find_complete(folder, job.recipe, job.events) if dist.get_rank() == 0 else None)
    course = _load(resume, hands) if resume else Course()
    started = course.step
    save = params.save_steps or max(10, ceil(steps / 10))
    chosen = [[[job.samples[i] for i in batch] for batch in plan[at : at + every]] for at in range(0, len(plan), every)]
    pace = Pace([sum(len(sample.ids) for batch in step for sample in batch) for step in chosen])
    pace.begin(course.step)
    while course.step < steps:
        _step(side, hands, chosen[course.step], (params, job, course, pace))
        if course.step % save == 0 or course.step == steps:
            _save(folder, hands, course, (job, params.save_total_limit))
    told = {"step": course.step, "steps": steps, "stopped_early": False, "best_step": None, "best_loss": None}
    job.events.emit("train.ended", **told)
    return Trained(course.losses, steps, sum(map(len, plan)) / len(job.samples), sum(pace.tokens), started)


def _hands(model: torch.nn.Module, params: TrainParams, steps: int) -> Hands:
    """AdamW as the trainer makes it: no decay of biases and norms. Parts of matrices stand in groups of their own."""
    import torch
    from torch.distributed.tensor import DTensor
    from transformers import get_scheduler
    from transformers.trainer_pt_utils import get_parameter_names

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # as Trainer has them
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], plain))
    groups = [
        {
            "params": [p for n, p in trained.items() if (n in decayed) == decays and isinstance(p, DTensor) == cut],
            "weight_decay": params.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
        for cut in (True, False)
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=params.learning_rate)
    warmup = params.warmup_steps(steps)
    schedule = get_scheduler(params.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return Hands(trained, optimizer, schedule)


def _step(side: Side, hands: Hands, batches: list[list[Sample]], run: tuple[TrainParams, Job, Course, Pace]) -> None:
    import torch.distributed as dist

    params, job, course, pace = run
    steps = len(pace.tokens)
    loss = side.backward(batches)
    if not isfinite(loss):
        rise = None if course.rise is None else course.rise.unproven
        raise diverged(course.step + 1, float(hands.schedule.get_last_lr()[0]), job.scratch / "checkpoints", rise)
    length = clip(hands.parameters.values(), params.max_grad_norm, side.apart, side.copy)
    rate = float(hands.schedule.get_last_lr()[0])
    hands.optimizer.step()
    hands.schedule.step()
    hands.optimizer.zero_grad()
    course.step, course.since = course.step + 1, course.since + loss
    job.events.progress(course.step, steps, "steps", tokens_per_s=pace.step(course.step))
    if course.step % params.logging_steps == 0 or course.step == steps:
        facts = {"loss": course.since / (course.step - course.logged), "learning_rate": rate, "grad_norm": length}
        course.losses.append({"step": course.step, **facts})
        course.since, course.logged = 0.0, course.step
        told = pace.log(course.step, steps) | memory_now()
        job.events.emit("train.step", step=course.step, steps=steps, **facts, **told)
        if dist.get_rank() == 0:  # it alone removes checkpoints; the others are ended when it has ended
            course.judge(params, job.scratch / "checkpoints")


def _save(folder: Path, hands: Hands, course: Course, kept: tuple[Job, int]) -> None:
    """Every rank writes its part; rank 0 marks the whole complete."""
    import torch
    import torch.distributed as dist

    place = folder / f"checkpoint-{course.step}"
    place.mkdir(exist_ok=True)
    state = hands.optimizer.state_dict()
    moments = {k: {n: local(v) for n, v in values.items()} for k, values in state["state"].items()}
    part = {
        "weights": {name: local(p.detach()) for name, p in hands.parameters.items()},
        "optimizer": {**state, "state": moments},
        "schedule": hands.schedule.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(part, place / f"rank-{dist.get_rank()}.pt")
    dist.barrier()
    if dist.get_rank() == 0:
        told = {"global_step": course.step, "since": course.since, "logged": course.logged, "losses": course.losses}
        (place / STATE).write_text(json.dumps(told), encoding="utf-8")
        job, limit = kept
        settle(folder, job.recipe, course.step, (limit, None))


def _load(place: Path, hands: Hands) -> Course:
    """Put back this rank's part of a checkpoint."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    part = torch.load(place / f"rank-{dist.get_rank()}.pt", weights_only=True, map_location=device())
    with torch.no_grad():
        for name, parameter in hands.parameters.items():
            local(parameter).copy_(part["weights"][name])
    ordered = [p for group in hands.optimizer.param_groups for p in group["params"]]
    for number, values in part["optimizer"]["state"].items():
        like = ordered[number]
        if isinstance(like, DTensor):
            for name in ("exp_avg", "exp_avg_sq"):
                values[name] = DTensor.from_local(values[name], like.device_mesh, like.placements, run_check=False)
    hands.optimizer.load_state_dict(part["optimizer"])
    hands.schedule.load_state_dict(part["schedule"])
    torch.set_rng_state(part["random"].cpu())
    told = json.loads((place / STATE).read_text(encoding="utf-8"))
    return Course(told["global_step"], told["since"], told["logged"], told["losses"])
