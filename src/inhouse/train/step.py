"""One step: the model over a batch, and the loss of its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def shares_prefix(model: PeftModel) -> bool:
    """Whether prompts' shared beginning can be read once: the model keeps keys and values, not a running state."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    return kinds <= {"full_attention", "sliding_attention"}


def answer_loss(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], count: torch.Tensor | int | None
) -> torch.Tensor:
    """Cross entropy over learned tokens, divided by `count` of them (default: those of this batch).

    Reading the shared prefix once is exact: its gradient is the sum over the samples that follow it.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    from inhouse.engines.torch_cache import one_place

    prefix, ids, mask, labels = (inputs[k] for k in ("prefix", "input_ids", "attention_mask", "shift_labels"))
    held, rows = prefix.shape[1], ids.shape[0]
    cache = None
    # The base is bf16 already; autocast keeps PEFT's float32 adapters from turning activations into float32
    # (10 of SmolLM2's layers, no dropout: 179 MB of activations, not 207). The adapters themselves stay float32.
    halved = next(model.parameters()).dtype == torch.bfloat16
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=halved):
        if held:
            read = DynamicCache()
            model(input_ids=prefix, past_key_values=read, use_cache=True, logits_to_keep=one_place(prefix))
            cache = DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v, *_ in read])
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, held:],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=inputs["places"],
        )
    loss = torch.nn.functional.cross_entropy(out.logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (count if count is not None else (labels >= 0).sum())
