"""Read prompts once and answer from their keys and values: decoding, and scoring many choices in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inhouse.core.protocols import Scored

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

LOGIT_BYTES = 256 << 20  # scoring reads as many prompts together as keep their logits below this


@dataclass
class Prefilled:
    """Prompts that a model has read: (B) rows, (L) positions held, of which `mask` (B, L) marks the real ones."""

    cache: DynamicCache
    logits: torch.Tensor  # (B, V) float32, of the last prompt token
    mask: torch.Tensor  # (B, L) int64
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        held = sum(keys.nbytes + values.nbytes for keys, values, *_ in self.cache)
        self.bytes = held + self.logits.nbytes


def read_prefix(
    model: PreTrainedModel, prefix: Sequence[int], before: DynamicCache | None = None
) -> DynamicCache | None:
    """Keys and values of the tokens that every prompt begins with, after those that stand `before` any prompt."""
    import torch
    from transformers.cache_utils import DynamicCache

    if not prefix:
        return before
    cache = DynamicCache([(keys, values) for keys, values, *_ in before]) if before is not None else DynamicCache()
    ids = torch.tensor([prefix], device=model.device)
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=one_place(ids))
    return cache


def prefill(model: PreTrainedModel, prefix: DynamicCache | None, rests: Sequence[Sequence[int]]) -> Prefilled:
    """Read what follows the prefix. Shorter rows are padded between prefix and rest, so that all rows end together."""
    import torch
    from transformers.cache_utils import DynamicCache

    rows, width = len(rests), max(map(len, rests))
    held = prefix.get_seq_length() if prefix is not None else 0
    ids = torch.zeros((rows, width), dtype=torch.long)
    mask = torch.ones((rows, held + width), dtype=torch.long)
    for row, rest in enumerate(rests):
        ids[row, width - len(rest) :] = torch.tensor(rest)
        mask[row, held : held + width - len(rest)] = 0
    ids, mask = ids.to(model.device), mask.to(model.device)
    cache = DynamicCache()
    if prefix is not None:
        cache = DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v, *_ in prefix])
    logits = _forward(model, cache, Step(ids, mask, positions(mask)[:, held:]), one_place(ids))
    return Prefilled(cache, logits[:, -1], mask)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """The place of every real token in its own row, padding not counted."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def one_place(ids: torch.Tensor) -> torch.Tensor:
    """The last position, for `logits_to_keep`.

    As an index, not as the number 1: transformers then slices, and torch multiplies a sliced (B, 1, H) by a copy of
    the whole output matrix for every row: 1.8 GB and most of the time for 32 prompts on SmolLM2.
    """
    import torch

    return torch.tensor([ids.shape[1] - 1], device=ids.device)


@dataclass(frozen=True)
class Step:
    """What is fed at once: token ids (B, T), what each may see, and the place of each in its row (B, T)."""

    ids: torch.Tensor
    mask: torch.Tensor
    at: torch.Tensor


def _forward(model: PreTrainedModel, cache: DynamicCache, step: Step, places: torch.Tensor | int = 0) -> torch.Tensor:
    out: Any = model(
        step.ids,
        attention_mask=step.mask,
        position_ids=step.at,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=places,
    )
    logits: torch.Tensor = out.logits.float()
    return logits


def extend(model: PreTrainedModel, state: Prefilled, max_tokens: int, ends: frozenset[int]) -> list[list[int]]:
    """Greedy continuations of every row, each up to and with its end token; the state is left as it was."""
    import torch

    rows = state.mask.shape[0]
    found: list[list[int]] = [[] for _ in range(rows)]
    logits, mask, fed = state.logits, state.mask, 0
    at = state.mask.sum(-1, keepdim=True)
    while True:
        chosen = logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            if len(found[row]) < max_tokens and not (found[row] and found[row][-1] in ends):
                found[row].append(token)
        if all(len(ids) == max_tokens or ids[-1] in ends for ids in found):
            break
        mask = torch.cat([mask, mask.new_ones((rows, 1))], dim=-1)
        logits = _forward(model, state.cache, Step(chosen[:, None], mask, at))[:, -1]
        at, fed = at + 1, fed + 1
    if fed:
        state.cache.crop(-fed)
    return found


@dataclass(frozen=True)
class Tree:
    """Choices that share beginnings, as one run of tokens.

    `tokens[n]` is fed at depth `depths[n]` and sees `paths[n]` (itself and what leads to it); `routes[c][k]` is the
    node whose output predicts token k of choice c, -1 for the prompt's last token.
    """

    tokens: list[int]
    depths: list[int]
    paths: list[list[int]]
    routes: list[list[int]]


def grow_tree(choices: Sequence[Sequence[int]]) -> Tree:
    """Merge choices into a tree: eight labels cost about eleven tokens, not eight times the prompt."""
    tree, known = Tree([], [], [], []), {}
    for ids in choices:
        node, route = -1, []
        for token in ids:
            route.append(node)
            if len(route) < len(ids):  # nothing follows the last token: it is predicted, never fed
                key = (node, token)
                if key not in known:
                    known[key] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.depths.append(len(route) - 1)
                    tree.paths.append([*(tree.paths[node] if node >= 0 else []), known[key]])
                node = known[key]
        tree.routes.append(route)
    return tree


def score_choices(
    model: PreTrainedModel, state: Prefilled, choices: Sequence[Sequence[Sequence[int]]]
) -> list[list[Scored]]:
    """Log-probability of each row's choices from the prompt's keys and values; the state is left as it was."""
    trees = [grow_tree(own) for own in choices]
    width = max(len(tree.tokens) for tree in trees)
    rows = len(trees)
    first = state.logits.log_softmax(-1)
    fit = max(1, LOGIT_BYTES // max(1, width * first.shape[-1] * 4))
    scored: list[list[Scored]] = []
    for start in range(0, rows, fit):
        here = range(start, min(start + fit, rows))
        later = _read_trees(model, state, [trees[row] for row in here], slice(here.start, here.stop)) if width else None
        for index, row in enumerate(here):
            after = None if later is None else later[index]
            scored.append([_sum(first[row], after, ids, trees[row].routes[c]) for c, ids in enumerate(choices[row])])
    return scored


def _sum(first: torch.Tensor, later: torch.Tensor | None, ids: Sequence[int], route: Sequence[int]) -> Scored:
    logprob = 0.0
    for token, node in zip(ids, route, strict=True):
        logprob += float(first[token] if node < 0 or later is None else later[node, token])
    return Scored(logprob, len(ids))


def _read_trees(model: PreTrainedModel, state: Prefilled, trees: Sequence[Tree], part: slice) -> torch.Tensor:
    """Log-probabilities (rows, nodes, V) after every tree node of rows `part`."""
    import torch
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache([(keys[part], values[part]) for keys, values, *_ in state.cache])
    mask, rows = state.mask[part], len(trees)
    width, held = max(len(tree.tokens) for tree in trees), state.mask.shape[1]
    ids = torch.zeros((rows, width), dtype=torch.long)
    at = torch.zeros((rows, width), dtype=torch.long)
    # Additive mask (rows, 1, nodes, held + nodes): a node sees its prompt and its own path. An unused node sees the
    # prompt, for a row that sees nothing would be NaN.
    blocked = torch.finfo(model.dtype).min
    seen = torch.full((rows, 1, width, held + width), blocked, dtype=model.dtype)
    seen[..., :held].masked_fill_(mask.cpu().bool()[:, None, None, :], 0)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.tokens)] = torch.tensor(tree.tokens, dtype=torch.long)
        at[row, : len(tree.tokens)] = torch.tensor(tree.depths, dtype=torch.long)
        for node, path in enumerate(tree.paths):
            seen[row, 0, node, [held + step for step in path]] = 0
    at += mask.sum(-1, keepdim=True).cpu()
    device = model.device
    return _forward(model, cache, Step(ids.to(device), seen.to(device), at.to(device))).log_softmax(-1)
