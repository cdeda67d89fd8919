"""Which tokens are learned, in which batches, and that sharing a prefix changes neither loss nor gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import rows

from inhouse.core.errors import UserError
from inhouse.core.rows import Message, Row
from inhouse.engines.torch_chat import answer_span
from inhouse.train.batches import Reading, collate, plan_batches
from inhouse.train.learning import Learning
from inhouse.train.step import reading as reading_as
from inhouse.train.tokens import Sample, encode


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def talk() -> Row:
    turns = [("user", "oil?"), ("assistant", "crude"), ("user", "wheat?"), ("assistant", "grain")]
    messages = [Message(role=role, content=content) for role, content in turns]
    return Row(id="0" * 16, messages=messages, source="talk", offset=3)


def learned_text(tokenizer, sample: Sample) -> str:
    return tokenizer.decode([token for token, learn in zip(sample.ids, sample.learned, strict=True) if learn])


def test_last_turn_only_learns_the_last_answer_and_its_end(tokenizer) -> None:
    sample = encode(talk(), tokenizer, frozenset({tokenizer.eos_token_id}))
    assert learned_text(tokenizer, sample) == "grain<|im_end|>"
    assert sample.ids[-1] == tokenizer.eos_token_id


def test_all_turns_learns_every_answer_and_no_question(tokenizer) -> None:
    sample = encode(talk(), tokenizer, frozenset({tokenizer.eos_token_id}), "all")
    assert learned_text(tokenizer, sample) == "crude<|im_end|>grain<|im_end|>"


def test_row_that_does_not_end_with_an_answer_is_refused_with_its_place(tokenizer) -> None:
    row = talk().model_copy(update={"messages": talk().messages[:3]})
    with pytest.raises(UserError, match="talk") as error:
        encode(row, tokenizer, frozenset({tokenizer.eos_token_id}))
    assert error.value.code == "train.no_answer"


def test_template_that_rewrites_earlier_turns_is_refused(tokenizer, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    shifting = AutoTokenizer.from_pretrained(tiny_llama)
    shifting.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    with pytest.raises(UserError) as error:
        answer_span(shifting, talk().messages, 3, frozenset({shifting.eos_token_id}))
    assert error.value.code == "torch.template_shifts"


def samples(tokenizer, count: int) -> list[Sample]:
    return [encode(row, tokenizer, frozenset({tokenizer.eos_token_id})) for row in rows(count)]


def test_plan_holds_every_sample_once_an_epoch_and_is_drawn_by_the_seed(tokenizer) -> None:
    some = samples(tokenizer, 22)
    plan = plan_batches(some, 4, 2, seed=1)
    assert sorted(i for batch in plan[:6] for i in batch) == list(range(22))
    assert sorted(i for batch in plan[6:] for i in batch) == list(range(22))
    assert plan == plan_batches(some, 4, 2, seed=1)
    assert plan != plan_batches(some, 4, 2, seed=2)
    assert plan[:6] != plan[6:]


def test_plan_of_half_an_epoch_holds_half_the_batches(tokenizer) -> None:
    assert len(plan_batches(samples(tokenizer, 24), 4, 0.5, seed=1)) == 3


def test_plan_groups_by_length_so_that_padding_is_small(tokenizer) -> None:
    some = samples(tokenizer, 64)
    padded = sum(max(len(some[i].ids) for i in b) * len(b) for b in plan_batches(some, 8, 1, seed=1))
    assert padded <= 1.1 * sum(len(sample.ids) for sample in some)


@pytest.mark.parametrize("reading", [Reading(), Reading(shares=False), Reading(False, False)])
@pytest.mark.parametrize("turns", ["last", "all"])
def test_loss_and_gradient_equal_those_of_transformers_row_by_row(
    tokenizer, tiny_llama: Path, reading: Reading, turns: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ends = frozenset({tokenizer.eos_token_id})
    some = [encode(row, tokenizer, ends, turns) for row in [*rows(5), talk(), talk()]]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    batch = collate(some, tokenizer.pad_token_id, reading, Learning())
    packed = batch["batch"].packed
    assert (packed is not None) == reading.packs
    if packed:
        assert len(packed.ids) % 64 == 0
        read = {place for group in packed.groups for place in range(group.start, group.stop)}
        assert (len(packed.groups) > 2) == reading.shares
        assert read == set(range(len(packed.ids)))
    with reading_as(model, reading):
        loss = Learning().loss(model, batch).total / len(batch["labels"])
        loss.backward()
    ours = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    total, count = torch.tensor(0.0), sum(sum(sample.learned) for sample in some)
    for sample in some:
        labels = torch.tensor([[t if learn else -100 for t, learn in zip(sample.ids, sample.learned, strict=True)]])
        total = total + model(torch.tensor([sample.ids]), labels=labels).loss * sum(sample.learned)
    (total / count).backward()
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-5)
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.grad, atol=1e-5, rtol=1e-3)


def test_float32_weights_computed_in_bf16_get_the_gradients_of_plain_attention(tokenizer, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    some = [encode(row, tokenizer, frozenset({tokenizer.eos_token_id})) for row in [*rows(5), talk()]]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    gradients = []
    for how in (Reading(), Reading(False, False)):
        batch = collate(some, tokenizer.pad_token_id, how, Learning())
        batch["batch"] = replace(batch["batch"], halved=True)
        with reading_as(model, how):
            (Learning().loss(model, batch).total / len(batch["labels"])).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
        model.zero_grad()
    ours, plain = gradients
    assert float(torch.norm(ours - plain) / torch.norm(plain)) < 0.02  # bf16 keeps 8 bits: 0.004 a number


def test_attention_of_another_form_is_read_padded_with_a_note(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from inhouse.core.run import Events
    from inhouse.train.step import checked_reading

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    events = Events(tmp_path / "events.jsonl")
    assert checked_reading(model, Reading(), 0, events) == Reading()
    assert not events.path.exists()
    model.model.layers[0].self_attn.is_causal = False  # as an encoder's is
    assert checked_reading(model, Reading(), 0, events) == Reading(False, False)
    assert "train.unpacked" in events.path.read_text()
