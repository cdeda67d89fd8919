"""What each objective learns, against plain slow references written from the formulas of TRL and torch."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import make_lively
from tiny_training import context, train_params

from inhouse.core.errors import UserError
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.train.arguments import arguments
from inhouse.train.batches import Reading, collate
from inhouse.train.brief import weights_kept
from inhouse.train.learning import Coding
from inhouse.train.loop import build_trainer, plan_steps, train
from inhouse.train.setup import Place, Prepared, job_for, prepare
from inhouse.train.stage import run
from inhouse.train.step import reading
from inhouse.train.tokens import Limit, Sample

QUESTIONS = (
    "oil prices rose as opec cut output",
    "wheat and corn exports fell",
    "银行把基准利率下调了",
    "net profit rose",
)
BETTER = ("crude oil", "grain", "rate", "the company profit")
WORSE = ("the bank said net profit", "crude", "one quarter harvest point", "poor")


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Training collects garbage twice; with all of torch on the heap that takes longer than the training here."""
    import bitsandbytes  # noqa: F401  all that training loads, so that it is frozen too
    import peft  # noqa: F401
    from transformers import Trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def lively(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively(tiny_llama, tmp_path_factory.mktemp("lively"))


def turn(role: Any, text: str) -> Message:
    return Message(role=role, content=text)


def row(number: int, answer: str | None, **more: Any) -> Row:
    question = f"Route this to a desk. Which one? {QUESTIONS[number % 4]} {'again ' * (number % 3)}{number}"
    turns = [turn("user", question), turn("assistant", answer or BETTER[number % 4])]
    return Row(id=f"{number:016x}", messages=turns, source="tiny", offset=number, **more)


def pairs(count: int = 12) -> list[Row]:
    return [row(number, None, rejected=[turn("assistant", WORSE[number % 4])]) for number in range(count)]


def thumbs(count: int = 12) -> list[Row]:
    return [row(n, (WORSE if n % 3 == 0 else BETTER)[n % 4], desirable=n % 3 != 0) for n in range(count)]


def place(model: Path, rows: Sequence[Row], work: Path, valid: Sequence[Row] = ()) -> Context:
    """A context with these rows as its dataset."""
    dataset = work / "dataset"
    dataset.mkdir(parents=True, exist_ok=True)
    write_rows(dataset, "train", rows)
    if valid:
        write_rows(dataset, "valid", valid)
    return context(model, dataset, work)


def ready_for(objective: dict[str, Any], here: Context, **settings: Any) -> Prepared:
    params = train_params(objective=objective, **{"method": {"use": "lora", "r": 4}, **settings})
    return prepare(params, here.inputs, 3, here.events)


def stir(model: Any) -> None:
    """Move what is trained away from where it began, so that no margin is zero."""
    import torch

    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def batch_loss(ready: Prepared, samples: Sequence[Sample], how: Reading) -> tuple[float, int, list[Any]]:
    """Mean loss and right answers of one batch as training reads it, and the gradients."""
    model = ready.loaded.model
    inputs = collate(samples, ready.texts.pad, how, ready.learning)
    model.eval()
    model.zero_grad()
    with reading(model, how):
        total, correct = ready.learning.loss(model, inputs)
        mean = total / len(inputs["labels"])
        mean.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return float(mean.detach()), int(correct), gradients


def likelihood(model: Any, sample: Sample) -> Any:
    """Log-likelihoods of the learned tokens of a sample that is read alone, by stock transformers."""
    import torch

    ids = torch.tensor([sample.ids])
    logs = model(ids).logits[0].float().log_softmax(-1)
    at = [place for place in range(1, len(sample.ids)) if sample.learned[place]]
    return torch.stack([logs[place - 1, sample.ids[place]] for place in at])


def policy_and_base(model: Any, samples: Sequence[Sample]) -> tuple[Any, Any, Any]:
    """Summed log-likelihoods with the adapters and without them, and the answers' lengths."""
    import torch

    with torch.no_grad():
        own = [likelihood(model, sample) for sample in samples]
        with model.disable_adapter():
            base = [likelihood(model, sample).sum() for sample in samples]
    lengths = torch.tensor([float(len(one)) for one in own])
    return torch.stack([one.sum() for one in own]), torch.stack(base), lengths


# Preferences


DPO = {
    "sigmoid": {"use": "dpo", "beta": 0.3},
    "smoothed": {"use": "dpo", "beta": 0.3, "label_smoothing": 0.2},
    "hinge": {"use": "dpo", "beta": 0.3, "loss_type": "hinge"},
    "ipo": {"use": "dpo", "beta": 0.3, "loss_type": "ipo"},
}


def trl_dpo(kind: str, policy: Any, base: Any, lengths: Any, beta: float = 0.3) -> Any:
    """TRL 1.16, dpo_trainer.py: its losses by name; cDPO's smoothing as in its paper."""
    import torch
    from torch.nn.functional import logsigmoid

    ratios = policy - base
    chosen, rejected = ratios[::2], ratios[1::2]
    delta = chosen - rejected
    if kind == "hinge":
        return torch.relu(1 - beta * delta)
    if kind == "ipo":
        return (chosen / lengths[::2] - rejected / lengths[1::2] - 1 / (2 * beta)) ** 2
    if kind == "smoothed":
        return -logsigmoid(beta * delta) * (1 - 0.2) - logsigmoid(-beta * delta) * 0.2
    return -logsigmoid(beta * delta)


@pytest.fixture(scope="module")
def preferring(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A model on pairs, its reference measured, moved away from where it began."""
    here = place(lively, pairs(), tmp_path_factory.mktemp("pairs"))
    ready = ready_for(DPO["sigmoid"], here)
    stir(ready.loaded.model)
    return ready


@pytest.mark.parametrize("name", DPO)
def test_dpo_loss_equals_that_of_trl(name: str, preferring: Prepared) -> None:
    params = type(preferring.learning.params).model_validate(DPO[name])
    ready = replace(preferring, learning=replace(preferring.learning, params=params))
    samples = ready.texts.samples.kept[:8]
    policy, base, lengths = policy_and_base(ready.loaded.model, samples)
    wanted = trl_dpo(name, policy, base, lengths)
    loss, correct, _ = batch_loss(ready, samples, Reading())
    assert loss == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert name != "sigmoid" or abs(loss - math.log(2)) > 1e-3  # at the start every margin is zero
    margins = (policy - base)[::2] - (policy - base)[1::2]
    assert name == "ipo" or correct == int((margins > 0).sum())


def test_reference_of_a_pair_equals_the_model_without_its_adapters(preferring: Prepared) -> None:
    samples = preferring.texts.samples.kept[:6]
    _, base, _ = policy_and_base(preferring.loaded.model, samples)
    assert [preferring.learning.state[s] for s in samples] == pytest.approx(base.tolist(), abs=1e-3)


def test_dpo_of_shared_questions_equals_padded_rows(preferring: Prepared) -> None:
    import torch

    samples = preferring.texts.samples.kept[:8]
    shared = batch_loss(preferring, samples, Reading())
    packed = collate(samples, preferring.texts.pad, Reading(), preferring.learning)["input_ids"]
    assert packed.shape[1] < 0.7 * sum(len(sample.ids) for sample in samples)
    for how in (Reading(shares=False), Reading(packs=False, shares=False)):
        loss, correct, gradients = batch_loss(preferring, samples, how)
        assert (loss, correct) == (pytest.approx(shared[0], rel=1e-5), shared[1])
        for one, other in zip(gradients, shared[2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_orpo_loss_equals_odds_of_trl_beside_the_mean_loss_of_better_answers(lively: Path, tmp_path: Path) -> None:
    import torch
    from torch.nn.functional import logsigmoid

    ready = ready_for({"use": "orpo", "beta": 0.4}, place(lively, pairs(), tmp_path))
    stir(ready.loaded.model)
    samples = ready.texts.samples.kept[:8]
    policy, _, lengths = policy_and_base(ready.loaded.model, samples)
    mean = (policy / lengths).double()
    chosen, rejected = mean[::2], mean[1::2]
    odds = (chosen - rejected) - (torch.log(1 - chosen.exp()) - torch.log(1 - rejected.exp()))
    wanted = -chosen - 0.4 * logsigmoid(odds)
    loss, correct, _ = batch_loss(ready, samples, Reading())
    assert loss == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert correct == int((odds > 0).sum())


def test_odds_of_a_certain_answer_keep_their_digits() -> None:
    import torch

    from inhouse.train.objectives.orpo import log_odds

    certain = torch.tensor([-1e-5, -1e-4, -0.5, -7.0])
    exact = certain.double() - torch.log(-torch.expm1(certain.double()))
    torch.testing.assert_close(log_odds(certain).double(), exact, rtol=1e-6, atol=0)


KTO = {"use": "kto", "beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}


@pytest.fixture(scope="module")
def rated(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A model on rated answers, its reference measured, moved towards wrong answers: its drift is not nothing."""
    here = place(lively, thumbs(9), tmp_path_factory.mktemp("thumbs"))
    ready = ready_for(KTO, here, method={"use": "lora", "r": 4, "lora_dropout": 0})
    stir(ready.loaded.model)
    drift_away(ready)
    return ready


def wrong_answers(samples: Sequence[Sample]) -> list[Sample]:
    """Every question with the answer of the next row, as TRL 1.16 makes them (kto_trainer.py, get_kl_dataset)."""
    found = []
    for own, other in zip(samples, [*samples[1:], samples[0]], strict=True):
        begin, answer = own.learned.index(True), other.ids[other.learned.index(True) :]
        found.append(Sample((*own.ids[:begin], *answer), (*[False] * begin, *[True] * len(answer))))
    return found


def trl_kto(ready: Prepared) -> tuple[Any, Any]:
    """TRL 1.16, kto_trainer.py: the losses of all rows as one batch, and their log-ratios, differentiable."""
    import torch

    model, samples = ready.loaded.model, ready.texts.samples.kept
    policy, base, _ = policy_and_base(model, wrong_answers(samples))
    drift = (policy - base).mean().clamp(min=0)
    assert float(drift) > 0.05  # else the test would show nothing of it
    _, before, _ = policy_and_base(model, samples)
    ratios = torch.stack([likelihood(model, sample).sum() for sample in samples]) - before
    good = torch.tensor([bool(row.desirable) for row in ready.texts.rows])
    chosen, rejected = (1 - torch.sigmoid(0.3 * (sign * (ratios - drift))) for sign in (1, -1))
    return torch.where(good, 1.5 * chosen, 0.7 * rejected), ratios


def drift_away(ready: Prepared) -> None:
    """Move the model until it finds wrong answers likelier than before."""
    import torch

    model, wrong = ready.loaded.model, wrong_answers(ready.texts.samples.kept)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02)
    for _ in range(3):
        torch.stack([-likelihood(model, sample).mean() for sample in wrong]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("size", [1, 2, 9])
def test_kto_step_cut_into_parts_has_the_gradient_of_trl_on_the_whole(
    size: int, rated: Prepared, tmp_path: Path
) -> None:
    import torch

    model, parts = rated.loaded.model, math.ceil(9 / size)
    model.eval()
    model.zero_grad()
    losses, _ = trl_kto(rated)
    losses.mean().backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    params = train_params(
        objective=KTO,
        method={"use": "lora", "r": 4},
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        max_steps=1,
        max_grad_norm=1e9,
    )
    found: list[Any] = []
    trainer = one_step(rated, params, tmp_path, found)
    with weights_kept(model):
        loss = trainer.train().training_loss
    assert loss == pytest.approx(float(losses.mean().detach()), rel=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def one_step(ready: Prepared, params: Any, folder: Path, found: list[Any]) -> Any:
    """The loop's trainer over one step, which leaves that step's gradients in `found`."""
    from transformers import TrainerCallback

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            found.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)

    job = job_for(ready, params, 3, Place(folder, Events()))
    batches = [[job.samples[at] for at in batch] for batch in plan_steps(params, job)]
    trainer = build_trainer(ready.loaded.model, arguments(params, folder, 1, 3), batches, job)
    trainer.add_callback(Look())
    return trainer


def test_kto_held_back_rows_have_one_drift_however_they_are_read(rated: Prepared, tmp_path: Path) -> None:
    samples = rated.texts.samples.kept
    wanted, ratios = trl_kto(rated)
    params = train_params(objective=KTO, method={"use": "lora", "r": 4}, max_steps=1, eval_steps=1)
    trainer = one_step(rated, params, tmp_path, [])
    for size in (2, 9):
        valid = [samples[at : at + size] for at in range(0, len(samples), size)]
        with reading(rated.loaded.model, trainer.how):
            found = trainer.evaluate(valid)
        assert found["eval_loss"] == pytest.approx(float(wanted.mean().detach()), rel=1e-4)
    good = [bool(row.desirable) for row in rated.texts.rows]
    right = sum((ratio > 0) == one for ratio, one in zip(ratios.tolist(), good, strict=True))
    assert found["eval_accuracy"] == pytest.approx(right / 9)


def test_kto_learns_nothing_of_rows_that_are_held_back(lively: Path, tmp_path: Path) -> None:
    rows = thumbs()
    alone = ready_for(KTO, place(lively, rows[:6], tmp_path / "alone"))
    beside = ready_for(KTO, place(lively, rows[:6], tmp_path / "beside", valid=[*rows[6:], rows[1]]), eval_steps=1)
    known = beside.learning.state
    assert {sample: known[sample].wrong for sample in alone.texts.samples.kept} == {
        sample: one.wrong for sample, one in alone.learning.state.items()
    }
    answers = {tuple(i for i, on in zip(s.ids, s.learned, strict=True) if on) for s in beside.texts.valid}
    for sample in beside.texts.valid[:-1]:
        wrong = known[sample].wrong
        assert tuple(i for i, on in zip(wrong.ids, wrong.learned, strict=True) if on) in answers
    good = [row.model_copy(update={"desirable": True}) for row in rows[:4]]
    with pytest.raises(UserError) as refused:
        ready_for(KTO, place(lively, good, tmp_path / "good", valid=rows), eval_steps=1)
    assert refused.value.code == "train.one_thumb"


def test_kto_reads_each_question_with_the_answer_of_another(rated: Prepared) -> None:
    words, kept = rated.texts.tokenizer, rated.texts.samples.kept
    for at, (own, (wrong, _)) in enumerate(zip(kept, rated.learning.ahead(kept) or [], strict=True)):
        other, begin = kept[(at + 1) % 9], own.learned.index(True)
        assert wrong.ids[:begin] == own.ids[:begin]
        assert words.decode(wrong.ids[begin:]) == words.decode(other.ids[other.learned.index(True) :])


def test_kto_of_all_turns_takes_the_answers_of_another_and_not_its_questions(lively: Path, tmp_path: Path) -> None:
    more = [turn("user", "and wheat?"), turn("assistant", "grain")]
    rows = [one.model_copy(update={"messages": [*one.messages, *more]}) for one in thumbs(4)]
    ready = ready_for({"use": "kto"}, place(lively, rows, tmp_path), turns="all")
    kept = ready.texts.samples.kept
    for at, (wrong, _) in enumerate(ready.learning.ahead(kept) or []):
        other = kept[(at + 1) % 4]
        learned = [[i for i, on in zip(s.ids, s.learned, strict=True) if on] for s in (wrong, other)]
        assert learned[0] == learned[1] and 0 < len(learned[0]) < len(other.ids) - other.learned.index(True)


@pytest.mark.parametrize("use", ["dpo", "orpo", "kto"])
def test_preference_learned_in_some_steps(use: str, lively: Path, tmp_path: Path) -> None:
    rows = thumbs() if use == "kto" else pairs()
    here = place(lively, rows, tmp_path, valid=rows[1:2] if use == "kto" else rows[:4])
    params = {"max_steps": 12, "eval_steps": 6, "logging_steps": 2, "save_steps": 100, "learning_rate": 0.01}
    made = run(train_params(objective={"use": use}, method={"use": "lora", "r": 4}, **params), here)
    losses = [log["loss"] for log in made.facts["losses"]]
    assert losses[-1] < 0.9 * losses[0]
    assert made.facts["evaluations"][-1]["accuracy"] == 1.0
    assert made.facts["parity"]["merged"] <= 1e-3


def test_dpo_of_every_weight_measures_the_reference_before_training(lively: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    here = place(lively, pairs(), tmp_path)
    settings = {"method": {"use": "full"}, "max_steps": 8, "learning_rate": 2e-3, "save_steps": 100}
    params = train_params(objective={"use": "dpo"}, **settings)
    ready = prepare(params, here.inputs, 3, here.events)
    base = AutoModelForCausalLM.from_pretrained(lively)
    sample = ready.texts.samples.kept[0]
    made = train(ready.loaded.model, params, job_for(ready, params, 3, Place(here.scratch, here.events)))
    assert ready.learning.state[sample] == pytest.approx(float(likelihood(base, sample).sum().detach()), abs=1e-3)
    assert made.losses[-1]["loss"] < 0.9 * made.losses[0]["loss"]


@pytest.mark.parametrize(
    ("use", "rows", "code"),
    [
        ("dpo", [row(0, None), row(1, None)], "train.no_rejected"),
        ("orpo", [row(0, None)], "train.no_rejected"),
        ("kto", [row(0, None)], "train.no_thumbs"),
        ("kto", [row(0, None, desirable=True), row(1, None, desirable=True)], "train.one_thumb"),
    ],
)
def test_preference_of_rows_without_one_is_refused(
    use: str, rows: list[Row], code: str, lively: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        ready_for({"use": use}, place(lively, rows, tmp_path))
    assert refused.value.code == code


# Plain texts


def test_pretraining_learns_every_token_of_documents_and_conversations(lively: Path, tmp_path: Path) -> None:
    import torch

    text = "oil prices rose as opec agreed to cut crude output. " * 6
    document = Row(id="d" * 16, messages=[turn("assistant", text)], source="tiny", offset=9)
    here = place(lively, [document, row(0, None)], tmp_path)
    ready = ready_for({"use": "pretrain"}, here, max_length=64)
    kept, words = ready.texts.samples.kept, ready.texts.tokenizer
    assert all(sample.learned == (False, *[True] * (len(sample.ids) - 1)) for sample in kept)
    windows = [sample for sample, origin in zip(kept, ready.texts.samples.origins, strict=True) if origin == 0]
    joined = [*windows[0].ids, *(i for window in windows[1:] for i in window.ids[1:])]
    assert len(windows) > 1 and joined == [*words(text)["input_ids"], words.eos_token_id]
    loss, _, _ = batch_loss(ready, kept, Reading())
    with torch.no_grad():
        each = torch.cat([likelihood(ready.loaded.model, sample) for sample in kept])
    assert loss == pytest.approx(float(-each.mean()), rel=1e-4)


def test_pretraining_on_documents_lowers_the_loss(lively: Path, tmp_path: Path) -> None:
    texts = ["oil prices rose as opec agreed to cut crude output", "wheat and corn exports fell after a poor harvest"]
    rows = [Row(id=f"{n:016x}", messages=[turn("assistant", texts[n % 2])], source="t", offset=n) for n in range(8)]
    settings = {"max_steps": 20, "save_steps": 100, "logging_steps": 4}
    made = run(train_params(objective={"use": "pretrain"}, **settings), place(lively, rows, tmp_path))
    assert made.facts["losses"][-1]["loss"] < 0.9 * made.facts["losses"][0]["loss"]


# Distillation


def with_teacher(here: Context, teacher: Path, main: str = ".") -> Context:
    record = here.inputs["base"].record
    named = record.model_copy(update={"facts": {"model": {**record.facts["model"], "name": "wise", "main": main}}})
    return replace(here, inputs={**here.inputs, "teacher": Input(named, teacher)})


@pytest.fixture(scope="module")
def teacher(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after it has learned the better answers: a folder with merged/."""
    work = tmp_path_factory.mktemp("teacher")
    settings = {"method": {"use": "full"}, "max_steps": 80, "learning_rate": 5e-3, "save_steps": 200}
    run(train_params(**settings), place(lively, [row(n, None) for n in range(12)], work))
    return work / "out"


def test_distilled_loss_equals_the_divergence_of_torch(lively: Path, teacher: Path, tmp_path: Path) -> None:
    import torch
    from torch.nn.functional import kl_div
    from transformers import AutoModelForCausalLM

    here = with_teacher(place(lively, [row(n, None) for n in range(6)], tmp_path), teacher, "merged")
    objective = {"use": "distill", "teacher": {"base": "wise"}, "temperature": 3.0, "alpha": 0.7}
    ready = ready_for(objective, here)
    stir(ready.loaded.model)
    samples = ready.texts.samples.kept
    wise = AutoModelForCausalLM.from_pretrained(teacher / "merged")
    soft, hard, count = 0.0, 0.0, 0
    with torch.no_grad():
        for sample in samples:
            ids = torch.tensor([sample.ids])
            at = [place - 1 for place in range(1, len(sample.ids)) if sample.learned[place]]
            own, taught = (model(ids).logits[0, at] for model in (ready.loaded.model, wise))
            logs, wanted = (logits.div(3.0).log_softmax(-1) for logits in (own, taught))
            soft += float(kl_div(logs, wanted, reduction="sum", log_target=True))
            hard -= float(likelihood(ready.loaded.model, sample).sum())
            count += len(at)
    for how in (Reading(), Reading(packs=False, shares=False)):
        loss, _, gradients = batch_loss(ready, samples, how)
        assert loss == pytest.approx((0.7 * 9.0 * soft + 0.3 * hard) / count, rel=1e-4)
        assert gradients
    assert not any(p.requires_grad for p in ready.learning.state.parameters())


def test_distilling_texts_learns_what_the_teacher_writes(lively: Path, teacher: Path, tmp_path: Path) -> None:
    rows = [row(n, "no such answer") for n in range(4)]
    here = with_teacher(place(lively, rows, tmp_path), teacher, "merged")
    objective = {"use": "distill", "teacher": {"base": "wise"}, "signal": "text", "max_tokens": 24}
    ready = ready_for(objective, here)
    words = ready.texts.tokenizer
    told = [
        words.decode([i for i, learned in zip(s.ids, s.learned, strict=True) if learned], skip_special_tokens=True)
        for s in ready.texts.samples.kept
    ]
    assert told == [BETTER[n] for n in range(4)]
    assert ready.learning.state is None


def test_row_that_cannot_be_made_plain_for_the_teacher_is_left_out(lively: Path, teacher: Path, tmp_path: Path) -> None:
    """The student could read it: in the teacher's tokenizer a token is looked for in normalised text."""
    wise = shutil.copytree(teacher, tmp_path / "wise")
    words = json.loads((wise / "merged" / "tokenizer.json").read_text(encoding="utf-8"))
    words["normalizer"] = {"type": "Replace", "pattern": {"String": "\N{WORD JOINER}"}, "content": ""}
    for token in words["added_tokens"]:
        token["normalized"] = token["content"] == "<|im_start|>"
    (wise / "merged" / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    bad = row(9, None).model_copy(update={"messages": [turn("user", "<|im_start|>"), turn("assistant", "sales")]})
    here = with_teacher(place(lively, [bad, *[row(n, None) for n in range(4)]], tmp_path), wise, "merged")
    objective = {"use": "distill", "teacher": {"base": "wise"}, "signal": "text", "max_tokens": 24}
    found = ready_for(objective, here).texts.samples
    assert (found.origins, found.refused) == ([1, 2, 3, 4], (bad.id,))
    assert (found.counts.rows, found.counts.refused) == (5, 1)
    write_rows(here.inputs["dataset"].path, "train", [bad])
    with pytest.raises(UserError) as refused:
        ready_for(objective, here)
    assert refused.value.code == "train.all_refused"


def test_teacher_that_never_ends_is_told(lively: Path, teacher: Path, tmp_path: Path) -> None:
    here = with_teacher(place(lively, [row(0, None)], tmp_path), teacher, "merged")
    with pytest.raises(UserError) as refused:
        ready_for({"use": "distill", "teacher": {"base": "wise"}, "signal": "text", "max_tokens": 1}, here)
    assert refused.value.code == "train.teacher_silent"


def test_teacher_whose_logits_know_no_virtual_tokens_is_refused(lively: Path, tmp_path: Path) -> None:
    here = with_teacher(place(lively, [row(0, None)], tmp_path), lively)
    method = {"use": "prompt", "num_virtual_tokens": 4}
    with pytest.raises(UserError) as refused:
        ready_for({"use": "distill", "teacher": {"base": "wise"}}, here, method=method)
    assert refused.value.code == "train.teacher_prompt"


def test_teacher_of_another_vocabulary_is_refused(lively: Path, tmp_path: Path) -> None:
    other = shutil.copytree(lively, tmp_path / "other")
    settings = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    words = settings["model"]["vocab"]
    one, two = list(words)[-2:]
    words[one], words[two] = words[two], words[one]
    (other / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    here = with_teacher(place(lively, [row(0, None)], tmp_path), other)
    with pytest.raises(UserError) as refused:
        ready_for({"use": "distill", "teacher": {"base": "wise"}}, here)
    assert refused.value.code == "train.teacher_vocabulary"
    assert "signal: text" in str(refused.value)


def test_teacher_is_looked_at_as_a_base_is(lively: Path, tmp_path: Path) -> None:
    """NaN among its weights looked like divergence, and too few embeddings or positions like a fault of ours."""
    from safetensors.torch import load_file, save_file

    def refusal(folder: Path) -> UserError:
        here = with_teacher(place(lively, [row(0, None)], tmp_path / f"{folder.name}-work"), folder)
        with pytest.raises(UserError) as refused:
            ready_for({"use": "distill", "teacher": {"base": "wise"}}, here)
        return refused.value

    def changed(name: str, weights: Callable[[dict[str, Any]], None], **config: int) -> Path:
        folder = shutil.copytree(lively, tmp_path / name)
        found = load_file(folder / "model.safetensors")
        weights(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        told = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
        (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
        return folder

    def damage(found: dict[str, Any]) -> None:
        found["model.norm.weight"][0] = float("nan")

    assert refusal(changed("damaged", damage)).code == "torch.not_finite"
    short = refusal(changed("short", lambda found: None, max_position_embeddings=8))
    assert short.code == "train.teacher_short" and "8" in str(short)
    few = json.loads((lively / "config.json").read_text(encoding="utf-8"))["vocab_size"] - 40

    def cut(found: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in found:
                found[name] = found[name][:few].clone()

    assert refusal(changed("few", cut, vocab_size=few)).code == "torch.vocabulary"


def small_student(lively: Path, folder: Path) -> Path:
    """The model before training, less its second layer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(lively)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(lively).save_pretrained(folder)
    return folder


def test_student_of_a_teacher_beats_the_same_student_alone_where_labels_are_wrong(
    lively: Path, teacher: Path, tmp_path: Path
) -> None:
    import torch

    student = small_student(lively, tmp_path / "student")
    wrong = {n: BETTER[(n + 1 + n // 4 % 3) % 4] for n in range(0, 24, 3)}  # a third of the rows
    here = with_teacher(place(student, [row(n, wrong.get(n)) for n in range(24)], tmp_path), teacher, "merged")
    distill = {"use": "distill", "teacher": {"base": "wise"}, "alpha": 0.9}
    settings = {"method": {"use": "full"}, "max_steps": 40, "learning_rate": 0.01, "per_device_train_batch_size": 12}
    losses: dict[str, list[float]] = {"alone": [], "taught": []}
    for seed in range(3):
        for name, objective in (("alone", "sft"), ("taught", distill)):
            params = train_params(objective=objective, save_steps=1000, **settings)
            ready = prepare(params, here.inputs, seed, here.events)
            scratch = tmp_path / f"{name}-{seed}"
            train(ready.loaded.model, params, job_for(ready, params, seed, Place(scratch, here.events)))
            known = ready.learning.encode([row(n, None) for n in range(40, 60)], coding_of(ready, here)).kept
            with torch.no_grad():
                each = torch.cat([likelihood(ready.loaded.model.eval(), sample) for sample in known])
            losses[name].append(float(-each.mean()))
    assert max(losses["taught"]) < 0.95 * min(losses["alone"]), losses


def coding_of(ready: Prepared, here: Context) -> Coding:
    return Coding(ready.texts.tokenizer, ready.texts.ends, Limit(512), here.events, here.inputs)
