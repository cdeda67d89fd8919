"""How far a review is, and how far its reviewers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from inhouse.core.agreement import Agreement, agreement
from inhouse.core.artifact import Frozen
from inhouse.data.label.review.queue import AGREEMENT, Queue, Task


class PairAgreement(Frozen):
    """Two reviewers on the texts that both answered."""

    reviewers: tuple[str, str]
    agreement: Agreement


class LabelAgreement(Frozen):
    """How often the second reviewer chose a label where the first did: 2·both / (answers with it), over all pairs.

    Positive specific agreement (Cicchetti & Feinstein 1990, J. Clin. Epidemiol. 43:551).
    """

    label: str
    answers: int
    share: float


class ReviewStatus(Frozen):
    """The state of one queue. Texts `given` a label before, of which `checked` are decided, `corrected` otherwise."""

    queue: str
    labels: tuple[str, ...]
    tasks: int
    open: int
    disputed: int
    decided: int
    adjudicated: int
    given: int = 0
    checked: int
    corrected: int
    answers: dict[str, int]
    pairs: tuple[PairAgreement, ...]
    by_label: tuple[LabelAgreement, ...]


def status_of(queue: Queue, tasks: Sequence[Task]) -> ReviewStatus:
    """Count the texts by state and compare the reviewers, always as they answered before adjudication."""
    states = Counter(task.state for task in tasks)
    checked = [task for task in tasks if task.label is not None and task.asked.given is not None]
    pairs = pairs_of(tasks)
    return ReviewStatus(
        queue=queue.name,
        labels=queue.labels,
        tasks=len(tasks),
        open=states["open"],
        disputed=states["disputed"],
        decided=states["decided"],
        adjudicated=sum(task.decided_by not in (None, AGREEMENT) for task in tasks),
        given=sum(task.asked.given is not None for task in tasks),
        checked=len(checked),
        corrected=sum(task.label != task.asked.given for task in checked),
        answers=dict(sorted(Counter(name for task in tasks for name, _ in task.answers).items())),
        pairs=tuple(
            PairAgreement(reviewers=names, agreement=found)
            for names, both in sorted(pairs.items())
            if (found := agreement(both)) is not None
        ),
        by_label=tuple(_by_label([pair for both in pairs.values() for pair in both])),
    )


def pairs_of(tasks: Sequence[Task]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The labels of every two reviewers on the texts that both answered."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for task in tasks:
        for (one, first), (other, second) in combinations(sorted(task.answers), 2):
            found.setdefault((one, other), []).append((first, second))
    return found


def _by_label(pairs: Sequence[tuple[str, str]]) -> list[LabelAgreement]:
    answers = Counter(label for pair in pairs for label in pair)
    both = Counter(one for one, other in pairs if one == other)
    return [
        LabelAgreement(label=label, answers=count, share=2 * both[label] / count)
        for label, count in sorted(answers.items())
    ]
