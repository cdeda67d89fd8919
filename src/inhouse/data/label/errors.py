"""Rank rows whose given label is probably wrong, by confident learning.

Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70. Implemented
from the paper: out-of-sample probabilities, per-class thresholds, the confident joint, ranking by margin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from inhouse.core.agreement import Agreement, agreement
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.run import Events
from inhouse.data.label.items import Item, begin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

CHARS = 2000  # beginning of a text that is looked at
FEATURES = 30_000  # character n-grams, the most frequent ones
WEAK_KAPPA = 0.4  # the upper end of what Landis & Koch (1977) call fair
STRENGTH = 3.0  # C of the logistic regression: much more learns the wrong labels too, much less sees too few classes


class FindErrors(Params):
    """How doubtful labels are found."""

    folds: int = Field(5, ge=2, le=20, description="parts: each is judged by a model trained on the others")


class Suspect(Frozen):
    """A row to which a model trained on other rows would give another label.

    `confident`: the other label's probability reaches that label's threshold, so that the paper counts it as an error.
    """

    id: str
    text: str
    given: str
    likely: str
    given_probability: float
    likely_probability: float
    confident: bool

    @property
    def margin(self) -> float:
        """How much likelier the other label is; rows are ranked by it."""
        return self.likely_probability - self.given_probability


class Noise(Frozen):
    """How many rows of a label are probably wrong, estimated from the confident joint."""

    label: str
    rows: int
    wrong: float  # share


class Doubts(Frozen):
    """Suspects, the worst first, and the estimated noise of each label.

    `judge` compares the labels that the judging models would give with the given ones: where it is little better than
    chance there were too few rows to learn from, and neither suspects nor noise mean much.
    """

    rows: int
    skipped: int  # rows without a label, repeated rows, and rows of a label that has fewer rows than folds
    suspects: tuple[Suspect, ...]
    noise: tuple[Noise, ...]
    judge: Agreement

    @property
    def weak(self) -> bool:
        """Whether the judge agrees with the given labels too little to be believed (kappa below 0.4)."""
        return self.judge.kappa is None or self.judge.kappa < WEAK_KAPPA


@dataclass(frozen=True)
class Joint:
    """`counts[i][j]`: rows given label i that confidently belong to j; `confident[r]`: j of row r, -1 for none."""

    counts: Ints
    confident: Ints


def find_errors(items: Sequence[Item], params: FindErrors, events: Events) -> Doubts:
    """Judge every labelled row by a model that has not seen it. Raises label.few_labelled.

    The result does not depend on the order of the rows.
    """
    require("eval", "sklearn", "numpy")
    rows = usable(items, params.folds)
    labels = sorted({item.label for item in rows if item.label is not None})
    if len(labels) < 2:
        raise UserError("label.few_labelled", rows=len(rows), labels=len(labels), folds=params.folds)
    given = [labels.index(item.label or "") for item in rows]
    begin(events, "label_errors")
    probabilities = out_of_sample([item.text[:CHARS] for item in rows], given, params, events)
    joint = confident_joint(given, probabilities)
    noise = noise_of(given, joint.counts)
    guesses = [labels[number] for number in probabilities.argmax(axis=1).tolist()]
    judge = agreement([(labels[number], guess) for number, guess in zip(given, guesses, strict=True)])
    assert judge is not None  # there are rows
    return Doubts(
        rows=len(rows),
        skipped=len(items) - len(rows),
        suspects=tuple(_suspects(rows, labels, probabilities, joint)),
        noise=tuple(
            Noise(label=label, rows=given.count(number), wrong=round(float(noise[number]), 6))
            for number, label in enumerate(labels)
        ),
        judge=judge,
    )


def usable(items: Sequence[Item], folds: int) -> list[Item]:
    """Labelled rows, each text and label once, by id; labels with fewer rows than folds are left out."""
    once = {(item.id, item.label or ""): item for item in reversed(items) if item.label is not None}
    rows = [once[key] for key in sorted(once)]
    counts = Counter(item.label for item in rows)
    return [item for item in rows if counts[item.label] >= folds]


def folds_of(given: Sequence[int], folds: int) -> list[int]:
    """The fold of each row: the rows of a label take turns, so that every fold holds its share of every label."""
    seen: Counter[int] = Counter()
    found = []
    for label in given:
        found.append(seen[label] % folds)
        seen[label] += 1
    return found


def out_of_sample(texts: Sequence[str], given: Sequence[int], params: FindErrors, events: Events) -> Floats:
    """Probability of each label for each row, shape (rows, labels), from a model trained on the other folds.

    Character n-grams, so that Chinese needs no segmentation.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    labels, fold = np.array(given), np.array(folds_of(given, params.folds))
    found = np.zeros((len(texts), int(labels.max()) + 1))
    for number in range(params.folds):
        events.progress(number, params.folds, "folds")
        train, held = np.flatnonzero(fold != number).tolist(), np.flatnonzero(fold == number).tolist()
        grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2, sublinear_tf=True, max_features=FEATURES)
        model = LogisticRegression(C=STRENGTH, max_iter=300, tol=1e-3)
        with threadpool_limits(1):  # threads of the linear algebra wait for each other by spinning: 14 s CPU for 1 s
            model.fit(grams.fit_transform([texts[i] for i in train]), labels[train])
        found[np.ix_(held, model.classes_)] = model.predict_proba(grams.transform([texts[i] for i in held]))
    events.progress(params.folds, params.folds, "folds")
    return found


def confident_joint(given: Sequence[int], probabilities: Floats) -> Joint:
    """Count rows by given label and the label they confidently belong to.

    A row confidently belongs to the likeliest of those labels whose probability reaches that label's threshold: the
    mean probability of the label over the rows that are given it (equations 1 and 2).
    """
    import numpy as np

    labels = np.array(given)
    count = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(count)])
    reached = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    confident = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
    counts = np.zeros((count, count), dtype=np.int64)
    np.add.at(counts, (labels[confident >= 0], confident[confident >= 0]), 1)
    return Joint(counts, confident.astype(np.int64))


def noise_of(given: Sequence[int], counts: Ints) -> Floats:
    """Share of each label's rows that belong elsewhere: each line of the joint brought to its sum (equation 3)."""
    import numpy as np

    sums = counts.sum(axis=1)
    right = counts.diagonal()
    return np.where(sums > 0, 1 - right / np.maximum(sums, 1), 0.0)


def _suspects(rows: Sequence[Item], labels: Sequence[str], probabilities: Floats, joint: Joint) -> list[Suspect]:
    """Rows of which another label is likelier than the given one, by margin."""
    import numpy as np

    given = np.array([labels.index(item.label or "") for item in rows])
    others = probabilities.copy()
    others[np.arange(len(rows)), given] = -1.0
    likely = others.argmax(axis=1)
    found = []
    for row, item in enumerate(rows):
        mine, other = probabilities[row, given[row]], probabilities[row, likely[row]]
        if other <= mine:
            continue
        found.append(
            Suspect(
                id=item.id, text=item.text, given=labels[given[row]], likely=labels[likely[row]],
                given_probability=round(float(mine), 6), likely_probability=round(float(other), 6),
                confident=int(joint.confident[row]) not in (-1, int(given[row])),
            )
        )  # fmt: skip
    return sorted(found, key=lambda suspect: (-suspect.margin, suspect.id, suspect.given))
