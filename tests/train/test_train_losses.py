from __future__ import annotations

import pytest
import torch

from inhouse.train import team
from inhouse.train.losses import token_losses

ROWS, WORDS = 21, 1003  # no round numbers: loops end in the middle of a vector


def _logits(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    logits, targets = (torch.randn(ROWS, WORDS) * scale).bfloat16(), torch.randint(0, WORDS, (ROWS,))
    targets[:8] = logits[:8].argmax(-1)
    logits[2, 9] = -torch.inf
    logits[3], targets[3] = 0, 0  # all alike: the first is the likeliest
    logits[4], targets[4] = 0, 1
    targets[5] = WORDS - 1
    return logits, targets


def _found(logits: torch.Tensor, targets: torch.Tensor, above: torch.Tensor) -> tuple[torch.Tensor, ...]:
    own = logits.detach().clone().requires_grad_()
    losses, right = token_losses(own, targets)
    (gradient,) = torch.autograd.grad(losses, own, above)
    return losses.detach(), right, gradient


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 12.0])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_losses_and_gradients_are_those_of_float64(kind: torch.dtype, scale: float, threads: int) -> None:
    logits, targets = _logits(scale)
    above, before = torch.rand(ROWS), torch.get_num_threads()
    above[-2:] = 0
    torch.set_num_threads(threads)
    try:
        losses, right, gradient = _found(logits.to(kind), targets, above)
    finally:
        torch.set_num_threads(before)
    exact = torch.log_softmax(logits.double(), -1)
    wanted = -exact.gather(-1, targets[:, None])[:, 0]
    assert losses.dtype == torch.float32 and (losses - wanted).abs().max() < 2e-6 * scale
    assert torch.equal(right, logits.float().argmax(-1) == targets) and 5 < right.sum() < 12
    slope = (exact.exp() - torch.nn.functional.one_hot(targets, WORDS)) * above[:, None]
    assert gradient.dtype == kind
    assert (gradient - slope).abs().max() < (2.0**-8 if kind == torch.bfloat16 else 1e-6)
    assert not gradient[-2:].any()


def test_loop_gives_what_torch_gives_also_for_rows_that_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, targets = _logits(4.0)
    part, above = torch.cat([wide, wide], 1)[:, : WORDS + 5], torch.rand(ROWS)
    assert team.fits(part) and not part.is_contiguous()
    targets = torch.stack([targets, targets + 1], 1)[:, 0]
    assert not targets.is_contiguous()
    looped = [token_losses(part, targets), _found(part, targets, above)]
    monkeypatch.setattr(team, "able", lambda: False)
    usual = [token_losses(part, targets), _found(part, targets, above)]
    for own, other in zip(looped, usual, strict=True):
        torch.testing.assert_close(own[0], other[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(own[1], other[1])
    torch.testing.assert_close(looped[1][2], usual[1][2], rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("loops", [True, False])
def test_logit_that_is_no_number_makes_its_own_loss_none(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not loops:
        monkeypatch.setattr(team, "able", lambda: False)
    logits, targets = _logits(1.0)
    logits[6, 400], logits[7, 30] = torch.nan, torch.inf
    losses, _, gradient = _found(logits, targets, torch.ones(ROWS))
    assert losses[6:8].isnan().tolist() == [True, True]
    assert not losses[:6].isnan().any() and not gradient[:6].isnan().any()
    assert gradient[6].isnan().all()


def test_no_rows_have_no_losses() -> None:
    losses, right = token_losses(torch.empty(0, WORDS, dtype=torch.bfloat16), torch.empty(0, dtype=torch.int64))
    assert losses.shape == right.shape == (0,)
