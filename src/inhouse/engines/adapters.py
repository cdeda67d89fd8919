"""Adapters in PEFT's format: put on a base, or, when they are virtual tokens, read before every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.engines.torch_files import unreadable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

WEIGHTS = "adapter_model.safetensors"
VIRTUAL = {"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"}  # PEFT's kinds that change no weight


def open_adapter(model: PreTrainedModel, folder: Path, base: str | None) -> PeftModel:
    """The model with the adapter of a folder on it. `base` is the model's name; None: names are not compared.

    Raises torch.adapter_base for an adapter of another base (by the name it gives, or because its shapes or modules
    do not fit), torch.pickle for pickled weights, torch.unreadable for damaged files.
    """
    require("train", "torch", "transformers", "peft", "safetensors")
    from peft import PeftModel
    from safetensors import SafetensorError

    named = base_named(folder)
    facts = {"adapter": folder.name, "wants": Path(named or "?").name, "base": base or model.config.model_type}
    if named and base and Path(named).name.lower() != Path(base).name.lower():
        raise UserError("torch.adapter_base", **facts)
    if not (folder / WEIGHTS).is_file():  # PEFT would look for it on the hub
        if (folder / "adapter_model.bin").exists():
            raise UserError("torch.pickle", path=folder.name, file="adapter_model.bin")
        raise UserError("torch.unreadable", path=WEIGHTS, problem="the file is not there")
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (SafetensorError, OSError) as error:
        raise unreadable(folder / WEIGHTS, error) from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:  # modules that are not there, shapes that differ
        raise UserError("torch.adapter_base", **facts) from error
    if not _all_used(adapted, folder):
        raise UserError("torch.adapter_base", **facts)
    return adapted


def open_adapters(
    model: PreTrainedModel, folders: dict[str, Path]
) -> tuple[PreTrainedModel | PeftModel, dict[str, DynamicCache]]:
    """The model with the adapters of these folders beside it, by name; a request applies one, or none.

    Also what stands before a text by name, for adapters of virtual tokens: no weight of the model is theirs. Raises as
    `open_adapter` does.
    """
    require("train", "torch", "transformers", "peft", "safetensors")
    kinds = {name: _config(folder).get("peft_type") for name, folder in folders.items()}
    for folder in folders.values():
        if not (folder / WEIGHTS).is_file():
            raise UserError("torch.unreadable", path=WEIGHTS, problem="the file is not there")
    before = {name: read_before(model, folder) for name, folder in folders.items() if kinds[name] in VIRTUAL}
    return _with_weights(model, {name: folder for name, folder in folders.items() if name not in before}), before


def _with_weights(model: PreTrainedModel, folders: dict[str, Path]) -> PreTrainedModel | PeftModel:
    from peft import PeftModel
    from safetensors import SafetensorError

    adapted: PeftModel | None = None
    for name, folder in folders.items():
        facts = {"adapter": name, "wants": Path(base_named(folder) or "?").name, "base": model.config.model_type}
        try:
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name, local_files_only=True)
            else:
                adapted.load_adapter(str(folder), adapter_name=name, local_files_only=True)
        except (SafetensorError, OSError) as error:
            raise unreadable(folder / WEIGHTS, error) from error
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError("torch.adapter_base", **facts) from error
    return adapted or model


def base_named(folder: Path) -> str | None:
    """What an adapter's folder calls its base: a name, or a path of the machine that it was made on."""
    named = _config(folder).get("base_model_name_or_path")
    return str(named) if named else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError("torch.unreadable", path=path.name, problem=str(error).replace(str(path), path.name)) from error


def _all_used(adapted: Any, folder: Path) -> bool:
    """Whether every tensor of the adapter found a place in the model: PEFT would only warn."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(folder / WEIGHTS), framework="pt") as tensors:
        stored = set(tensors.keys())
    return stored == set(get_peft_model_state_dict(adapted, save_embedding_layers=False))


def read_before(model: PreTrainedModel, folder: Path) -> DynamicCache:
    """Keys and values of the virtual tokens that a prompt, p-tuning or prefix adapter puts before every text."""
    import torch
    from transformers.cache_utils import DynamicCache

    adapted: Any = open_adapter(model, folder, None)  # it lies beside its base
    with torch.inference_mode():
        made = adapted.get_prompt(1)
        if isinstance(made, torch.Tensor):  # embeddings, still to be read
            made = model(inputs_embeds=made.to(model.dtype), use_cache=True).past_key_values
        return DynamicCache([(keys.to(model.dtype), values.to(model.dtype)) for keys, values, *_ in made])


def again(held: DynamicCache | None) -> DynamicCache | None:
    """A cache of its own that begins with what is held, which stays as it is."""
    from transformers.cache_utils import DynamicCache

    return None if held is None else DynamicCache([(keys, values) for keys, values, *_ in held])
