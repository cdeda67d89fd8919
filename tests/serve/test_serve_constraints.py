"""What may be asked of a grammar: attacks are refused in time, and what is accepted holds on the real engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from inhouse.core.serving import Constraint, Limit
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server
from inhouse.serve import constraints
from inhouse.serve.constraint_worker import _Vocabulary, gbnf_to_lark, judge
from inhouse.serve.constraints import ConstraintWorker, check_constraint, find_constraint, stop_compiler
from inhouse.serve.errors import ApiError

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}


def record(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        **more,
    }


def nested(levels: int) -> dict[str, Any]:
    schema = TEXT
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@dataclass
class Loop:
    """An event loop with a compiler that is warm, for tests that ask one thing after another."""

    runner: asyncio.Runner

    def check(self, kind: Limit, value: Any = None, **more: Any) -> Constraint:
        return self.runner.run(check_constraint(kind, value, "field", **more))

    def refusal(self, kind: Limit, value: Any) -> tuple[ApiError, float]:
        began = time.perf_counter()
        with pytest.raises(ApiError) as caught:
            self.check(kind, value)
        return caught.value, time.perf_counter() - began


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with asyncio.Runner() as runner:
        runner.run(constraints.start_compiler())
        yield Loop(runner)
        runner.run(stop_compiler())


ATTACKS: dict[str, tuple[Limit, Any]] = {
    "schema: bad regex": ("json_schema", {"type": "string", "pattern": "^[a$"}),
    "schema: nested counts": ("json_schema", {"type": "string", "pattern": "^(((a{1,50}){1,50}){1,50}){1,50}$"}),
    "schema: nested repeat": ("json_schema", record({"x": {"type": "string", "pattern": "^(a+)+$"}})),
    "schema: pattern with a quote": ("json_schema", {**TEXT, "pattern": '^"[ab]$'}),
    "schema: pattern with a backslash": ("json_schema", {**TEXT, "pattern": "^\\\\[ab]$"}),
    "schema: pattern with a line end": ("json_schema", {**TEXT, "pattern": "^[\\n]\\x0a[ab]$"}),
    "schema: huge count": ("json_schema", {"type": "string", "pattern": "^a{1000000}$"}),
    "schema: pattern of a property's name": ("json_schema", {"patternProperties": {"(a*)*": TEXT}}),
    "schema: self reference": ("json_schema", {"$ref": "#"}),
    "schema: circle of references": (
        "json_schema",
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ),
    "schema: needs itself": ("json_schema", record({"next": {"$ref": "#"}})),
    "schema: list of itself": ("json_schema", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
    "schema: every branch needs itself": ("json_schema", {"anyOf": [record({"a": {"$ref": "#"}}), {"$ref": "#"}]}),
    "schema: http reference": ("json_schema", record({"a": {"$ref": "http://127.0.0.1:9/x.json"}})),
    "schema: file reference": ("json_schema", {"$ref": "file:///etc/passwd"}),
    "schema: reference into nothing": ("json_schema", {"$ref": "#/$defs/none"}),
    "schema: depth 3,000": ("json_schema", nested(3000)),
    "schema: depth 40": ("json_schema", nested(40)),
    "schema: unknown type": ("json_schema", record({"a": {"type": "something"}})),
    "schema: no object": ("json_schema", [1]),
    "schema: part is no schema": ("json_schema", record({"a": 3})),
    "schema: properties is a list": ("json_schema", {"type": "object", "properties": []}),
    "schema: 70 KB": ("json_schema", {"enum": ["x" * 70_000]}),
    "schema: a million parts": ("json_schema", {"anyOf": [{}] * 1_000_000}),
    "schema: NaN": ("json_schema", {"const": float("nan")}),
    "schema: 500k items": ("json_schema", {"type": "array", "items": WHOLE, "minItems": 500_000}),
    "schema: bounds that exclude each other": ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}),
    "schema: not held": ("json_schema", {"type": "array", "uniqueItems": True}),
    "schema: 1,500 optional properties": ("json_schema", {"properties": {f"p{i}": WHOLE for i in range(1500)}}),
    "schema: text that is no JSON": ("json_schema", "{"),
    "regex: bad": ("regex", "[a"),
    "regex: empty": ("regex", ""),
    "regex: no text": ("regex", 3),
    "regex: nested counts": ("regex", "((a{1,100}){1,100}){1,100}"),
    "regex: nested repeat": ("regex", "((a*)*)*b"),
    "regex: huge count": ("regex", "a{1000000}"),
    "regex: look-around": ("regex", "(?=a)b"),
    "regex: back-reference": ("regex", r"(a)\1"),
    "regex: 9 KB": ("regex", "a" * 9000),
    "regex: 100 brackets": ("regex", "(" * 100 + "a" + ")" * 100),
    "grammar: root of itself": ("grammar", "root ::= root"),
    "grammar: circle": ("grammar", "root ::= x\nx ::= root"),
    "grammar: 20k alternatives": ("grammar", "root ::= " + " | ".join(f'"{i}"' for i in range(20_000))),
    "grammar: 2,500 short alternatives": ("grammar", "root ::= " + " | ".join('"a"' for _ in range(2500))),
    "grammar: nested counts": ("grammar", 'root ::= (("a"{1,100}){1,100}){1,100}'),
    "grammar: nested repeats": ("grammar", 'root ::= (("a"*)*)*'),
    "grammar: many expressions": (
        "grammar",
        "root ::= " + " | ".join(f'[a-z]{{{n},999}} "{n}"' for n in range(1, 900)),
    ),
    "grammar: no root": ("grammar", 'start ::= "a"'),
    "grammar: rule that is not there": ("grammar", "root ::= other"),
    "grammar: open text": ("grammar", 'root ::= "a'),
    "grammar: half a character": ("grammar", 'root ::= "\\ud800"'),
    "grammar: another notation": ("grammar", "%llguidance {}\nstart: /a/"),
    "grammar: empty": ("grammar", " "),
    "choice: none": ("choice", []),
    "choice: no text": ("choice", ["a", 1]),
    "choice: 1,001": ("choice", [str(n) for n in range(1001)]),
    "choice: 40 KB": ("choice", ["x" * 40_000]),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_constraint_is_refused_within_a_second_with_its_field(loop: Loop, name: str) -> None:
    error, seconds = loop.refusal(*ATTACKS[name])
    assert error.status == 400
    assert (error.param or "").startswith("field")
    assert seconds < 1.0
    assert "llguidance" not in error.message


def test_refusal_without_compiling_is_told_in_fifty_milliseconds(loop: Loop) -> None:
    for name in ("schema: depth 3,000", "schema: http reference", "regex: nested counts", "grammar: 20k alternatives"):
        assert loop.refusal(*ATTACKS[name])[1] < 0.05, name


ACCEPTED: dict[str, tuple[Limit, Any]] = {
    "closed record": (
        "json_schema",
        record({"name": TEXT, "age": {**WHOLE, "maximum": 120}}, additionalProperties=False),
    ),
    "list": ("json_schema", record({"items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 3}})),
    "enum": ("json_schema", record({"color": {"enum": ["red", "green", None, 3]}, "ok": {"type": "boolean"}})),
    "number": ("json_schema", record({"a": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 3}})),
    "date": ("json_schema", record({"d": {**TEXT, "format": "date"}, "i": {**TEXT, "format": "ipv4"}})),
    "uuid": ("json_schema", {**TEXT, "format": "uuid"}),
    "pattern": ("json_schema", record({"code": {**TEXT, "pattern": "^[A-Z]{2}-\\d{4}$"}})),
    "pattern with quotes in classes": ("json_schema", {**TEXT, "pattern": '^x[^a]{2}["b][\\s\\S]$'}),
    "lengths": ("json_schema", record({"s": {**TEXT, "minLength": 3, "maxLength": 6}})),
    "tuple": ("json_schema", {"type": "array", "prefixItems": [TEXT, {"const": 1}], "items": False, "minItems": 2}),
    "reference": (
        "json_schema",
        {
            "type": "array",
            "items": {"$ref": "#/$defs/p"},
            "maxItems": 1,
            "$defs": {"p": record({"x": {"enum": [1, 2]}})},
        },
    ),
    "recursive": (
        "json_schema",
        record({"v": {"const": 1}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}),
    ),
    "one of": (
        "json_schema",
        {
            "oneOf": [
                record({"k": {"const": "a"}, "x": {"enum": [1]}}),
                record({"k": {"const": "b"}, "y": {"enum": [2]}}),
            ]
        },
    ),
    "all of": ("json_schema", {"allOf": [record({"a": {"enum": [1, 2]}}), record({"b": {"type": "null"}})]}),
    "multiple": ("json_schema", {"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 99}),
    "map": (
        "json_schema",
        {"type": "object", "additionalProperties": {"enum": [1]}, "minProperties": 1, "maxProperties": 2},
    ),
    "pattern properties": (
        "json_schema",
        {"patternProperties": {"^x_[a-z]$": {"enum": [1]}}, "additionalProperties": False, "type": "object"},
    ),
    "several types": ("json_schema", {"type": ["boolean", "null"]}),
    "required only": ("json_schema", {"type": "object", "required": ["z"], "maxProperties": 2}),
    "constant": ("json_schema", {"const": {"a": [1, "é中"]}}),
    "other scripts": ("json_schema", record({"名字": {"enum": ["张三"]}, 'q"k': {"enum": [1]}})),
    "optional": ("json_schema", record({f"p{i}": {"enum": [1]} for i in range(40)}, ["p3"])),
    "any object": ("json_object", None),
    "digits": ("regex", "[0-9]{3}-[a-z]{2,4}"),
    "anchored": ("regex", "^(yes|no)$"),
    "slashes": ("regex", "a/b\\/c"),
    "words": ("regex", "(\\w+\\s?){1,3}"),
    "heavy but bounded": ("regex", "(.*a.{3}){2}"),
    "yes or no": ("grammar", 'root ::= "yes" | "no"'),
    "overlapping parts": ("grammar", 'root ::= [a-z]{0,3} "x" ("b"+)? "\\u00e9\\x21\\[~"'),
    "classes with signs": ("grammar", "root ::= [&&a~~\\]\\x5b-]{4} [^\\x00-\\x40]"),
    "recursive grammar": ("grammar", 'root ::= "(" root ")" | [0-9]{1,3}'),
    "ambiguous grammar": ("grammar", 'root ::= s\ns ::= "a" s "b" | "a" s "c" | "x"'),
    "counts through rules": ("grammar", 'root ::= a{900}\na ::= b{900}\nb ::= c{900}\nc ::= "x" | "y" root'),
    "choice": ("choice", ["yes", "no", 'q"x\n']),
    "choice with a common beginning": ("choice", ["a", "ab", "abc"]),
}
GRAMMARS = {
    "yes or no": "yes|no",
    "overlapping parts": r"[a-z]{0,3}xb*é!\[~",
    "classes with signs": r"[&a~\]\[-]{4}[^\x00-\x40]",
    "recursive grammar": r"\(*[0-9]{1,3}\)*",
    "ambiguous grammar": "a*x[bc]*",
    "counts through rules": "[xy]*",
}


@pytest.fixture(scope="module")
def llamacpp(smollm2_gguf: Path) -> Iterator[RunningEngine]:
    engine = start_server(
        smollm2_gguf, LlamaCppSettings(context_length=512, parallel=1, threads=1, waiting="sleep"), name="real"
    )
    yield engine
    engine.stop()


@pytest.mark.real
def test_accepted_constraint_holds_on_llama_cpp_and_does_not_stall_it(loop: Loop, llamacpp: RunningEngine) -> None:
    whole = 0
    with httpx.Client(base_url=llamacpp.url, headers=llamacpp.headers, trust_env=False, timeout=60) as client:
        for name, (kind, value) in ACCEPTED.items():
            constraint = loop.check(kind, value)
            body = {
                "messages": [{"role": "user", "content": "Give an example."}],
                "grammar": constraint.lark,
                "max_tokens": 24,
                "temperature": 0,
            }
            began = time.perf_counter()
            choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
            seconds = time.perf_counter() - began
            answer, ended = choice["message"]["content"], choice["finish_reason"] == "stop"
            whole += ended
            assert seconds < 8, name  # 24 tokens take 0.3 s on a machine that does nothing else
            assert _begins(constraint, answer), (name, answer)
            if ended:
                _check(name, kind, value, answer)
    assert whole >= len(ACCEPTED) * 0.5  # else nothing was checked


def _check(name: str, kind: str, value: Any, answer: str) -> None:
    if kind.startswith("json"):
        jsonschema.validate(json.loads(answer), value or {"type": "object"}, format_checker=jsonschema.FormatChecker())
    elif kind == "choice":
        assert answer in value
    else:
        pattern = value if kind == "regex" else GRAMMARS[name]
        assert re.fullmatch(pattern, answer), (name, answer)


def _begins(constraint: Constraint, answer: str) -> bool:
    """Whether an answer, perhaps cut off, is the beginning of one that matches."""
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary()))
    matcher = LLMatcher(tokenizer, constraint.lark or "", log_level=0)
    ids = _Vocabulary()(answer.rstrip("�"))
    return matcher.try_consume_tokens(ids) == len(ids)


def test_worker_that_hangs_is_killed_and_the_next_request_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "COMPILE_S", 0.2)

    async def scenario() -> tuple[str, float, str]:
        worker = ConstraintWorker()
        await worker.start()
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGSTOP)
        began = time.perf_counter()
        with pytest.raises(ApiError) as caught:
            await worker.compile("lark", "start: /a/", "field")
        seconds = time.perf_counter() - began
        monkeypatch.setattr(constraints, "COMPILE_S", 5.0)
        lark = await worker.compile("lark", "start: /b/", "field")
        await worker.close()
        return caught.value.message, seconds, lark

    message, seconds, lark = asyncio.run(scenario())
    assert "too complex" in message
    assert seconds < 1.0
    assert lark.endswith("start: /b/")


def test_verdicts_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "KEPT", 2)

    async def scenario() -> tuple[int, int]:
        worker = ConstraintWorker()
        for _ in range(2):
            for pattern in ("a", "b", "[c"):
                try:
                    await worker.compile("lark", f"start: /{pattern}/", "field")
                except ApiError as error:
                    assert error.status == 400
        kept, size = len(worker._verdicts), worker._bytes
        await worker.close()
        with pytest.raises(ApiError):  # a refusal is remembered: no process is started for it
            await worker.compile("lark", "start: /[c/", "field")
        assert worker._process is None
        return kept, size

    kept, size = asyncio.run(scenario())
    assert kept == 2
    assert size == len("%llguidance {}\nstart: /b/")


def test_too_many_who_wait_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[Any]:
        worker = ConstraintWorker()
        asked = (worker.compile("lark", f"start: /a{n}/", "field") for n in range(4))
        found = await asyncio.gather(*asked, return_exceptions=True)
        monkeypatch.setattr(constraints, "WAITING", 1)
        asked = (worker.compile("lark", f"start: /b{n}/", "field") for n in range(3))
        found += await asyncio.gather(*asked, return_exceptions=True)
        await worker.close()
        return found

    found = asyncio.run(scenario())
    assert [getattr(each, "status", 200) for each in found] == [200, 200, 200, 429, 200, 200, 503]
    assert found[3].headers == [(b"retry-after", b"1")]


def test_client_that_leaves_does_not_mix_up_replies() -> None:
    async def scenario() -> str:
        worker = ConstraintWorker()
        await worker.start()
        left = asyncio.create_task(worker.compile("lark", "start: /left/", "field"))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        lark = await worker.compile("lark", "start: /stays/", "field")
        await worker.close()
        return lark

    assert asyncio.run(scenario()).endswith("/stays/")


def test_event_loop_goes_on_while_a_constraint_is_compiled(loop: Loop) -> None:
    async def scenario() -> float:
        worst, last, done = 0.0, time.perf_counter(), False

        async def beat() -> None:
            nonlocal worst, last
            while not done:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                worst, last = max(worst, now - last), now

        beating = asyncio.create_task(beat())
        with pytest.raises(ApiError):
            await check_constraint("grammar", ATTACKS["grammar: many expressions"][1])
        done = True
        await beating
        return worst

    assert loop.runner.run(scenario()) < 0.15


def test_lenient_schema_keeps_what_cannot_be_held_and_refuses_the_rest(loop: Loop) -> None:
    schema = {"type": "array", "items": WHOLE, "uniqueItems": True}
    assert loop.check("json_schema", schema, strict=False).value == schema
    with pytest.raises(ApiError):
        loop.check("json_schema", {"$ref": "http://x/y"}, strict=False)


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": "array", "items": WHOLE, "uniqueItems": False, "not": False}, {"type": "array", "items": WHOLE}),
        (record({"a": WHOLE}, unevaluatedProperties=False), record({"a": WHOLE}, additionalProperties=False)),
        ({"type": "array", "items": WHOLE, "unevaluatedItems": False}, {"type": "array", "items": WHOLE}),
        (
            {"type": "array", "prefixItems": [WHOLE], "unevaluatedItems": False},
            {"type": "array", "prefixItems": [WHOLE], "items": False},
        ),
    ],
)
def test_keywords_that_are_false_are_held_in_words_that_grammars_know(loop: Loop, schema: Any, made: Any) -> None:
    assert loop.check("json_schema", schema).value == made


@pytest.mark.parametrize("keyword", ["contains", "if", "propertyNames"])
def test_keyword_that_is_false_and_cannot_be_held_is_named(loop: Loop, keyword: str) -> None:
    assert f"'{keyword}'" in loop.refusal("json_schema", {"type": "array", keyword: False})[0].message
    joined = {"allOf": [record({"a": WHOLE})], "unevaluatedProperties": False}
    assert "'unevaluatedProperties'" in loop.refusal("json_schema", joined)[0].message


def test_schema_cannot_change_how_it_is_compiled(loop: Loop) -> None:
    sly = {"x-guidance": {"lenient": True}, "$id": "http://x/", "type": "array", "contains": {}}
    assert loop.refusal("json_schema", sly)[0].status == 400
    kept = loop.check("json_schema", {"$schema": "x", "type": "string", "format": "zip", "x-guidance": {}})
    assert kept.value == {"type": "string"}


def test_objects_are_closed_where_nothing_adds_to_them(loop: Loop) -> None:
    plain = loop.check("json_schema", record({"a": WHOLE})).value
    assert plain["additionalProperties"] is False
    joined = loop.check("json_schema", {"allOf": [record({"a": WHOLE}), record({"b": WHOLE})]}).value
    assert all("additionalProperties" not in part for part in joined["allOf"])
    asked_open = loop.check("json_schema", record({"a": WHOLE}, additionalProperties=True)).value
    assert asked_open["additionalProperties"] is True
    missing = loop.check("json_schema", record({"a": WHOLE}, ["z"])).value
    assert "additionalProperties" not in missing


def test_repeats_that_are_harmless_are_accepted(loop: Loop) -> None:
    for pattern in ("(a+b)+", "(\\d{3}-){2}\\d{4}", "[*+]{3}x*", "a+?", "\\(a+\\)+", "(a{1,9}){1,9}", "(a|b+)*c"):
        assert loop.check("regex", pattern).lark is not None


def test_grammar_that_does_not_recurse_becomes_one_expression() -> None:
    assert gbnf_to_lark('root ::= w ("," w)*  # words\nw ::= [a-z]+') == (
        'W: /[a-z]/+\nINHOUSE_TOP: W ("," W)*\nstart: INHOUSE_TOP'
    )


@pytest.mark.parametrize(
    ("kind", "source", "verdict"),
    [
        ("lark", "start: /a|b/", "lark"),
        ("lark", 'start: %json {"type": "object"}', "lark"),
        ("lark", "start: /[/", "invalid"),
        ("grammar", 'root ::= ("a"+)? | b\nb ::= [~&]{2} | "c" | root "x"', "lark"),
        ("grammar", 'root ::= inhouse-top\ninhouse-top ::= "a"', "lark"),
        ("grammar", "root ::= root", "unmatched"),
        ("grammar", "root ::= other", "invalid"),
        ("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "complex"),
    ],
)
def test_compiler_says_what_can_be_used_and_why_not(kind: str, source: str, verdict: str) -> None:
    from llguidance import LLTokenizer, TokenizerWrapper

    said = judge(kind, source, LLTokenizer(TokenizerWrapper(_Vocabulary())))
    assert said.get("refused", "lark") == verdict
    assert ("lark" in said) == (verdict == "lark")


def test_body_fields_name_one_constraint() -> None:
    schema = {"type": "object"}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    found = find_constraint(asked, {})
    assert found is not None and (found.kind, found.value, found.strict) == ("json_schema", schema, True)
    assert found.param == "response_format.json_schema.schema"
    flat = find_constraint({"type": "json_schema", "name": "x", "schema": schema, "strict": False}, {})
    assert flat is not None and (flat.value, flat.strict) == (schema, False)
    assert find_constraint({"type": "text"}, {"structured_outputs": {"json": None}}) is None
    for extra, kind in (
        ({"guided_regex": "a"}, "regex"),
        ({"guided_json": schema}, "json_schema"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "grammar"),
        ({"structured_outputs": {"json_object": True}}, "json_object"),
    ):
        named = find_constraint(None, extra)
        assert named is not None and named.kind == kind


@pytest.mark.parametrize(
    ("response_format", "extra", "param"),
    [
        ({"type": "json_object"}, {"guided_regex": "a"}, "guided_regex"),
        ({"type": "yaml"}, {}, "response_format.type"),
        ("json", {}, "response_format"),
        ({"type": "json_schema", "json_schema": 3}, {}, "response_format.json_schema"),
        ({"type": "json_schema"}, {}, "response_format.json_schema"),
        (None, {"structured_outputs": 3}, "structured_outputs"),
        (None, {"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ],
)
def test_body_fields_that_are_wrong_are_named(response_format: Any, extra: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        find_constraint(response_format, extra)
    assert (caught.value.status, caught.value.param) == (400, param)
