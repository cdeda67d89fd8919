"""Tensor parallel: each rank holds a part of every matrix, cut as the model's own plan in transformers says.

Megatron's way (Shoeybi et al. 2019, arXiv:1909.08053): of two matrices that follow each other the first is cut by
columns and the second by rows, so that ranks speak once per pair. Adapters are cut as the matrix they stand beside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.train.ahead import AHEAD, mean_of, read_ahead
from inhouse.train.spans import Sample
from inhouse.train.step import reading, reading_of, unwrapped

if TYPE_CHECKING:
    import torch

    from inhouse.train.loop import Job


class TensorSide:
    """The model cut for this rank; every rank reads every row."""

    apart, copy = False, None

    def __init__(self, model: torch.nn.Module, job: Job) -> None:
        cut(model)
        self.model, self.job, self.how = model, job, reading_of(model, job.reading)

    def backward(self, batches: Sequence[Sequence[Sample]]) -> float:
        """Add the gradients of a step; returns the step's loss."""
        import torch

        from inhouse.train.batches import collate
        from inhouse.train.parallel.group import device

        learning, loss = self.job.learning, 0.0
        count = sum(len(learning.counted(batch)) for batch in batches)
        with reading(self.model, self.how, fuse=False):  # the fused path knows whole matrices only
            ahead = mean_of(read_ahead(self.model, batches, learning, (self.how, self.job.pad)))
            for batch in filter(None, batches):
                inputs = collate(batch, self.job.pad, self.how, learning)
                here = {name: v.to(device()) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
                part = learning.loss(self.model, here | {AHEAD: ahead}).total / count
                part.backward()
                loss += float(part.detach())
        return loss


def cut(model: torch.nn.Module) -> None:
    """Cut a loaded model (with its adapters) in place; the parts of all ranks together are the model.

    Raises train.parallel_plan, train.parallel_heads, train.parallel_version, train.parallel_method.
    """
    import torch.distributed as dist

    from inhouse.train.parallel.group import device

    try:
        from transformers.distributed.tensor_parallel import apply_tensor_parallelism
    except ImportError:
        raise UserError("train.parallel_version", kind="tp", wanted="transformers>=5.17") from None
    base = unwrapped(model)
    plan = _plan(base, dist.get_world_size())
    base.tp_plan = _with_adapters(base, plan)
    mesh = dist.init_device_mesh(device().type, (dist.get_world_size(),), mesh_dim_names=("tp",))
    apply_tensor_parallelism(base, mesh)


def _plan(base: Any, ranks: int) -> dict[str, str]:
    """The model's own plan, without the vocabulary's matrices, which may be one and the same and of any length."""
    config = base.config.get_text_config()
    plan = {name: style for name, style in (base.tp_plan or {}).items() if "layers." in name}
    if not plan:
        raise UserError("train.parallel_plan", kind="tp", family=config.model_type)
    heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if any(count % ranks for count in heads):
        raise UserError("train.parallel_heads", heads=heads[0], key_value_heads=heads[1], processes=ranks)
    return plan


def _with_adapters(base: Any, plan: dict[str, str]) -> dict[str, str]:
    """The plan in the names that modules have once LoRA stands beside them.

    Columns are cut: so are those of B, which makes the same outputs. Rows are cut: so are those of A, which reads
    the same inputs.
    """
    from peft.tuners.lora import LoraLayer

    found = dict(plan)
    for name, module in base.named_modules():
        key = re.sub(r"\.\d+(\.|$)", r".*\1", name)
        if not isinstance(module, LoraLayer) or key not in plan:
            continue
        style = plan[key]
        if style not in ("colwise", "rowwise") or any(module.use_dora.values()):
            raise UserError("train.parallel_adapter", module=key)
        found.pop(key, None)
        found[f"{key}.base_layer"] = style
        for adapter in module.lora_A:
            found[f"{key}.{'lora_B' if style == 'colwise' else 'lora_A'}.{adapter}"] = style
    return found
