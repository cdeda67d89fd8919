from __future__ import annotations

import pytest
import torch

from inhouse.train.norms import KINDS, fused_norms

FAMILIES = {
    "LlamaRMSNorm": "llama",
    "Qwen3RMSNorm": "qwen3",
    "Qwen2MoeRMSNorm": "qwen2_moe",
    "Glm4RMSNorm": "glm4",
    "GraniteRMSNorm": "granite",
}


def _norm(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    from importlib import import_module

    family = FAMILIES[name]
    made = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)(48, eps=1e-5)
    torch.manual_seed(3)
    made.weight.data.uniform_(0.5, 1.5)
    return made.to(dtype).requires_grad_(False)


def _both(norm: torch.nn.Module, hidden: torch.Tensor, above: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    found = []
    for fused in (False, True):
        given = hidden.clone().requires_grad_()
        if fused:
            with fused_norms(norm) as count:
                assert count == 1
                made = norm(given)
        else:
            made = norm(given)
        found.append((made.detach(), *torch.autograd.grad(made, given, above.to(made.dtype))))
    return found


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_fused_norm_of_every_kind_gives_what_the_library_gives(name: str) -> None:
    assert name in KINDS
    hidden, above = torch.randn(2, 7, 48) * 3, torch.randn(2, 7, 48)
    plain, fused = _both(_norm(name), hidden, above)
    assert torch.equal(plain[0], fused[0])
    torch.testing.assert_close(plain[1], fused[1], rtol=1e-5, atol=1e-6)


def test_gradient_of_fused_norm_in_bf16_is_nearer_to_the_exact_one_than_the_librarys() -> None:
    hidden, above = (torch.randn(64, 48) * 3).bfloat16(), torch.randn(64, 48).bfloat16()
    norm = _norm("LlamaRMSNorm", torch.bfloat16)
    plain, fused = _both(norm, hidden, above)
    exact = _both(_norm("LlamaRMSNorm").double(), hidden.double(), above.double())[0]
    # Squares are added up in another order: where a figure lies between two of bf16, it may become the other one.
    assert (plain[0] != fused[0]).float().mean() < 0.01
    torch.testing.assert_close(plain[0], fused[0], rtol=2**-7, atol=0)
    assert (fused[1] - exact[1]).abs().mean() <= (plain[1] - exact[1]).abs().mean()


def test_fused_norm_of_zeros_has_a_finite_gradient() -> None:
    hidden = torch.zeros(3, 48)
    _, fused = _both(_norm("LlamaRMSNorm"), hidden, torch.ones(3, 48))
    assert fused[1].isfinite().all()


def test_norms_that_are_trained_or_of_another_formula_are_left_alone() -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    trained = _norm("LlamaRMSNorm").requires_grad_(True)
    with fused_norms(torch.nn.ModuleList([trained, Gemma2RMSNorm(48).requires_grad_(False)])) as count:
        assert count == 0


def test_rows_of_another_width_are_refused_as_the_library_refuses_them() -> None:
    norm = _norm("LlamaRMSNorm").bfloat16()
    with fused_norms(norm), pytest.raises(RuntimeError, match="size"):
        norm(torch.ones(3, 47, dtype=torch.bfloat16))


def test_after_training_a_norm_computes_as_before() -> None:
    norm = _norm("LlamaRMSNorm")
    with fused_norms(norm):
        assert "forward" in vars(norm)
    assert "forward" not in vars(norm)
