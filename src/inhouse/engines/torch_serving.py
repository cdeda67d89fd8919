"""A model in torch that writes: requests that come and go, answered together step by step. The reference engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.core.serving import Ask, Capabilities, Delta, EngineRefused, Stats, Usage
from inhouse.core.thoughts import writes_thoughts
from inhouse.core.tool_words import writes_tools
from inhouse.engines.text_stream import TextStream
from inhouse.engines.torch_embedding import mean_vectors, text_ids
from inhouse.engines.torch_rows import Rows
from inhouse.engines.torch_sampling import Chooser, told_logprobs
from inhouse.engines.wire_child import Outbox, TookTooLong, opener_of, time_limit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import DynamicCache

TEMPLATE_S = 1.0
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for a character whose last bytes are still to come


@dataclass(frozen=True)
class Loaded:
    """A model as it is served."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    context_length: int
    parallel: int
    adapters: tuple[str, ...] = ()
    before: Mapping[str | None, DynamicCache] = field(default_factory=dict)  # virtual tokens, read before a prompt
    writes: bool = True  # an encoder does not: it only embeds

    def before_a_prompt(self, adapter: str | None) -> DynamicCache | None:
        """What is read before every prompt of this adapter: its own virtual tokens, or else the release's."""
        return self.before.get(adapter, self.before.get(None))


@dataclass(eq=False)
class Answer:
    """One choice that is being written."""

    uid: int
    index: int
    ask: Ask
    ids: list[int]
    chooser: Chooser
    text: TextStream
    prompt: int
    began: float
    read_s: float = 0.0
    shown: int = 0  # of `ids`, decoded
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    opener: str = ""  # what the prompt ends with and the answer goes on from: the tag of a thought

    @property
    def made(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.prompt


class TorchServing:
    """Implements wire_child.ChildEngine. A batch holds requests of one adapter, for torch applies one at a time."""

    def __init__(self, loaded: Loaded) -> None:
        from inhouse.engines.torch_chat import control_of, template_of

        self.loaded = loaded
        self.context_length = loaded.context_length
        self.capabilities = Capabilities(
            chat=loaded.writes and bool(loaded.tokenizer.chat_template),
            logprobs=loaded.writes,
            logit_bias=loaded.writes,
            embeddings=True,
            adapters=loaded.adapters,
            most_parallel=loaded.parallel,
            control=control_of(loaded.tokenizer),
            thinks=writes_thoughts(template_of(loaded.tokenizer)),
            template_tools=writes_tools(template_of(loaded.tokenizer)),
        )
        self._lock = threading.Lock()  # texts are embedded on a thread of their own, and adapters belong to the model
        self._apart = deepcopy(loaded.tokenizer)  # for that thread: a call sets how the tokenizer reads, for all users
        self._waiting: deque[tuple[int, Ask, list[int]]] = deque()
        self._batches: dict[str | None, list[Rows[Answer]]] = {}

    def submit(self, uid: int, ask: Ask) -> None:
        """Take a request in. Raises EngineRefused."""
        if not self.loaded.writes or (ask.tools and not self.capabilities.template_tools) or ask.constraint is not None:
            raise EngineRefused("unsupported")
        if ask.adapter is not None and ask.adapter not in self.loaded.adapters:
            raise EngineRefused("unsupported")
        ids = self._prompt_ids(ask)
        vocabulary = self.loaded.model.config.get_text_config().vocab_size
        if any(not 0 <= token < vocabulary for token in ask.sampling.logit_bias):
            raise EngineRefused("invalid", keyword="logit_bias")
        if not ids or any(not 0 <= token < vocabulary for token in ids):
            raise EngineRefused("invalid")
        if len(ids) >= self._room(ask.adapter):
            raise EngineRefused("context", len(ids))
        self._waiting.append((uid, ask, ids))

    def cancel(self, uid: int) -> None:
        """Drop a request."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != uid)
        for rows in self._all():
            rows.keep([place for place, answer in enumerate(rows.owners) if answer.uid != uid])
        self._drop_empty()

    def step(self, out: Outbox) -> bool:
        """Read one new prompt, where there is one, and write one token of every answer."""
        with self._lock:
            if self._waiting and self._running() + self._waiting[0][1].sampling.n <= max(
                self.loaded.parallel, self._waiting[0][1].sampling.n
            ):
                self._begin(*self._waiting.popleft(), out)
            for adapter, batches in self._batches.items():
                with self._with(adapter):
                    for rows in batches:
                        if rows.owners:
                            logits = rows.step([answer.ids[-1] for answer in rows.owners])
                            self._write(rows, logits, out)
            self._drop_empty()
        return bool(self._waiting or self._batches)

    def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """The mean of the last layer's states of each text, as a unit vector. Without any adapter."""
        ids = [text_ids(self._apart, text, True) if isinstance(text, str) else list(text) for text in texts]
        if longest := max((len(row) for row in ids if len(row) > self.context_length), default=0):
            raise EngineRefused("context", longest)
        if not all(ids):
            raise EngineRefused("invalid")
        with self._lock, self._with(None):
            return mean_vectors(self.loaded.model, ids), sum(map(len, ids))

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids; with `special`, special tokens are parsed and added."""
        return text_ids(self.loaded.tokenizer, text, special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.loaded.tokenizer.decode(list(tokens)))

    def render(self, ask: Ask) -> str:
        """The conversation through the model's template. Raises EngineRefused where it refuses, or runs too long."""
        return rendered(self.loaded.tokenizer, ask)

    def stats(self) -> Stats:
        """Load, and the memory of this process."""
        import psutil

        held = sum(len(answer.ids) for rows in self._all() for answer in rows.owners)
        used = min(1.0, held / (self.context_length * self.loaded.parallel))
        return Stats(self._running(), len(self._waiting), used, psutil.Process().memory_info().rss)

    def _prompt_ids(self, ask: Ask) -> list[int]:
        if ask.messages is not None:
            from inhouse.engines.torch_chat import token_ids

            return token_ids(self.loaded.tokenizer, [self.render(ask)])[0]
        return self.tokenize(ask.prompt, True) if isinstance(ask.prompt, str) else list(ask.prompt or ())

    def _room(self, adapter: str | None) -> int:
        before = self.loaded.before_a_prompt(adapter)
        return self.context_length - (0 if before is None else before.get_seq_length())

    def _begin(self, uid: int, ask: Ask, ids: list[int], out: Outbox) -> None:
        """Read a prompt, write the first token of its choices, and put them beside the others."""
        began = time.perf_counter()
        device = self.loaded.model.device
        opener = opener_of(self, ask, ids)
        answers = [
            Answer(uid, index, ask, list(ids), Chooser(ask.sampling, index, device), TextStream(ask.sampling.stop),
                   len(ids), began, shown=len(ids), opener=opener)
            for index in range(ask.sampling.n)
        ]  # fmt: skip
        with self._with(ask.adapter):
            rows, logits = Rows.read(self.loaded.model, ids, answers, self.loaded.before_a_prompt(ask.adapter))
        for answer in answers:
            answer.read_s = time.perf_counter() - began
        self._write(rows, logits[None].expand(len(answers), -1), out)
        batches = self._batches.setdefault(ask.adapter, [])
        if batches and rows.owners and rows.joins:
            batches[0].join(rows)
        else:
            batches.append(rows)

    def _write(self, rows: Rows[Answer], logits: torch.Tensor, out: Outbox) -> None:
        """Choose a token for every row and tell it; rows whose answer is whole leave."""
        going = []
        for place, answer in enumerate(rows.owners):
            delta = self._delta(answer, logits[place])
            out.add(answer.uid, delta)
            if delta.finish is None:
                going.append(place)
        rows.keep(going)

    def _delta(self, answer: Answer, logits: torch.Tensor) -> Delta:
        asked = answer.ask.sampling
        token = answer.chooser.choose(logits, answer.ids)
        answer.ids.append(token)
        ended = token in self.loaded.ends and not asked.ignore_end
        delta = Delta(answer.opener + ("" if ended else self._shown(answer)), answer.index)
        answer.opener = ""
        if asked.logprobs is not None and not ended:
            delta.logprobs = [told_logprobs(logits, token, asked.logprobs, self.loaded.tokenizer)]
        if ended or answer.text.stopped:
            delta.finish, delta.stop = "stop", answer.text.stop
        elif answer.made >= asked.max_tokens or len(answer.ids) >= self._room(answer.ask.adapter):
            delta.finish = "length"
        if delta.finish is not None:
            delta.text += answer.text.end()
            decode_s = time.perf_counter() - answer.began - answer.read_s
            delta.usage = Usage(answer.prompt, answer.made, 0, answer.read_s, decode_s)
        return delta

    def _shown(self, answer: Answer) -> str:
        """The text that the tokens not yet shown add, once the last character is whole.

        They are decoded behind the token before them: alone, some tokenizers would put no space before a word.
        """
        decode = self.loaded.tokenizer.decode
        before = answer.ids[max(answer.prompt, answer.shown - 4) : answer.shown]
        known = str(decode(before, skip_special_tokens=True))
        whole = str(decode([*before, *answer.ids[answer.shown :]], skip_special_tokens=True))
        if whole.endswith(UNFINISHED) and len(answer.ids) - answer.shown < 8:
            return ""
        answer.shown = len(answer.ids)
        return answer.text.push(whole[len(known) :].encode("utf-8", "replace"))

    def _running(self) -> int:
        return sum(len(rows.owners) for rows in self._all())

    def _all(self) -> list[Rows[Answer]]:
        return [rows for batches in self._batches.values() for rows in batches]

    def _drop_empty(self) -> None:
        kept = {adapter: [rows for rows in batches if rows.owners] for adapter, batches in self._batches.items()}
        self._batches = {adapter: batches for adapter, batches in kept.items() if batches}

    @contextmanager
    def _with(self, adapter: str | None) -> Iterator[None]:
        """Apply one adapter, or none."""
        model: Any = self.loaded.model
        if set(self.loaded.adapters) <= set(self.loaded.before):  # none changes a weight
            yield
        elif adapter is None or adapter in self.loaded.before:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(adapter)
            yield


def rendered(tokenizer: PreTrainedTokenizerBase, ask: Ask) -> str:
    """The conversation through the template. Raises EngineRefused where it refuses it, or runs too long."""
    from inhouse.engines.torch_chat import render_texts

    try:
        turns = [Message.model_validate(dict(message)) for message in ask.messages or ()]
        with time_limit(TEMPLATE_S):
            return render_texts(tokenizer, [turns], answer_follows=True, tools=ask.tools)[0]
    except (TookTooLong, UserError, ValidationError):
        raise EngineRefused("invalid") from None
