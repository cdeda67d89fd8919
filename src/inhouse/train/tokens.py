"""Rows as token ids through the model's own template, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from inhouse.core.errors import UserError
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.train.spans import Coder, Sample, Talk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Counts", "Limit", "OverLength", "Pair", "Pairs", "Sample", "Samples", "Turns"]

Turns = Literal["last", "all"]
OverLength = Literal["drop", "truncate", "split"]
UNREADABLE = ("prompt.control_token", "prompt.nested")  # a row that raises one of these is left out, and named
NAMED = 5  # ids of such rows in a note
CHUNK = 256  # rows that are rendered and cut into tokens together


class Limit(NamedTuple):
    """How long a sample may be, whose turns are learned, and what becomes of a longer conversation.

    drop: left out. truncate: its first tokens are kept; without a learned token among them it is left out. split: cut
    between questions, each part with the system turn; of a conversation of which the last answer is learned, the
    latest part. Plain documents are always cut into windows, and no token is lost.
    """

    longest: int
    turns: Turns = "last"
    over_length: OverLength = "drop"


@dataclass
class Counts:
    """What became of the rows on their way into samples."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    shortest: int = 0  # of the conversations, those that were left out included
    over_length: int = 0  # conversations of more than max_length tokens
    dropped: int = 0  # of these, those that gave no sample
    truncated: int = 0  # of these, those that lost their last tokens
    answers_cut: int = 0  # of these, those in which tokens of an answer were lost
    answers_dropped: int = 0  # answers with a sample of their own that was left out, of these that kept another's
    split: int = 0  # of these, those that were cut between questions
    questions_lost: int = 0  # questions with their answers that no part has
    end_inside: int = 0  # conversations with an end-of-turn token in an answer's text: learned up to there
    apart: int = 0  # conversations that gave a sample for each answer, as the template rewrites earlier turns
    empty: int = 0  # documents without a token to learn
    control_texts: int = 0  # texts of users and tools with control tokens, which were broken
    refused: int = 0  # conversations with a text that cannot be made plain, which were left out
    calls_read: int = 0  # calls of tools that are read and not learned, as only the last answer is


@dataclass(frozen=True)
class Samples:
    """The samples that are trained on, how many rows were longer than the limit and left out, and all counts.

    `origins[i]` is the place of the row that `kept[i]` comes from; `refused` are ids of rows that were left out, as a
    text in them cannot be made plain.
    """

    kept: list[Sample]
    too_long: int
    origins: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    refused: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, int]:
        """The counts for an artifact's record."""
        return asdict(self.counts)


@dataclass(frozen=True)
class Pair:
    """A conversation with its better and with its worse answer; both begin with the same prompt."""

    chosen: Sample
    rejected: Sample


@dataclass(frozen=True)
class Pairs:
    """The pairs that are trained on, the place of the row of each, and which rows were left out.

    `too_long` is how many were longer than the limit, `refused` the ids of those with a text that cannot be made plain.
    """

    kept: list[Pair]
    origins: list[int]
    too_long: int
    refused: tuple[str, ...] = ()


def encode_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    limit: Limit | tuple[int, Turns],
    events: Events,
) -> Samples:
    """Tokens of every row through the model's template, at most `limit.longest` of them in a sample.

    Raises train.no_rows, train.no_answer, train.all_empty, train.all_refused, train.all_dropped, train.all_masked and
    what Coder.encode raises.
    """
    wanted = Limit(*limit)
    found = gather(rows, Coder(tokenizer, ends), wanted, events)
    counts = found.counts
    if not counts.rows:
        raise UserError("train.no_rows")
    if not found.kept:
        full = counts.rows - counts.empty
        if not full:
            raise UserError("train.all_empty", rows=counts.rows)
        if full == counts.refused:
            raise UserError("train.all_refused", rows=full)
        if wanted.over_length == "truncate":
            raise UserError("train.all_masked", rows=full - counts.refused, max_length=wanted.longest)
        raise UserError(
            "train.all_dropped", rows=full - counts.refused, max_length=wanted.longest, least=counts.shortest
        )
    _tell(counts, wanted, events)
    tell_refused(found.refused, counts.rows, events)
    return found


def gather(rows: Iterable[Row], coder: Coder, limit: Limit, events: Events) -> Samples:
    """The samples of rows, however few they are. Raises train.no_answer and what Coder.encode raises."""
    work = _Work(coder, limit)
    for chunk in _chunks(rows):
        events.progress(work.counts.rows, None, "rows")
        work.take(chunk)
    return Samples(work.kept, work.counts.dropped, work.origins, work.counts, tuple(work.refused))


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], turns: Turns = "last") -> Sample:
    """A row's token ids up to its last answer's end of turn; end-of-turn tokens are learned too.

    Raises torch.template_shifts where several samples would be needed.
    """
    coder = Coder(tokenizer, ends)
    if is_document(row):
        return coder.sample(*_all_learned(document_ids(tokenizer, [row.answer])[0]))
    talk = talk_of(row, turns)
    samples = coder.encode([talk])[0]
    if len(samples) > 1:
        raise UserError("torch.template_shifts", turn=talk.answers[0] + 1)
    return samples[0]


def encode_pairs(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], limit: Limit, events: Events
) -> Pairs:
    """Both conversations of every row; learned is what follows the last question, in turns of the assistant.

    A row of which one is longer than `limit.longest` is left out; `limit.turns` does not count. Raises
    train.pairs_over_length, train.no_rows, train.no_rejected, train.all_refused, train.all_dropped and what
    Coder.encode raises.
    """
    if limit.over_length != "drop":  # of cut answers it is not known which is the better one
        raise UserError("train.pairs_over_length", rule=limit.over_length)
    coder = Coder(tokenizer, ends)
    kept: list[Pair] = []
    origins: list[int] = []
    refused: list[str] = []
    count, least = 0, 0
    for chunk in _chunks(rows):
        events.progress(count, None, "rows")
        told = {place: _both(row) for place, row in enumerate(chunk, count)}
        bad = {place for place, both in told.items() if None in (broken_texts(coder, talk) for talk in both)}
        refused += [row.id for place, row in enumerate(chunk, count) if place in bad]
        places = [place for place in told if place not in bad]
        talks = [talk for place in places for talk in told[place]]
        samples = [_only(found, talk) for found, talk in zip(coder.encode(talks), talks, strict=True)]
        for place, chosen, rejected in zip(places, samples[::2], samples[1::2], strict=True):
            length = max(len(chosen.ids), len(rejected.ids))
            least = min(least or length, length)
            if length <= limit.longest:
                kept.append(Pair(chosen, rejected))
                origins.append(place)
        count += len(chunk)
    if not count:
        raise UserError("train.no_rows")
    if not kept:
        if len(refused) == count:
            raise UserError("train.all_refused", rows=count)
        raise UserError("train.all_dropped", rows=count - len(refused), max_length=limit.longest, least=least)
    tell_refused(refused, count, events)
    return Pairs(kept, origins, count - len(kept) - len(refused), tuple(refused))


def is_document(row: Row) -> bool:
    """Whether a row is a plain text, as pre-training takes it."""
    return len(row.messages) == 1 and row.messages[0].role == "assistant"


def talk_of(row: Row, turns: Turns) -> Talk:
    """A row as a conversation whose last learned answer, or every one, is learned. Raises train.no_answer."""
    answers = learned_turns(row.messages)
    if not answers or row.messages[-1].role != "assistant":
        raise UserError("train.no_answer", id=row.id, source=row.source, offset=row.offset)
    return Talk(row.messages, answers if turns == "all" else answers[-1:], row.tools)


def learned_turns(messages: Sequence[Message]) -> tuple[int, ...]:
    """The places of the assistant's turns that are learned; a first one, which answers nothing, is not."""
    return tuple(at for at, turn in enumerate(messages) if turn.learned and at > 0)


def document_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of plain texts, without a template: begun as the tokenizer begins one, and ended by its end token."""
    if not texts:
        return []
    found = tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in found]


def windows(ids: Sequence[int], longest: int) -> Iterator[tuple[Sequence[int], list[bool]]]:
    """A document in stretches of at most `longest` tokens, and which of them are learned.

    Each begins with the last token of the one before, so that every token but the document's first is learned once.
    """
    for start in range(0, max(1, len(ids) - 1), longest - 1):
        yield _all_learned(ids[start : start + longest])


def _all_learned(ids: Sequence[int]) -> tuple[Sequence[int], list[bool]]:
    return ids, [False, *[True] * (len(ids) - 1)]  # nothing stands before the first to predict it


def _both(row: Row) -> tuple[Talk, Talk]:
    if row.rejected is None:
        raise UserError("train.no_rejected", id=row.id, source=row.source, offset=row.offset)
    found = []
    for messages in (row.messages, row.worse):
        talk = talk_of(row.model_copy(update={"messages": messages}), "all")
        found.append(Talk(talk.messages, tuple(at for at in talk.answers if at >= row.asked), row.tools))
    return found[0], found[1]


def _only(samples: Sequence[Sample], talk: Talk) -> Sample:
    if len(samples) > 1:
        raise UserError("torch.template_shifts", turn=talk.answers[0] + 1)
    return samples[0]


def broken_texts(coder: Coder, talk: Talk) -> int | None:
    """How many texts of a conversation hold control tokens that are broken; None where one cannot be made plain."""
    try:
        return coder.broken_texts(talk)
    except UserError as error:
        if error.code not in UNREADABLE:
            raise
        return None


def tell_refused(ids: Sequence[str], rows: int, events: Events) -> None:
    """Note how many rows were left out for a text that cannot be made plain, and name the first."""
    if ids:
        named = ", ".join(ids[:NAMED]) + (" …" if len(ids) > NAMED else "")
        events.note("train.refused", refused=len(ids), rows=rows, ids=named)


def _calls_read(talk: Talk) -> int:
    """How many calls stand in turns that could be learned and are not."""
    left = (talk.messages[at] for at in learned_turns(talk.messages) if at not in talk.answers)
    return sum(len(turn.tool_calls or ()) for turn in left)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _tell(counts: Counts, limit: Limit, events: Events) -> None:
    """Notes on what is not an error and should be known; rows that were left out are told of by the stage."""
    rows, longest = counts.rows, limit.longest
    if counts.truncated:
        told = {"truncated": counts.truncated, "rows": rows, "max_length": longest, "answers": counts.answers_cut}
        events.note("train.truncated", **told)
    if counts.answers_dropped:
        events.note("train.answers_dropped", answers=counts.answers_dropped, max_length=longest)
    if counts.split:
        events.note("train.split", split=counts.split, rows=rows, max_length=longest, lost=counts.questions_lost)
    if counts.apart:
        events.note("train.apart", apart=counts.apart, rows=rows, samples=counts.samples)
    if counts.end_inside:
        events.note("train.end_inside", inside=counts.end_inside, rows=rows)
    if counts.empty:
        events.note("train.empty", empty=counts.empty, rows=rows)
    if counts.control_texts:
        events.note("train.control_tokens", texts=counts.control_texts, rows=rows)
    if counts.calls_read:
        events.note("train.calls_read", calls=counts.calls_read, rows=rows)
    if counts.samples == 1:
        events.note("train.one_sample")


class _Work:
    """Samples as they are gathered."""

    def __init__(self, coder: Coder, limit: Limit) -> None:
        self.coder = coder
        self.limit = limit
        self.kept: list[Sample] = []
        self.origins: list[int] = []
        self.refused: list[str] = []
        self.counts = Counts()

    def take(self, rows: Sequence[Row]) -> None:
        """Encode some rows, in their order."""
        talks = self._talks(rows)
        told = dict(zip(talks, self.coder.encode(list(talks.values())), strict=True))
        documents = [row.answer for row in rows if is_document(row)]
        read = iter(document_ids(self.coder.tokenizer, documents))
        for place, row in enumerate(rows):
            samples: list[Sample] = []
            if is_document(row):
                parts = windows(next(read), self.limit.longest)
                samples = [self.coder.sample(*part) for part in parts if any(part[1])]
                self.counts.empty += not samples
            elif place in talks:
                samples = [sample for sample in self._within(talks[place], told[place]) if any(sample.learned)]
            self._keep(samples)
            self.counts.rows += 1

    def _talks(self, rows: Sequence[Row]) -> dict[int, Talk]:
        """The conversations among some rows by their places, less those with a text that cannot be made plain."""
        found: dict[int, Talk] = {}
        for place, row in enumerate(rows):
            if is_document(row):
                continue
            talk = talk_of(row, self.limit.turns)
            texts = broken_texts(self.coder, talk)
            if texts is None:
                self.refused.append(row.id)
                self.counts.refused += 1
                continue
            self.counts.control_texts += texts
            self.counts.calls_read += _calls_read(talk)
            found[place] = talk
        return found

    def _keep(self, samples: Sequence[Sample]) -> None:
        counts = self.counts
        for sample in samples:
            self.kept.append(sample)
            self.origins.append(counts.rows)
            counts.samples += 1
            counts.tokens += len(sample.ids)
            counts.learned += sum(sample.learned)
            counts.longest = max(counts.longest, len(sample.ids))

    def _within(self, talk: Talk, samples: list[Sample]) -> list[Sample]:
        """The samples of a conversation that are kept, none longer than the limit."""
        counts, (longest, _, rule) = self.counts, self.limit
        counts.apart += len(samples) > 1
        counts.end_inside += any(end in said for said in talk.answer_texts() for end in self.coder.end_texts)
        length = max(len(sample.ids) for sample in samples)
        counts.shortest = min(counts.shortest or length, length)
        if length <= longest:
            return samples
        counts.over_length += 1
        if rule == "split":
            found = self._split(talk, samples)
            counts.split += bool(found)
        else:
            fitting = [sample for sample in samples if len(sample.ids) <= longest]
            found = self._truncated(samples) if rule == "truncate" else fitting
            counts.answers_dropped += len(samples) - len(found) if found else 0
        counts.dropped += not found
        return found

    def _truncated(self, samples: Sequence[Sample]) -> list[Sample]:
        """The first tokens of each, where something is left to learn."""
        most = self.limit.longest
        cut = [Sample(sample.ids[:most], sample.learned[:most]) for sample in samples]
        kept = [(one, two) for one, two in zip(samples, cut, strict=True) if any(two.learned)]
        self.counts.truncated += any(len(one.ids) > most for one, _ in kept)
        self.counts.answers_cut += any(sum(one.learned) > sum(two.learned) for one, two in kept)
        return [two for _, two in kept]

    def _split(self, talk: Talk, samples: Sequence[Sample]) -> list[Sample]:
        """Parts of a conversation that are short enough, cut before questions."""
        if len(samples) == 1 and len(talk.answers) > 1:
            return self._parts(talk)
        found = []
        for at, sample in zip(talk.answers, samples, strict=True):
            if len(sample.ids) <= self.limit.longest:
                found.append(sample)
            elif latest := self._latest(Talk(talk.messages[: at + 1], (at,), talk.tools)):
                found.append(latest)
            else:
                self.counts.questions_lost += 1
        return found

    def _latest(self, talk: Talk) -> Sample | None:
        """The conversation less its first questions, as few of them as make it short enough."""
        head, questions = _questions(talk.messages)
        for skipped in range(1, len(questions)):
            turns = [turn for question in questions[skipped:] for turn in question]
            if sample := self._fitting(head, turns, talk, last_only=True):
                return sample
        return None

    def _parts(self, talk: Talk) -> list[Sample]:
        """As many questions in each part as fit; one that fits alone in none is lost."""
        head, questions = _questions(talk.messages)
        found: list[Sample] = []
        held: list[Message] = []
        best: Sample | None = None
        for question in questions:
            longer = self._fitting(head, [*held, *question], talk, last_only=False)
            if longer is None and held:
                found += [best] if best else []
                held = []
                longer = self._fitting(head, question, talk, last_only=False)
            if longer is None:
                self.counts.questions_lost += any(turn.learned for turn in question)
                best, held = None, []
                continue
            best, held = longer, [*held, *question]
        return [part for part in (*found, best) if part is not None and any(part.learned)]

    def _fitting(self, head: list[Message], turns: Sequence[Message], talk: Talk, last_only: bool) -> Sample | None:
        messages = [*head, *turns]
        answers = learned_turns(messages)
        read = answers or tuple(at for at, turn in enumerate(messages) if turn.role == "assistant" and at > 0)
        samples = self.coder.encode([Talk(messages, read[-1:] if last_only else read, talk.tools)])[0]
        if len(samples) != 1 or len(samples[0].ids) > self.limit.longest:
            return None
        return samples[0] if answers else self.coder.sample(samples[0].ids, [False] * len(samples[0].ids))


def _questions(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system turns at the beginning, and the other turns cut before each question that follows an answer."""
    first = next((at for at, turn in enumerate(messages) if turn.role != "system"), len(messages))
    groups: list[list[Message]] = [[]]
    answered = False
    for at in range(first, len(messages)):
        if answered and messages[at].role == "user":
            groups.append([])
            answered = False
        groups[-1].append(messages[at])
        answered = answered or (messages[at].role == "assistant" and at > 0)
    return list(messages[:first]), groups
