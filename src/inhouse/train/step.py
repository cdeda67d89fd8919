"""One step: a model over a batch, and how likely it finds what is to be learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import torch

from inhouse.core.run import Events
from inhouse.engines.classifier import head_of_decoder
from inhouse.train import attention
from inhouse.train.activations import fused_rotation, fused_swiglu
from inhouse.train.batches import Batch, Reading
from inhouse.train.fused import fused_lora
from inhouse.train.losses import token_losses
from inhouse.train.norms import fused_norms
from inhouse.train.segments import WIDE, layout
from inhouse.train.spans import Sample

SAME, SAME_HALVED = 1e-3, 0.1  # mean losses of a sample, packed and alone; bf16 rounds differently
UNPACKED = ("gpt_oss",)  # its attention has sinks, which ours has not


@dataclass(frozen=True)
class Outputs:
    """What a model says where something is learned: `scored` (M, V), the `targets` (N) and their `owners` (N).

    Sample `owners[n]` of the batch is to learn `targets[n]`. Rows of `scored` behind the first N only fill it up.
    """

    scored: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor

    @property
    def logits(self) -> torch.Tensor:
        """Scores of every word (N, V) where something is learned."""
        return self.scored[: len(self.targets)]

    def losses(self) -> torch.Tensor:
        """Negative log-likelihood (N) of every learned token, float32."""
        return self._judged[0][: len(self.targets)]

    def correct(self) -> torch.Tensor:
        """How many of the learned tokens the model would have written itself."""
        return self._judged[1][: len(self.targets)].sum()

    @cached_property
    def _judged(self) -> tuple[torch.Tensor, torch.Tensor]:
        filled = self.targets.new_zeros(len(self.scored) - len(self.targets))
        return token_losses(self.scored, torch.cat([self.targets, filled]))


def reading_of(model: torch.nn.Module, wanted: Reading) -> Reading:
    """As it is wanted, where this model is able: its attention can be exchanged, and it keeps keys and values only."""
    config: Any = model.config
    inner = config.get_text_config()
    kinds = set(getattr(inner, "layer_types", None) or ("full_attention",))
    able = (
        bool(getattr(unwrapped(model), "_supports_attention_backend", False))
        and kinds <= {"full_attention", "sliding_attention"}
        and inner.model_type not in UNPACKED
        and getattr(inner, "attn_logit_softcapping", None) is None
        and (bool(unwrapped(model).can_generate()) or head_of_decoder(unwrapped(model)) is not None)
    )
    packs = able and wanted.packs
    return replace(wanted, packs=packs, shares=packs and wanted.shares and not _drops(model))


def checked_reading(model: torch.nn.Module, wanted: Reading, pad: int, events: Events) -> Reading:
    """As `reading_of`, but padded where two samples in one row do not give what they give apart: one small measurement.

    No list of families is complete: there are recurrent layers, sinks and scores with terms of their own.
    """
    how = reading_of(model, wanted)
    if not how.packs or not unwrapped(model).can_generate():
        return how
    try:
        apart = _apart(model, how, pad)
    except (RuntimeError, ValueError, IndexError):  # attention of another form, and what it raises on a packed row
        apart = inf
    if apart <= (SAME_HALVED if how.halves else SAME):
        return how
    events.note("train.unpacked", architecture=unwrapped(model).config.model_type)
    return replace(how, packs=False, shares=False)


def _apart(model: torch.nn.Module, how: Reading, pad: int) -> float:
    """The largest difference of a sample's mean loss between one packed row and reading it alone."""
    from inhouse.train.batches import collate
    from inhouse.train.learning import Learning

    words = model.config.get_text_config().vocab_size
    samples = [
        Sample(tuple(place * 7919 % words for place in range(start, start + size)), (False, *[True] * (size - 1)))
        for start, size in ((1, 21), (3, 13))
    ]
    before, device = model.training, next(model.parameters()).device
    model.eval()

    def losses(chosen: list[Sample], way: Reading) -> list[float]:
        inputs = collate(chosen, pad, way, Learning())
        placed = {name: value.to(device) if name != "batch" else value for name, value in inputs.items()}
        with torch.no_grad(), reading(model, way, fuse=False):
            outputs = read(model, placed)
        found = outputs.losses()
        return [float(found[outputs.owners == number].mean()) for number in range(len(chosen))]

    try:
        together = losses(samples, how)
        alone = [losses([sample], replace(how, packs=False, shares=False))[0] for sample in samples]
    finally:
        model.train(before)
    return max(abs(one - other) for one, other in zip(together, alone, strict=True))


def _drops(model: torch.nn.Module) -> bool:
    """Whether dropout is on: what samples share would have one draw for all of them, a noise that does not average."""
    from torch.nn import Dropout

    return any(isinstance(module, Dropout) and module.p > 0 for module in model.modules())


def unwrapped(model: Any) -> Any:
    """The transformers model inside of PEFT's, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def reading(model: torch.nn.Module, how: Reading, fuse: bool = True) -> Iterator[None]:
    """Let the model read packed rows, and its LoRA layers and norms compute fused, until the end of the block."""
    inner = unwrapped(model)
    usual = inner.config._attn_implementation
    with ExitStack() as stack:
        if how.packs:
            attention.register()
            inner.set_attn_implementation(attention.NAME)
            stack.callback(inner.set_attn_implementation, usual)
        if fuse:
            stack.enter_context(fused_lora(model))
            stack.enter_context(fused_norms(model))
            stack.enter_context(fused_swiglu(model))
            stack.enter_context(fused_rotation(model))
        yield


def read(model: torch.nn.Module, inputs: dict[str, Any]) -> Outputs:
    """Run the model over a batch that `collate` made; the output matrix is multiplied at learned places only."""
    batch: Batch = inputs["batch"]
    ids: torch.Tensor = inputs["input_ids"]
    # What is trained is float32: beside a bf16 base, autocast keeps activations from becoming float32 too.
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=batch.halved):
        return _packed(model, ids, batch) if batch.packed else _padded(model, inputs, batch)


def _packed(model: Any, ids: torch.Tensor, batch: Batch) -> Outputs:
    packed = batch.packed
    assert packed is not None  # read: chosen by it
    device = ids.device
    attention.use_layout(layout(packed, device))
    made = model(
        input_ids=ids,
        position_ids=torch.tensor([packed.positions], device=device),
        logits_to_keep=torch.tensor(filled(packed.places), device=device),
        use_cache=False,
    )
    targets, owners = (torch.tensor(values, device=device) for values in (packed.targets, packed.owners))
    # Not [0], whose gradient would be copied into zeros as large as all logits.
    return Outputs(made.logits.squeeze(0), targets, owners)


def filled(places: Sequence[int]) -> list[int]:
    """The places and the last one again, up to a round number: few shapes occur (see `segments`)."""
    return [*places, *[places[-1]] * (-len(places) % WIDE)]


def _padded(model: Any, inputs: dict[str, Any], batch: Batch) -> Outputs:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    owners, places, targets = [], [], []
    for row, sample in enumerate(batch.samples):
        for index in range(1, len(sample.ids)):
            if sample.learned[index]:
                owners.append(row)
                places.append(index - 1)
                targets.append(sample.ids[index])
    kept, where = torch.tensor(places).unique(return_inverse=True)
    made = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=kept.to(ids.device),
        use_cache=False,
    )
    rows, wanted = torch.tensor(owners, device=ids.device), torch.tensor(targets, device=ids.device)
    return Outputs(made.logits[rows, where.to(ids.device)], wanted, rows)
