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
from inhouse.train.forgetting import ForgettingParams, cut, figures_of, text_losses
from inhouse.train.replay import draw, wanted
from inhouse.train.spans import Sample
from inhouse.train.tokens import encode


def documents(texts: Sequence[str], first: int = 0) -> list[Row]:
    """Plain documents, as continued pre-training takes them."""
    return [
        Row(
            id=f"{first + place:016x}", messages=[Message(role="assistant", content=text)], source="books",
            offset=first + place,
        )
        for place, text in enumerate(texts)
    ]  # fmt: skip


def taken(some: Sequence[Row]) -> tuple[list[str], int]:
    """Examples that show their rows; rows whose number ends in 9 are too long, those in 5 give two examples."""
    fits = [row for row in some if row.offset % 10 != 9]
    found = [f"{row.id}{part}" for row in fits for part in ("ab" if row.offset % 10 == 5 else "a")]
    return found, len(some) - len(fits)


@pytest.mark.parametrize(("own", "share", "count"), [(90, 0.1, 10), (10, 0.5, 10), (7, 0.3, 3), (3, 0.01, 1)])
def test_count_of_a_share_is_the_nearest_that_whole_samples_allow(own: int, share: float, count: int) -> None:
    assert wanted(own, share) == count
    distances = {n: abs(n / (own + n) - share) for n in range(1, 3 * own)}
    assert distances[count] == min(distances.values())


def test_replay_draws_different_rows_by_its_seed_from_all_of_them() -> None:
    one = draw(rows(200), 20, taken, seed=1)
    assert one == draw(rows(200), 20, taken, seed=1)
    assert len(set(one.examples)) == len(one.examples) == one.different == 20
    drawn = [draw(rows(200), 20, taken, seed).examples for seed in range(30)]
    assert len({tuple(examples) for examples in drawn}) == 30
    assert len({example for examples in drawn for example in examples}) > 150


def test_replay_encodes_no_more_rows_than_it_needs() -> None:
    seen: list[int] = []

    def counting(some: Sequence[Row]) -> tuple[list[str], int]:
        seen.append(len(some))
        return taken(some)

    draw(rows(2000), 200, counting, seed=0)
    assert sum(seen) <= 264


def test_replay_of_too_few_rows_repeats_them_evenly_and_leaves_out_long_ones() -> None:
    found = draw(rows(10), 43, taken, seed=3)
    counts = Counter(found.examples)
    assert sum(counts.values()) == 43 and len(counts) == found.different == 10 and found.too_long == 1
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("general", [[], rows(20)[9:10]])
def test_replay_of_rows_that_all_are_too_long_finds_nothing(general: list[Row]) -> None:
    assert draw(general, 5, taken, 0).examples == []


@pytest.fixture
def two_sets(tiny_llama: Path, tmp_path: Path) -> Context:
    """A training of 12 rows with 3 more to replay."""
    own, general = write_dataset(tmp_path / "own", 12), write_dataset(tmp_path / "general", 3)
    made = context(tiny_llama, own, tmp_path)
    made.inputs["replay"] = Input(made.inputs["dataset"].record, general)
    return made


def ready(made: Context, **settings: Any) -> Any:
    from inhouse.train.setup import prepare

    return prepare(train_params(**settings), made.inputs, 7, made.events).texts


def test_training_reads_replayed_rows_of_its_second_dataset_and_tells_repeats(two_sets: Context) -> None:
    texts = ready(two_sets, replay={"dataset": "general", "share": 0.4})
    plain = ready(two_sets)
    assert len(texts.rows) == 12
    assert texts.samples.kept[:12] == plain.samples.kept
    assert len(texts.samples.kept) == 20 and len({sample.ids for sample in texts.samples.kept[12:]}) == 3
    assert texts.replay == {"samples": 8, "share": 0.4, "different": 3, "too_long": 0}
    assert plain.replay is None
    assert two_sets.events.path is not None and "train.replay_repeated" in two_sets.events.path.read_text()


def test_training_with_a_small_share_draws_a_part_of_the_second_dataset(two_sets: Context) -> None:
    texts = ready(two_sets, replay={"dataset": "general", "share": 0.1})
    assert texts.replay == {"samples": 1, "share": 1 / 13, "different": 1, "too_long": 0}


def test_replay_counts_in_the_objective_s_examples(
    two_sets: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inhouse.train.objectives import sft

    two_sets.inputs["replay"] = Input(two_sets.inputs["base"].record, write_dataset(tmp_path / "four", 4))
    monkeypatch.setattr(sft, "UNIT", 2)  # as where an example is a better and a worse answer
    texts = ready(two_sets, replay={"dataset": "general", "share": 0.25})
    assert texts.replay == {"samples": 2, "share": 0.25, "different": 2, "too_long": 0}
    assert len(texts.samples.kept) == 16


def test_replay_of_rows_that_do_not_fit_is_refused(two_sets: Context, tmp_path: Path) -> None:
    long = [row.model_copy(update={"messages": [row.messages[0].model_copy(update={"content": "oil " * 900}),
                                                row.messages[1]]}) for row in rows(3)]  # fmt: skip
    two_sets.inputs["replay"] = Input(two_sets.inputs["dataset"].record, general_set(tmp_path / "long", train=long))
    with pytest.raises(UserError, match=r"extra_data\.general.*3 rows|3 rows.*extra_data\.general") as caught:
        ready(two_sets, replay={"dataset": "general"})
    assert caught.value.code == "train.replay_empty"


def test_replay_of_rows_without_an_answer_names_the_row(two_sets: Context, tmp_path: Path) -> None:
    asking = [Row(id="1", messages=[Message(role="user", content="x")], source="talk", offset=4)]
    two_sets.inputs["replay"] = Input(two_sets.inputs["dataset"].record, general_set(tmp_path / "ask", train=asking))
    with pytest.raises(UserError, match="talk") as caught:
        ready(two_sets, replay={"dataset": "general"})
    assert caught.value.code == "train.no_answer"


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
        ids = tokenizer(f"{row.answer}<|im_end|>", return_tensors="pt").input_ids
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
    folder = general_set(tmp_path / "g", **{part: documents(["", "oil prices", ""])})
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
    whole = encode(documents(["oil prices rose " * 40])[0], tokenizer, frozenset())
    assert cut(whole, 16) == Sample(whole.ids[:16], whole.learned[:16])
    assert cut(whole, 10_000) == whole


def test_losses_do_not_depend_on_which_texts_are_read_together(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inhouse.engines.transformers import open_model

    engine = open_model(context(tiny_llama, tmp_path, tmp_path).inputs["base"], dtype="fp32")
    texts = [Sample(tuple(range(3, 3 + n)), tuple(at > n % 3 for at in range(n))) for n in (30, 5, 17, 64, 5, 9)]
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
    for line, row in zip(lines, measured, strict=True):
        ids = tokenizer(f"{row.answer}<|im_end|>", return_tensors="pt").input_ids
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
