"""The shapes of answers, for the OpenAPI document. What is sent is made elsewhere; a test holds it against these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
Finish = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Answer(BaseModel):
    """More fields may be added to an answer."""

    model_config = ConfigDict(extra="allow")


class ErrorFacts(Answer):
    """What was refused, and which field of the request was at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """A refusal."""

    error: ErrorFacts


class MessageError(Answer):
    """A refusal, as Anthropic's clients read it."""

    type: Literal["error"]
    error: ErrorFacts


class PlainError(Answer):
    """A refusal, as Ollama's clients read it."""

    error: str


class TokenCounts(Answer):
    """Tokens read and written."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class ReadCounts(Answer):
    """Tokens read."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class Model(Answer):
    """A name that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """Every name that can be asked for."""

    object: Literal["list"]
    data: list[Model]


class ToolCallFunction(Answer):
    """The function that is called; its arguments are JSON."""

    name: str
    arguments: str


class ToolCall(Answer):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: ToolCallFunction


class Message(Answer):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: Message
    finish_reason: Finish | None
    logprobs: Json | None = None


class ChatCompletion(Answer):
    """The answer to a conversation. With `stream`, its pieces come as `chat.completion.chunk` events."""

    id: str = Field(pattern="^chatcmpl-")
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenCounts


class TextChoice(Answer):
    """One continuation."""

    index: int
    text: str
    finish_reason: Finish | None
    logprobs: Json | None = None


class Completion(Answer):
    """The continuation of a text."""

    id: str = Field(pattern="^cmpl-")
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenCounts


class Embedding(Answer):
    """A vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Answer):
    """A vector for each input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: ReadCounts


class Tokens(Answer):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Prompt(Answer):
    """The text of token ids."""

    prompt: str


class RankedDocument(Answer):
    """A document, and how well it fits."""

    index: int
    relevance_score: float


class Ranking(Answer):
    """Documents, the best first."""

    id: str
    model: str
    results: list[RankedDocument]


class PairScore(Answer):
    """How well two texts fit."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(Answer):
    """A score for each pair."""

    id: str
    object: Literal["list"]
    model: str
    data: list[PairScore]


class Response(Answer):
    """An answer of the Responses API."""

    id: str = Field(pattern="^resp_")
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[Json]
    error: Json | None
    usage: Json | None


class Page(Answer):
    """A part of a list."""

    object: Literal["list"]
    data: list[Json]
    has_more: bool
    first_id: str | None
    last_id: str | None


class StoredFile(Answer):
    """A file that is kept."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str


class Deleted(Answer):
    """Something that is no longer kept."""

    id: str
    object: str
    deleted: Literal[True]


class Batch(Answer):
    """A batch of requests."""

    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    created_at: int
    request_counts: dict[str, int]


class AnthropicMessage(Answer):
    """An answer in Anthropic's shape."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Json]
    stop_reason: str | None
    usage: Json


class InputTokens(Answer):
    """Tokens of a message."""

    input_tokens: int


class FeedbackKept(Answer):
    """What was counted."""

    object: Literal["feedback"]
    request_id: str
    score: float
    counted: bool  # false where the overflow's endpoint gave the answer, and no release


class Status(Answer):
    """How it is."""

    status: str


class Version(Answer):
    """The version of inhouse."""

    version: str


class OllamaEnd(Answer):
    """A line of an answer, or all of it, in Ollama's shape; durations in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class OllamaChatAnswer(OllamaEnd):
    """An answer to a conversation."""

    message: Json


class OllamaGenerateAnswer(OllamaEnd):
    """An answer to a prompt."""

    response: str


class OllamaVectors(Answer):
    """A vector for each input."""

    model: str
    embeddings: list[list[float]]


class OllamaVector(Answer):
    """A vector."""

    embedding: list[float]


class OllamaModels(Answer):
    """Models, in Ollama's shape."""

    models: list[Json]


class OllamaModel(Answer):
    """What is known of a model."""

    details: Json
    model_info: Json
    capabilities: list[str]
