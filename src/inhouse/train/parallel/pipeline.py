"""Pipeline parallel: each rank holds some of the layers; rows pass through the ranks in small groups (GPipe).

Huang et al. 2019, arXiv:1811.06965, by torch.distributed.pipelining. transformers' trainer cannot carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.train.apart import IGNORED, padded
from inhouse.train.spans import Sample
from inhouse.train.step import unwrapped

if TYPE_CHECKING:
    import torch

    from inhouse.train.loop import Job


class PipelineSide:
    """This rank's layers. Rank 0 has the embeddings, the last rank the output matrix and the loss."""

    apart = True

    def __init__(self, model: torch.nn.Module, job: Job) -> None:
        import torch.distributed as dist

        self.rank, self.ranks, self.pad = dist.get_rank(), dist.get_world_size(), job.pad
        self.model = model
        self.base, self.tied = cut(model, self.rank, self.ranks)
        self.copy = self.tied if 0 < self.rank == self.ranks - 1 else None  # rank 0 has it too
        self.module = _stage_module(self.base, self.rank)
        self.ends = dist.new_group(sorted({0, self.ranks - 1}))  # the ranks that hold the tied embeddings

    def backward(self, batches: Sequence[Sequence[Sample]]) -> float:
        """Add the gradients of a step; returns the step's loss."""
        import torch
        import torch.distributed as dist

        from inhouse.train.parallel.group import device

        chunks = len(batches) * self.ranks
        ids, mask, targets = tensors([s for batch in batches for s in batch], self.pad, chunks)
        schedule = self._schedule(chunks, tuple(ids.shape), int((targets != IGNORED).sum()))
        where, losses = device(), list[Any]()
        inputs = (ids.to(where),) if self.rank == 0 else ()
        last = self.rank == self.ranks - 1
        halved = next(self.base.parameters()).dtype == torch.bfloat16
        with torch.autocast(where.type, torch.bfloat16, enabled=halved):
            schedule.step(
                *inputs,
                attention_mask=mask.to(where),
                target=targets.to(where) if last else None,
                losses=losses if last else None,
                return_outputs=False,
            )
        if self.tied is not None and self.tied.requires_grad and self.rank in (0, self.ranks - 1):
            dist.all_reduce(self.tied.grad, group=self.ends)
        loss = torch.stack(losses).sum() if last else torch.zeros((), device=where)
        dist.broadcast(loss := loss.detach().float().clone(), src=self.ranks - 1)
        return float(loss)

    def _schedule(self, chunks: int, shape: tuple[int, ...], count: int) -> Any:
        """GPipe over `chunks` groups of rows. Made anew for each step: widths differ, and what is sent is fixed."""
        import torch
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        from inhouse.train.parallel.group import device

        rows = shape[0] // chunks
        width = self.base.config.get_text_config().hidden_size
        passed = torch.empty(rows, shape[1], width, dtype=self.base.dtype, device="meta", requires_grad=True)
        first = torch.empty(rows, shape[1], dtype=torch.long, device="meta")
        given = first if self.rank == 0 else passed
        stage = PipelineStage(self.module, self.rank, self.ranks, device(), input_args=(given,), output_args=(passed,))
        return ScheduleGPipe(stage, chunks, loss_fn=_loss(self.base, count), scale_grads=False)


def cut(model: torch.nn.Module, rank: int, ranks: int) -> tuple[Any, Any]:
    """Take out of the model what other ranks hold; returns the transformers model, and its tied embeddings if any.

    Raises train.parallel_plan, train.parallel_layers, train.parallel_method.
    """
    import torch

    base = unwrapped(model)
    config = base.config.get_text_config()
    if not base.pp_plan or not isinstance(getattr(base.get_decoder(), "layers", None), torch.nn.ModuleList):
        raise UserError("train.parallel_plan", kind="pp", family=config.model_type)
    decoder = base.get_decoder()
    if len(decoder.layers) < ranks:
        raise UserError("train.parallel_layers", layers=len(decoder.layers), processes=ranks)
    tied = base.get_input_embeddings().weight if config.tie_word_embeddings else None
    first, last = rank == 0, rank == ranks - 1
    passing = _passing()
    for at in range(len(decoder.layers)):
        if at * ranks // len(decoder.layers) != rank:
            decoder.layers[at] = passing()
    if not first:
        decoder.embed_tokens = passing()
    if not last:
        decoder.norm = passing()
        base.set_output_embeddings(passing())
    return base, tied


def _passing() -> type[torch.nn.Module]:
    import torch

    class Passing(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """Stands where another rank's layer was, and hands on what it gets."""

        def forward(self, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
            return hidden

    return Passing


def _stage_module(base: Any, rank: int) -> torch.nn.Module:
    import torch

    class Stage(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """What one rank does with a group of rows: ids or hidden states in, hidden states out."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = base.get_decoder()

        def forward(self, given: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            named = {"input_ids": given} if rank == 0 else {"inputs_embeds": given}
            hidden = self.decoder(attention_mask=attention_mask, use_cache=False, **named).last_hidden_state
            return hidden.to(base.dtype)  # type: ignore[no-any-return, unused-ignore]

    return Stage()


def _loss(base: Any, count: int) -> Any:
    import torch

    def loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy at the learned places only: elsewhere the large output matrix is not multiplied."""
        learned = targets != IGNORED
        logits = base.get_output_embeddings()(hidden[learned]).float()
        return torch.nn.functional.cross_entropy(logits, targets[learned], reduction="sum") / count

    return loss


def tensors(samples: Sequence[Sample], pad: int, chunks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and the token to predict at each place (or IGNORED), all (rows, width); rows a multiple of `chunks`.

    Padded on the right, where causal attention never looks back from. Rows that fill up learn nothing.
    """
    # Of one token, not of none: a row without any would attend to nothing, which gives NaN.
    filling = [Sample((pad,), (False,))] * (-len(samples) % chunks)
    ids, targets, mask = padded([*samples, *filling], pad)
    return ids, mask, targets
