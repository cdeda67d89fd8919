"""SwiGLU and rotary embedding on a CPU in bf16 as one pass each, for as long as a model is trained.

Every figure is rounded where transformers rounds it, so results and gradients are the same to the last bit: except
behind a gate below -87, where they are 0 and transformers' less than 1e-36. Where numba is missing, or torch computes
with threads of another library, models compute as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from inhouse.train import team
from inhouse.train.instead import instead, layers_of

# Classes of transformers with down_proj(act_fn(gate_proj(x)) * up_proj(x)).
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen2Moe", "Qwen3Moe", "SmolLM3", "Granite")
SWIGLU = frozenset(f"{family}MLP" for family in FAMILIES)
# Classes whose queries and keys are turned by `apply_rotary_pos_emb`, the second half of a head beside the first.
ROTARY = frozenset(f"{family}Attention" for family in (*FAMILIES, "Mixtral"))
TURN = "apply_rotary_pos_emb"


def fused_swiglu(model: torch.nn.Module) -> AbstractContextManager[int]:
    """Let a model's feed-forward layers multiply silu(gate) by up in one pass; gives how many do."""
    return instead([layer for layer in _found(model, SWIGLU) if _silu(layer)], _swiglu)


def fused_rotation(model: torch.nn.Module) -> AbstractContextManager[int]:
    """Let a model's attention layers turn queries and keys in one pass; gives how many do."""
    return instead([layer for layer in _found(model, ROTARY) if _turning(layer)], _turned)


def _found(model: torch.nn.Module, names: Iterable[str]) -> list[Any]:
    """Layers that loops may compute: none where no loop can be compiled, and none on a GPU."""
    layers = layers_of(model, names)
    on_cpu = all(weight.device.type == "cpu" for layer in layers[:1] for weight in layer.parameters())
    return layers if layers and on_cpu and team.able() else []


def _silu(module: Any) -> bool:
    return type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _swiglu(module: Any) -> Any:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        """What a feed-forward layer gives for (…, D) -> (…, D)."""
        gate, up = module.gate_proj(hidden), module.up_proj(hidden)
        if team.fits(gate, up) and gate.shape == up.shape and gate.numel():
            return module.down_proj(Swiglu.apply(gate, up))
        return module.down_proj(module.act_fn(gate) * up)

    return forward


class Swiglu(torch.autograd.Function):  # type: ignore[misc]
    """silu(gate) * up: (…, F), (…, F) -> (…, F), all bf16; the gradients lie beside each other as one (…, 2 F)."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        ctx.save_for_backward(gate, up)
        out = gate.new_empty(gate.shape)
        team.run("swiglu", *_rows(gate, up), out.data_ptr())
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any) -> Any:
        gate, up = ctx.saved_tensors
        above = above.to(gate.dtype).contiguous()
        below = gate.new_empty((*gate.shape[:-1], 2 * gate.shape[-1]))
        team.run("swiglu_back", *_rows(gate, up), above.data_ptr(), below.data_ptr())
        return below.chunk(2, -1)


def _rows(gate: torch.Tensor, up: torch.Tensor) -> list[int]:
    """How many rows there are and how wide, and where each matrix lies with its stride."""
    flat = [tensor.view(-1, tensor.shape[-1]) for tensor in (gate, up)]  # as linear layers give them
    return [*flat[0].shape, *[number for one in flat for number in (one.data_ptr(), one.stride(0))]]


def _turning(module: Any) -> bool:
    return TURN in type(module).forward.__globals__


def _turned(module: Any) -> Any:
    """The class's own forward, in which the name of the function that turns stands for ours."""
    usual = type(module).forward
    names = {**usual.__globals__, TURN: _turn_by(usual.__globals__[TURN])}
    own = FunctionType(usual.__code__, names, usual.__name__, usual.__defaults__, usual.__closure__)
    own.__kwdefaults__ = usual.__kwdefaults__
    return MethodType(own, module)


def _turn_by(usual: Any) -> Any:
    def turn(query: Any, key: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        """Query (1, H, T, D) and key (1, K, T, D) turned by their places: cos and sin (1, T, D)."""
        places = (1, query.shape[2], query.shape[3])
        alike = cos.shape == sin.shape == places == (len(key), *key.shape[2:]) and places[2] % 2 == 0
        if not team.fits(query, key, cos, sin) or not alike or len(query) > 1 or unsqueeze_dim != 1:
            return usual(query, key, cos, sin, unsqueeze_dim)
        cos, sin = cos.contiguous(), sin.contiguous()
        return Turn.apply(query, cos, sin), Turn.apply(key, cos, sin)

    return turn


class Turn(torch.autograd.Function):  # type: ignore[misc]
    """Heads (1, H, T, D) turned by cos and sin (1, T, D), bf16; they lie in memory as (T, H, D)."""

    @staticmethod
    def forward(ctx: Any, heads: Any, cos: Any, sin: Any) -> Any:
        ctx.save_for_backward(cos, sin)
        return _turn(heads, cos, sin, 1.0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return _turn(above.to(cos.dtype), cos, sin, -1.0), None, None


def _turn(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    _, count, length, size = heads.shape
    if heads.stride(-1) != 1:
        heads = heads.contiguous()
    out = heads.new_empty((1, length, count, size))
    strides = heads.stride(2), heads.stride(1)
    team.run("rotate", length, count, size // 2, heads.data_ptr(), *strides, out.data_ptr(),
             cos.data_ptr(), sin.data_ptr(), team.bits(sign))  # fmt: skip
    return out.transpose(1, 2)
