"""What says that answers were learned: neither their ends nor what all of them begin with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from inhouse.train.endings import shares_right
from inhouse.train.spans import Sample

END, EMPTY, THOUGHT = 9, 7, 8


class Parrot:
    """A model that says what it was told to say at each place."""

    ends = frozenset({END})

    def __init__(self, said: dict[tuple[int, ...], list[int]]) -> None:
        self.said = said

    def all_logits(self, ids: tuple[int, ...]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.said[tuple(ids)]), 10).float()


def sample(*answer: int) -> Sample:
    return Sample((1, 2, *answer), (False, False, *[True] * len(answer)))


def parrot(*answers: tuple[Sample, list[int]]) -> Any:
    return cast(Any, Parrot({one.ids[:-1]: [0, *said] for one, said in answers}))


def test_an_empty_thought_before_every_answer_says_nothing_of_what_was_learned() -> None:
    one, two = sample(EMPTY, THOUGHT, 3, END), sample(EMPTY, THOUGHT, 4, 5, END)
    model = parrot((one, [EMPTY, THOUGHT, 0, 0]), (two, [EMPTY, THOUGHT, 4, 0, 0]))
    assert shares_right(model, [one, two]) == (0.0, pytest.approx(1 / 3))


def test_answers_that_are_all_the_same_count_whole() -> None:
    one = sample(3, 4, END)
    model = parrot((one, [3, 4, END]))
    assert shares_right(model, [one, one]) == (1.0, 1.0)
    nothing: Any = SimpleNamespace(ends=frozenset())
    assert shares_right(nothing, []) == (None, None)
