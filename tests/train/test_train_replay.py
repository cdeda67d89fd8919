"""Replay: how many rows of another dataset are mixed in. Forgetting: what a model lost on rows it was not shown."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_training import context, rows, train_params, write_dataset

from inhouse.core.errors import UserError
from inhouse.core.gate import Gate, judge
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Message, Part, Row
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.evaluate.details import training_figures
from inhouse.train import forgetting
from inhouse.train.forgetting import ForgettingParams, Text, encode, figures_of, text_losses
from inhouse.train.replay import ReplayParams, mix


def documents(texts: Sequence[str], first: int = 0) -> list[Row]:
    """Plain documents, as continued pre-training takes them."""
    return [
        Row(
            id=f"{first + place:016x}", messages=[Message(role="assistant", content=text)], source="books",
            offset=first + place,
        )
        for place, text in enumerate(texts)
    ]  # fmt: skip


def taken(row: Row) -> str | None:
    """A sample that shows its row; rows whose number ends in 9 are too long."""
    return None if row.offset % 10 == 9 else row.id


def replayed(own: int, general: int, share: float, seed: int = 1) -> Any:
    return mix([f"own {n}" for n in range(own)], rows(general), taken, ReplayParams(dataset="g", share=share), seed)


@pytest.mark.parametrize(("own", "share", "wanted"), [(90, 0.1, 10), (10, 0.5, 10), (7, 0.3, 3), (3, 0.01, 1)])
def test_replay_of_a_share_adds_so_many_samples(own: int, share: float, wanted: int) -> None:
    mixed = replayed(own, 60, share)
    assert mixed.samples[:own] == [f"own {n}" for n in range(own)]
    added = mixed.samples[own:]
    assert len(added) == len(set(added)) == wanted == mixed.rows
    assert mixed.facts["share"] == wanted / (own + wanted)
    # the nearest count of whole samples to the asked share (one at least)
    assert wanted == 1 or all(
        abs(wanted / (own + wanted) - share) <= abs(n / (own + n) - share) for n in (wanted - 1, wanted + 1)
    )


def test_replay_draws_by_its_seed_from_all_rows() -> None:
    assert replayed(20, 60, 0.2).samples == replayed(20, 60, 0.2).samples
    drawn = {tuple(replayed(20, 60, 0.2, seed).samples[20:]) for seed in range(20)}
    assert len(drawn) == 20
    assert len({row for rows_ in drawn for row in rows_}) > 40


def test_replay_of_too_few_rows_repeats_them_evenly_and_leaves_out_long_ones() -> None:
    mixed = replayed(40, 10, 0.5)
    counts = Counter(mixed.samples[40:])
    assert sum(counts.values()) == 40 and len(counts) == mixed.rows == 9 and mixed.too_long == 1
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("general", [[], rows(20)[9:10]])
def test_replay_of_a_dataset_without_usable_rows_is_refused(general: list[Row]) -> None:
    with pytest.raises(UserError, match=r"extra_data\.g") as caught:
        mix(["a"], general, taken, ReplayParams(dataset="g"), 0)
    assert caught.value.code == "train.replay_empty"


def test_training_reads_replayed_rows_of_its_second_dataset_and_tells_repeats(tiny_llama: Path, tmp_path: Path) -> None:
    from inhouse.train.setup import prepare

    own, general = write_dataset(tmp_path / "own", 12), write_dataset(tmp_path / "general", 3)
    asked = context(tiny_llama, own, tmp_path)
    inputs = {**asked.inputs, "replay": Input(asked.inputs["dataset"].record, general)}
    params = train_params(replay={"dataset": "general", "share": 0.4})
    ready = prepare(params, inputs, 7, asked.events)
    assert len(ready.texts.rows) == 12
    assert len(ready.texts.samples.kept) == 20
    assert ready.texts.replay == {"samples": 8, "share": 0.4, "rows": 3, "too_long": 0}
    assert "train.replay_repeated" in (tmp_path / "events.jsonl").read_text()
    short = params.model_copy(update={"replay": ReplayParams(dataset="general", share=0.1)})
    assert prepare(short, inputs, 7, Events()).texts.replay == {"samples": 1, "share": 1 / 13, "rows": 1, "too_long": 0}


def test_training_figures_are_those_of_the_record() -> None:
    facts = {
        "losses": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}], "trainable_share": 0.01,
        "parity": {"merged": 1e-6, "answers_ended": 3, "method": "lora"},
        "figures": {"privacy.epsilon": {"value": 4.0, "unit": ""}},
    }  # fmt: skip
    found = {name: figure.value for name, figure in training_figures(facts).items()}
    assert found == {
        "training.loss": 2.5, "training.trainable_share": 0.01, "training.parity.merged": 1e-6,
        "training.parity.answers_ended": 3.0, "training.privacy.epsilon": 4.0,
    }  # fmt: skip
    assert training_figures({}) == {}


def with_noise(base: Path, folder: Path, size: float) -> Path:
    """The model with noise on all its weights: it has forgotten something, or broken down where size is not finite."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def noisy(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_noise(tiny_llama, tmp_path_factory.mktemp("noisy"), 0.3)


def general_set(folder: Path, **parts: Sequence[Row]) -> Path:
    folder.mkdir()
    for part, found in parts.items():
        write_rows(folder, part, list(found))  # type: ignore[arg-type]
    return folder


def asked(work: Path, before: Path, after: Path, dataset: Path, *trained: Path) -> Context:
    """The context of the step: two models, the general set, and datasets that were trained on."""
    made = context(before, dataset, work)
    record = made.inputs["base"].record
    inputs = {"before": before, "after": after, "dataset": dataset}
    inputs |= {f"trained_{place}": path for place, path in enumerate(trained, 1)}
    made.inputs.clear()
    made.inputs.update({role: Input(record, path) for role, path in inputs.items()})
    return made


def params(**changes: Any) -> ForgettingParams:
    return ForgettingParams.model_validate({"dataset": "general", "precision": "fp32", **changes})


def one_by_one(folder: Path, row: Row) -> tuple[float, int]:
    """transformers' own loss of one row alone, from token strings: the oracle."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if len(row.messages) == 1:
        ids = tokenizer(row.answer, return_tensors="pt").input_ids
        labels = ids.clone()
    else:
        said = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in row.prompt)
        shown = tokenizer(f"{said}<|im_start|>assistant\n", return_tensors="pt").input_ids
        ids = torch.cat([shown, tokenizer(f"{row.answer}<|im_end|>", return_tensors="pt").input_ids], 1)
        labels = ids.clone()
        labels[:, : shown.shape[1]] = -100
    with torch.no_grad():
        mean = float(model(input_ids=ids, labels=labels).loss)
    count = int((labels[:, 1:] != -100).sum())
    return mean * count, count


def test_losses_of_conversations_and_documents_equal_those_of_the_library(
    tiny_llama: Path, noisy: Path, tmp_path: Path
) -> None:
    measured = [*rows(5), *documents(["oil prices rose as opec cut output", "wheat exports fell"], 16)]
    made = asked(tmp_path, tiny_llama, noisy, general_set(tmp_path / "g", test=measured))
    facts = forgetting.run(params(), made).facts["forgetting"]
    lines = json.loads((made.out / "losses.json").read_text())
    assert [line["id"] for line in lines] == [row.id for row in measured]
    wanted = {which: [one_by_one(path, row) for row in measured] for which, path in
              (("before", tiny_llama), ("after", noisy))}  # fmt: skip
    for which, found in wanted.items():
        assert [line["tokens"] for line in lines] == [count for _, count in found]
        assert [line[which] for line in lines] == pytest.approx([loss for loss, _ in found], rel=1e-4)
        mean = sum(loss for loss, _ in found) / sum(count for _, count in found)
        assert facts[which] == pytest.approx(mean, rel=1e-4)
    assert (facts["rows"], facts["left_out"]) == (7, 0)
    assert facts["tokens"] == sum(count for _, count in wanted["before"])


def test_figures_of_the_step_fail_a_gate_when_too_much_was_forgotten(
    tiny_llama: Path, noisy: Path, tmp_path: Path
) -> None:
    made = asked(tmp_path, tiny_llama, noisy, general_set(tmp_path / "g", test=rows(12)))
    facts = forgetting.run(params(), made).facts["forgetting"]
    from inhouse.evaluate.report import read_figures

    figures = read_figures(Input(made.inputs["after"].record, made.out), forgetting.FIGURES)
    found = figures["training.forgetting"]
    assert facts["low"] > 0.05 and found.value == facts["change"] and found.n == 12
    assert figures["training.forgetting.perplexity_after"].value == pytest.approx(math.exp(facts["after"]), rel=1e-4)
    gate = Gate(figure="training.forgetting", at_most=0.05, bound="high")
    assert not judge(gate, figures).passed
    assert judge(gate.model_copy(update={"at_most": found.high}), figures).passed
    assert "train.forgotten" in (tmp_path / "events.jsonl").read_text()


def test_model_that_was_not_changed_has_forgotten_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    made = asked(tmp_path, tiny_llama, tiny_llama, general_set(tmp_path / "g", test=rows(4)))
    facts = forgetting.run(params(), made).facts["forgetting"]
    assert (facts["change"], facts["low"], facts["high"]) == (0, 0, 0)
    assert "train.forgotten" not in (tmp_path / "events.jsonl").read_text()


def test_interval_is_that_of_resampled_pairs() -> None:
    import numpy as np
    from scipy.stats import bootstrap  # type: ignore[import-untyped, unused-ignore]

    draw = np.random.default_rng(5)
    tokens = draw.integers(5, 40, 80)
    before = tokens * draw.normal(3, 0.5, 80)
    after = before + tokens * draw.normal(0.1, 0.2, 80)
    found = figures_of(list(before), list(after), list(tokens))["training.forgetting"]
    assert found.value == pytest.approx((after.sum() - before.sum()) / tokens.sum(), abs=1e-6)

    def change(apart: Any, count: Any, axis: int = -1) -> Any:
        return apart.sum(axis) / count.sum(axis)

    peer = bootstrap((after - before, tokens), change, paired=True, vectorized=True, method="percentile", rng=draw)
    width = peer.confidence_interval.high - peer.confidence_interval.low
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.08 * width)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.08 * width)


def test_rows_are_test_rows_then_valid_ones_and_never_trained_ones(tmp_path: Path) -> None:
    test, valid, train = rows(6), documents([f"text {n}" for n in range(4)], 16), rows(30)[20:]
    folder = general_set(tmp_path / "g", test=test, valid=valid, train=train)
    copies = [row.model_copy(update={"id": f"c{row.id[1:]}", "source": "other"}) for row in (test[1], valid[0])]
    seen = general_set(tmp_path / "seen", train=copies, test=[test[2]])
    made = asked(tmp_path, tmp_path, tmp_path, folder, seen)
    found, left_out = forgetting.held_out_rows(params(rows=7), made)
    assert [row.id for row in found] == [row.id for row in (test[0], *test[2:], *valid[1:3])]
    assert left_out == 2
    assert len(forgetting.held_out_rows(params(rows=3), made)[0]) == 3


@pytest.mark.parametrize("part", ["train", "test"])
def test_general_set_without_rows_to_measure_is_refused(part: Part, tiny_llama: Path, tmp_path: Path) -> None:
    folder = general_set(tmp_path / "g", **{part: documents(["", "oil", ""])})
    made = asked(tmp_path, tiny_llama, tiny_llama, folder)
    with pytest.raises(UserError, match=r"extra_data\.general\.split\.test") as caught:
        forgetting.run(params(), made)
    assert caught.value.code == "train.forgetting_rows"


def test_row_without_an_answer_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    asking = [Row(id="1", messages=[Message(role="user", content="x")], source="s", offset=4)] * 2
    made = asked(tmp_path, tiny_llama, tiny_llama, general_set(tmp_path / "g", test=asking))
    with pytest.raises(UserError) as caught:
        forgetting.run(params(), made)
    assert caught.value.code == "train.no_answer"


def test_model_that_broke_down_is_an_error_and_not_a_figure(tiny_llama: Path, tmp_path: Path) -> None:
    broken = with_noise(tiny_llama, tmp_path / "broken", math.inf)
    made = asked(tmp_path, tiny_llama, broken, general_set(tmp_path / "g", test=rows(3)))
    with pytest.raises(UserError, match="after") as caught:
        forgetting.run(params(), made)
    assert caught.value.code == "train.forgetting_not_finite"


def test_long_rows_are_read_up_to_the_limit(tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    (row,) = documents(["oil prices rose " * 40])
    assert len(encode(row, tokenizer, frozenset(), 16).ids) == 16
    whole = encode(rows(1)[0], tokenizer, frozenset({tokenizer.eos_token_id}), 512)
    assert encode(rows(1)[0], tokenizer, frozenset(), 16).ids == whole.ids[:16]


def test_losses_do_not_depend_on_which_texts_are_read_together(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inhouse.engines.transformers import open_model

    engine = open_model(context(tiny_llama, tmp_path, tmp_path).inputs["base"], dtype="fp32")
    texts = [Text(tuple(range(3, 3 + n)), 1 + n % 3) for n in (30, 5, 17, 64, 5, 9)]
    together = text_losses(engine, texts, Events(), "x")
    monkeypatch.setattr(forgetting, "BATCH_TOKENS", 1)
    assert text_losses(engine, texts, Events(), "x") == pytest.approx(together, rel=1e-5)


def test_virtual_tokens_are_read_before_every_row(tiny_llama: Path, tmp_path: Path) -> None:
    import torch
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    peft = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)).eval()
    folder = tmp_path / "prompted"
    peft.save_pretrained(str(folder / "adapter"))
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    header = {"format": "safetensors", "main": ".", "name": tiny_llama.name, "unmerged": True, "adapter": "adapter"}
    measured = documents(["oil prices rose as opec cut output", "wheat exports fell", "oil"])
    made = asked(tmp_path, tiny_llama, folder, general_set(tmp_path / "g", test=measured))
    after = context(folder, tmp_path, tmp_path, header).inputs["base"]
    made.inputs["after"] = after
    forgetting.run(params(), made)
    lines = json.loads((made.out / "losses.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for line, row in zip(lines, [row for row in measured if len(tokenizer(row.answer).input_ids) > 1], strict=True):
        ids = tokenizer(row.answer, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = peft(input_ids=ids).logits[0, 4:-1]  # PEFT puts the virtual tokens before
        wanted = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        assert line["after"] == pytest.approx(float(wanted), rel=1e-4)
        assert abs(line["after"] - line["before"]) > 1e-3


def test_model_that_sorts_texts_has_no_loss_on_a_general_set(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "sorting"
    AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    made = asked(tmp_path, tiny_llama, folder, general_set(tmp_path / "g", test=rows(3)))
    with pytest.raises(UserError, match="tiny") as caught:
        forgetting.run(params(), made)
    assert caught.value.code == "train.forgetting_no_text"


def test_measuring_reads_nothing_from_outside(tmp_path: Path) -> None:
    assert forgetting.external(params(), tmp_path) == {}
