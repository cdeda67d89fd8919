"""Rotary positions stretched over longer texts than a model was trained on, and attention over a window."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SHAPE = (
    "rope_parameters", "max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers",
    "layer_types",
)  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"  # transformers' names of how a layer attends


class RopeScaling(Params):
    """How rotary positions are stretched. Keys are named as in transformers (`rope_parameters`) and vLLM."""

    rope_type: Literal["linear", "dynamic", "yarn"] = Field(
        "yarn", description="linear: all frequencies; dynamic: NTK, by the text's length; yarn: the slow ones only"
    )
    factor: float = Field(gt=1, le=128, description="how many times as long texts may become")
    original_max_position_embeddings: int | None = Field(
        None, ge=8, description="positions that the model was trained on; absent: what the model names"
    )


def scale_rope(model: PreTrainedModel, scaling: RopeScaling) -> PreTrainedModel:
    """The same weights with stretched rotary positions; its config says so, and says how long texts may be now.

    Raises rope.none where the model has no rotary positions, rope.scaled where they are stretched already.
    """
    config = model.config.get_text_config()
    known = config.to_dict().get("rope_parameters")
    if not known or "rope_type" not in known:
        raise UserError("rope.none", architecture=config.model_type)
    if known["rope_type"] != "default":
        raise UserError("rope.scaled", architecture=config.model_type, kind=known["rope_type"])
    native = scaling.original_max_position_embeddings or config.max_position_embeddings
    parameters = known | {"rope_type": scaling.rope_type, "factor": scaling.factor}
    longest = int(native * scaling.factor)
    if scaling.rope_type == "yarn":
        parameters["original_max_position_embeddings"] = native
    if scaling.rope_type == "dynamic":  # transformers takes max_position_embeddings for the length it was trained on
        longest = native
    return rebuilt(model, {"rope_parameters": parameters, "max_position_embeddings": longest})


def window_attention(model: PreTrainedModel, window: int) -> PreTrainedModel:
    """The same weights, each token seeing only the `window` last ones, itself included.

    Raises rope.no_window for an architecture whose config has no `sliding_window`.
    """
    known = model.config.to_dict()
    if "sliding_window" not in known:
        raise UserError("rope.no_window", architecture=model.config.model_type)
    changes: dict[str, Any] = {"sliding_window": window}
    if "use_sliding_window" in known:
        changes |= {"use_sliding_window": True, "max_window_layers": 0}
    if known.get("layer_types"):
        changes["layer_types"] = [SLIDING if kind in (FULL, SLIDING) else kind for kind in known["layer_types"]]
    return rebuilt(model, changes)


def window_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that a layer looks back over at most, as a config.json says; None where every layer sees all."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if not window or config.get("use_sliding_window") is False or (kinds and SLIDING not in kinds):
        return None
    return int(window)


def longest_text(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has positions for; None where nothing bounds them."""
    known = config.get_text_config().to_dict()
    most: int | None = known.get("max_position_embeddings")
    scaling = known.get("rope_parameters") or {}
    return int(most * scaling.get("factor", 1)) if most and scaling.get("rope_type") == "dynamic" else most


def shaped_like(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base as a model trained from it reads: positions and windows as `folder`'s config.json says."""
    wanted = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = model.config.to_dict()
    changes = {key: wanted[key] for key in SHAPE if key in wanted and wanted[key] != own.get(key)}
    return rebuilt(model, changes) if changes else model


def rebuilt(model: PreTrainedModel, changes: dict[str, Any]) -> PreTrainedModel:
    """A model of changed settings with the weights of this one: layers read their settings when they are made."""
    config = type(model.config).from_dict(model.config.to_dict() | changes)
    if model.device.type == "meta":  # an outline, without weights
        with model.device:
            return type(model)(config)
    made: PreTrainedModel = type(model).from_pretrained(
        None, config=config, state_dict=model.state_dict(), dtype=model.dtype
    )
    made.generation_config = model.generation_config
    return made.train(model.training)
