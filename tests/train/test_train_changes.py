"""Changes of the model, penalties of the loss, and a third party's layer and loss, each against a plain reference."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from inhouse.core.errors import UserError
from inhouse.core.params import OneOf, Params
from inhouse.core.plugins import operators
from inhouse.core.run import Events
from inhouse.train.apart import row_losses
from inhouse.train.changes.applied import apply_changes
from inhouse.train.changes.embedding_noise import EmbeddingNoise
from inhouse.train.params import TrainParams
from inhouse.train.penalties import ewc, l2_sp
from inhouse.train.penalties.ewc import Ewc
from inhouse.train.penalties.l2_sp import L2Sp
from inhouse.train.penalties.terms import prepare_penalties, samples_from, sources_of, total
from inhouse.train.tokens import Sample

SAMPLES = [
    Sample((1, 5, 9, 3, 7, 2), (False, False, False, True, True, True)),
    Sample((1, 8, 4, 2), (False, True, True, True)),
    Sample((1, 6, 6, 30, 31, 11, 12, 2), (False, False, True, False, False, False, True, True)),
]


def tiny(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def adapted(**settings: Any) -> Any:
    return get_peft_model(
        tiny(), LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    )


def move(model: torch.nn.Module, by: float = 0.1) -> None:
    """Change everything trained, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * by)


def alone(model: torch.nn.Module, sample: Sample) -> torch.Tensor:
    """A sample's losses, the plain way: one row, no padding, all logits."""
    ids = torch.tensor([sample.ids])
    logits = model(input_ids=ids).logits[0, -len(sample.ids) :]
    each = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:], reduction="none")
    return each[torch.tensor(sample.learned[1:])]


# -- rows read apart


def test_losses_of_padded_rows_equal_those_of_rows_alone() -> None:
    model = tiny().eval()
    losses, counts = row_losses(model, SAMPLES, pad=0)
    expected = [alone(model, sample) for sample in SAMPLES]
    torch.testing.assert_close(losses, torch.stack([each.sum() for each in expected]))
    assert counts.tolist() == [len(each) for each in expected]


def test_losses_of_rows_behind_a_tuned_prompt_stand_at_their_own_places() -> None:
    model = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    losses, _ = row_losses(model, SAMPLES, pad=0)
    torch.testing.assert_close(losses, torch.stack([alone(model, sample).sum() for sample in SAMPLES]))


def test_losses_of_a_bf16_base_with_fp32_adapters_are_near_those_in_fp32() -> None:
    model = adapted().eval()
    exact, _ = row_losses(model, SAMPLES, pad=0)
    for parameter in model.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    halved, _ = row_losses(model, SAMPLES, pad=0)
    torch.testing.assert_close(halved, exact, rtol=0.02, atol=0.02)


# -- noise on embeddings


@pytest.fixture
def events(tmp_path: Path) -> Events:
    return Events(tmp_path / "events.jsonl")


def notes(events: Events) -> list[dict[str, Any]]:
    assert events.path is not None
    said = [json.loads(line) for line in events.path.read_text().splitlines()]
    return [event for event in said if event["event"] == "note"]


def test_embedding_noise_has_the_spread_asked_for_while_training(events: Events) -> None:
    model = tiny()
    ids = torch.arange(40).repeat(50, 5)
    plain = model.get_input_embeddings()(ids)
    apply_changes(model, [EmbeddingNoise(sigma=0.3)], events)
    noise = model.train().get_input_embeddings()(ids) - plain
    assert noise.std().item() == pytest.approx(0.3, rel=0.01)
    assert abs(noise.mean().item()) < 0.005


def test_embedding_noise_by_length_has_the_scale_of_neftune(events: Events) -> None:
    model = tiny()
    ids = torch.arange(40).repeat(50, 5)
    plain = model.get_input_embeddings()(ids)
    apply_changes(model, [EmbeddingNoise(sigma=5, per_length=True)], events)
    noise = model.train().get_input_embeddings()(ids) - plain
    assert noise.std().item() == pytest.approx(5 / (200 * 16) ** 0.5, rel=0.01)


def test_embedding_noise_is_absent_in_evaluation(events: Events) -> None:
    model, ids = tiny().eval(), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    apply_changes(model, [EmbeddingNoise(sigma=1)], events)
    assert torch.equal(model(ids).logits, before)


def test_embedding_noise_is_drawn_anew_and_again_when_the_generator_is_restored(events: Events) -> None:
    model, ids = tiny().train(), torch.tensor([[1, 2, 3]])
    apply_changes(model, [EmbeddingNoise(sigma=0.1)], events)
    state = torch.get_rng_state()
    first, second = model(ids).logits, model(ids).logits
    torch.set_rng_state(state)
    assert not torch.equal(first, second)
    assert torch.equal(model(ids).logits, first)


def test_embedding_noise_tells_its_ratio_to_the_embeddings_own_spread(events: Events) -> None:
    model = tiny()
    spread = float(model.get_input_embeddings().weight.detach().numpy().std())
    _, said = apply_changes(model, [EmbeddingNoise(sigma=0.1)], events)
    assert said == [
        {
            "use": "embedding_noise",
            "sigma": 0.1,
            "per_length": False,
            "embedding_std": pytest.approx(spread, rel=1e-3),
            "noise_ratio": pytest.approx(0.1 / spread, rel=1e-3),
        }
    ]
    assert notes(events)[0]["code"] == "train.embedding_noise"
    assert notes(events)[0]["facts"]["ratio"] == said[0]["noise_ratio"]
    assert model.training is model.get_input_embeddings().training


def test_every_change_and_penalty_has_the_functions_of_its_kind() -> None:
    for kind, names in {"change": ("apply", "facts"), "penalty": ("prepare", "term")}.items():
        assert operators(kind)
        for operator in operators(kind).values():
            assert all(callable(operator.function(name)) for name in names)


def test_project_section_names_changes_and_penalties_in_order() -> None:
    params = TrainParams.model_validate({"changes": ["embedding_noise"], "penalties": [{"use": "ewc"}, "l2_sp"]})
    assert params.changes == (EmbeddingNoise(),)
    assert params.penalties == (Ewc(), L2Sp())


# -- L2-SP


def test_l2_sp_of_full_training_is_half_the_squared_distance_from_the_start() -> None:
    model = tiny()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    state = l2_sp.prepare(model, SAMPLES, L2Sp(weight=0.5))
    move(model)
    by_hand = sum(
        float((now - then).detach().square().sum()) for now, then in zip(model.parameters(), start, strict=True)
    )
    assert l2_sp.term(model, state, L2Sp(weight=0.5)).item() == pytest.approx(0.5 / 2 * by_hand, rel=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_l2_sp_of_lora_is_the_squared_size_of_the_update_to_the_base(rslora: bool) -> None:
    model = adapted(use_rslora=rslora)
    state = l2_sp.prepare(model, SAMPLES, L2Sp(weight=1))
    assert l2_sp.term(model, state, L2Sp(weight=1)).item() == 0
    move(model)
    deltas = [module.get_delta_weight("default") for module in model.modules() if type(module).__name__ == "Linear"
              and hasattr(module, "lora_A")]  # fmt: skip
    assert len(deltas) == 7
    expected = sum(delta.square().sum() for delta in deltas) / 2
    term = l2_sp.term(model, state, L2Sp(weight=1))
    torch.testing.assert_close(term, expected)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for got, wanted in zip(torch.autograd.grad(term, trained), torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_l2_sp_compares_a_tuned_prompt_and_an_embedding_adapter_with_their_start() -> None:
    prompt = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    embeddings = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    for model in (prompt, embeddings):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        start = [parameter.detach().clone() for parameter in trained]
        state = l2_sp.prepare(model, SAMPLES, L2Sp(weight=2))
        move(model)
        by_hand = sum(float((now - then).detach().square().sum()) for now, then in zip(trained, start, strict=True))
        assert l2_sp.term(model, state, L2Sp(weight=2)).item() == pytest.approx(by_hand, rel=1e-5)


# -- EWC


def fisher_by_hand(model: torch.nn.Module, samples: list[Sample]) -> list[torch.Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums, tokens = [torch.zeros_like(parameter) for parameter in trained], 0
    for sample in samples:
        each = alone(model, sample)
        tokens += len(each)
        for at, gradient in enumerate(torch.autograd.grad(each.sum(), trained)):
            sums[at] += gradient**2
    return [total / tokens for total in sums]


@pytest.mark.parametrize("build", [tiny, adapted])
def test_ewc_is_the_fisher_weighted_distance_from_the_start(build: Any) -> None:
    model = build().train()
    params = Ewc(weight=3, samples=10)
    fisher = fisher_by_hand(model, SAMPLES)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in trained]
    state = ewc.prepare(model, SAMPLES, params)
    assert model.training
    move(model)
    by_hand = sum(
        float((f * (now - then).detach() ** 2).sum()) for f, now, then in zip(fisher, trained, start, strict=True)
    )
    assert by_hand > 0
    assert ewc.term(model, state, params).item() == pytest.approx(3 / 2 * by_hand, rel=1e-4)


def test_ewc_reads_without_dropout_and_draws_by_its_seed() -> None:
    model = adapted(lora_dropout=0.5).train()
    params = Ewc(samples=2, seed=4)
    first, second = (ewc.prepare(model, SAMPLES, params) for _ in range(2))
    other = ewc.prepare(model, SAMPLES[:1], params)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(first.parts, second.parts, strict=True))
    assert any(not torch.equal(a[2], b[2]) for a, b in zip(first.parts, other.parts, strict=True))


def test_ewc_keeps_what_was_known_while_something_new_is_learned() -> None:
    old, new = SAMPLES[2:], [Sample((1, 5, 9, 20, 21, 22), (False, False, False, True, True, True))]

    def fit(model: torch.nn.Module, samples: list[Sample], steps: int, extra: Any = None) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            losses, counts = row_losses(model, samples, 0)
            loss = losses.sum() / counts.sum() + (extra() if extra else 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def learned(model: torch.nn.Module, samples: list[Sample]) -> float:
        return float(row_losses(model, samples, 0)[0].detach())

    forgotten, params = {}, Ewc(weight=300)
    for held in (False, True):
        model = tiny()
        fit(model, old, 20)
        before, state = learned(model, old), ewc.prepare(model, old, params)
        fit(model, new, 30, (lambda m=model, s=state: ewc.term(m, s, params)) if held else None)
        forgotten[held] = learned(model, old) - before
        assert learned(model, new) < 3  # from 10.7
    assert forgotten[True] < 0.5 * forgotten[False]


# -- several penalties, and the rows they measure on


def test_total_is_the_sum_of_all_terms() -> None:
    model = adapted()
    asked: list[tuple[str, ...]] = []

    def samples_of(sources: tuple[str, ...]) -> list[Sample]:
        asked.append(sources)
        return SAMPLES

    penalties = [L2Sp(weight=2), Ewc(weight=3, sources=("general",))]
    prepared = prepare_penalties(model, penalties, samples_of)
    move(model)
    parts = [
        l2_sp.term(model, prepared[0].state, penalties[0]),  # type: ignore[arg-type]
        ewc.term(model, prepared[1].state, penalties[1]),  # type: ignore[arg-type]
    ]
    assert total(model, prepared).item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)
    assert asked == [(), ("general",)]
    assert sources_of(penalties[1]) == ("general",)


def test_samples_of_a_source_are_those_it_gave_and_an_unknown_source_is_refused() -> None:
    places = ["own", "general", "own"]
    assert samples_from(SAMPLES, places, ()) == SAMPLES
    assert samples_from(SAMPLES, places, ("general",)) == SAMPLES[1:2]
    with pytest.raises(UserError, match="general, own") as error:
        samples_from(SAMPLES, places, ("old",))
    assert error.value.code == "train.no_source"


# -- a third party's layer and loss

LAYER = '''
from typing import Literal
import torch
from inhouse.core.params import Params

class Gate(torch.nn.Module):
    """Scales the final hidden states."""
    def __init__(self, inner, width):
        super().__init__()
        self.inner, self.scale = inner, torch.nn.Parameter(torch.full((width,), 0.5))
    def forward(self, hidden):
        return self.inner(hidden) * self.scale

class GateHidden(Params):
    use: Literal["gate_hidden"] = "gate_hidden"

def apply(model, params, events):
    model.model.norm = Gate(model.model.norm, model.config.hidden_size)
    return model

def facts(model, params):
    return {"gates": 1}
'''
LOSS = """
from typing import Literal
from inhouse.core.params import Params

class OpenGates(Params):
    use: Literal["open_gates"] = "open_gates"
    weight: float = 0.1

def prepare(model, samples, params):
    return model.model.norm.scale

def term(model, state, params):
    return params.weight * (state - 1).square().sum()
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of somebody else's that offers a layer and a loss by entry points."""
    (tmp_path / "gating_layer.py").write_text(LAYER)
    (tmp_path / "gating_loss.py").write_text(LOSS)
    info = tmp_path / "gating-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gating\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[inhouse.change]\ngate_hidden = gating_layer\n[inhouse.penalty]\nopen_gates = gating_loss\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    operators.cache_clear()
    yield
    operators.cache_clear()
    for name in ("gating_layer", "gating_loss"):
        sys.modules.pop(name, None)


def test_third_party_registers_a_layer_and_a_loss_without_a_fork(third_party: None, events: Events) -> None:
    class Section(Params):
        changes: tuple[Annotated[Params, OneOf("change")], ...]
        penalties: tuple[Annotated[Params, OneOf("penalty")], ...]

    section = Section.model_validate({"changes": ["gate_hidden"], "penalties": [{"use": "open_gates", "weight": 0.5}]})
    plain, ids = tiny().eval(), torch.tensor([[1, 2, 3]])
    model, said = apply_changes(tiny().eval(), section.changes, events)
    assert said == [{"use": "gate_hidden", "gates": 1}]
    torch.testing.assert_close(model(ids).logits, plain(ids).logits / 2)
    prepared = prepare_penalties(model, section.penalties, lambda sources: SAMPLES)
    penalty = total(model, prepared)
    assert penalty.item() == pytest.approx(0.5 * 16 * 0.25)
    losses, counts = row_losses(model, SAMPLES, 0)
    (losses.sum() / counts.sum()).backward()
    from_rows = model.model.norm.scale.grad.clone()
    penalty.backward()
    torch.testing.assert_close(model.model.norm.scale.grad - from_rows, torch.full((16,), -0.5))
