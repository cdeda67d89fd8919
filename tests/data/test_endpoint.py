"""Asking an endpoint: kept answers, budgets, schemas, and every way a server can misbehave."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, chat_server
from hypothesis import given
from hypothesis import strategies as st

from inhouse.core.errors import Cancelled, UserError
from inhouse.core.rows import Message
from inhouse.remote.endpoint import Endpoint, ask, ask_many
from inhouse.remote.reply import fitting

SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["spam", "正常"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["label"],
    "additionalProperties": False,
}


def endpoint(url: str | None, **more: Any) -> Endpoint:
    return Endpoint.model_validate(
        {"base_url": url, "model": "house", "wait_s": 0.01, "timeout_s": 5, "max_tokens": 20, **more}
    )


def question(text: str) -> list[Message]:
    return [Message(role="system", content="Label it."), Message(role="user", content=text)]


def echo(body: dict[str, Any], number: int) -> str:
    return str(body["messages"][-1]["content"]).upper()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_ask_same_question_again_is_answered_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with chat_server(echo) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        assert ask(endpoint(server.url), question("hi"), cache=tmp_path) == "HI"
        assert ask(endpoint(server.url), question("hi"), cache=tmp_path) == "HI"
        assert ask(endpoint(server.url), question("hi"), cache=tmp_path, offline=True) == "HI"
        assert len(server.seen) == 1
        assert ask(endpoint(server.url, temperature=1), question("hi"), cache=tmp_path) == "HI"
        assert len(server.seen) == 2
    [first, _] = server.seen
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("house", 0, 20)
    assert first["messages"] == [{"role": "system", "content": "Label it."}, {"role": "user", "content": "hi"}]
    assert "secret" not in (tmp_path / "answers.db").read_bytes().decode("latin-1")


@pytest.mark.parametrize("home", [None, "http://127.0.0.1:1/v1"])
def test_ask_key_is_not_sent_to_an_address_of_the_project_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    if home:
        monkeypatch.setenv("OPENAI_BASE_URL", home)
    with chat_server(echo) as server:
        ask(endpoint(server.url), question("hi"), cache=tmp_path)
    assert server.seen[0]["key"] is None


def test_ask_offline_without_a_kept_answer_opens_no_connection(tmp_path: Path) -> None:
    with chat_server(echo) as server, pytest.raises(UserError) as raised:
        ask(endpoint(server.url), question("hi"), cache=tmp_path, offline=True)
    assert raised.value.code == "label.offline" and server.seen == []


def test_ask_without_an_address_says_where_to_set_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as raised:
        ask(endpoint(None), question("hi"), cache=tmp_path)
    assert "OPENAI_BASE_URL" in str(raised.value)
    with chat_server(echo) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert ask(endpoint(None), question("hi"), cache=tmp_path) == "HI"


def test_ask_many_keeps_the_order_and_asks_equal_ones_once(tmp_path: Path) -> None:
    texts = ["a", "b", "a", "c", "d", "e", "b"]
    ticks: list[int] = []
    with chat_server(echo) as server:
        found = ask_many(
            endpoint(server.url, at_once=3), [question(t) for t in texts], cache=tmp_path, tick=ticks.append
        )
    assert [answer.text for answer in found] == [t.upper() for t in texts]
    assert sorted(server.questions) == ["a", "b", "c", "d", "e"]
    assert sum(ticks) == len(texts)
    assert ask_many(endpoint("http://127.0.0.1:1"), [], cache=tmp_path) == []


def test_ask_many_at_once_really_asks_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def meet(body: dict[str, Any], number: int) -> str:
        together.wait(5)  # breaks, and the answer fails, unless three requests are open
        return "met"

    with chat_server(meet) as server:
        found = ask_many(endpoint(server.url, at_once=3), [question(t) for t in "abc"], cache=tmp_path)
    assert [answer.text for answer in found] == ["met"] * 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_ask_busy_endpoint_is_asked_again(tmp_path: Path, status: int) -> None:
    def busy(body: dict[str, Any], number: int) -> Reply | str:
        return Reply(status=status, raw="busy", headers={"retry-after": "0.01"}) if number < 2 else "ok"

    with chat_server(busy) as server:
        assert ask(endpoint(server.url), question("hi"), cache=tmp_path) == "ok"
        assert len(server.seen) == 3


def test_ask_endpoint_that_stays_busy_is_given_up(tmp_path: Path) -> None:
    with chat_server(lambda body, n: Reply(status=429, raw="quota exhausted")) as server:
        with pytest.raises(UserError) as raised:
            ask(endpoint(server.url, attempts=3), question("hi"), cache=tmp_path)
        assert len(server.seen) == 3
    assert raised.value.code == "remote.refused" and "quota exhausted" in str(raised.value)


@pytest.mark.parametrize("status", [401, 404])
def test_ask_refusal_of_everything_raises_at_once(tmp_path: Path, status: int) -> None:
    with chat_server(lambda body, n: Reply(status=status, raw="no such model")) as server:
        with pytest.raises(UserError) as raised:
            ask_many(endpoint(server.url, at_once=1), [question(t) for t in "abc"], cache=tmp_path)
        assert len(server.seen) == 1
    assert raised.value.facts["status"] == status


def test_ask_many_refusal_of_one_text_leaves_the_others(tmp_path: Path) -> None:
    def picky(body: dict[str, Any], number: int) -> Reply | str:
        return Reply(status=400, raw="too long") if body["messages"][-1]["content"] == "b" else "ok"

    with chat_server(picky) as server:
        found = ask_many(endpoint(server.url), [question(t) for t in "abc"], cache=tmp_path)
        with pytest.raises(UserError):
            ask(endpoint(server.url), question("b"), cache=tmp_path)
    assert [answer.text for answer in found] == ["ok", None, "ok"]
    assert found[1].problem is not None and "too long" in str(found[1].problem)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(silent=True), "remote.timeout"),
        (Reply(hang_up=True), "remote.unreachable"),
        (Reply(raw="<html>"), "remote.not_openai"),
        (Reply(raw='{"choices": []}'), "remote.not_openai"),
    ],
)
def test_ask_broken_endpoint_is_named(tmp_path: Path, reply: Reply, code: str) -> None:
    with chat_server(lambda body, n: reply) as server, pytest.raises(UserError) as raised:
        ask(endpoint(server.url, timeout_s=0.2, attempts=2), question("hi"), cache=tmp_path)
    assert raised.value.code == code and server.url in str(raised.value)


def test_ask_address_that_is_none_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        ask(endpoint("not a url", attempts=1), question("hi"), cache=tmp_path)
    assert raised.value.code == "remote.unreachable"


# The reply's shape


@pytest.mark.parametrize("wrong", ["no", '{"label": "other"}', '{"confidence": 1}', '{"label": "spam", "more": 1}'])
def test_ask_reply_out_of_shape_is_asked_for_once_more(tmp_path: Path, wrong: str) -> None:
    with chat_server(lambda body, n: wrong if n == 0 else '```json\n{"label": "正常"}\n```') as server:
        reply = ask(endpoint(server.url), question("hi"), schema=SCHEMA, cache=tmp_path)
        assert json.loads(reply) == {"label": "正常"}
        assert ask(endpoint(server.url), question("hi"), schema=SCHEMA, cache=tmp_path) == reply
    first, second = server.seen
    assert first["response_format"]["json_schema"]["schema"] == SCHEMA
    assert second["messages"][2] == {"role": "assistant", "content": wrong}


def test_ask_reply_twice_out_of_shape_is_a_problem_of_that_row(tmp_path: Path) -> None:
    def stubborn(body: dict[str, Any], number: int) -> str:
        return "never" if body["messages"][1]["content"] == "b" else '{"label": "spam"}'

    with chat_server(stubborn) as server:
        found = ask_many(endpoint(server.url), [question(t) for t in "ab"], schema=SCHEMA, cache=tmp_path)
        asked = len(server.seen)
        assert asked == 3
    assert found[0].text == '{"label": "spam"}'
    assert found[1].problem is not None and found[1].problem.code == "label.reply_invalid"


@given(
    st.fixed_dictionaries(
        {"label": st.sampled_from(["spam", "正常", "x"])},
        optional={"confidence": st.one_of(st.floats(-1, 2), st.text(max_size=2)), "more": st.just(1)},
    )
)
def test_reply_fits_exactly_when_each_keyword_holds(value: dict[str, Any]) -> None:
    sure = value.get("confidence", 0.5)
    good = value["label"] != "x" and isinstance(sure, float) and 0 <= sure <= 1 and "more" not in value
    try:
        assert json.loads(fitting(json.dumps(value), SCHEMA)) == value
        assert good
    except ValueError:
        assert not good


@pytest.mark.parametrize(
    ("schema", "fits", "misfits"),
    [
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, "[1, 2]", '["1"]'),
        ({"type": ["string", "null"], "maxLength": 3}, "null", '"four"'),
        ({"type": "boolean"}, "true", '"true"'),
        ({"type": "number"}, "2", "NaN"),
        ({"type": "object", "properties": {"a b": {"type": "string"}}}, '{"other": 1}', '{"a b": 1}'),
        ({"enum": ["a", "b"]}, '"a"', '"c"'),
    ],
)
def test_reply_types_are_checked(schema: dict[str, Any], fits: str, misfits: str) -> None:
    assert fitting(fits, schema) == fits
    with pytest.raises(ValueError, match=r"."):
        fitting(misfits, schema)


def test_reply_schema_with_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern"):
        fitting('"a"', {"type": "string", "pattern": "b"})


# Budget


def test_ask_many_stops_at_the_request_budget_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    texts = [question(t) for t in "abcdef"]
    with chat_server(echo) as server:
        small = endpoint(server.url, budget={"requests": 4}, at_once=2)
        for _ in range(2):  # the second run may not spend what the first has spent
            with pytest.raises(UserError) as raised:
                ask_many(small, texts, cache=tmp_path)
            assert raised.value.code == "label.budget" and raised.value.facts["requests"] == 4
            assert len(server.seen) == 4
        found = ask_many(endpoint(server.url, budget={"requests": 6}), texts, cache=tmp_path)
        assert len(server.seen) == 6
    assert [a.text for a in found] == list("ABCDEF")


def test_ask_many_never_passes_the_token_budget(tmp_path: Path) -> None:
    spent = 0

    def count(body: dict[str, Any], number: int) -> str:
        nonlocal spent
        spent += sum(len(m["content"]) for m in body["messages"]) + 2
        return "ok"

    with chat_server(count) as server, pytest.raises(UserError) as raised:
        ask_many(
            endpoint(server.url, budget={"tokens": 100}, at_once=1),
            [question(str(n)) for n in range(50)],
            cache=tmp_path,
        )
    assert raised.value.code == "label.budget"
    assert 12 * 5 <= spent <= 100 and raised.value.facts["tokens"] == spent


def test_ask_endpoint_without_usage_is_charged_what_was_reserved(tmp_path: Path) -> None:
    tight = {"tokens": 60}  # a question reserves 20 tokens and a third of its bytes
    with chat_server(lambda body, n: Reply("ok", usage=False)) as server:
        with pytest.raises(UserError) as raised:
            ask_many(endpoint(server.url, budget=tight, at_once=1), [question(t) for t in "abc"], cache=tmp_path)
        assert raised.value.facts["tokens"] == 46 and len(server.seen) == 2


def test_ask_another_instruction_has_a_budget_of_its_own(tmp_path: Path) -> None:
    other = [Message(role="system", content="Translate it."), Message(role="user", content="b")]
    with chat_server(echo) as server:
        single = endpoint(server.url, budget={"requests": 1})
        assert ask(single, question("a"), cache=tmp_path) == "A"
        assert ask(single, other, cache=tmp_path) == "B"
        with pytest.raises(UserError):
            ask(single, question("c"), cache=tmp_path)


def test_ask_unreachable_endpoint_gives_reserved_tokens_back(tmp_path: Path) -> None:
    with chat_server(lambda body, n: Reply(hang_up=True) if n == 0 else "ok") as server:
        once = endpoint(server.url, budget={"tokens": 30})
        assert ask(once, question("a"), cache=tmp_path) == "ok"


def test_ask_many_cancelled_in_the_middle_keeps_what_was_answered(tmp_path: Path) -> None:
    def cancel(done: int) -> None:
        if done:
            raise Cancelled

    with chat_server(echo) as server:
        with pytest.raises(Cancelled):
            ask_many(endpoint(server.url, at_once=1), [question(t) for t in "abc"], cache=tmp_path, tick=cancel)
        asked = server.questions
        assert asked[0] == "a" and len(asked) < 3
        ask_many(endpoint(server.url), [question(t) for t in "abc"], cache=tmp_path)
        assert server.questions.count("a") == 1


def test_ask_cache_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.db").write_bytes(b"not a database, but long enough to be read as one" * 30)
    with chat_server(echo) as server, pytest.raises(UserError) as raised:
        ask(endpoint(server.url), question("hi"), cache=tmp_path)
    assert raised.value.code == "label.bad_cache"


def test_ask_several_processes_share_answers_and_budget(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inhouse.remote.endpoint import Endpoint, ask_many\n"
        "from inhouse.core.errors import UserError\n"
        "found = Endpoint(base_url=sys.argv[1], model='m', budget={'requests': 30}, at_once=3)\n"
        "talks = [[{'role': 'user', 'content': str(n)}] for n in range(40)]\n"
        "try: ask_many(found, talks, cache=Path(sys.argv[2]))\n"
        "except UserError as error: print(error.code)\n"
    )
    with chat_server(echo) as server:
        command = [sys.executable, "-c", code, server.url, str(tmp_path)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate(timeout=60)[0].strip() for process in running]
        assert said == ["label.budget"] * 2
        assert len(server.seen) == 30


def test_ask_many_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from inhouse.remote.endpoint import Endpoint, ask_many\n"
        "talks = [[{'role': 'user', 'content': str(n)}] for n in range(8)]; done = []\n"
        "def tick(n):\n"
        "    done.append(n)\n"
        "    if sum(done) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "found = Endpoint(base_url=sys.argv[1], model='m', at_once=1)\n"
        "tick = tick if sys.argv[3:] else None\n"
        "print([a.text for a in ask_many(found, talks, cache=Path(sys.argv[2]), tick=tick)])\n"
    )
    with chat_server(echo) as server:
        command = [sys.executable, "-c", code, server.url, str(tmp_path)]
        killed = subprocess.run([*command, "kill"], capture_output=True, text=True, timeout=60, check=False)
        assert killed.returncode == -9 and len(server.seen) == 5, killed.stderr
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == str([str(n) for n in range(8)])
        assert server.questions == [str(n) for n in range(8)]
