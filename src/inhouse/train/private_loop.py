"""The loop of private training (DP-SGD): opacus' gradients of single rows, our events, checkpoints and stops.

Rows are drawn independently for every step, padded, and never packed nor joined by a shared prefix: a packed row would
have one gradient for several conversations. A step whose draw is empty reads nothing, but adds its noise and counts:
leaving it out would tell that nobody was drawn, which the accountant does not allow for. Where memory runs out in the
middle of a step, the run stops and says so: batches are not halved as in the plain loop (see train/batching.py).
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.run import Events, peak_memory
from inhouse.train.apart import row_losses
from inhouse.train.batching import is_out_of_memory
from inhouse.train.checkpoint import Recipe, find_complete, settle, step_of
from inhouse.train.divergence import diverged
from inhouse.train.params import TrainParams
from inhouse.train.privacy import Budget, Privacy, Spent, check_compatible, check_settings, run_budget, told_by
from inhouse.train.stall import stall_watch
from inhouse.train.tokens import Sample
from inhouse.train.watch import Pace

if TYPE_CHECKING:
    import torch

STATE = "private.pt"


@dataclass(frozen=True)
class PrivateJob:
    """What the loop works on. Checkpoints go below `folder` and are read back by the same `recipe` only.

    `origins[i]` is the row that `samples[i]` comes from; each row may give one sample, or a row is promised too much.
    Empty: every sample is a row of its own. `size` rows are read together, without effect on the draws; absent:
    per_device_train_batch_size.
    """

    samples: Sequence[Sample]
    pad: int
    seed: int
    folder: Path
    recipe: Recipe
    events: Events
    origins: Sequence[int] = ()
    size: int | None = None


@dataclass(frozen=True)
class PrivateResult:
    """What a run did and what it guarantees.

    No losses: they are computed from the rows without noise, so they stand in the run's own log and nowhere else.
    """

    steps: int
    epochs: float
    tokens: int
    resumed_from: int
    spent: Spent


@dataclass
class Run:
    """Everything that a step changes, and so everything that a checkpoint holds."""

    model: Any  # opacus' GradSampleModule around the model
    optimizer: Any  # opacus' DPOptimizer around AdamW
    schedule: Any
    accountant: Any
    draws: torch.Generator
    sample_rate: float
    folder: Path
    step: int = 0
    tokens: int = 0
    rows: int = 0
    length: float = 0.0  # of the last step's noisy gradient
    told: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "clipped": []})

    def state(self) -> dict[str, Any]:
        """For a checkpoint; read back with `weights_only`. It holds the noise's generator: it is not to be shared."""
        import torch

        return {
            "weights": [p.detach() for p in self.optimizer.params],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.accountant.history,
            "random": [self.draws.get_state(), self.optimizer.generator.get_state(), torch.get_rng_state()],
            "cuda": torch.cuda.get_rng_state_all(),
            "counts": [self.step, self.tokens, self.rows],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as if never interrupted: weights, optimiser, accountant and all generators."""
        import torch

        with torch.no_grad():
            for parameter, saved in zip(self.optimizer.params, state["weights"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.accountant.history = state["history"]
        draws, noise, dropout = state["random"]
        self.draws.set_state(draws)
        self.optimizer.generator.set_state(noise)
        torch.set_rng_state(dropout)
        torch.cuda.set_rng_state_all(state["cuda"])
        self.step, self.tokens, self.rows = state["counts"]


def train_private(model: torch.nn.Module, params: TrainParams, job: PrivateJob) -> PrivateResult:
    """Train in place what requires a gradient, from the newest complete checkpoint when there is one.

    A row's loss is the mean over its learned tokens; `privacy.max_grad_norm` shortens each row's gradient, and
    `params.max_grad_norm` has no effect. About per_device_train_batch_size times gradient_accumulation_steps rows are
    drawn a step. An interrupted run ends in the weights of a whole one (same machine, same number of threads).
    Raises train.diverged and privacy.*.
    """
    import torch

    privacy = params.privacy
    assert privacy is not None  # the caller chose this loop for it
    check_settings(params)
    check_compatible(model)
    budget = run_budget(params, len(job.samples), job.origins)
    job.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.seed)  # dropout only; the noise has its own generator
    run = start(model, params, budget, job.folder)
    try:
        resume = find_complete(job.folder, job.recipe, job.events)
        if resume:
            run.restore(torch.load(resume / STATE, weights_only=True))
        with warnings.catch_warnings():
            # Opacus hooks layers whose input has no gradient, as that of the first adapter: nothing is lost by it.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            take_steps(run, params, job, budget.steps)
    finally:
        run.model.cleanup()
    epochs = run.rows / len(job.samples)
    return PrivateResult(run.step, epochs, run.tokens, step_of(resume), spent(run, budget, privacy))


def spent(run: Run, budget: Budget, privacy: Privacy) -> Spent:
    """The guarantee of the steps that were taken."""
    return Spent(
        epsilon=told_by(run.accountant, budget.delta),
        delta=budget.delta,
        noise_multiplier=budget.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        sample_rate=budget.sample_rate,
        steps=sum(count for _, _, count in run.accountant.history),
        accountant=budget.accountant,
        noise_is_secret=privacy.noise_seed is None,
    )


def start(model: torch.nn.Module, params: TrainParams, budget: Budget, folder: Path) -> Run:
    """Opacus around the model and around AdamW; raise privacy.unsupported for layers that mix rows."""
    import torch
    from opacus.accountants import create_accountant
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from opacus.validators import ModuleValidator
    from opacus.validators.errors import UnsupportedModuleError
    from transformers import get_scheduler

    privacy: Any = params.privacy
    model.train()
    try:
        ModuleValidator.validate(model, strict=True)
        wrapped = GradSampleModule(model, loss_reduction="sum")
    except (NotImplementedError, UnsupportedModuleError) as error:
        raise UserError("privacy.unsupported", problem=str(error).splitlines()[0][:300]) from error
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=params.learning_rate, weight_decay=params.weight_decay)
    schedule = get_scheduler(params.lr_scheduler_type, adam, params.warmup_steps(budget.steps), budget.steps)
    optimizer = DPOptimizer(
        adam,
        noise_multiplier=budget.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        expected_batch_size=params.step_size,
        generator=_generator(privacy.noise_seed, trained[0].device),
    )
    accountant = create_accountant(budget.accountant)
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=budget.sample_rate))
    draws = _generator(None if privacy.noise_seed is None else privacy.noise_seed + 1, torch.device("cpu"))
    return Run(wrapped, optimizer, schedule, accountant, draws, budget.sample_rate, folder)


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    import torch

    return torch.Generator(device).manual_seed(secrets.randbits(63) if seed is None else seed)


def take_steps(run: Run, params: TrainParams, job: PrivateJob, steps: int) -> None:
    """Step until `steps`; tell the events as the plain loop does (see train/watch.py), stop when the user asks."""
    import torch

    size = job.size or params.per_device_train_batch_size
    every = params.save_steps or max(10, ceil(steps / 10))
    read = [0] * run.step  # tokens of each step
    pace = Pace(read)
    pace.begin(run.step)
    with stall_watch(job.events, params.stall_seconds) as pulse:
        while run.step < steps:
            drawn = (torch.rand(len(job.samples), generator=run.draws) < run.sample_rate).nonzero().flatten().tolist()
            before = run.tokens
            try:
                take_step(run, [job.samples[i] for i in drawn], (size, job.pad))
            except (MemoryError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise UserError("privacy.out_of_memory", size=size) from error
                raise
            read.append(run.tokens - before)
            pulse.stepped(run.step)
            job.events.progress(run.step, steps, "steps", tokens_per_s=pace.step(run.step))
            saves = run.step % every == 0 or run.step == steps
            if saves or run.step % params.logging_steps == 0:
                tell(run, job, steps, pace.log(run.step, steps))
            if saves:
                save(run, params, job)
                pulse.alive()
    job.events.emit("train.ended", step=run.step, steps=steps, stopped_early=False, best_step=None, best_loss=None)


def take_step(run: Run, samples: Sequence[Sample], reading: tuple[int, int]) -> None:
    """One noisy step over the rows drawn; `reading` says how many are read at once, and the padding id."""
    import torch

    size, pad = reading
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    parts = [ordered[at : at + size] for at in range(0, len(ordered), size)] or [[]]
    for number, part in enumerate(parts, 1):
        if part:
            add_rows(run, part, pad)
        else:  # nobody was drawn: noise alone
            for parameter in run.optimizer.params:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        run.optimizer.signal_skip_step(number < len(parts))
        run.optimizer.step()
        if number == len(parts):
            run.length = float(torch.stack([p.grad.norm() for p in run.optimizer.params]).norm())
        run.optimizer.zero_grad()
    run.schedule.step()
    run.step, run.rows = run.step + 1, run.rows + len(samples)
    run.tokens += sum(len(sample.ids) for sample in samples)


def add_rows(run: Run, samples: Sequence[Sample], pad: int) -> None:
    """Gradients of these rows, each for itself, in the parameters' `grad_sample`; raise train.diverged."""
    import torch

    losses, counts = row_losses(run.model, samples, pad)
    each = losses / counts
    if not bool(torch.isfinite(each).all()):
        raise diverged(run.step + 1, float(run.schedule.get_last_lr()[0]), run.folder)
    each.sum().backward()
    check_rows(run, len(samples), compare=not run.told["loss"])
    lengths = torch.stack([p.grad_sample.flatten(1).float().norm(dim=1) for p in run.optimizer.params]).norm(dim=0)
    run.told["loss"] += each.tolist()
    run.told["clipped"] += (lengths > run.optimizer.max_grad_norm).float().tolist()


def check_rows(run: Run, rows: int, compare: bool) -> None:
    """Raise privacy.not_per_row where a parameter's gradient was not told apart by row.

    `compare`: also that the rows' gradients add up to the batch's, which fails where a layer is used in a way that
    opacus does not see, such as a weight that is read outside its own module.
    """
    import torch

    near = 0.05 if next(run.model.parameters()).dtype == torch.bfloat16 else 1e-3
    named: dict[int, str] = {id(p): name for name, p in run.model.named_parameters()}
    for parameter in run.optimizer.params:
        found = parameter.grad_sample
        if found is None or isinstance(found, list) or len(found) != rows:
            raise UserError("privacy.not_per_row", name=named[id(parameter)].removeprefix("_module."))
        if compare:
            apart = (found.float().sum(0) - parameter.grad.float()).norm()
            if apart > near * parameter.grad.float().norm() + 1e-6:
                raise UserError("privacy.not_per_row", name=named[id(parameter)].removeprefix("_module."))


def tell(run: Run, job: PrivateJob, steps: int, pace: dict[str, float]) -> None:
    """The mean loss of the rows drawn since the last time, and the share of them that was shortened (`clipped`)."""
    means = {name: sum(values) / len(values) if values else None for name, values in run.told.items()}
    for values in run.told.values():
        values.clear()
    rate = float(run.schedule.get_last_lr()[0])
    facts = {"learning_rate": rate, "grad_norm": run.length, "memory_bytes": peak_memory(), **pace}
    job.events.emit("train.step", step=run.step, steps=steps, **means, **facts)


def save(run: Run, params: TrainParams, job: PrivateJob) -> None:
    """Write a checkpoint; it counts once everything is on the disk."""
    import torch

    began, path = time.monotonic(), job.folder / f"checkpoint-{run.step}"
    path.mkdir(exist_ok=True)
    torch.save(run.state(), path / STATE)
    settle(job.folder, job.recipe, run.step, (params.save_total_limit, None))
    job.events.emit("train.saved", step=run.step, path=str(path), seconds=round(time.monotonic() - began, 3))
