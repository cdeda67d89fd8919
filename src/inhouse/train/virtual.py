"""Virtual tokens: ids beyond the vocabulary whose embeddings, or keys and values, are trained.

Because they are ids like any other, batches, packing, shared prefixes, positions and the loss need to know nothing of
them: each sample begins with them, and what all samples begin with is read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "virtual_tokens"  # the child of the model that holds what is trained


def add_virtual_tokens(model: PreTrainedModel, trained: Mapping[str, torch.nn.Module], text: str | None = None) -> None:
    """Give the model virtual tokens: `encoder` makes their embeddings, or a module per projection its rows.

    A projection is named by its path with slashes for dots. Checkpoints of the model then hold these weights only.
    `text` is what they begin as once there is a tokenizer (see `with_virtual`).
    """
    import torch

    held: Any = torch.nn.ModuleDict(dict(trained))
    held.text = text
    embedding: Any = model.get_input_embeddings()
    known = embedding.num_embeddings
    at: list[torch.Tensor] = []  # of the ids being read: which virtual token each is, below 0 for a real one

    def note_places(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        at[:] = [inputs[0] - known]
        return (inputs[0].clamp(max=known - 1),)

    def put(rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return torch.where((at[0] >= 0).unsqueeze(-1), rows.to(output.dtype)[at[0].clamp(min=0)], output)

    held.hooks = [embedding.register_forward_pre_hook(note_places)]
    if "encoder" in trained:
        held.hooks.append(embedding.register_forward_hook(lambda _m, _i, out: put(virtual_rows(model), out)))
    else:
        for name in trained:
            rows: Any = trained[name]
            projection = model.get_submodule(name.replace("/", "."))
            held.hooks.append(projection.register_forward_hook(lambda _m, _i, out, own=rows: put(own.weight, out)))
    model._keys_to_ignore_on_save = list(model.state_dict())  # what transformers leaves out of a saved model
    model.add_module(NAME, held)


def held_by(model: torch.nn.Module) -> Any:
    """The module with the trained virtual tokens, or None for a model without them."""
    return dict(model.named_children()).get(NAME)


def virtual_ids(model: torch.nn.Module) -> tuple[int, ...]:
    """The ids of a model's virtual tokens; none for a model without them."""
    held = held_by(model)
    if held is None:
        return ()
    whole: Any = model
    known = whole.get_input_embeddings().num_embeddings
    return tuple(range(known, known + _count(held)))


def _count(held: Any) -> int:
    if "encoder" in held:
        return int(held["encoder"].embedding.num_embeddings)
    return int(next(iter(held.values())).num_embeddings)


def virtual_rows(model: torch.nn.Module) -> torch.Tensor:
    """Embeddings (n, H) of the virtual tokens."""
    import torch

    held = held_by(model)
    encoder = held["encoder"]
    rows: torch.Tensor = encoder(torch.arange(_count(held), device=encoder.embedding.weight.device).unsqueeze(0))[0]
    return rows


def begin_with(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Set the virtual tokens to what the model makes of these ids, repeated or cut to their number."""
    import torch

    held = held_by(model)
    wanted = torch.tensor([(list(ids) * (_count(held) // len(ids) + 1))[: _count(held)]], device=model.device)
    found: dict[str, torch.Tensor] = {}
    inside: Any = {"encoder": model.get_input_embeddings()} if "encoder" in held else {
        name: model.get_submodule(name.replace("/", ".")) for name in held
    }  # fmt: skip
    spies = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out[0].float()}))
        for name, module in inside.items()
    ]
    with torch.no_grad():
        model(wanted, use_cache=False)
        for name, module in held.items():
            (module.embedding if name == "encoder" else module).weight.copy_(found[name])
    for spy in spies:
        spy.remove()


def with_virtual(model: Any, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """The samples with the model's virtual tokens before them. These are set to the text they begin as, if any."""
    ids = virtual_ids(model)
    if not ids:
        return list(samples)
    if (text := held_by(model).text) is not None:
        begin_with(model, tokenizer.encode(text, add_special_tokens=False))
    return [replace(sample, ids=ids + sample.ids, learned=(False,) * len(ids) + sample.learned) for sample in samples]


def remove_virtual(model: PreTrainedModel) -> None:
    """Take the virtual tokens off again; what is left is the base as it was."""
    for hook in held_by(model).hooks:
        hook.remove()
    delattr(model, NAME)
    model._keys_to_ignore_on_save = None


def save_virtual(model: PreTrainedModel, folder: Any, base: str) -> None:
    """Write the virtual tokens as an adapter in PEFT's format, as prompt tuning or prefix tuning reads it.

    p_tuning's network is left behind: its output is a prompt. Keys stand rotated to their places, as PEFT wants them.
    """
    import torch
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType
    from safetensors.torch import save_file

    model.eval()
    ids = virtual_ids(model)
    general: dict[str, Any] = {
        "task_type": TaskType.CAUSAL_LM,
        "inference_mode": True,
        "num_virtual_tokens": len(ids),
        "num_transformer_submodules": 1,
        "num_layers": model.config.get_text_config().num_hidden_layers,
        "base_model_name_or_path": base,
    }
    with torch.no_grad():
        if "encoder" in held_by(model):
            rows = virtual_rows(model)
            heads = model.config.get_text_config().num_attention_heads
            config: Any = PromptTuningConfig(token_dim=rows.shape[1], num_attention_heads=heads, **general)
        else:
            cache: Any = model(torch.tensor([ids], device=model.device), use_cache=True).past_key_values
            both = [part[0].float() for keys, values, *_ in cache for part in (keys, values)]  # (heads, n, d) each
            heads, _, width = both[0].shape
            config = PrefixTuningConfig(token_dim=heads * width, num_attention_heads=heads, **general)
            rows = torch.stack(both).permute(2, 0, 1, 3).reshape(len(ids), -1)
    config.save_pretrained(str(folder))
    save_file({"prompt_embeddings": rows.cpu().contiguous()}, str(folder / "adapter_model.safetensors"))
