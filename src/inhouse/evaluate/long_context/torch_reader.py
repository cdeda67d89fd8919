"""Read with transformers: whole texts at once, or piece by piece over a window or a quantised cache."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.evaluate.long_context.reader import Read
from inhouse.evaluate.long_context.strategies import QUANTIZED_BITS, QUANTIZED_GROUP, QUANTIZED_RECENT, CacheKind

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PIECE = 512  # tokens read at once where the cache must be kept small in between
SINKS = 4  # first tokens that a sliding window keeps: without them the text falls apart (Xiao et al. 2023)
QUANTO = ("optimum.quanto",)


@dataclass
class TorchReader:
    """A model in torch. `window`: tokens that are kept with a sliding cache, the first `SINKS` beside them.

    Sliding as in StreamingLLM (Xiao et al. 2023): each token sees the first ones and the last `window`. The first ones
    stand right before the window: they are read again at that place, which turns their keys as it should be.
    """

    model: PreTrainedModel
    cache: CacheKind = "full"
    window: int = 1024
    _per_token: float | None = None

    def read(self, ids: Sequence[int], places: Sequence[int], choices: Sequence[Sequence[int]]) -> Read:
        """See Reader; the answer is as long as the longest choice."""
        import torch

        with torch.inference_mode():
            began = time.perf_counter()
            wanted = [place - 1 for place in places]
            cache, logits = self._prefill(ids, [*wanted, len(ids) - 1])
            seconds = time.perf_counter() - began
            held = _bytes(cache)
            self._per_token = None if held is None else held / len(ids)
            before = logits[:-1].log_softmax(-1)
            scored: list[float | None] = [float(before[row, ids[place]]) for row, place in enumerate(places)]
            last = logits[-1]
            chosen = [self._weigh(cache, len(ids), last, choice) for choice in choices]
            longest = max(map(len, choices), default=0)
            answer = self._write(cache, len(ids), last, longest)
        return Read(scored, chosen, answer, seconds, held)

    def bytes_per_token(self) -> float | None:
        """Of the text read last."""
        return self._per_token

    def close(self) -> None:
        """Nothing to end: the model belongs to the caller."""

    def _prefill(self, ids: Sequence[int], wanted: Sequence[int]) -> tuple[Any, torch.Tensor]:
        """The cache after the text, and logits (N, V) float32 at the wanted places, in order."""
        import torch

        if self.cache == "full":
            cache = _dynamic()
            return cache, self._forward(cache, ids, range(len(ids)), wanted)
        # A window's pieces are as long as the window: longer ones would hold more, shorter ones take longer.
        size = min(PIECE, self.window) if self.cache == "sliding" else PIECE
        cache = _quantized(self.model) if self.cache == "quantized" else _dynamic()
        parts = []
        for start in range(0, len(ids), size):
            stop = min(start + size, len(ids))
            own = [place - start for place in wanted if start <= place < stop]
            if self.cache == "sliding":
                cache = self._slide(cache, ids, start)
            parts.append(self._forward(cache, ids[start:stop], range(start, stop), own))
        return cache, torch.cat(parts)

    def _slide(self, cache: Any, ids: Sequence[int], start: int) -> Any:
        """What a piece that begins at `start` may see of the text before it."""
        kept = self.window - 1
        if start <= kept + SINKS:
            return cache
        first = _dynamic()
        at = start - kept - SINKS
        self._forward(first, ids[:SINKS], range(at, at + SINKS), [])
        import torch

        layers = [
            (torch.cat([own[0], old[0][:, :, -kept:]], 2), torch.cat([own[1], old[1][:, :, -kept:]], 2))
            for own, old in zip(first, cache, strict=True)
        ]
        return _dynamic(layers)

    def _forward(self, cache: Any, ids: Sequence[int], at: range, wanted: Sequence[int]) -> torch.Tensor:
        """Feed tokens that stand at `at`; logits (N, V) float32 at the wanted ones of them."""
        import torch

        device = self.model.device
        rows = torch.tensor(list(wanted) or [len(ids) - 1], device=device)
        out: Any = self.model(
            torch.tensor([list(ids)], device=device),
            attention_mask=self._mask(len(ids), cache.get_seq_length()),
            position_ids=torch.arange(at.start, at.stop, device=device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=rows,
        )
        logits: torch.Tensor = out.logits[0].float()
        return logits[: len(wanted)]

    def _mask(self, fed: int, held: int) -> torch.Tensor | None:
        """Of a window: additive (1, 1, fed, held + fed); the first tokens are always seen. None: all before oneself."""
        import torch

        if self.cache != "sliding":
            return None
        keys = torch.arange(held + fed)[None]
        queries = torch.arange(held, held + fed)[:, None]
        seen = (keys <= queries) & ((queries - keys < self.window) | (keys < SINKS))
        blocked = torch.finfo(self.model.dtype).min
        mask = torch.zeros((fed, held + fed), dtype=self.model.dtype).masked_fill_(~seen, blocked)
        return mask[None, None].to(self.model.device)

    def _weigh(self, cache: Any, length: int, last: torch.Tensor, choice: Sequence[int]) -> float:
        """Natural-log probability of a whole answer; the cache is left as it was."""
        total = float(last.log_softmax(-1)[choice[0]])
        if len(choice) > 1:
            fed = choice[:-1]
            logits = self._forward(_branch(cache), fed, range(length, length + len(fed)), range(len(fed)))
            total += sum(float(row[token]) for row, token in zip(logits.log_softmax(-1), choice[1:], strict=True))
        return total

    def _write(self, cache: Any, length: int, last: torch.Tensor, most: int) -> list[int]:
        """The likeliest tokens one by one; the last thing that is done with a cache."""
        found: list[int] = []
        while len(found) < most:
            found.append(int(last.argmax()))
            if len(found) < most:
                at = length + len(found) - 1
                last = self._forward(cache, found[-1:], range(at, at + 1), [0])[0]
        return found


def _dynamic(layers: Sequence[tuple[Any, Any]] = ()) -> Any:
    from transformers.cache_utils import DynamicCache

    return DynamicCache(list(layers)) if layers else DynamicCache()


def _quantized(model: PreTrainedModel) -> Any:
    """transformers' own quantised cache; raise long_context.quanto where its package is not there."""
    from importlib.util import find_spec

    from transformers.cache_utils import QuantizedCache

    if find_spec("optimum") is None or find_spec("optimum.quanto") is None:
        raise UserError("long_context.quanto")
    size, recent = QUANTIZED_GROUP, QUANTIZED_RECENT
    return QuantizedCache("quanto", model.config, nbits=QUANTIZED_BITS, q_group_size=size, residual_length=recent)


def _is_plain(cache: Any) -> bool:
    return type(cache).__name__ == "DynamicCache"


def _branch(cache: Any) -> Any:
    """A cache that may grow without the other: growing puts new tensors in the place of old ones, and changes none."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _bytes(cache: Any) -> int | None:
    """Bytes of all keys and values; None for a cache that does not show them."""
    if _is_plain(cache):
        return int(sum(keys.nbytes + values.nbytes for keys, values, *_ in cache))
    total = 0
    for layer in cache.layers:
        for kept in (layer.keys, layer.values):
            total += kept.nbytes
        for packed in (layer._quantized_keys, layer._quantized_values):
            total += packed._data._data.nbytes + packed._scale.nbytes + packed._shift.nbytes
    return total
