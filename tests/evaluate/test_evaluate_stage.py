"""Measuring a model: answers, likelihoods, speed, resume, negative controls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from known_answers import LABELS, KnownAnswers, context, make_rows, notes, record

from inhouse.core.errors import Cancelled, UserError
from inhouse.core.fingerprint import identity, list_files
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Message
from inhouse.dataset import read_rows, write_rows
from inhouse.evaluate import answers, stage
from inhouse.evaluate.predictions import Predictions, likeliest, read_label, read_predictions
from inhouse.evaluate.settings import EvaluateNode, EvaluateParams
from inhouse.evaluate.speed import measure_speed, spread

Make = Callable[..., Input]
QUICK = {"speed": {"requests": 2, "decode_prompts": 2, "decode_tokens": 4}}


def node(engine: str = "transformers", **settings: Any) -> EvaluateNode:
    return EvaluateNode.model_validate({"engine": engine, "settings": QUICK | settings})


def use(monkeypatch: pytest.MonkeyPatch, engine: Any) -> Any:
    monkeypatch.setattr(stage, "open_engine", lambda name, model, offline: engine)
    return engine


def scores(made: Context) -> dict[str, Any]:
    return json.loads((made.out / "scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("earn", "earn"),
        (" Earn \nbecause profit rose", "earn"),
        ("\n\nGRAIN", "grain"),
        ("earn.", None),
        ("The desk is earn", None),
        ("", None),
        ("   \n", None),
        ("<think>\n\n</think>\n\nearn", "earn"),
        ("<think>\nIs it grain?\n</think>\n\ncrude", "crude"),
        ("<think>\nearn", None),
    ],
)
def test_read_label_accepts_only_a_first_line_that_is_a_label(text: str, label: str | None) -> None:
    assert read_label(text, LABELS) == label


def test_likeliest_of_equal_labels_is_the_first() -> None:
    assert likeliest({"b": -1.0, "a": -1.0, "c": -2.0}) == "b"


def test_evaluate_model_that_is_right_in_two_of_three_writes_all_measures(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(12)
    engine = use(monkeypatch, KnownAnswers(rows, lambda at, wanted: "I do not know" if wanted == "grain" else wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset())
    facts = stage.run(node(), made).facts
    figures = scores(made)["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["valid_answers"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["macro_f1"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["constrained_accuracy"]["value"] == 1.0
    assert figures["perplexity"]["value"] == pytest.approx(math.exp(0.5), abs=1e-6)
    assert facts["rows"] == 12 and engine.closed
    first = read_predictions(made.out / "predictions.jsonl")[0]
    assert first.choices == {"crude": -1.0, "earn": -3.0, "grain": -3.0}
    assert (first.chosen, first.gold_logprob, first.gold_tokens) == ("crude", -1.0, 2)
    speed = json.loads((made.out / "measured" / "speed.json").read_text(encoding="utf-8"))["figures"]
    assert speed["latency_p50_ms"] == {"value": 500.0, "low": None, "high": None, "n": 2, "unit": "ms"}
    assert speed["ttft_p50_ms"]["value"] == 250.0
    assert speed["tokens_per_s"]["value"] == 12.0  # 3 tokens after the first in 0.25 s
    assert speed["peak_memory_bytes"]["value"] == 1000


def test_evaluate_rows_that_want_a_call_compares_calls_and_tells_of_answers_that_were_cut(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(4, labelled=False)
    rows = make_rows(4, labelled=False)
    for at in (0, 2):
        call = {"type": "function", "function": {"name": "desk", "arguments": f'{{"n": {at}}}'}}
        turns = [*rows[at].prompt, Message(role="assistant", tool_calls=[call])]
        rows[at] = rows[at].model_copy(update={"messages": turns})
    write_rows(folder.path, "test", rows)

    class Cut(KnownAnswers):
        def generate(self, *asked: Any, **how: Any) -> Any:
            made = super().generate(*asked, **how)
            return [replace(one, finish="length") if len(one.text) == 20 else one for one in made]

        def score(self, prompts: Any, choices: Any, tick: Any) -> Any:  # a token a byte, and the end of turn
            made = super().score(prompts, choices, tick)
            return [
                [replace(one, tokens=len(choice.encode()) + 1) for one, choice in zip(scored, own, strict=True)]
                for scored, own in zip(made, choices, strict=True)
            ]

    answers = [
        '<tool_call>{"arguments": {"n": 0}, "name": "desk"}</tool_call>',
        "earn",
        '<tool_call>{"name": ',
        "crude",
    ]
    use(monkeypatch, Cut(rows, lambda at, wanted: answers[at]))
    made = context(tmp_path, "run", model=model, dataset=folder)
    stage.run(node(), made)
    found = {name: figure["value"] for name, figure in scores(made)["figures"].items()}
    assert (found["tool_calls"], found["tool_names"], found["exact_match"]) == (0.5, 0.5, 0.75)
    kept = read_predictions(made.out / "predictions.jsonl")
    assert [row.tools for row in kept] == [True, None, True, None]
    assert kept[2].gold == '<tool_call>\n{"name": "desk", "arguments": {"n": 2}}\n</tool_call>'
    assert "evaluate.cut" in notes(made)
    short = context(tmp_path, "short", model=model, dataset=folder)
    stage.run(node(max_tokens=100), short)  # the wanted answer would have had room: it is not the limit's fault
    assert "evaluate.cut" not in notes(short)


def test_evaluate_labels_model_and_hashes_stand_in_scores(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(12), lambda at, wanted: wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset())
    stage.run(node(), made)
    found = scores(made)
    assert found["labels"] == LABELS and found["modes"] == ["generate", "constrained"]
    assert found["model"] == {
        "artifact": "a" * 24,
        "name": "tiny",
        "format": "gguf",
        "parameters": 7,
        "bytes": 5_000_000,
    }
    assert len(found["rows_hash"]) == len(found["tokens_hash"]) == 32


def test_evaluate_same_answers_at_another_speed_has_the_same_identity(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for name in ("one", "two"):
        engine = use(monkeypatch, KnownAnswers(make_rows(12), lambda at, wanted: wanted))
        monkeypatch.setattr(engine, "memory_bytes", lambda name=name: len(name) * (1 if name == "one" else 9))
        made = context(tmp_path, name, model=model, dataset=dataset())
        stage.run(node(), made)
        ids.append(identity("predictions", list_files(made.out)))
    assert ids[0] == ids[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_evaluate_model_with_scores_that_are_no_numbers_is_refused(
    value: float, tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = use(monkeypatch, KnownAnswers(make_rows(12), lambda at, wanted: wanted, lambda *asked: value))
    made = context(tmp_path, "run", model=model, dataset=dataset())
    with pytest.raises(UserError) as raised:
        stage.run(node(), made)
    assert raised.value.code == "evaluate.not_finite"
    assert engine.closed and not (made.out / "scores.json").exists()


def test_evaluate_garbage_answers_score_nothing(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(12), lambda at, wanted: f"{wanted}{wanted} ☃", lambda *asked: -2.0))
    made = context(tmp_path, "run", model=model, dataset=dataset())
    stage.run(node(), made)
    figures = scores(made)["figures"]
    assert figures["accuracy"]["value"] == figures["macro_f1"]["value"] == figures["valid_answers"]["value"] == 0.0
    assert figures["constrained_accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-6)  # one label for all: chance


def test_evaluate_killed_between_chunks_asks_only_the_rest_and_ends_the_same(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CHUNK", 5)
    rows = make_rows(12)
    whole = context(tmp_path, "whole", model=model, dataset=dataset())
    use(monkeypatch, KnownAnswers(rows, lambda at, wanted: wanted))
    stage.run(node(), whole)

    def stop_at_seven(at: int, wanted: str) -> str:
        if at == 7:
            raise KeyboardInterrupt
        return wanted

    broken = context(tmp_path, "broken", model=model, dataset=dataset())
    use(monkeypatch, KnownAnswers(rows, stop_at_seven))
    with pytest.raises(KeyboardInterrupt):
        stage.run(node(), broken)
    engine = use(monkeypatch, KnownAnswers(rows, lambda at, wanted: wanted))
    stage.run(node(speed={"requests": 0, "decode_prompts": 0}), broken)
    assert engine.generated == 7
    assert (broken.out / "predictions.jsonl").read_bytes() == (whole.out / "predictions.jsonl").read_bytes()
    assert "latency_p50_ms" not in (broken.out / "measured" / "speed.json").read_text(encoding="utf-8")


def test_evaluate_cancelled_stops_at_the_next_answer(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = use(monkeypatch, KnownAnswers(make_rows(12), lambda at, wanted: wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset())
    (tmp_path / "run" / "cancel").touch()
    with pytest.raises(Cancelled):
        stage.run(node(), made)
    assert engine.generated == 1 and engine.closed


def test_evaluate_dataset_without_labels_measures_exact_match_and_perplexity(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted if at else "no"))
    made = context(tmp_path, "run", model=model, dataset=dataset(6, labelled=False))
    stage.run(node(), made)
    assert set(scores(made)["figures"]) == {"exact_match", "perplexity"}
    assert scores(made)["modes"] == ["generate"] and notes(made) == []


def test_evaluate_metric_that_does_not_apply_is_told(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset(6, labelled=False))
    stage.run(node(metrics=["accuracy", "exact_match"]), made)
    assert notes(made) == ["evaluate.metric_absent"]


def test_evaluate_engine_without_likelihoods_measures_free_answers_and_says_so(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted))

    def refuse(*asked: object) -> None:
        raise UserError("remote.unsupported", url="http://x", what="likelihoods")

    monkeypatch.setattr(engine, "score", refuse)
    made = context(tmp_path, "run", model=model, dataset=dataset(6))
    stage.run(node(), made)
    assert set(scores(made)["figures"]) == {"accuracy", "exact_match", "macro_f1", "valid_answers"}
    assert notes(made) == ["evaluate.no_likelihoods"]


def test_evaluate_engine_that_fails_while_scoring_is_not_taken_for_one_that_cannot(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted))

    def fail(*asked: object) -> None:
        raise UserError("store.read_only", path="x")

    monkeypatch.setattr(engine, "score", fail)
    with pytest.raises(UserError, match="x"):
        stage.run(node(), context(tmp_path, "run", model=model, dataset=dataset(6)))


def test_evaluate_only_constrained_without_labels_is_refused(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset(6, labelled=False))
    with pytest.raises(UserError) as raised:
        stage.run(node(modes=["constrained"]), made)
    assert raised.value.code == "evaluate.nothing_to_ask"


def test_evaluate_llamacpp_asks_likelihoods_only_when_told_to(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted))
    plain = context(tmp_path, "plain", model=model, dataset=dataset(6))
    stage.run(node("llamacpp"), plain)
    asked = context(tmp_path, "asked", model=model, dataset=dataset(6))
    stage.run(node("llamacpp", likelihoods=["llamacpp"], modes=["constrained"]), asked)
    assert "perplexity" not in scores(plain)["figures"]
    assert set(scores(asked)["figures"]) == {"constrained_accuracy", "constrained_macro_f1", "perplexity"}


def test_evaluate_with_limit_asks_the_same_spread_of_rows(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(12), lambda at, wanted: wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset())
    stage.run(node(limit=4), made)
    asked = [row.id for row in read_predictions(made.out / "predictions.jsonl")]
    everything = [row.id for row in read_rows(made.inputs["dataset"].path, "test")]
    assert asked == [name for name in everything if name in sorted(everything)[:4]]


def test_evaluate_dataset_without_test_rows_is_refused(tmp_path: Path, dataset: Make, model: Input) -> None:
    for name, empty in (("missing", False), ("empty", True)):
        folder = tmp_path / name
        folder.mkdir()
        if empty:
            write_rows(folder, "test", [])
        made = context(tmp_path, f"run-{name}", model=model, dataset=Input(record(kind="dataset"), folder))
        with pytest.raises(UserError) as raised:
            stage.run(node(), made)
        assert raised.value.code == "evaluate.no_rows"


def test_evaluate_labels_that_differ_only_in_case_are_refused(tmp_path: Path, dataset: Make, model: Input) -> None:
    made = context(tmp_path, "run", model=model, dataset=dataset(6, labels=["earn", "Earn"]))
    with pytest.raises(UserError) as raised:
        stage.run(node(), made)
    assert raised.value.facts == {"one": "earn", "other": "Earn"}


def test_evaluate_labels_come_from_the_rows_when_the_dataset_lists_none(
    tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, KnownAnswers(make_rows(6), lambda at, wanted: wanted))
    made = context(tmp_path, "run", model=model, dataset=dataset(6, labels=[]))
    stage.run(node(), made)
    assert scores(made)["labels"] == LABELS


def test_spread_takes_prompts_evenly_and_repeats_when_there_are_too_few() -> None:
    prompts = [make_rows(1)[0].prompt for _ in range(10)]
    assert [next(i for i, p in enumerate(prompts) if p is q) for q in spread(prompts, 5)] == [0, 2, 4, 6, 8]
    assert len(spread(prompts[:2], 5)) == 5


def test_speed_of_answers_of_one_token_has_no_rate() -> None:
    rows = make_rows(3)
    engine = KnownAnswers(rows, lambda at, wanted: wanted)
    settings = EvaluateParams.model_validate({"speed": {"requests": 0, "decode_prompts": 2}})
    engine_answers = engine.generate
    monkey = lambda prompts, n, tick, ignore_end=False: [  # noqa: E731
        answer.__class__(answer.text, 1, "stop", 0.5, 0.5) for answer in engine_answers(prompts, n, tick)
    ]
    engine.generate = monkey  # type: ignore[method-assign]
    assert measure_speed(engine, [row.prompt for row in rows], settings, True, lambda: None) == {}


def test_external_of_an_evaluation_is_nothing(tmp_path: Path) -> None:
    assert stage.external(node(), tmp_path) == {}


def test_transformers_engine_constrained_label_equals_plain_likelihoods(
    tmp_path: Path, tiny_llama: Path, dataset: Make
) -> None:
    """Oracle: one full forward pass of plain transformers per label, no batching, no cache."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = {"model": {"format": "safetensors", "main": ".", "name": "tiny"}}
    made = context(tmp_path, "run", model=Input(record(facts=facts), tiny_llama), dataset=dataset(6))
    stage.run(node(max_tokens=4), made)
    tokenizer, plain = AutoTokenizer.from_pretrained(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama)
    predictions = Predictions(read_predictions(made.out / "predictions.jsonl"), tuple(LABELS))
    for row, wanted in zip(make_rows(6), predictions.rows, strict=True):
        prompt = [message.as_dict() for message in row.prompt]
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        expected = {}
        for label in LABELS:
            ids = [*start, *tokenizer.encode(label, add_special_tokens=False), tokenizer.eos_token_id]
            with torch.inference_mode():
                logprobs = plain(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            places = range(len(start), len(ids))
            expected[label] = sum(float(logprobs[at - 1, ids[at]]) for at in places)
        assert wanted.choices == pytest.approx(expected, abs=0.15)  # bf16 on machines that compute in it
        assert wanted.gold_logprob == pytest.approx(expected[row.answer], abs=0.15)


def test_evaluate_remote_engine_offline_is_refused(tmp_path: Path, dataset: Make) -> None:
    facts = {"model": {"format": "remote", "main": "http://127.0.0.1:1/v1", "name": "m"}}
    made = context(tmp_path, "run", model=Input(record(facts=facts), tmp_path), dataset=dataset(6))
    with pytest.raises(UserError) as raised:
        stage.run(node("remote"), made)
    assert raised.value.code == "remote.offline"


@pytest.mark.real
def test_real_model_reads_the_same_tokens_in_both_engines(tmp_path: Path, smollm2_gguf: Path, dataset: Make) -> None:
    facts = {"model": {"format": "gguf", "main": smollm2_gguf.name, "name": "smollm2-135m-instruct"}}
    source = Input(record(facts=facts), smollm2_gguf.parent)
    quiet = {"speed": {"requests": 0, "decode_prompts": 0}, "max_tokens": 2, "limit": 2, "likelihoods": []}
    found = {}
    for engine in ("transformers", "llamacpp"):
        made = context(tmp_path, engine, model=source, dataset=dataset(6))
        stage.run(node(engine, **quiet), made)
        found[engine] = scores(made)
    one, other = found["transformers"], found["llamacpp"]
    assert one["rows_hash"] == other["rows_hash"] and one["tokens_hash"] == other["tokens_hash"]
