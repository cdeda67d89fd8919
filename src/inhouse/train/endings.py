"""Whether a tuned model ends its answers, and whether it should by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError
from inhouse.core.protocols import Prompt, question_of
from inhouse.core.run import Events
from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    from inhouse.engines.transformers import TransformersEngine

PROMPTED = 4  # training prompts that the tuned model answers
READ = 16  # training samples in which the likeliest token is looked up at every learned place
MOST_TOKENS = 64  # an answer longer than this is not waited for
LEARNED = 0.5  # from this share of rightly predicted tokens on, something counts as learned


@dataclass(frozen=True)
class Endings:
    """How answers end. `ends_right` and `words_right` are shares of learned places whose likeliest token is right."""

    answers_probed: int
    answers_ended: int
    ends_right: float | None  # None: no sample has an end to learn
    words_right: float | None  # None: no sample has anything else to learn

    @property
    def facts(self) -> dict[str, float | int | None]:
        """The figures by name."""
        return asdict(self)


def judge_endings(
    engine: TransformersEngine, samples: Sequence[Sample], prompts: Sequence[Prompt], events: Events
) -> Endings:
    """See whether the model's own answers end, and where it expects an end in the answers it learned.

    Raises train.never_ends when no answer ends although the samples end theirs and training came far enough to show
    it: the answers' other tokens are predicted rightly (LEARNED), their ends are not. Then the end is not learned, and
    no further training will help. When the other tokens are not predicted either, training was short: a note says so.
    """
    ends_right, words_right = shares_right(engine, [sample for sample in samples if any(sample.learned)][:READ])
    longest = max((sum(sample.learned) for sample in samples), default=0)
    asked = [prompt for prompt in prompts if question_of(prompt).turns][:PROMPTED]  # a plain text has nothing to answer
    most = min(MOST_TOKENS, longest + 8)
    answers = engine.generate(asked, most, lambda _: events.check()) if asked else []
    found = Endings(len(asked), sum(answer.finish == "stop" for answer in answers), ends_right, words_right)
    if asked and not found.answers_ended:
        learned_words = words_right is None or words_right >= LEARNED
        if learned_words and (ends_right is None or ends_right < LEARNED):
            said = {"ends": _percent(ends_right), "words": _percent(words_right)}
            raise UserError("train.never_ends", prompts=len(asked), **said)
        if longest <= MOST_TOKENS:
            events.note("train.no_end_learned", prompts=len(asked))
    return found


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def shares_right(engine: TransformersEngine, samples: Sequence[Sample]) -> tuple[float | None, float | None]:
    """Shares of learned end tokens, and of the other learned tokens, that are the likeliest where they stand.

    Tokens that stand in all answers, such as the empty thought of a template or the words that every thought has, say
    nothing of what was learned.
    """
    right: dict[bool, list[bool]] = {True: [], False: []}
    constant = _in_all([_last_answer(sample) for sample in samples])
    for sample in samples:
        best = engine.all_logits(sample.ids[:-1]).argmax(-1).tolist()
        for place in range(1, len(sample.ids)):
            if sample.learned[place]:
                ends, guess = sample.ids[place] in engine.ends, best[place - 1]
                if ends or sample.ids[place] not in constant:
                    right[ends].append(guess in engine.ends if ends else guess == sample.ids[place])
    ends_right, words_right = (sum(found) / len(found) if found else None for found in (right[True], right[False]))
    return ends_right, words_right


def _last_answer(sample: Sample) -> tuple[int, ...]:
    """The tokens from where the last answer begins."""
    at = len(sample.learned)
    while at and sample.learned[at - 1]:
        at -= 1
    return sample.ids[at:]


def _in_all(answers: Sequence[tuple[int, ...]]) -> frozenset[int]:
    """Tokens that stand in every answer; none where there is one answer, or no other token in any."""
    found = frozenset(answers[0]).intersection(*answers[1:]) if len(answers) > 1 else frozenset()
    return found if any(not found.issuperset(answer) for answer in answers) else frozenset()
