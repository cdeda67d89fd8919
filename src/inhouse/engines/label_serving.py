"""A classifier as an engine that serves: it answers with the likeliest of its labels, as evaluation read it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from pydantic import ValidationError

from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.core.serving import Ask, Capabilities, Delta, EngineRefused, PairScores, Stats, Usage
from inhouse.engines.classifier import ClassifierEngine
from inhouse.engines.pair_scores import pair_scores, scores_pairs
from inhouse.engines.torch_chat import control_of
from inhouse.engines.torch_embedding import mean_vectors, text_ids
from inhouse.engines.wire_child import Outbox, TookTooLong, time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_S = 1.0
Turns = tuple[Message, ...]


class LabelServing:
    """Implements wire_child.ChildEngine. The answer is one label; `logprobs` tells the others beside it."""

    def __init__(self, engine: ClassifierEngine, context_length: int, parallel: int) -> None:
        self.engine = engine
        self.context_length = context_length
        control = control_of(engine.tokenizer)
        self.capabilities = Capabilities(
            logprobs=True, embeddings=True, rerank=scores_pairs(engine.model), most_parallel=parallel, control=control
        )
        # For the thread that embeds and scores: each call sets how a tokenizer reads and cuts texts, for all its users.
        self._apart: PreTrainedTokenizerBase = deepcopy(engine.tokenizer)
        self._waiting: dict[int, tuple[Ask, Turns, int]] = {}

    def submit(self, uid: int, ask: Ask) -> None:
        """Take a request in. Raises EngineRefused."""
        if ask.tools or ask.constraint is not None or ask.adapter is not None or ask.sampling.n > 1:
            raise EngineRefused("unsupported")
        if ask.messages is None and not isinstance(ask.prompt, str):
            raise EngineRefused("invalid")
        try:
            told = ask.messages if ask.messages is not None else [{"role": "user", "content": ask.prompt}]
            turns = tuple(Message.model_validate(dict(message)) for message in told)
            with time_limit(TEMPLATE_S):
                tokens = len(self.engine.token_ids(turns))
        except (TookTooLong, UserError, ValidationError):
            raise EngineRefused("invalid") from None
        if tokens > self.context_length:
            raise EngineRefused("context", tokens)
        self._waiting[uid] = (ask, turns, tokens)

    def cancel(self, uid: int) -> None:
        """Drop a request."""
        self._waiting.pop(uid, None)

    def step(self, out: Outbox) -> bool:
        """Read all texts that wait together, and answer them."""
        asked, self._waiting = list(self._waiting.items()), {}
        if not asked:
            return False
        labels = self.engine.labels
        found = self.engine.score([turns for _, (_, turns, _) in asked], [labels] * len(asked), lambda _: None)
        for (uid, (ask, _, tokens)), scores in zip(asked, found, strict=True):
            ranked = sorted(zip(labels, (s.logprob for s in scores), strict=True), key=lambda each: -each[1])
            delta = Delta(ranked[0][0], finish="stop", usage=Usage(tokens, 1))
            if (top := ask.sampling.logprobs) is not None:
                told = [_entry(*each) for each in ranked[:top]]
                delta.logprobs = [_entry(*ranked[0]) | {"top_logprobs": told}]
            out.add(uid, delta)
        return True

    def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """The mean of the last layer's states of each text, as a unit vector."""
        ids = [text_ids(self._apart, text, True) if isinstance(text, str) else list(text) for text in texts]
        if longest := max((len(row) for row in ids if len(row) > self.context_length), default=0):
            raise EngineRefused("context", longest)
        if not all(ids):
            raise EngineRefused("invalid")
        return mean_vectors(self.engine.model, ids), sum(map(len, ids))

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> PairScores:
        """How well each document fits its query, by a model that reads both at once."""
        return pair_scores(self.engine.model, self._apart, pairs, self.context_length)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids; with `special`, special tokens are parsed and added."""
        return text_ids(self.engine.tokenizer, text, special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.engine.tokenizer.decode(list(tokens)))

    def render(self, ask: Ask) -> str:
        """A classifier reads the turns' texts as they are, in lines, where it has no template."""
        if self.engine.plain:
            return "\n".join(str(message.get("content") or "") for message in ask.messages or ())
        from inhouse.engines.torch_serving import rendered

        return rendered(self.engine.tokenizer, ask)

    def stats(self) -> Stats:
        """Load, and the memory of this process."""
        import psutil

        return Stats(0, len(self._waiting), None, psutil.Process().memory_info().rss)


def _entry(label: str, logprob: float) -> dict[str, object]:
    return {"token": label, "logprob": logprob, "bytes": list(label.encode())}
