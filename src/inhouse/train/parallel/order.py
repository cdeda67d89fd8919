"""What a training process is told, and what it leaves behind: files in a folder below the stage's scratch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import InhouseError, UserError, from_dict
from inhouse.core.protocols import Context, Input
from inhouse.core.store import write_durably
from inhouse.train.checkpoint import Recipe
from inhouse.train.params import TrainParams

if TYPE_CHECKING:
    import torch

ORDER, WEIGHTS, OUTCOME = "order.json", "trained.safetensors", "outcome.json"


@dataclass(frozen=True)
class Order:
    """The same settings and inputs that the stage has. Without `events` nothing is told."""

    folder: Path
    params: TrainParams
    inputs: dict[str, Input]
    scratch: Path
    seed: int
    offline: bool
    recipe: Recipe
    events: Path | None
    stage: str
    parent: int | None  # end with this process; None: a launcher outside looks after the workers


def write_order(params: TrainParams, context: Context, recipe: Recipe, parent: int | None) -> Path:
    """Write what the workers need below the stage's scratch folder; returns the order's folder."""
    folder = (context.scratch / "parallel").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for left in (folder / OUTCOME, folder / WEIGHTS, *folder.glob("error-*.json")):
        left.unlink(missing_ok=True)
    inputs = {
        name: {"record": given.record.model_dump(mode="json"), "path": str(given.path.absolute())}
        for name, given in context.inputs.items()
    }
    order = {
        "params": params.model_dump(mode="json"),
        "inputs": inputs,
        "scratch": str(context.scratch.absolute()),
        "seed": context.seed,
        "offline": context.offline,
        "recipe": dict(recipe),
        "events": str(context.events.path.absolute()) if context.events.path else None,
        "stage": context.events.stage,
        "parent": parent,
    }
    write_durably(folder / ORDER, json.dumps(order, ensure_ascii=False))
    return folder


def read_order(folder: Path) -> Order:
    """The order that `write_order` wrote."""
    found = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    inputs = {
        name: Input(Artifact.model_validate(given["record"]), Path(given["path"]))
        for name, given in found["inputs"].items()
    }
    return Order(
        folder=folder,
        params=TrainParams.model_validate(found["params"]),
        inputs=inputs,
        scratch=Path(found["scratch"]),
        seed=found["seed"],
        offline=found["offline"],
        recipe=found["recipe"],
        events=Path(found["events"]) if found["events"] else None,
        stage=found["stage"],
        parent=found["parent"],
    )


def leave(folder: Path, weights: dict[str, torch.Tensor], outcome: Any) -> None:
    """Write the trained weights and the loop's result (a dataclass) where `outcome_of` looks; rank 0 only."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in weights.items()}, str(folder / WEIGHTS))
    write_durably(folder / OUTCOME, json.dumps(asdict(outcome)))


def leave_error(folder: Path, rank: int, error: InhouseError) -> None:
    """Write what a rank ended with, for `error_of`."""
    write_durably(folder / f"error-{rank:05}.json", json.dumps(error.to_dict(), ensure_ascii=False))


def error_of(folder: Path) -> InhouseError | None:
    """What a rank could say before it ended, the lowest rank's first."""
    found = sorted(folder.glob("error-*.json"))
    return from_dict(json.loads(found[0].read_text(encoding="utf-8"))) if found else None


def outcome_of(folder: Path) -> dict[str, Any]:
    """The fields of the loop's result, as the workers left it."""
    found: dict[str, Any] = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    return found


def put_weights(model: torch.nn.Module, folder: Path) -> None:
    """Give `model` the weights that the workers trained. Raises train.worker_weights."""
    import torch
    from safetensors.torch import load_file

    trained = load_file(str(folder / WEIGHTS))
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wanted.keys() != trained.keys():
        raise UserError("train.worker_weights", missing=len(wanted.keys() ^ trained.keys()))
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(trained[name])
