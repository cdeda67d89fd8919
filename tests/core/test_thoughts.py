"""Thoughts before answers, and prompts that open them."""

from __future__ import annotations

import pytest

from inhouse.core.thoughts import continued, opens_thought, split_thought, writes_thoughts


@pytest.mark.parametrize(
    ("said", "thought", "answer"),
    [
        ("2", "", "2"),
        (" <think>\n\n</think>\n\n2 ", "", "2"),
        ("<think>one and one</think>2", "one and one", "2"),
        ("one and one\n</think>\n\n2", "one and one", "2"),  # the prompt had the tag
        ("<think>cut", "", "<think>cut"),
        ("so <think>no</think>2", "", "so <think>no</think>2"),
        ("<think>a</think>b</think>", "a", "b</think>"),
    ],
)
def test_answer_is_told_apart_from_the_thought_before_it(said: str, thought: str, answer: str) -> None:
    assert split_thought(said) == (thought, answer)


@pytest.mark.parametrize(
    ("prompt", "whole", "thought", "told"),
    [
        ("q|a:", "q|a:2|", "", "q|a:2|"),
        ("q|a:<think>\n", "q|a:2|", "", "q|a:<think>\n\n</think>\n\n2|"),
        ("q|a:<think>\n", "q|a:2|", "hm", "q|a:<think>\nhm\n</think>\n\n2|"),
        ("q|a:<think>", "q|a:\n\n2|", "hm", "q|a:<think>\nhm\n</think>\n\n2|"),
        ("q|a:<think>\n", "q|a:<think>\nhm\n</think>\n\n2|", "hm", "q|a:<think>\nhm\n</think>\n\n2|"),
        ("q|a:<think>\n", "q|a:<think>hm</think>2|", "hm", "q|a:<think>\nhm\n</think>\n\n2|"),
        ("q|a:<think>\n", "p|a:2|", "", None),
        ("q|a:\n\n", "q|a:2|", "", None),
    ],
)
def test_answer_goes_on_from_its_prompt_behind_a_thought_that_the_prompt_opens(
    prompt: str, whole: str, thought: str, told: str | None
) -> None:
    assert continued(prompt, whole, thought) == told


def test_template_and_prompt_tell_whether_there_are_thoughts() -> None:
    assert writes_thoughts("{{ content.split('</think>')[-1] }}")
    assert not writes_thoughts("{{ content }}") and not writes_thoughts(None)
    assert opens_thought("assistant\n<think>\n") and not opens_thought("<think>\n\n</think>\n\n")
