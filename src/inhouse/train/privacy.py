"""Differential privacy: the budget, what it cannot be joined with, and what is said of it afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import ceil, inf, isfinite
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.plugins import require

if TYPE_CHECKING:
    import torch
    from opacus.accountants import IAccountant

    from inhouse.train.params import TrainParams

UNREAD = ("adapter_reloaded", "merged")  # checks of files, equal but for rounding: all others tell what rows hold
# Of epsilon. Above it prv takes minutes and gigabytes, for a bound that promises little by either way of counting.
PRV_MOST = 30.0
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class Privacy(Params):
    """Train so that no single row shows in the weights by more than a stated bound (DP-SGD, arXiv:1607.00133).

    Rows are read padded, with a gradient kept for each, and batches are not cut when memory runs out.
    """

    epsilon: float | None = Field(None, gt=0, description="bound to be kept; the noise that this needs is computed")
    noise_multiplier: float | None = Field(
        None, gt=0, description="noise in units of max_grad_norm, given instead of epsilon; the bound is then computed"
    )
    delta: float | None = Field(
        None, gt=0, lt=1, description="probability that the bound fails; default: 1 / rows^1.1; must be below 1 / rows"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="each row's gradient is shortened to this length")
    accountant: Literal["prv", "rdp"] = Field(
        "prv",
        description="how steps are added up: prv is tight, up to an epsilon of 30; rdp is coarser and has no limit",
    )
    noise_seed: int | None = Field(
        None, ge=0, description="fixed noise, for tests only: whoever knows it can take the noise away again"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Privacy:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(say("problem.epsilon_or_noise"))
        return self


@dataclass(frozen=True)
class Budget:
    """The mechanism that is run: `steps` draws, each row taken with probability `sample_rate`."""

    noise_multiplier: float
    delta: float
    sample_rate: float
    steps: int
    accountant: str = "prv"
    epsilon: float | None = field(default=None, compare=False)  # what the whole run keeps


@dataclass(frozen=True)
class Spent:
    """What a private run guarantees: adding or removing one row changes odds by at most e^epsilon, but for delta."""

    epsilon: float
    delta: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    accountant: str
    unit: str = "row"
    noise_is_secret: bool = True

    def facts(self) -> dict[str, Any]:
        """For the record of the tuned model."""
        return asdict(self)

    def card(self) -> str:
        """The section of the model card, in markdown."""
        secret = (
            "The noise came from torch's generator, started from the system's entropy and not kept: strong against "
            "guessing, but not a cryptographic generator."
            if self.noise_is_secret
            else "THE NOISE WAS DRAWN FROM A FIXED SEED (`noise_seed`): this run proves nothing to whoever knows it."
        )
        little = "A BOUND THIS LARGE PROMISES NEXT TO NOTHING: 10 and less is what is usually meant by private."
        large = f"- {little}\n" if self.epsilon > PRV_MOST else ""
        return (
            "## Differential privacy\n\n"
            f"Trained with DP-SGD: **epsilon = {self.epsilon:.3g}, delta = {self.delta:.2g}** for adding or removing "
            f"one training row ({self.accountant.upper()} accountant, opacus).\n\n"
            f"- noise multiplier {self.noise_multiplier:.4g}, rows' gradients shortened to {self.max_grad_norm:g}, "
            f"{self.steps} steps, each row taken with probability {self.sample_rate:.4g} (Poisson)\n"
            f"{large}- {secret}\n"
            "- One row is one conversation. A person who appears in k rows is protected by k times epsilon.\n"
            "- Not covered: how settings were chosen, the number of rows and of those left out, the memory that was "
            "measured, the tokenizer, and this run's log.\n"
        )


def check_settings(params: TrainParams) -> None:
    """Raise privacy.* for settings that look at rows in ways that are not accounted for, or cannot work."""
    if params.penalties:
        names = ", ".join(str(penalty.use) for penalty in params.penalties)  # type: ignore[attr-defined]
        raise UserError("privacy.penalties", names=names)
    if params.replay is not None:
        raise UserError("privacy.replay", dataset=params.replay.dataset)
    if params.gradient_checkpointing is True:
        raise UserError("privacy.checkpointing")
    use = params.objective.model_dump()["use"]
    if use not in ("sft", "pretrain"):
        raise UserError("privacy.objective", use=use)
    looking = {"eval_steps": params.eval_steps is not None, "report_to": bool(params.report_to)}
    if name := next((name for name, asked in looking.items() if asked), None):
        raise UserError("privacy.setting", name=name)


def private_settings(params: TrainParams) -> TrainParams:
    """The settings that a private run is planned by; those of any other run as they are.

    Such a run never computes activations twice, so the plan must not count on it. Raises what check_settings does.
    """
    if params.privacy is None:
        return params
    check_settings(params)
    return params.model_copy(update={"gradient_checkpointing": False})


def refuse_private(params: TrainParams, command: str) -> None:
    """Raise privacy.no_trials: what trials on private rows say would be told without noise, and counted nowhere."""
    if params.privacy is not None:
        raise UserError("privacy.no_trials", command=command)


def publishable(parity: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    """The checks of a private run that may stand in its record: how rightly it answers its rows may not."""
    return {name: value for name, value in parity.items() if name in UNREAD}


def check_compatible(model: torch.nn.Module) -> None:
    """Raise privacy.* for models in which one row's gradient cannot be told from another's."""
    anatomy: Any = model
    config = anatomy.config
    found = config.get_text_config().to_dict()
    if any((found.get(key) or 0) > 1 for key in EXPERTS):
        raise UserError("privacy.experts", architecture=config.model_type)
    if anatomy.is_gradient_checkpointing:
        raise UserError("privacy.checkpointing")
    _check_adapters(model)


def _check_adapters(model: torch.nn.Module) -> None:
    from peft import LoraConfig, PeftModel, PromptLearningConfig

    from inhouse.train.virtual import held_by

    settings = model.peft_config.values() if isinstance(model, PeftModel) else ()
    if any(isinstance(one, LoraConfig) and one.use_dora for one in settings):
        raise UserError("privacy.dora")
    if held_by(model) is not None or any(isinstance(one, PromptLearningConfig) for one in settings):
        raise UserError("privacy.prompt")


def run_budget(params: TrainParams, samples: int, origins: Sequence[int]) -> Budget:
    """The budget of a run over so many samples; `origins` are the rows that they come from.

    Raises privacy.repeated, and what plan_budget raises.
    """
    assert params.privacy is not None  # the caller has asked
    if len(set(origins)) < len(origins):
        raise UserError("privacy.repeated", samples=len(origins), rows=len(set(origins)))
    batch = params.step_size
    steps = params.max_steps or ceil(params.num_train_epochs * samples / batch)
    return plan_budget(params.privacy, samples, batch, steps)


def plan_budget(privacy: Privacy, rows: int, batch: int, steps: int) -> Budget:
    """Noise and sampling of a run of `steps` over `rows`, about `batch` rows a step.

    Raises privacy.batch, privacy.delta, privacy.budget, privacy.no_bound where no such run exists.
    """
    require("privacy", "opacus")
    if batch > rows:
        raise UserError("privacy.batch", batch=batch, rows=rows)
    delta = privacy.delta if privacy.delta is not None else min(0.5, rows**-1.1)
    if delta >= 1 / rows:
        raise UserError("privacy.delta", delta=delta, rows=rows, most=1 / rows)
    rate = batch / rows
    noise = privacy.noise_multiplier
    if noise is not None:
        try:
            bound = epsilon_of(noise, delta, rate, steps, "rdp")  # never below what prv finds
        except (ArithmeticError, ValueError):
            bound = inf
        if not isfinite(bound):
            raise UserError("privacy.no_bound", noise=noise, steps=steps)
        accountant = _counted_by(privacy, bound)
        found = bound if accountant == "rdp" else epsilon_of(noise, delta, rate, steps, accountant)
        return Budget(noise, delta, rate, steps, accountant, found)
    assert privacy.epsilon is not None  # one of the two stands: the settings were checked
    accountant = _counted_by(privacy, privacy.epsilon)
    try:
        noise = _noise_for(privacy.epsilon, delta, rate, steps, accountant)
    except (ValueError, RuntimeError) as error:
        facts = {"epsilon": privacy.epsilon, "delta": f"{delta:.2g}", "steps": steps, "rate": round(rate, 4)}
        raise UserError("privacy.budget", **facts) from error
    return Budget(noise, delta, rate, steps, accountant, privacy.epsilon)


def _counted_by(privacy: Privacy, epsilon: float) -> str:
    return privacy.accountant if epsilon <= PRV_MOST else "rdp"


@lru_cache(maxsize=8)
def _noise_for(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with quietly():
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant=accountant,
                epsilon_tolerance=min(0.01, epsilon / 50),
            )
        )  # fmt: skip


@lru_cache(maxsize=8)
def epsilon_of(noise: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    """The bound that so many steps keep."""
    from opacus.accountants import create_accountant

    counted = create_accountant(accountant)
    counted.history = [(noise, rate, steps)]
    return told_by(counted, delta)


def told_by(accountant: IAccountant, delta: float) -> float:
    """The epsilon of the steps that it has counted. What is below 0, by prv's rounding, keeps 0 too."""
    with quietly():
        return max(0.0, float(accountant.get_epsilon(delta=delta)))


@contextmanager
def quietly() -> Iterator[None]:
    """Without what the accountants say of their own numerics: a coarser search range still gives an upper bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
