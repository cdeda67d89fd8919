from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from inhouse.train import team
from inhouse.train.activations import _turn_by, fused_rotation, fused_swiglu
from inhouse.train.fused import fused_lora

SMALL = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 40,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "pad_token_id": 0,
}
KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3", "granite")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _model(kind: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL), attn_implementation="eager")
    for weight in model.parameters():
        weight.data.mul_(4)  # so that gates are open and shut
    return model.to(dtype).train()


def _read(model: Any, fused: bool) -> list[torch.Tensor]:
    """Logits of a row, and the gradients of all weights."""
    ids = torch.randint(1, 64, (1, 37), generator=torch.Generator().manual_seed(2))
    with ExitStack() as stack:
        if fused:
            layers = stack.enter_context(fused_swiglu(model)) + stack.enter_context(fused_rotation(model))
            assert (layers >= 2) is team.able()
        logits = model(ids, use_cache=False).logits
    model.zero_grad()
    logits.float().logsumexp(-1).square().mean().backward()
    return [logits.detach(), *[weight.grad.clone() for weight in model.parameters() if weight.grad is not None]]


@pytest.mark.parametrize("kind", KINDS)
def test_model_of_every_family_gives_the_same_logits_and_gradients_fused(kind: str) -> None:
    model = _model(kind)
    for plain, fused in zip(_read(model, False), _read(model, True), strict=True):
        assert torch.equal(plain, fused)


def test_fused_layers_with_two_threads_give_what_one_gives(threads: int) -> None:
    model = _model("llama")
    for plain, fused in zip(_read(model, False), _read(model, True), strict=True):
        assert torch.equal(plain, fused)


def test_model_in_float32_computes_as_the_library_does() -> None:
    model = _model("llama", torch.float32)
    for plain, fused in zip(_read(model, False), _read(model, True), strict=True):
        assert torch.equal(plain, fused)


def test_swiglu_of_the_ends_of_the_scale_is_what_torch_gives() -> None:
    model = _model("llama").model.layers[0].mlp
    values = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 80.0, 200.0, -200.0, 3e38, float("inf"), float("nan")]
    gate = torch.tensor(values, dtype=torch.bfloat16).repeat(6).requires_grad_()
    model.gate_proj = model.up_proj = model.down_proj = torch.nn.Identity()
    found = []
    for fused in (False, True):
        with ExitStack() as stack:
            if fused:
                stack.enter_context(fused_swiglu(model))
            out = model(gate[None])
        found.append((out.detach(), *torch.autograd.grad(out, gate, torch.ones_like(out))))
    for plain, own in zip(*found, strict=True):
        torch.testing.assert_close(plain, own, rtol=0, atol=1e-36, equal_nan=True)


def test_gradients_of_siblings_beside_each_other_give_the_same_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_model("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    found = []
    for fused in (False, True):
        with fused_lora(model):
            found.append(_read(model, fused))
    for plain, own in zip(*found, strict=True):
        assert torch.equal(plain, own)


def test_layers_compute_as_before_when_training_is_over_or_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("llama")
    plain = _read(model, False)
    _read(model, True)
    assert not [module for module in model.modules() if "forward" in vars(module)]
    monkeypatch.setattr(team, "able", lambda: False)
    for one, other in zip(plain, _read(model, True), strict=True):
        assert torch.equal(one, other)


def test_two_ways_to_compute_are_taken_back_in_turn() -> None:
    layer = _model("llama").model.layers[0].mlp
    with fused_swiglu(layer):
        first = layer.forward
        with fused_swiglu(layer):
            assert layer.forward is not first
        assert layer.forward is first
    assert "forward" not in vars(layer)


def test_class_of_the_same_name_from_elsewhere_is_left_alone() -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP as Theirs

    class LlamaMLP(Theirs):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    with fused_swiglu(LlamaMLP(_model("llama").config)) as count:
        assert count == 0


def test_gradient_of_a_gradient_is_refused_and_not_wrong() -> None:
    model = _model("llama")
    with fused_swiglu(model):
        logits = model(torch.tensor([[1, 2, 3]]), use_cache=False).logits
    weights = list(model.model.layers[0].mlp.parameters())
    first = torch.autograd.grad(logits.square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(one.square().sum() for one in first).backward()


def test_angles_that_are_shared_by_tokens_turn_as_the_library_turns_them() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads = [torch.randn(1, 4, 5, 16, dtype=torch.bfloat16) for _ in range(2)]
    angles = [torch.randn(1, 1, 16, dtype=torch.bfloat16) for _ in range(2)]
    theirs, ours = apply_rotary_pos_emb(*heads, *angles), _turn_by(apply_rotary_pos_emb)(*heads, *angles)
    assert all(map(torch.equal, theirs, ours))


def test_gates_of_another_shape_multiply_as_torch_has_them() -> None:
    model = _model("llama").model.layers[0].mlp
    model.gate_proj, model.down_proj = torch.nn.Identity(), torch.nn.Identity()
    model.up_proj = _First()
    hidden = torch.randn(6, 8, dtype=torch.bfloat16)
    plain = model(hidden)
    with fused_swiglu(model):
        assert torch.equal(model(hidden), plain)


class _First(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """One row for all."""
        return hidden[:1]


def test_layers_with_another_activation_are_left_alone() -> None:
    from transformers.activations import GELUActivation

    model = _model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = GELUActivation()
    with fused_swiglu(model) as count:
        assert count == 0


def test_numba_that_cannot_be_imported_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.2 or less')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from inhouse.train import team; print(team.able())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_machine_without_torchs_threads_is_not_able(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError

    for one in (team.able, team._openmp):
        one.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    try:
        assert not team.able()
    finally:
        for one in (team.able, team._openmp):
            one.cache_clear()
