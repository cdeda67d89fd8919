"""Let layers of transformers compute in another way for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

HOME = "transformers.models."  # a class elsewhere with the same name may compute something else


def layers_of(model: torch.nn.Module, names: Iterable[str]) -> list[Any]:
    """The layers of a model that are of transformers' own classes with these names."""
    known = frozenset(names)
    found = ((type(module), module) for module in model.modules())
    return [module for kind, module in found if kind.__name__ in known and kind.__module__.startswith(HOME)]


@contextmanager
def instead(layers: Iterable[Any], made: Callable[[Any], Any]) -> Iterator[int]:
    """Let each layer compute by what `made` gives for it; gives how many do. Afterwards all is as it was."""
    changed = [(layer, vars(layer).get("forward")) for layer in layers]
    for layer, _ in changed:
        layer.forward = made(layer)
    try:
        yield len(changed)
    finally:
        for layer, before in changed:
            if before is None:
                del layer.forward
            else:
                layer.forward = before
