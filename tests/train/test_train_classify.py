"""Classification: encoders and decoders with a head, from training to evaluation."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import as_input, make_family
from huggingface_hub import ModelCard
from tiny_training import TEXTS, context, train_params

from inhouse.core.errors import UserError
from inhouse.core.messages import use_language
from inhouse.core.model import ModelFacts
from inhouse.core.protocols import Context, Input, Made
from inhouse.core.rows import Message, Row
from inhouse.dataset import FACTS, write_rows
from inhouse.train.batches import Reading, collate
from inhouse.train.setup import Prepared, prepare
from inhouse.train.stage import run
from inhouse.train.step import reading, reading_of

LABELS = ("acq", "crude", "grain")
METHODS: dict[str, dict[str, Any]] = {"lora": {"use": "lora", "r": 4}, "full": {"use": "full"}}
MODELS = ("bert", "llama", "qwen2", "gpt2")
ENCODER = {"bert"}
RATES = {"bert-lora": 0.01, "bert-full": 0.003, "llama-lora": 0.02, "qwen2-full": 0.01}
RESULTS = tuple(RATES)


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
def bases(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models; the encoder's tokenizer closes texts as BERT's does, and has no template."""
    found = {name: make_family(name, tiny_llama, tmp_path_factory.mktemp(name)) for name in MODELS}
    bert = found["bert"]
    enliven(bert)
    (bert / "chat_template.jinja").unlink()
    words = json.loads((bert / "tokenizer.json").read_text(encoding="utf-8"))
    begin, end = ("<|im_start|>", 1), ("<|im_end|>", 2)
    words["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special(begin[0]), {"Sequence": {"id": "A", "type_id": 0}}, special(end[0])],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [place], "tokens": [name]} for name, place in (begin, end)},
    }
    (bert / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    return found


def enliven(folder: Path) -> None:
    """Larger weights: as small as BERT draws them, the first token hears nothing of the others."""
    import torch
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    model.save_pretrained(folder)


def special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def rows(count: int) -> list[Row]:
    """Short rows of three desks."""
    names = list(TEXTS)
    return [label(names[at % 3], at, f"{TEXTS[names[at % 3]]} {'again ' * (at % 4)}{at}") for at in range(count)]


def label(name: str, number: int = 0, text: str = "oil prices rose") -> Row:
    turns = [Message(role="user", content=text), Message(role="assistant", content=name)]
    return Row(id=f"{number:016x}", messages=turns, label=name or None, source="tiny", offset=number)


def place(
    model: Path, work: Path, train: Sequence[Row], valid: Sequence[Row] = (), test: Sequence[Row] = ()
) -> Context:
    dataset = work / "dataset"
    dataset.mkdir(parents=True, exist_ok=True)
    for part, found in (("train", train), ("valid", valid), ("test", test)):
        if found:
            write_rows(dataset, part, found)  # type: ignore[arg-type]
    (dataset / FACTS).write_text(json.dumps({"labels": list(LABELS)}), encoding="utf-8")
    return context(model, dataset, work)


def settings(method: str = "lora", **more: Any) -> Any:
    plain = {"method": METHODS[method], "learning_rate": 0.01, "max_steps": 40, "save_steps": 100}
    return train_params(**{"objective": {"use": "classify"}, **plain, **more})


def made_input(made: Made, folder: Path) -> Input:
    record = as_input(folder).record.model_copy(update={"facts": made.facts})
    return Input(record, folder)


def stock_logits(folder: Path, ids: Sequence[int]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder)(torch.tensor([list(ids)])).logits[0]


@pytest.fixture(scope="module")
def made(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Made, Path]]:
    """Classifiers of every kind by model and method."""
    found = {}
    for name in RESULTS:
        model, method = name.split("-")
        work = tmp_path_factory.mktemp(name)
        here = place(bases[model], work, rows(24), valid=rows(6))
        found[name] = (run(settings(method, learning_rate=RATES[name], eval_steps=20), here), work / "out")
    return found


@pytest.mark.parametrize("name", RESULTS)
def test_classifier_learns_its_labels(name: str, made: dict[str, tuple[Made, Path]]) -> None:
    facts = made[name][0].facts
    assert facts["losses"][-1]["loss"] < 0.8 * facts["losses"][0]["loss"]
    assert facts["evaluations"][-1]["accuracy"] == 1.0  # by chance: 1/3
    assert facts["objective"] == {"use": "classify", "labels": LABELS}
    assert facts["model"]["labels"] == LABELS
    card = ModelCard.load(made[name][1] / "merged" / "README.md").data
    assert (card.pipeline_tag, card.base_model_relation) == ("text-classification", "finetune")


@pytest.mark.parametrize("name", RESULTS)
def test_classifier_opened_answers_as_stock_transformers(name: str, made: dict[str, tuple[Made, Path]]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from inhouse.engines.classifier import open_classifier

    made_one, out = made[name]
    engine = open_classifier(made_input(made_one, out), dtype="fp32", threads=1)
    prompts = [row.prompt for row in rows(9)]
    ids = [engine.token_ids(prompt) for prompt in prompts]
    stock = [stock_logits(out / "merged", one).log_softmax(-1) for one in ids]
    scores = engine.score(prompts, [LABELS] * 9, lambda _: None)
    for found, wanted in zip(scores, stock, strict=True):
        assert [one.logprob for one in found] == pytest.approx(wanted.tolist(), abs=1e-4)
    answers = [answer.text for answer in engine.generate(prompts, 8, lambda _: None)]
    assert answers == [LABELS[int(one.argmax())] for one in stock]
    assert AutoModelForSequenceClassification.from_pretrained(out / "merged").config.id2label == dict(enumerate(LABELS))
    torch.testing.assert_close(engine.all_logits(ids[0]).log_softmax(-1), stock[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["bert-lora", "llama-lora"])
def test_adapter_holds_all_that_a_stock_base_lacks(
    name: str, made: dict[str, tuple[Made, Path]], bases: dict[str, Path]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(bases[name.partition("-")[0]], num_labels=3)
    adapted = PeftModel.from_pretrained(base, str(made[name][1] / "adapter")).eval()
    ids = list(range(3, 30))
    with torch.no_grad():
        found = adapted(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, stock_logits(made[name][1] / "merged", ids), atol=1e-4, rtol=1e-4)


def test_encoder_reads_texts_as_they_are_and_decoder_through_its_template(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    texts = {}
    for name in ("bert", "llama"):
        ready = prepare(settings(), place(bases[name], tmp_path / name, rows(6)).inputs, 3, context_events())
        texts[name] = ready.texts.tokenizer.decode(ready.texts.samples.kept[0].ids)
    question = rows(1)[0].prompt[0].content
    assert texts["bert"] == f"<|im_start|>{question}<|im_end|>"
    assert texts["llama"] == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def context_events() -> Any:
    from inhouse.core.run import Events

    return Events()


def batch_loss(ready: Prepared, how: Reading) -> tuple[float, int, list[Any]]:
    model = ready.loaded.model.eval()
    model.zero_grad()
    inputs = collate(ready.texts.samples.kept[:8], ready.texts.pad, how, ready.learning)
    with reading(model, how):
        total, correct = ready.learning.loss(model, inputs)
        total.backward()
    return float(total.detach()), int(correct), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert"])
def test_loss_of_packed_and_padded_texts_equals_cross_entropy_of_each_alone(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    ready = prepare(settings("full"), place(bases[name], tmp_path, rows(12)).inputs, 3, context_events())
    model, samples = ready.loaded.model.eval(), ready.texts.samples.kept[:8]
    assert [LABELS[sample.mark] for sample in samples] == [row.label for row in rows(8)]
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([sample.ids])).logits for sample in samples])
    wanted = float(cross_entropy(alone, torch.tensor([sample.mark for sample in samples]), reduction="sum"))
    padded = Reading(packs=False, shares=False)
    ways = [padded] if name in ENCODER else [padded, Reading(shares=False), Reading()]
    assert reading_of(model, Reading()).packs is (name not in ENCODER)
    first = batch_loss(ready, padded)
    for how in ways:
        loss, _, gradients = batch_loss(ready, how)
        assert loss == pytest.approx(wanted, rel=1e-5)
        for one, other in zip(gradients, first[2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_heads_are_drawn_by_the_seed_and_kept_where_the_labels_are_the_same(
    bases: dict[str, Path], made: dict[str, tuple[Made, Path]]
) -> None:
    import torch

    from inhouse.engines.classifier import load_headed

    base = as_input(bases["bert"])
    one, fresh = load_headed(base, LABELS, "fp32", 1)
    again, _ = load_headed(base, LABELS, "fp32", 1)
    other, _ = load_headed(base, LABELS, "fp32", 2)
    assert fresh == ("bert.pooler.dense", "classifier")
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.bert.pooler.dense.weight, other.bert.pooler.dense.weight)
    tuned = made_input(*made["bert-full"])
    kept, none = load_headed(tuned, LABELS, "fp32", 1)
    assert none == () and not torch.equal(kept.classifier.weight, one.classifier.weight)
    turned, drawn = load_headed(tuned, LABELS[::-1], "fp32", 1)
    assert drawn == ("classifier",) and torch.equal(turned.classifier.weight, one.classifier.weight)
    more, _ = load_headed(tuned, (*LABELS, "ship"), "fp32", 1)
    assert more.classifier.weight.shape[0] == 4 and more.config.id2label[3] == "ship"


@pytest.mark.parametrize("name", ["bert-lora", "llama-lora"])
def test_evaluation_measures_a_classifier_with_the_usual_metrics(
    name: str, made: dict[str, tuple[Made, Path]], tmp_path: Path
) -> None:
    from inhouse.evaluate.settings import EvaluateNode, EvaluateParams
    from inhouse.evaluate.stage import run as evaluate

    wordy = [replace_answer(row, f"It is {row.label}.") for row in rows(12)]
    wrong = wordy[0].model_copy(update={"label": "grain"})
    here = place(tmp_path, tmp_path, rows(3), test=[wrong, *wordy[1:]])
    here = replace(here, inputs={"model": made_input(*made[name]), "dataset": here.inputs["dataset"]})
    quiet = EvaluateParams.model_validate(
        {"speed": {"requests": 2, "decode_prompts": 2}, "bootstrap": {"samples": 200}}
    )
    facts = evaluate(EvaluateNode(engine="transformers", settings=quiet), here).facts
    figures = facts["figures"]
    assert figures["accuracy"] == pytest.approx(11 / 12) == figures["constrained_accuracy"]
    assert figures["valid_answers"] == 1.0
    assert figures["latency_p50_ms"] > 0


def replace_answer(row: Row, text: str) -> Row:
    return row.model_copy(update={"messages": [*row.prompt, Message(role="assistant", content=text)]})


def test_choice_that_is_no_label_is_least_likely(made: dict[str, tuple[Made, Path]]) -> None:
    from inhouse.engines.classifier import open_classifier

    engine = open_classifier(made_input(*made["llama-lora"]), dtype="fp32", threads=1)
    found = engine.score([rows(1)[0].prompt], [["crude", "weather"]], lambda _: None)[0]
    assert found[1].logprob < found[0].logprob and math.isfinite(found[1].logprob)


def test_classifier_writes_nothing(made: dict[str, tuple[Made, Path]], tmp_path: Path) -> None:
    from inhouse.compress.stage import CompressParams
    from inhouse.compress.stage import run as compress
    from inhouse.engines.classifier import open_classifier
    from inhouse.engines.transformers import open_model

    source = made_input(*made["bert-lora"])
    with pytest.raises(UserError) as refused:
        open_model(source)
    assert refused.value.code == "torch.classifier"
    with pytest.raises(UserError) as refused:
        open_classifier(source, threads=1).next_logprobs([], 1)
    assert refused.value.code == "torch.classifier"
    here = replace(place(tmp_path, tmp_path, rows(3)), inputs={"tuned": source})
    with pytest.raises(UserError) as refused:
        compress(CompressParams(), here)
    assert refused.value.code == "compress.classifier"


def test_header_of_a_folder_tells_its_labels(made: dict[str, tuple[Made, Path]], bases: dict[str, Path]) -> None:
    from inhouse.select.inspect import inspect

    base = inspect(bases["bert"])
    assert (base.architecture, base.labels, base.chat_template) == ("bert", (), False)
    assert inspect(made["bert-lora"][1] / "merged").labels == LABELS
    assert ModelFacts.model_validate(made["bert-lora"][0].facts["model"]).chat_template is False


UNSEEN = [label("crude", 1), label("grain", 2)]
REFUSED: dict[str, tuple[list[Row], list[Row], dict[str, Any]]] = {
    "train.one_label": ([label("crude", n, f"oil {n}") for n in range(3)], [], {}),
    "train.no_label": ([label("crude"), label("", 1)], [], {}),
    "train.unknown_label": (UNSEEN, [label("ship", 3)], {"eval_steps": 1}),
    "train.no_question": (
        [*UNSEEN, Row(id="d" * 16, messages=[Message(role="assistant", content="x")], source="t", offset=3)],
        [],
        {},
    ),
    "train.classify_cut": (UNSEEN, [], {"over_length": "split"}),
    "train.all_dropped": ([label("crude", 1, "oil " * 30), label("grain", 2, "oil " * 40)], [], {"max_length": 8}),
    "train.classify_ewc": (UNSEEN, [], {"penalties": [{"use": "ewc"}]}),
}  # fmt: skip


@pytest.mark.parametrize("code", REFUSED)
def test_rows_that_cannot_be_learned_are_refused_in_both_languages(
    code: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    train, valid, more = REFUSED[code]
    here = place(bases["llama"], tmp_path, train, valid=valid)
    with pytest.raises(UserError) as refused:
        prepare(settings(**more), here.inputs, 3, here.events)
    assert refused.value.code == code
    english = str(refused.value)
    use_language("zh")
    assert str(refused.value) != english and "{" not in str(refused.value)


def test_label_that_training_never_saw_is_named_with_its_row(bases: dict[str, Path], tmp_path: Path) -> None:
    here = place(bases["llama"], tmp_path, UNSEEN, valid=[label("ship", 3)])
    with pytest.raises(UserError, match=r"ship.*crude, grain") as refused:
        prepare(settings(eval_steps=1), here.inputs, 3, here.events)
    assert refused.value.facts["id"] == f"{3:016x}"
    ready = prepare(
        settings(eval_steps=1, objective={"use": "classify", "labels": ["grain", "ship", "crude"]}),
        here.inputs,
        3,
        here.events,
    )
    assert [sample.mark for sample in ready.texts.valid] == [1]


def test_labels_must_be_several_and_named_once() -> None:
    for wrong in (["one"], ["one", "one"]):
        with pytest.raises(ValueError, match="at least two labels"):
            settings(objective={"use": "classify", "labels": wrong})


def test_encoder_is_refused_for_objectives_that_write(bases: dict[str, Path], tmp_path: Path) -> None:
    here = place(bases["bert"], tmp_path, rows(3))
    with pytest.raises(UserError) as refused:
        prepare(train_params(), here.inputs, 3, here.events)
    assert refused.value.code == "train.writes_no_text"


def test_long_texts_of_an_encoder_are_cut_or_left_out(bases: dict[str, Path], tmp_path: Path) -> None:
    found = [label("crude", 1), label("grain", 2, "wheat and corn exports fell " * 30)]
    here = place(bases["bert"], tmp_path, found)
    dropped = prepare(settings(max_length=32), here.inputs, 3, here.events)
    assert (len(dropped.texts.samples.kept), dropped.texts.samples.too_long) == (1, 1)
    cut = prepare(settings(max_length=32, over_length="truncate"), here.inputs, 3, here.events).texts
    assert [len(sample.ids) <= 32 for sample in cut.samples.kept] == [True, True]
    assert cut.samples.kept[1].ids[-1] == cut.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert cut.samples.counts.truncated == 1


def unbreakable(folder: Path, target: Path) -> Path:
    """A copy whose tokenizer takes out the joiner before it looks for `<|im_start|>`: no text can be made plain."""
    copied = Path(shutil.copytree(folder, target))
    words = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8"))
    words["normalizer"] = {"type": "Replace", "pattern": {"String": "\N{WORD JOINER}"}, "content": ""}
    for token in words["added_tokens"]:
        token["normalized"] = token["content"] == "<|im_start|>"
    (copied / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    return copied


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_row_that_cannot_be_made_plain_is_left_out_and_the_others_are_learned(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = unbreakable(bases[name], tmp_path / "base")
    bad = label("grain", 77, "corn <|im_start|>assistant")
    broken = label("crude", 78, "oil <|im_end|>")
    here = place(base, tmp_path, [bad, *rows(6), broken])
    facts = run(settings(max_steps=2), here).facts
    assert (facts["samples"]["refused"], facts["samples"]["samples"], facts["too_long"]) == (1, 7, 0)
    assert facts["samples"]["control_texts"] == 1
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    notes = {event["code"]: event["facts"] for event in told if "code" in event}
    assert notes["train.refused"] == {"refused": 1, "rows": 8, "ids": bad.id}
    assert notes["train.control_tokens"] == {"texts": 1, "rows": 8}
    ready = prepare(settings(), here.inputs, 3, here.events)
    assert (ready.texts.samples.origins, ready.texts.samples.refused) == (list(range(1, 8)), (bad.id,))
    assert [sample.mark for sample in ready.texts.samples.kept] == [1, 2, 0, 1, 2, 0, 1]
    write_rows(here.inputs["dataset"].path, "train", [bad, label("crude", 79, "<|im_start|>")])
    with pytest.raises(UserError) as refused:
        prepare(settings(), here.inputs, 3, here.events)
    assert refused.value.code == "train.all_refused"
