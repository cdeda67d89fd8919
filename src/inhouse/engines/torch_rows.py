"""Answers that torch makes together: rows of one batch with their keys and values, which join and leave at any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

R = TypeVar("R")


class Rows(Generic[R]):
    """Rows that have been read so far, padded on the left to one length; `owners[i]` is whose row i is.

    Models whose layers keep more than keys and values, or only the last ones (state-space models, windows of
    attention), cannot be padded: each of their rows stays a batch of its own.
    """

    def __init__(self, model: PreTrainedModel, owners: Sequence[R]) -> None:
        self.model = model
        self.owners = list(owners)
        self.cache: DynamicCache
        self.mask: torch.Tensor  # (B, L) int64, 0 = padding

    @classmethod
    def read(
        cls, model: PreTrainedModel, ids: Sequence[int], owners: Sequence[R], before: Any = None
    ) -> tuple[Rows[R], torch.Tensor]:
        """Read a prompt once for all its choices. Also the logits (V) float32 after it.

        `before`: a cache of what stands before every prompt.
        """
        import torch
        from transformers.cache_utils import DynamicCache

        from inhouse.engines.adapters import again

        rows = cls(model, owners)
        rows.cache = again(before) or DynamicCache(config=model.config)
        held = rows.cache.get_seq_length()
        told = torch.tensor([list(ids)], device=model.device)
        rows.mask = torch.ones((1, held + len(ids)), dtype=torch.long, device=model.device)
        logits = rows._forward(told)[0]
        if len(owners) > 1:
            rows.cache.batch_repeat_interleave(len(owners))
            rows.mask = rows.mask.expand(len(owners), -1)
        return rows, logits

    @property
    def joins(self) -> bool:
        """Whether other rows can be put beside these."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def join(self, other: Rows[R]) -> None:
        """Put other rows beside these."""
        import torch

        length = max(self.mask.shape[1], other.mask.shape[1])
        for mine, new in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_longer(mine.keys, length), _longer(new.keys, length)])
            mine.values = torch.cat([_longer(mine.values, length), _longer(new.values, length)])
        self.mask = torch.cat([_longer(rows.mask[:, None, :, None], length)[:, 0, :, 0] for rows in (self, other)])
        self.owners += other.owners

    def keep(self, places: Sequence[int]) -> None:
        """Let the other rows go, and the padding that nobody needs any more."""
        import torch

        if len(places) == len(self.owners):
            return
        if not places:
            self.owners = []
            return
        chosen = torch.tensor(list(places), device=self.mask.device)
        self.owners = [self.owners[place] for place in places]
        self.cache.batch_select_indices(chosen)
        self.mask = self.mask[chosen]
        spare = int(self.mask.argmax(-1).min())
        if spare and self.joins:
            self.mask = self.mask[:, spare:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one more token of each row: logits (B, V) float32 after it."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=-1)
        return self._forward(torch.tensor(tokens, device=self.mask.device)[:, None])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        import torch

        more: dict[str, Any] = {}
        held = self.mask.shape[1] - ids.shape[1]
        if held or not bool(self.mask.all()):
            at = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, held:]
            more = {"attention_mask": self.mask, "position_ids": at}
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)  # as an index: see torch_cache.one_place
        with torch.inference_mode():
            out: Any = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=last, **more)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


def _longer(held: torch.Tensor, length: int) -> torch.Tensor:
    """(B, H, T, D) with zeros before the T positions, up to `length`."""
    import torch

    return torch.nn.functional.pad(held, (0, 0, length - held.shape[2], 0))
