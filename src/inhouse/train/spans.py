"""Where the answers stand in a conversation's tokens: exactly where serving would have let the model begin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.core.thoughts import opens_thought, split_thought
from inhouse.engines.torch_chat import as_written, control_of, end_of, ended, joined, render_texts, token_ids

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from inhouse.engines.torch_chat import Tools

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Sample:
    """One conversation: token ids, and which of them are answers (1) that the model learns to write.

    `mark` is what an objective must know of the whole: a class, or a thumb.
    """

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    mark: int = 0


@dataclass(frozen=True)
class Talk:
    """A conversation that ends with an answer, the tools that it may call, and which of its turns are learned."""

    messages: Sequence[Message]
    answers: tuple[int, ...]  # ascending
    tools: Tools | None = None

    def answer_texts(self) -> Iterator[str]:
        """What is said in the turns that are learned."""
        return (self.messages[at].content or "" for at in self.answers)

    @property
    def form(self) -> tuple[Any, ...]:
        """What the way a template takes depends on, besides the texts."""
        turns = tuple((turn.role, bool(turn.tool_calls), turn.content is None) for turn in self.messages)
        return turns, self.answers, bool(self.tools)


@dataclass(frozen=True)
class Written:
    """A conversation as the template writes it: its text, its ids, and which token a character belongs to."""

    text: str
    ids: list[int]
    cut: BatchEncoding
    place: int

    def token_at(self, char: int) -> int | None:
        """The token that begins at a character; None where none does."""
        token = self.cut.char_to_token(self.place, char)
        return token if token is not None and self.char_of(token) == char else None

    def char_of(self, token: int) -> int:
        """Where a token begins."""
        return int(self.cut.token_to_chars(self.place, token).start)


class Coder:
    """Conversations as samples. What it learns about a template is kept from call to call.

    The careful way renders and cuts into tokens the prompt of every answer as serving does, and the conversation up
    to its end, and demands that they agree. The quick way writes each conversation once and finds the answers by what
    the template puts before them. It is taken for a conversation whose form (roles, calls, tools) was seen before, when
    the first one of that form gave the same both ways, and when what stands around the answers is the same.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.ends = ends
        self._around: dict[tuple[Any, ...], list[str | None] | None] = {}  # by form; None: the careful way
        self._header: tuple[str, list[int]] | None = None
        self.end_texts = tuple(tokenizer.convert_ids_to_tokens(sorted(ends)))
        self._shared: dict[int, int] = {}  # one object for each id: 28 bytes less for every token that is kept

    def sample(self, ids: Sequence[int], learned: Sequence[bool]) -> Sample:
        """A sample of these tokens."""
        return Sample(tuple(map(self._shared.setdefault, ids, ids)), tuple(learned))

    def broken_texts(self, talk: Talk) -> int:
        """How many texts of a conversation hold control tokens that were broken."""
        return control_of(self.tokenizer).count(turn.as_dict() for turn in talk.messages)

    def encode(self, talks: Sequence[Talk]) -> list[list[Sample]]:
        """The samples of each conversation: one, or one for each answer where the template rewrites earlier turns.

        Raises torch.no_template, torch.template_failed, torch.template_shifts, train.thoughts_cut, train.mark_missing
        and train.mark_wrong.
        """
        written = list(self._written(talks))
        for talk, whole in zip(talks, written, strict=True):
            self._check_thoughts(talk, whole.text)
        found: list[list[Sample] | None] = [
            self._known(talk, whole) for talk, whole in zip(talks, written, strict=True)
        ]
        left = [place for place, samples in enumerate(found) if samples is None]
        exact = self._careful([talks[place] for place in left], [written[place] for place in left])
        for place, samples in zip(left, exact, strict=True):
            found[place] = samples
        return [samples for samples in found if samples is not None]

    def _known(self, talk: Talk, whole: Written) -> list[Sample] | None:
        """The quick way's sample; None where the careful way must be taken."""
        form = talk.form
        if form not in self._around:
            self._around[form] = self._learn_form(talk, whole)
        around = self._around[form]
        if around is None:
            return None
        quick = self._quick(talk, whole)
        return [quick[0]] if quick is not None and quick[1] == around else None

    def _learn_form(self, talk: Talk, whole: Written) -> list[str | None] | None:
        """What stands around the answers of conversations of this form, when both ways give the same."""
        exact = self._careful([talk], [whole])[0]
        if MARKED.search(str(self.tokenizer.chat_template)) and self.tokenizer.is_fast:
            self._compare_marks(talk, whole)
        quick = self._quick(talk, whole)
        return quick[1] if quick is not None and [quick[0]] == exact else None

    def _written(self, talks: Sequence[Talk]) -> Iterator[Written]:
        texts = self._texts([(talk.messages, talk.tools) for talk in talks], False)
        if not texts:
            return
        cut = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        for place, text in enumerate(texts):
            yield Written(text, cut["input_ids"][place], cut, place)

    def _check_thoughts(self, talk: Talk, text: str) -> None:
        """Raise train.thoughts_cut where the template leaves out thoughts of an answer that is learned.

        Templates of models that think write those of an answer as long as nothing follows.
        """
        for at in talk.answers:
            thought = _thought(talk.messages[at])
            if thought and thought not in text:
                alone = self._texts([(talk.messages[: at + 1], talk.tools)], False)[0]
                prompt = self._texts([(talk.messages[:at], talk.tools)], True)[0]
                if thought not in alone and not opens_thought(prompt):
                    raise UserError("train.thoughts_cut", thought=thought[:40])

    # The careful way

    def _careful(self, talks: Sequence[Talk], wholes: Sequence[Written]) -> list[list[Sample]]:
        """The samples of conversations, from the prompt of every answer and the conversation up to its end."""
        asked = [(talk, at) for talk in talks for at in talk.answers]
        prompts = self._read([(talk.messages[:at], talk.tools) for talk, at in asked], True)
        ended = [(talk.messages[: at + 1], talk.tools) for talk, at in asked if at < len(talk.messages) - 1]
        earlier = iter(self._read(ended, False))
        spans = iter(prompts)
        found = []
        for talk, whole in zip(talks, wholes, strict=True):
            parts = []
            for at in talk.answers:
                upto = (whole.text, whole.ids) if at == len(talk.messages) - 1 else next(earlier)
                prompt = next(spans)
                ids = joined(self.tokenizer, prompt, upto, talk.messages[: at + 1])
                stop = end_of(ids, len(prompt[1]), self.ends)
                parts.append((ids if stop is None else ids[: stop + 1], len(prompt[1])))
            found.append(self._together(parts))
        return found

    def _read(
        self, told: Sequence[tuple[Sequence[Message], Tools | None]], follows: bool
    ) -> list[tuple[str, list[int]]]:
        """What the template writes for each, and its ids."""
        texts = self._texts(told, follows)
        return list(zip(texts, token_ids(self.tokenizer, texts), strict=True))

    def _texts(self, told: Sequence[tuple[Sequence[Message], Tools | None]], follows: bool) -> list[str]:
        """What the template writes for each: those without tools in one call, which takes half the time."""
        plain = iter(render_texts(self.tokenizer, [turns for turns, tools in told if not tools], follows))
        return [
            render_texts(self.tokenizer, [turns], follows, tools)[0] if tools else next(plain) for turns, tools in told
        ]

    def _together(self, parts: Sequence[tuple[list[int], int]]) -> list[Sample]:
        """One sample with every answer learned; one for each answer when what stands before it changes later.

        Templates of models that think leave an answer's thoughts out once it is followed by a question.
        """
        ids = ended(self.tokenizer, parts[-1][0], self.ends)
        if all(ids[: len(before)] == before for before, _ in parts):
            learned = [False] * len(ids)
            for before, start in parts:
                stop = len(before)
                if before[-1] not in self.ends and stop < len(ids) and ids[stop] in self.ends:
                    stop += 1  # the next turn's role ends this one
                learned[start:stop] = [True] * (stop - start)
            return [self.sample(ids, learned)]
        closed = [(ended(self.tokenizer, own, self.ends), start) for own, start in parts]
        return [self.sample(own, [place >= start for place in range(len(own))]) for own, start in closed]

    # The quick way

    def _quick(self, talk: Talk, whole: Written) -> tuple[Sample, list[str | None]] | None:
        """The sample and what stands around its answers, found by what the template puts before an answer."""
        header, tail = self._header or self._find_header()
        if not tail:
            return None
        starts = [found.end() for found in re.finditer(re.escape(header), whole.text)]
        places = [at for at, turn in enumerate(talk.messages) if turn.role == "assistant"]
        if len(starts) != len(places):
            return None
        ids = ended(self.tokenizer, whole.ids, self.ends)
        learned = [False] * len(ids)
        around: list[str | None] = []
        stop = -1
        for at, char in zip(places, starts, strict=True):
            if at not in talk.answers:
                continue
            start = whole.token_at(char)
            if start is None or start <= stop or ids[start - len(tail) : start] != tail:
                return None
            found = end_of(ids, start, self.ends)
            if found is None:
                return None
            stop = found
            learned[start : stop + 1] = [True] * (stop + 1 - start)
            told = whole.text[char : whole.char_of(stop) if stop < len(whole.ids) else None]
            around.append(self._before_text(talk.messages[at], told.strip()))
        return self.sample(ids[: stop + 1], learned[: stop + 1]), around

    def _before_text(self, turn: Message, told: str) -> str | None:
        """What the template writes between its header and the text of an answer; None where it writes calls."""
        said = (turn.content or "").strip()
        if turn.tool_calls:
            return None if said in told else told
        return told.removesuffix(said) if told.endswith(said) else told

    def _find_header(self) -> tuple[str, list[int]]:
        """What stands before every answer, and its ids from the last special token on: these depend on nothing before.

        Both empty where the template has no such text: then only the careful way is left.
        """
        self._header = ("", [])
        question = [[Message(role="user", content="?")]]
        try:
            plain, asked = (render_texts(self.tokenizer, question, follows)[0] for follows in (False, True))
        except UserError:  # a template that wants more than a question
            return self._header
        if self.tokenizer.is_fast and asked.startswith(plain) and len(asked) > len(plain):
            header = asked[len(plain) :]
            ids = token_ids(self.tokenizer, [header])[0]
            special = [place for place, token in enumerate(ids) if token in self.tokenizer.added_tokens_decoder]
            if special:
                self._header = (header, ids[special[-1] :])
        return self._header

    # Marks of the template itself

    def _compare_marks(self, talk: Talk, whole: Written) -> None:
        """Raise train.mark_missing or train.mark_wrong when a template marks as generated what is not learned here.

        White space behind an answer's end may be marked: it is never learned. Nor is a greeting, marked or not.
        """
        if talk.messages[0].role == "assistant":
            return
        places = tuple(at for at, turn in enumerate(talk.messages) if turn.role == "assistant" and at > 0)
        samples = self._careful([Talk(talk.messages, places, talk.tools)], [whole])[0]
        turns, tools = as_written(self.tokenizer, talk.messages, talk.tools)
        marks = self.tokenizer.apply_chat_template(
            turns, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        sample = samples[-1]
        first = 0 if len(samples) == 1 else sample.learned.index(True)
        for place in range(first, min(len(sample.ids), len(marks))):
            if bool(marks[place]) == sample.learned[place]:
                continue
            token = self.tokenizer.decode([sample.ids[place]])
            if sample.learned[place]:
                raise UserError("train.mark_missing", place=place + 1, token=token)
            if token.strip():
                raise UserError("train.mark_wrong", place=place + 1, token=token)


def _thought(turn: Message) -> str:
    """Words of a turn's thought: the longest piece without a `<`, as control tokens in a text are broken."""
    return max(split_thought(turn.content or "")[0].split("<"), key=len).strip()
