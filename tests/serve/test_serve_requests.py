from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import time
from typing import Any

import pytest

from inhouse.core import messages
from inhouse.core.serving import Sampling
from inhouse.serve import constraints
from inhouse.serve.constraints import ConstraintWorker
from inhouse.serve.errors import ApiError
from inhouse.serve.ollama_requests import OllamaChat, OllamaEmbed, OllamaGenerate
from inhouse.serve.requests import (
    Asked,
    Body,
    ChatBody,
    CompletionBody,
    Limits,
    prepare,
    read_body,
    read_chat,
    read_completion,
)
from inhouse.serve.routes.embeddings import EmbeddingBody
from inhouse.serve.routes.messages import MessageBody
from inhouse.serve.routes.rerank import RerankBody, ScoreBody
from inhouse.serve.routes.responses import ResponseBody
from inhouse.serve.routes.tokens import DetokenizeBody, TokenizeBody

LIMITS = Limits(context_length=512, parallel=2, max_tokens=64, temperature=0.0)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> Asked:
    return asyncio.run(prepare(read_chat(json.dumps({"model": "desk", "messages": HELLO} | fields).encode()), LIMITS))


def complete(**fields: Any) -> Asked:
    body = read_completion(json.dumps({"model": "desk", "prompt": "Hello"} | fields).encode())
    return asyncio.run(prepare(body, LIMITS))


def refusal(raw: bytes) -> ApiError:
    began = time.monotonic()
    with pytest.raises(ApiError) as error:
        asyncio.run(prepare(read_chat(raw), LIMITS))
    assert time.monotonic() - began < 0.5  # each takes a few milliseconds; this machine may be busy
    assert error.value.status == 400
    assert json.loads(error.value.body())["error"]["type"] == "invalid_request_error"
    return error.value


def with_field(field: str, value: str) -> bytes:
    return f'{{"model": "desk", "messages": [{{"role": "user", "content": "Hi"}}], "{field}": {value}}}'.encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": "desk", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "desk", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "desk", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "cut", "list", "text", "not-utf8", "lone-surrogate", "deep-list", "deep-object", "deep-field"],
)
def test_body_that_is_not_sound_json_is_refused(raw: bytes) -> None:
    refusal(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", "1000"),
        ("n", "-1"),
        ("n", "1000000000000"),
        ("n", "3"),  # more than this release answers at once
        ("max_tokens", "-1"),
        ("max_tokens", "0"),
        ("max_tokens", "1000000000000"),
        ("max_tokens", "1e12"),
        ("max_tokens", '"5"'),
        ("max_completion_tokens", "513"),
        ("max_tokens", "9" * 5000),
        ("temperature", "NaN"),
        ("temperature", "2.1"),
        ("temperature", "Infinity"),
        ("temperature", "1e999"),
        ("top_p", "0"),
        ("min_p", "1.5"),
        ("top_k", "-1"),
        ("stop", json.dumps(["x"] * 10_000)),
        ("stop", json.dumps("x" * 257)),
        ("stop", '""'),
        ("logit_bias", json.dumps({str(i): 1 for i in range(50_000)})),
        ("logit_bias", '{"a": 1}'),
        ("logit_bias", '{"5": 101}'),
        ("top_logprobs", "1000000"),
        ("stream", '"yes"'),
        ("seed", "1e400"),
        ("response_format", '{"type": "json_schema", "json_schema": {}}'),
        ("tools", '[{"type": "function", "function": {"name": "no spaces"}}]'),
        ("tools", '{"type": "function"}'),
        ("tool_choice", '"required"'),
        ("guided_regex", '"(a+)+"'),
        ("guided_grammar", '"root ::= root"'),
        ("structured_outputs", '{"choice": []}'),
        ("grammar", '"root ::= root"'),
        ("json_schema", '{"type": "string"}'),
        ("best_of", "4"),
        ("model", "5"),
        ("model", '""'),
    ],
)
def test_field_out_of_bounds_is_refused_and_named(field: str, value: str) -> None:
    error = refusal(with_field(field, value))
    if not value.startswith(("NaN", "Inf", "99", "1e9")):  # not JSON, or not a number at all
        assert (error.param or "").startswith(field)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "Hello",
        [{"role": "root", "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user"}],
        [{"content": "x"}],
        ["x"],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        HELLO * 2001,
    ],
)
def test_messages_of_the_wrong_shape_are_refused_and_named(messages: Any) -> None:
    error = refusal(json.dumps({"model": "desk", "messages": messages}).encode())
    assert (error.param or "").startswith("messages")


def test_prompt_far_beyond_the_context_is_refused_before_the_engine_sees_it() -> None:
    error = refusal(with_field("messages", json.dumps([{"role": "user", "content": "word " * 512 * 20}])))
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize("prompt", ["", [""], "word " * 512 * 20])
def test_prompt_of_a_completion_that_is_empty_or_far_too_long_is_refused_under_its_name(prompt: Any) -> None:
    with pytest.raises(ApiError) as refused:
        complete(prompt=prompt)
    assert (refused.value.status, refused.value.param) == (400, "prompt")


def test_top_logprobs_without_logprobs_is_refused() -> None:
    assert refusal(with_field("top_logprobs", "2")).param == "top_logprobs"


def test_fields_that_nobody_knows_are_named() -> None:
    asked = chat(chat_template="{{ evil }}", chat_template_kwargs={}, n_discard=-1, user="ann", tools=[])
    assert asked.ignored == ("chat_template", "chat_template_kwargs", "n_discard")
    assert asked.user == "ann"


@pytest.mark.parametrize(
    ("field", "changes", "neutral"),
    [
        ("repeat_penalty", 1.2, 1.0), ("repeat_penalty", 0, 1), ("min_tokens", 5, 0), ("best_of", 2, 1),
        ("stop_token_ids", [2], []), ("continue_final_message", True, False), ("modalities", ["audio"], ["text"]),
        ("use_beam_search", True, False), ("allowed_token_ids", [1], None), ("echo", True, False),
    ],
)  # fmt: skip
def test_field_that_would_change_the_answer_is_refused_unless_it_is_neutral(
    field: str, changes: Any, neutral: Any
) -> None:
    error = refusal(with_field(field, json.dumps(changes)))
    assert (error.code, error.param) == ("unsupported_parameter", field)
    with pytest.raises(ApiError):
        complete(**{field: changes})
    assert chat(**{field: neutral}).ignored == complete(**{field: neutral}).ignored == (field,)
    assert chat(**{field: None}).ask == chat().ask
    assert chat(chat_template_kwargs={"enable_thinking": False}).ignored == ("chat_template_kwargs",)


HEAD: dict[str, Any] = {"model": "desk", "messages": HELLO}
WRONG: dict[str, tuple[type[Body], dict[str, Any], str, str, str]] = {
    "17 stops": (ChatBody, {**HEAD, "stop": ["a"] * 17}, "stop", "at most 16 entries, and there are 17", "17 项"),
    "stop that is empty": (ChatBody, {**HEAD, "stop": ["a", ""]}, "stop.1", "at least 1 character", "1 个字符"),
    "stop of no kind": (ChatBody, {**HEAD, "stop": 3}, "stop", "must be a text or a list", "文本或列表"),
    "no messages": (ChatBody, {"model": "desk", "messages": []}, "messages", "at least 1 entry", "至少需要 1 项"),
    "messages missing": (ChatBody, {"model": "desk"}, "messages", "is missing", "缺少该字段"),
    "role": (ChatBody, {**HEAD, "messages": [{"role": "x"}]}, "messages.0.role", "one of: system, dev", "之一"),
    "name": (ChatBody, {**HEAD, "messages": [{"role": "user", "content": "x", "name": "a b"}]}, "messages.0.name",
             "spaces", "空格"),
    "biases": (ChatBody, {**HEAD, "logit_bias": dict.fromkeys(map(str, range(1001)), 1)}, "logit_bias",
               "than 1000 entries", "超过上限 1000"),
    "bias": (ChatBody, {**HEAD, "logit_bias": {"x": 1}}, "logit_bias.x", "token id: up to 9 digits", "token 编号"),
    "temperature": (ChatBody, {**HEAD, "temperature": "1"}, "temperature", "must be a number", "应为数字"),
    "top_k": (ChatBody, {**HEAD, "top_k": 1.5}, "top_k", "a whole number", "整数"),
    "top_p": (ChatBody, {**HEAD, "top_p": 0}, "top_p", "more than 0", "大于 0"),
    "stream": (ChatBody, {**HEAD, "stream": "yes"}, "stream", "true or false", "true 或 false"),
    "n": (ChatBody, {**HEAD, "n": 99}, "n", "8 or less", "不得大于 8"),
    "input that is empty": (EmbeddingBody, {"model": "desk", "input": []}, "input", "at least 1 entry", "1 项"),
    "text among ids": (EmbeddingBody, {"model": "desk", "input": [3, "a"]}, "input.1", "a whole number", "整数"),
    "number among texts": (EmbeddingBody, {"model": "desk", "input": ["a", 3]}, "input.1", "must be a text", "文本"),
    "id below 0": (EmbeddingBody, {"model": "desk", "input": [[3, -1]]}, "input.0.1", "0 or more", "不得小于 0"),
    "document": (RerankBody, {"model": "desk", "query": "a", "documents": [{"x": ""}]}, "documents.0.text", "missing",
                 "缺少"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_wrong_with_a_body_is_told_in_our_words_and_the_callers_language(
    name: str, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_chosen", [language])
    model, body, param, english, chinese = WRONG[name]
    with pytest.raises(ApiError) as refused:
        read_body(model, json.dumps(body).encode())
    assert refused.value.param == param
    assert (english if language == "en" else chinese) in refused.value.message
    assert re.search(r"Input should|validation|\^", refused.value.message) is None


def test_request_that_says_nothing_gets_the_greedy_answer_of_the_release() -> None:
    assert chat().ask.sampling == Sampling(max_tokens=64, temperature=0.0)
    assert chat(temperature=0.7, max_tokens=5).ask.sampling == Sampling(max_tokens=5, temperature=0.7)
    assert chat(max_completion_tokens=7, max_tokens=5).ask.sampling.max_tokens == 7


def test_what_the_client_wants_back_is_kept() -> None:
    assert not chat(stream=False).stream
    asked = chat(stream=True, stream_options={"include_usage": True})
    assert asked.stream and asked.usage


def test_sampling_fields_reach_the_engine_as_they_are() -> None:
    asked = chat(
        temperature=1, top_p=0.9, top_k=5, min_p=0.1, seed=-1, stop="x", n=2, presence_penalty=0.5,
        frequency_penalty=-0.5, logit_bias={"7": -100}, logprobs=True, top_logprobs=3, repetition_penalty=1.05,
    )  # fmt: skip
    assert asked.ask.sampling == Sampling(
        64, 1.0, 0.9, 5, 0.1, -1, ("x",), 2, 0.5, -0.5, logit_bias={7: -100.0}, logprobs=3, repetition_penalty=1.05,
    )  # fmt: skip


def test_temperature_and_top_p_next_to_nothing_leave_the_likeliest_token() -> None:
    sampling = chat(temperature=1e-40, top_p=1e-40).ask.sampling
    assert sampling.temperature == 0 and sampling.top_p == 1e-5
    assert chat(temperature=0.01, top_p=0.01).ask.sampling == Sampling(64, 0.01, 0.01)


def test_stop_texts_cut_no_call_that_is_forced() -> None:
    tool = {"type": "function", "function": {"name": "w", "parameters": {"type": "object", "properties": {}}}}
    for choice, wanted in (("required", ()), (tool, ()), ("auto", ("city",)), ("none", ("city",))):
        assert chat(tools=[tool], tool_choice=choice, stop=["city"]).ask.sampling.stop == wanted


def test_text_parts_and_the_developer_role_are_put_into_words_that_templates_know() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "developer", "content": "rules"}, {"role": "user", "content": parts}])
    assert asked.ask.messages == [{"role": "system", "content": "rules"}, {"role": "user", "content": "a\nb"}]


def test_json_answers_may_be_asked_for() -> None:
    constraint = chat(response_format={"type": "json_object"}).ask.constraint
    assert constraint is not None and constraint.kind == "json_object" and constraint.lark
    assert chat(response_format={"type": "text"}).ask.constraint is None


def test_completion_takes_one_prompt() -> None:
    assert not complete().chat and chat().chat
    assert complete(prompt=["Hello"]).ask.prompt == "Hello"
    assert complete(prompt=[1, 2]).ask.prompt == complete(prompt=[[1, 2]]).ask.prompt == [1, 2]
    assert complete(logprobs=2).ask.sampling.logprobs == 2
    wrong: tuple[dict[str, Any], ...] = ({"prompt": ["a", "b"]}, {"prompt": []}, {"logprobs": 21})
    for fields in (*wrong, {"echo": True}, {"suffix": "x"}):
        with pytest.raises(ApiError):
            complete(**fields)


def test_overload_tells_when_to_try_again() -> None:
    from inhouse.serve.errors import overloaded

    assert overloaded().headers == [(b"retry-after", b"1")] and overloaded(503).status == 503
    assert ApiError(400, None, "x").headers == []


SOON_S = 0.05  # asserted ten times as loosely, for machines that do other things meanwhile
LISTS: dict[str, tuple[str, type[Body]]] = {
    "completions": ("prompt", CompletionBody),
    "chat": ("messages", ChatBody),
    "stop": ("stop", ChatBody),
    "embeddings": ("input", EmbeddingBody),
    "rerank": ("documents", RerankBody),
    "score": ("text_1", ScoreBody),
    "tokenize": ("messages", TokenizeBody),
    "detokenize": ("tokens", DetokenizeBody),
    "ollama chat": ("messages", OllamaChat),
    "ollama generate": ("context", OllamaGenerate),
    "ollama embed": ("input", OllamaEmbed),
    "responses": ("input", ResponseBody),
    "include": ("include", ResponseBody),
    "messages": ("messages", MessageBody),
    "stop_sequences": ("stop_sequences", MessageBody),
}
ENTRIES = ("{}", "[]", "[1]", '""', "1", "null", '{"a":[]}', '{"text":1}', "[[[]]]")


@pytest.mark.parametrize("face", LISTS)
def test_list_of_four_megabytes_keeps_nobody_waiting(face: str) -> None:
    """For every body with a list: a million wrong entries, and as many as are let through with the last one wrong."""
    field, model = LISTS[face]
    for entry in ENTRIES:
        for count in (4 * 2**20 // (len(entry) + 1) - 20, 30_000 // len(re.findall(r"[\[{\"]", entry) or "1")):
            body = f'{{"model":"desk","{field}":[{",".join([entry] * count)},-0.5]}}'.encode()
            before, began = memory(), time.thread_time()
            with pytest.raises(ApiError) as refused:
                read_body(model, body)
            spent = time.thread_time() - began
            assert refused.value.status == 400
            assert spent < 10 * SOON_S and memory() - before < 200 * 2**20, (entry, count)


def memory() -> int:
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_marks_inside_of_texts_are_no_entries() -> None:
    told = '[{"a": "\\", },,' * 100_000
    body = json.dumps({"model": "desk", "messages": [{"role": "user", "content": told}]}).encode()
    assert read_chat(body).messages[0].content == told


def test_as_many_token_ids_as_are_allowed_are_read() -> None:
    assert len(read_completion(json.dumps({"model": "desk", "prompt": [7] * 2**20}).encode()).prompt) == 2**20


def test_key_that_floods_the_compiler_keeps_no_other_key_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process stands for constraints that take as long as they may."""
    slow = "start: /slow{}/"
    compiled = ConstraintWorker._judged

    async def judged(self: ConstraintWorker, kind: str, source: str) -> Any:
        process = await self._running()
        if "slow" in source:
            os.kill(process.pid, signal.SIGSTOP)
        return await compiled(self, kind, source)

    async def starting(self: ConstraintWorker, tenant: int, source: str) -> int:
        constraints.current_tenant.set(tenant)
        try:
            await self.compile("lark", source, "field")
        except ApiError as error:
            return error.status
        return 200

    async def scenario() -> tuple[list[int], list[float], list[int]]:
        worker = ConstraintWorker()
        await worker.start()
        flood = [asyncio.create_task(starting(worker, 1, slow.format(n))) for n in range(40)]
        await asyncio.sleep(0.05)
        seconds = []
        for number in range(6):
            began = time.perf_counter()
            assert await asyncio.create_task(starting(worker, 2, f"start: /polite{number}/")) == 200
            seconds.append(time.perf_counter() - began)
            flood += [asyncio.create_task(starting(worker, 1, slow.format(f"{number}x{n}"))) for n in range(5)]
            await asyncio.sleep(0.05)
        told = list(await asyncio.gather(*flood))
        after = [await asyncio.create_task(starting(worker, tenant, f"start: /after{tenant}/")) for tenant in (1, 2)]
        await worker.close()
        return told, seconds, after

    monkeypatch.setattr(ConstraintWorker, "_judged", judged)
    told, seconds, after = asyncio.run(scenario())
    assert told.count(400) == constraints.SLOW_MOST and set(told) == {400, 429}
    assert max(seconds) < 2.0, seconds  # after one that takes 0.8 s, and the start of a process
    assert after == [429, 200]  # the one that floods is told to wait, and nobody else


def test_client_that_leaves_the_line_leaves_the_turn_to_others() -> None:
    async def scenario() -> list[str]:
        worker = ConstraintWorker()
        await worker.start()
        first, second, third = (
            asyncio.create_task(worker.compile("lark", f"start: /{n}/", "field")) for n in ("a", "b", "c")
        )
        await asyncio.sleep(0)
        second.cancel()
        found = [await first, await third, await worker.compile("lark", "start: /d/", "field")]
        await worker.close()
        return found

    assert [lark[-2] for lark in asyncio.run(scenario())] == ["a", "c", "d"]


def test_same_constraint_of_many_requests_takes_one_place_in_line() -> None:
    async def scenario() -> list[Any]:
        worker = ConstraintWorker()
        asked = [asyncio.create_task(worker.compile("lark", "start: /same/", "field")) for _ in range(64)]
        await asyncio.sleep(0)
        asked[0].cancel()  # the one that the others wait for
        found = await asyncio.gather(*asked, return_exceptions=True)
        await worker.close()
        return found

    first, *others = asyncio.run(scenario())
    assert isinstance(first, asyncio.CancelledError) and {lark[-6:] for lark in others} == {"/same/"}
