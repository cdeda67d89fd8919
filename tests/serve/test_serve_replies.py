"""Log-probabilities in the shape of completions: every token has a name of its own."""

from __future__ import annotations

from typing import Any

from inhouse.serve.replies import legacy_logprobs


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
