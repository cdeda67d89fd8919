"""The llama.cpp engine on a tiny model, beside plain transformers as the oracle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.rows import Message
from inhouse.engines.llamacpp import LlamaCppEngine, LlamaCppSettings, RunningEngine, open_model, start_server

PROMPTS = [[Message(role="user", content=text)] for text in ("oil prices 12.5", "银行降息", "wheat  exports\nfell")]
CHOICES = ["grain", "money-fx", "银行", "grain trade"]


def as_input(folder: Path, main: str, form: str) -> Input:
    facts = {"model": {"format": form, "main": main, "name": "tiny"}}
    record = Artifact(
        id="0", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="-", facts=facts
    )
    return Input(record, folder)


@pytest.fixture(scope="module")
def gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inhouse.compress.convert import convert
    from inhouse.core.run import Events

    target = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(tiny_llama, target, "tiny", Events())
    return target


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LlamaCppEngine]:
    opened = open_model(as_input(gguf.parent, gguf.name, "gguf"), threads=1)
    yield opened
    opened.close()


def quiet(_: int) -> None:
    return


def test_token_ids_equal_those_of_transformers(engine: LlamaCppEngine, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for prompt in PROMPTS:
        turns = [message.as_dict() for message in prompt]
        wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert engine.token_ids(prompt) == list(wanted)


def test_scores_equal_the_log_softmax_of_transformers(engine: LlamaCppEngine, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    found = engine.score(PROMPTS, [CHOICES] * len(PROMPTS), quiet)
    for prompt, own in zip(PROMPTS, found, strict=True):
        ids = engine.token_ids(prompt)
        for choice, scored in zip(CHOICES, own, strict=True):
            answer = [*tokenizer.encode(choice, add_special_tokens=False), tokenizer.eos_token_id]
            with torch.inference_mode():
                logprobs = model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
            wanted = sum(float(logprobs[len(ids) - 1 + at, token]) for at, token in enumerate(answer))
            assert scored.tokens == len(answer)
            assert scored.logprob == pytest.approx(wanted, abs=0.02)  # the file holds F16 weights


def test_next_logprobs_are_the_likeliest_in_order(engine: LlamaCppEngine) -> None:
    found = engine.next_logprobs(PROMPTS, 5)
    for each in found:
        values = list(each.values())
        assert len(values) == 5 and values == sorted(values, reverse=True) and max(values) < 0
    assert engine.logprobs_of(PROMPTS[0], list(found[0])) == pytest.approx(found[0], abs=1e-4)


def test_answers_are_the_same_in_another_process(engine: LlamaCppEngine, gguf: Path) -> None:
    other = open_model(as_input(gguf.parent, gguf.name, "gguf"), threads=1)
    try:
        first, again = (e.generate(PROMPTS, 6, quiet) for e in (engine, other))
        scores, scores_again = (e.score(PROMPTS, [CHOICES] * 3, quiet) for e in (engine, other))
    finally:
        other.close()
    assert [answer.text for answer in first] == [answer.text for answer in again]
    assert scores == scores_again


def test_generate_that_ignores_the_end_has_the_asked_length_and_real_times(engine: LlamaCppEngine) -> None:
    done: list[int] = []
    answers = engine.generate(PROMPTS, 12, done.append, ignore_end=True)
    assert [answer.tokens for answer in answers] == [12, 12, 12]
    assert sum(done) == 3
    assert all(0 < answer.first_token_s <= answer.total_s for answer in answers)
    assert {answer.finish for answer in answers} == {"length"}


def test_prompt_longer_than_the_context_is_refused_in_words(engine: LlamaCppEngine) -> None:
    with pytest.raises(UserError) as error:
        engine.generate([[Message(role="user", content="wheat " * 2000)]], 4, quiet)
    assert error.value.code == "llamacpp.refused"


def test_memory_is_that_of_the_child(engine: LlamaCppEngine) -> None:
    assert engine.memory_bytes() > 10_000_000


def test_engine_whose_child_was_killed_says_so(gguf: Path) -> None:
    opened = open_model(as_input(gguf.parent, gguf.name, "gguf"), threads=1)
    opened.server.process.stop(grace_s=0)
    with pytest.raises(UserError) as error:
        opened.token_ids(PROMPTS[0])
    assert (error.value.code, error.value.facts["exit"]) == ("process.died", "SIGKILL")
    with pytest.raises(UserError):
        opened.generate(PROMPTS, 1, quiet)
    opened.close()


def start(gguf: Path) -> RunningEngine:
    return start_server(gguf, LlamaCppSettings(threads=1, context_length=4096, parallel=2), name="desk")


def test_server_is_behind_a_key_on_loopback_and_cuts_the_context(gguf: Path) -> None:
    import httpx

    server = start(gguf)
    try:
        assert server.url.startswith("http://127.0.0.1:") and server.alive() and server.healthy()
        assert server.context_length == 512
        assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
        models = httpx.get(f"{server.url}/v1/models", headers=server.headers, trust_env=False).json()
        assert models["data"][0]["id"] == "desk"
        assert str(gguf.parent) not in json.dumps(models["data"][0]["id"])
    finally:
        server.stop()
    assert not server.alive() and not server.healthy()


@pytest.mark.parametrize(
    ("weights", "free", "mapped"), [("map", 1, True), ("copy", 1, False), ("auto", 3, True), ("auto", 5, False)]
)
def test_weights_are_copied_where_they_take_little_of_the_free_memory(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, weights: Any, free: int, mapped: bool
) -> None:
    import psutil

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=8")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * gguf.stat().st_size))
    server = start_server(gguf, LlamaCppSettings(threads=1, context_length=64, weights=weights), name="desk")
    try:
        process = psutil.Process(server.process.pid)
        assert server.process.command.environment["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=8:glibc.malloc.hugetlb=1"
        assert any(each.path == str(gguf) for each in process.memory_maps()) == mapped
    finally:
        server.stop()


def test_file_that_is_missing_cut_short_or_of_another_format_is_refused(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        start_server(tmp_path / "none.gguf", LlamaCppSettings())
    assert error.value.code == "llamacpp.no_file"
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:20_000])
    with pytest.raises(UserError) as error:
        start_server(tmp_path / "cut.gguf", LlamaCppSettings())
    assert error.value.code.startswith("gguf.")
    with pytest.raises(UserError) as error:
        open_model(as_input(tmp_path, "x", "safetensors"))
    assert error.value.code == "llamacpp.not_gguf"


def test_file_that_llamacpp_cannot_load_gives_its_reason(gguf: Path, tmp_path: Path) -> None:
    content = gguf.read_bytes()
    at = content.index(b"llama", content.index(b"general.architecture"))
    (tmp_path / "other.gguf").write_bytes(content[:at] + b"nobdy" + content[at + 5 :])
    with pytest.raises(UserError) as error:
        start_server(tmp_path / "other.gguf", LlamaCppSettings(threads=1))
    assert error.value.code == "llamacpp.not_loaded"
    assert "nobdy" in str(error.value) or "architecture" in error.value.facts["line"]


def test_answers_do_not_depend_on_how_threads_wait(gguf: Path) -> None:
    import httpx

    texts = []
    for waiting in ("spin", "sleep"):
        settings = LlamaCppSettings(threads=2, context_length=256, waiting=waiting)
        server = start_server(gguf, settings)
        try:
            body = {"prompt": "wheat", "n_predict": 4, "temperature": 0.0, "n_probs": 3}
            reply = httpx.post(f"{server.url}/completion", json=body, headers=server.headers, timeout=60).json()
            texts.append(reply["completion_probabilities"])
        finally:
            server.stop()
    assert texts[0] == texts[1]


@pytest.mark.real
def test_speculation_copies_in_fewer_steps_and_does_not_change_the_answer(smollm2_gguf: Path) -> None:
    import httpx

    text = "The harbour of Leith was built in stone by John Rennie, who had learned his trade on canals in the south."
    prompt = f"Text:\n{text}\n\nThe same text once more, word for word:\n{text[:39]}"
    replies = {}
    for how in ("off", "auto"):
        server = start_server(smollm2_gguf, LlamaCppSettings(context_length=256, speculation=how))
        try:
            body = {"prompt": prompt, "n_predict": 20, "temperature": 0.0}
            url = f"{server.url}/completion"
            replies[how] = httpx.post(url, json=body, headers=server.headers, timeout=60).json()
        finally:
            server.stop()
    assert replies["auto"]["content"] == replies["off"]["content"]
    assert replies["auto"]["timings"]["draft_n_accepted"] > 0
    assert "draft_n" not in replies["off"]["timings"]
