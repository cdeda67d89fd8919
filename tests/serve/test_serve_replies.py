"""Answers in the shapes of OpenAI: tokens with names of their own, choices in their order, pauses between tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inhouse.core.serving import Ask, Delta, Sampling
from inhouse.serve.measured import Measured
from inhouse.serve.replies import StreamReply, legacy_logprobs
from inhouse.serve.requests import Asked


def told(token: str, raw: list[int], logprob: float) -> dict[str, Any]:
    return {"token": token, "bytes": raw, "logprob": logprob}


def test_parts_of_characters_are_named_by_their_bytes_and_none_hides_another() -> None:
    likely = [told("\ufffd", [182], -0.25), told("\ufffd", [177, 10], -2.5), told(" a", [32, 97], -4.0)]
    entries = [told("父", [231, 136, 182], -0.25) | {"top_logprobs": likely}, told("\ufffd", [231], -1.0)]
    assert legacy_logprobs(entries, 3) == {
        "tokens": ["父", "bytes:\\xe7"],
        "token_logprobs": [-0.25, -1.0],
        "top_logprobs": [{"bytes:\\xb6": -0.25, "bytes:\\xb1\\x0a": -2.5, " a": -4.0}, None],
        "text_offset": [3, 4],
    }


def test_replacement_character_that_the_model_wrote_itself_is_a_text() -> None:
    written = told("\ufffd", list("\ufffd".encode()), -0.5)
    assert legacy_logprobs([written, {"token": "\ufffd", "logprob": -1.0}], 0)["tokens"] == ["\ufffd", "\ufffd"]


def test_choices_of_a_stream_begin_in_their_order_whichever_engine_slot_is_first() -> None:
    asked = Asked("desk", Ask(Sampling(8, n=3), messages=[{"role": "user", "content": "x"}]), stream=True)
    reply = StreamReply(cast(Any, SimpleNamespace()), asked)
    told = reply._events([Delta("c", 2), Delta("a", 0), Delta("b", 1)]).decode()
    chunks = [json.loads(line[6:])["choices"][0] for line in told.splitlines() if line]
    assert [chunk["index"] for chunk in chunks] == [0, 1, 2, 0, 1]
    assert [chunk["delta"].get("role") for chunk in chunks] == ["assistant"] * 3 + [None] * 2
    assert [chunk["delta"]["content"] for chunk in chunks] == ["", "", "c", "a", "b"]


def test_piece_that_only_ends_an_answer_is_no_pause_between_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("inhouse.serve.measured.time.monotonic", lambda: now[0])
    seen = Measured(began=9.0)
    for text, tokens, finish in (("a", 1, None), ("b", 1, None), ("c", 1, None), ("", 0, "stop")):
        seen.add([Delta(text, tokens=tokens, finish=cast(Any, finish))])
        now[0] += 0.5
    assert (seen.gaps, seen.first, seen.last, seen.finish) == ([0.5, 0.5], 10.0, 11.0, "stop")
