"""Answers for questions that mean the same: kept answers found by the embedding of the last message.

Only within what else decides the answer: tenant, release, earlier turns and settings must be equal.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inhouse.core.serving import Ask
from inhouse.serve.cache import request_name

if TYPE_CHECKING:
    import numpy as np

MOST_CONTEXTS = 1024
MOST_QUESTIONS = 4096  # of one context; the oldest are forgotten
BLANK = {"role": "user", "content": ""}


@dataclass
class Questions:
    """The questions of one context: their vectors, unit length, as rows; and the names of their answers."""

    vectors: np.ndarray[Any, Any]
    names: list[str]


class SemanticIndex:
    """Finds the kept answer of the most similar question."""

    def __init__(self, at_least: float) -> None:
        self.at_least = at_least
        self._contexts: OrderedDict[str, Questions] = OrderedDict()

    def question(self, ask: Ask) -> str | None:
        """The text that is compared: a last turn of the user, with nothing that tools could change."""
        if not ask.messages or ask.tools or ask.messages[-1]["role"] != "user":
            return None
        return str(ask.messages[-1]["content"])

    def context(self, ask: Ask, tenant: str, release: str) -> str:
        """What questions must share besides their meaning."""
        return request_name(replace(ask, messages=[*(ask.messages or ())[:-1], BLANK]), tenant, release)

    def find(self, context: str, vector: list[float]) -> list[str]:
        """Names of answers whose question is similar enough, the most similar first."""
        import numpy as np

        known = self._contexts.get(context)
        if known is None:
            return []
        self._contexts.move_to_end(context)
        likeness = known.vectors @ np.asarray(vector, np.float32)
        best = np.argsort(-likeness)[:3]
        return [known.names[at] for at in best if likeness[at] >= self.at_least]

    def keep(self, context: str, vector: list[float], name: str) -> None:
        """Remember a question and the name of its answer."""
        import numpy as np

        row = np.asarray(vector, np.float32)[None]
        known = self._contexts.get(context)
        if known is None:
            self._contexts[context] = Questions(row, [name])
            if len(self._contexts) > MOST_CONTEXTS:
                self._contexts.popitem(last=False)
            return
        known.vectors = np.concatenate([known.vectors, row])[-MOST_QUESTIONS:]
        known.names = [*known.names, name][-MOST_QUESTIONS:]

    def clear(self) -> None:
        """Forget everything."""
        self._contexts.clear()
