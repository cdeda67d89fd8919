"""LoRA's linear layers in fewer and larger matrix products, for as long as a model is trained.

PEFT computes `x Wᵀ + B(A(x)) · s` in seven steps, with the adapters and their input in float32. Here it is one autograd
function in the type of the weights, and layers that read the same input (query, key and value; gate and up) are one
product. The adapters themselves, and their gradients, stay float32. Weights in 4 bits (QLoRA) are made wide where they
are read, forward and backward, and kept by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.function import once_differentiable

FOUR_BIT = "Linear4bit"  # of PEFT and of bitsandbytes, neither of which need be there
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers that read the same tensor


@contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[int]:
    """Let a model's LoRA layers compute fused; gives how many do. Layers with dropout or DoRA are left as they are.

    Weights of siblings lie in one tensor meanwhile; afterwards each is its own again.
    """
    layers = {name: module for name, module in model.named_modules() if _plain(module)}
    bundles = [Bundle(group) for group in _families(layers)]
    try:
        yield sum(len(bundle.layers) for bundle in bundles)
    finally:
        for bundle in bundles:
            bundle.dissolve()


def _plain(module: torch.nn.Module) -> bool:
    """Whether a module is LoRA beside a linear layer, also one in 4 bits, without what changes the formula."""
    from peft.tuners.lora import Linear, LoraLayer

    plain = type(module) is Linear and type(module.get_base_layer()) is torch.nn.Linear
    four_bit = isinstance(module, LoraLayer) and type(module).__name__ == FOUR_BIT
    if not plain and not (four_bit and type(module.get_base_layer()).__name__ == FOUR_BIT):
        return False
    names = module.active_adapters
    if len(names) != 1 or module.merged or module.use_dora.get(names[0], False) or module.lora_bias.get(names[0]):
        return False
    return isinstance(module.lora_dropout[names[0]], torch.nn.Identity) and names[0] in module.lora_A


def _families(layers: dict[str, torch.nn.Module]) -> list[list[Any]]:
    """Layers that read the same tensor, by their names; the others alone."""
    found: list[list[Any]] = []
    left = dict(layers)
    for name in layers:
        parent, _, own = name.rpartition(".")
        names = next((group for group in SIBLINGS if group[0] == own), (own,))
        together = [left.pop(f"{parent}.{sibling}", None) for sibling in names]
        there = [layer for layer in together if layer is not None]
        alike = {(layer.get_base_layer().weight.dtype, layer.get_base_layer().bias is None) for layer in there}
        found += [there] if len(alike) == 1 else [[layer] for layer in there]
    return [group for group in found if group]


class Bundle:
    """Layers that read the same tensor, computed when the first of them is asked."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        bases = [layer.get_base_layer() for layer in layers]
        self.sizes = [base.out_features for base in bases]
        names = [layer.active_adapters[0] for layer in layers]
        self.pairs = [(layer.lora_A[n].weight, layer.lora_B[n].weight) for layer, n in zip(layers, names, strict=True)]
        self.scales = [float(layer.scaling[n]) for layer, n in zip(layers, names, strict=True)]
        ranks = [a.shape[0] for a, _ in self.pairs]
        self.blocks = list(zip(_ranges(self.sizes), _ranges(ranks), strict=True))  # of each B in the matrix of all
        self.packed = [base.weight for base in bases if type(base).__name__ == FOUR_BIT]
        self.weight = None if self.packed else _one([base.weight.data for base in bases])
        biases = [base.bias.data for base in bases if base.bias is not None]
        self.bias = _one(biases) if biases else None
        for base, part in self._parts():
            base.weight.data = part
        self.input: torch.Tensor | None = None
        self.outputs: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(layers):
            layer.forward = self._reader(index)

    def _reader(self, index: int) -> Any:
        def forward(hidden: torch.Tensor) -> torch.Tensor:
            """What layer `index` gives for its input (…, in) -> (…, out)."""
            if self.input is not hidden or index not in self.outputs:
                adapters = [weight for pair in self.pairs for weight in pair]
                made = FusedLora.apply(hidden, self.bias, self, *adapters)
                self.input, self.outputs = hidden, dict(enumerate(made))
            found = self.outputs.pop(index)
            if not self.outputs:
                self.input = None
            return found

        return forward

    def dissolve(self) -> None:
        """Give every layer its own weights and PEFT's way of computing back."""
        for layer in self.layers:
            del layer.forward
        for base, part in self._parts() if len(self.layers) > 1 else ():
            base.weight.data = part.clone()

    def _parts(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """Each layer with its own of all weights; nothing of packed ones, which stay as they are."""
        if self.weight is not None:
            bases = (layer.get_base_layer() for layer in self.layers)
            yield from zip(bases, self.weight.split(self.sizes), strict=True)

    def weights(self, kind: torch.dtype) -> torch.Tensor:
        """The weights of all layers (out, in), in the type to compute in."""
        if self.weight is not None:
            return self.weight
        from bitsandbytes.functional import dequantize_4bit

        return _one([dequantize_4bit(each.data, each.quant_state).to(kind) for each in self.packed])

    def wide(self, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """All A (n r, in), and all s B as one block-diagonal matrix (out, n r), in the type to compute in."""
        if len(self.pairs) == 1:
            a, b = self.pairs[0]
            return a.detach().to(kind), (b.detach() * self.scales[0]).to(kind)
        down = torch.cat([a.detach() for a, _ in self.pairs]).to(kind)
        up = down.new_zeros((sum(self.sizes), down.shape[0]))
        for (_, b), scale, (columns, rows) in zip(self.pairs, self.scales, self.blocks, strict=True):
            torch.mul(b.detach(), scale, out=up[columns, rows])
        return down, up

    def gradients(self, down: torch.Tensor, up: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of every A and B out of those of the wide matrices."""
        found = []
        for (a, b), scale, (columns, rows) in zip(self.pairs, self.scales, self.blocks, strict=True):
            found += [down[rows].to(a.dtype), up[columns, rows].to(b.dtype).mul_(scale)]
        return found


class FusedLora(torch.autograd.Function):  # type: ignore[misc]
    """(…, in) -> one (…, out) for each layer of a bundle."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, bias: Any, bundle: Bundle, *adapters: Any) -> Any:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weight = bundle.weights(flat.dtype)
        down, up = bundle.wide(flat.dtype)
        low = flat @ down.t()
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(low, up.t())
        ctx.save_for_backward(flat, low, down, up)
        ctx.bundle, ctx.shape = bundle, hidden.shape
        parts = out.split(bundle.sizes, dim=-1) if len(bundle.sizes) > 1 else (out,)
        return tuple(part.reshape(*hidden.shape[:-1], -1) for part in parts)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> Any:
        flat, low, down, up = ctx.saved_tensors
        given = [g.reshape(flat.shape[0], -1) for g in gradients]
        above = _joined(given)
        above_low = above @ up
        below = None
        if ctx.needs_input_grad[0]:
            below = (above @ ctx.bundle.weights(above.dtype)).addmm_(above_low, down).view(ctx.shape)
        found = ctx.bundle.gradients(above_low.t() @ flat, above.t() @ low)
        return below, None, None, *found


def _one(tensors: list[torch.Tensor]) -> torch.Tensor:
    """All rows in one tensor; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _ranges(sizes: Sequence[int]) -> list[slice]:
    """Sizes as places one behind the other."""
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Matrices beside each other; not copied where they are parts of one already, as SwiGLU gives them."""
    first, widths = parts[0], [part.shape[1] for part in parts]
    strides, storage = (sum(widths), 1), first.untyped_storage().data_ptr()
    alike = all(part.stride() == strides and part.untyped_storage().data_ptr() == storage for part in parts)
    starts = [first.storage_offset() + sum(widths[:number]) for number in range(len(parts))]
    if alike and starts == [part.storage_offset() for part in parts]:
        return first.as_strided((first.shape[0], strides[0]), strides)
    return first if len(parts) == 1 else torch.cat(parts, dim=-1)
