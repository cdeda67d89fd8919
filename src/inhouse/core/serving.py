"""What the online half agrees on: a checked request, the pieces of its answer, and the engine that makes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from inhouse.core.control_tokens import NONE, ControlTokens

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
Limit = Literal["json_object", "json_schema", "regex", "grammar", "choice"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when to stop. None leaves a setting off; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many of the likeliest tokens are told beside each; 0 = only the sampled one
    ignore_end: bool = False  # go on to max_tokens, for measuring speed
    repetition_penalty: float = 1.0  # divides the scores of tokens of prompt and answer; those below 0 it multiplies


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the answer's text must match: any JSON object, a JSON schema, a regular expression, GBNF or a choice."""

    kind: Limit
    value: Any = None  # the schema, the expression, the grammar or the tuple of choices
    lark: str | None = None  # the same in llguidance's notation, once it was compiled; llama.cpp takes it as `grammar`
    param: str | None = None  # the field of the request that named it, for refusals


@dataclass(frozen=True, slots=True)
class Ask:
    """One checked request, as every engine understands it.

    Either `messages` (OpenAI's shape, text parts joined; the model's own template renders them) or `prompt` (plain
    text, or token ids) is set. `tools` and `tool_choice` are OpenAI's. `adapter` names a LoRA of the release.
    """

    sampling: Sampling
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | Sequence[int] | None = None
    constraint: Constraint | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "none"
    forced: Constraint | None = None  # of the one call, where `tool_choice` demands one
    parallel_tool_calls: bool = True
    adapter: str | None = None
    whole: bool = False  # nobody reads the pieces as they come: an engine may answer in one


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one choice, as the engine counted them; seconds where it measured them."""

    prompt: int
    answer: int
    cached: int = 0  # of the prompt, found in the engine's prefix cache
    prefill_s: float | None = None
    decode_s: float | None = None


@dataclass(slots=True)
class Delta:
    """What one choice gained. `logprobs` and `tool_calls` have OpenAI's shape. The last one carries `finish`."""

    text: str = ""
    index: int = 0
    tokens: int = 1
    finish: Finish | None = None
    logprobs: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning: str | None = None
    usage: Usage | None = None  # once for each choice, with its last delta or after it
    stop: str | None = None  # the stop string that ended it, where the engine tells


Push = Callable[[list[Delta]], bool]  # takes what has arrived, and waits for nobody; False: nothing was taken


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; a request that needs more goes to another engine or is refused."""

    chat: bool = True
    tools: Literal["no", "forced", "auto"] = "no"  # forced = only `required` or a named tool
    constraints: frozenset[Limit] = frozenset()
    logprobs: bool = False
    logit_bias: bool = False
    embeddings: bool = False
    rerank: bool = False
    adapters: tuple[str, ...] = ()
    prefix_cache: bool = False
    most_parallel: int = 1
    control: ControlTokens = field(default=NONE, compare=False)  # broken in what users and tools say
    thinks: bool = False  # thoughts come in the text, between <think> and </think>
    template_tools: bool = False  # its template writes tools and calls itself, in the notation that is read back


@dataclass(frozen=True, slots=True)
class Stats:
    """What an engine says of itself now."""

    running: int = 0
    waiting: int = 0
    cache_used: float | None = None  # share of the KV cache
    memory_bytes: int | None = None


class ServingEngine(Protocol):
    """A loaded model that answers many requests at once. Used inside one event loop."""

    name: str
    capabilities: Capabilities
    context_length: int

    def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        """The answer, as lists of what arrived together. Closing the generator cancels the request.

        While somebody waits for the next list, `push` is offered what arrives, and only what it does not take is
        yielded: a token costs no turn of the event loop then. An engine may leave it alone.

        Raises EngineRefused before the first delta, EngineLost, EngineSilent.
        """
        ...

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """One vector a text (unit length), and the number of tokens read."""
        ...

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids; with `special`, special tokens are parsed and added as for a prompt."""
        ...

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        ...

    async def render(self, ask: Ask) -> str:
        """The conversation through the model's own template, ready for the answer to follow."""
        ...

    async def stats(self) -> Stats:
        """Load and memory."""
        ...

    async def close(self) -> None:
        """Let go of connections; the process behind it is its supervisor's."""
        ...


@dataclass(frozen=True, slots=True)
class PairScores:
    """A score between 0 and 1 for each pair of texts, the tokens read, and the places of pairs that were cut."""

    scores: list[float]
    tokens: int
    cut: tuple[int, ...] = ()


class PairScorer(Protocol):
    """An engine with `capabilities.rerank`: it reads a query and a document together."""

    async def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> PairScores:
        """Scores in the order of the pairs."""
        ...


class EngineLost(Exception):
    """The engine ended, or the connection to it broke, before the answer was whole."""


class EngineSilent(Exception):
    """The engine sent nothing for too long: a chat template that loops, or a process that hangs."""


class EngineRefused(Exception):
    """The engine takes this request for impossible. `reason` is one of ours, never the engine's own words."""

    def __init__(
        self,
        reason: Literal["context", "invalid", "busy", "failed", "unsupported"],
        tokens: int | None = None,
        keyword: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.tokens = tokens  # of the prompt, where it is too long
        self.keyword = keyword  # of a JSON schema that it cannot hold an answer to; the field, where that is invalid
