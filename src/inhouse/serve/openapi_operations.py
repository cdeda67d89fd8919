"""What each route takes and gives, for the OpenAPI document. A test holds that no route is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from inhouse.serve import ollama_requests as ollama
from inhouse.serve import openapi_answers as answers
from inhouse.serve.requests import ChatBody, CompletionBody
from inhouse.serve.routes.batches import BatchBody
from inhouse.serve.routes.embeddings import EmbeddingBody
from inhouse.serve.routes.feedback import FeedbackBody
from inhouse.serve.routes.messages import Counted, MessageBody
from inhouse.serve.routes.rerank import RerankBody, ScoreBody
from inhouse.serve.routes.responses import ResponseBody
from inhouse.serve.routes.tokens import DetokenizeBody, TokenizeBody

Json = dict[str, Any]
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
BYTES = "application/octet-stream"
TEXT = "text/plain"
READ = (400, 413, 415, 408)  # of every body
WORK = (404, 429, 503, 504)  # of everything that asks an engine


@dataclass(frozen=True)
class Operation:
    """One route. `also` is a second kind of answer: a stream, or bytes where there is no `answer`."""

    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    also: str | None = None
    refusals: tuple[int, ...] = ()
    queries: tuple[tuple[str, Json], ...] = ()
    form: Json | None = None


PAGE: tuple[tuple[str, Json], ...] = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
    ("after", {"type": "string"}),
    ("order", {"type": "string", "enum": ["asc", "desc"]}),
)
FORM: Json = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}


def asking(summary: str, body: type[BaseModel], answer: type[BaseModel], also: str | None = None) -> Operation:
    """A route whose body an engine answers."""
    return Operation(summary, body, answer, also, refusals=(*READ, *WORK))


def kept(summary: str, answer: type[BaseModel] | None, *more: int, also: str | None = None) -> Operation:
    """A route to something that is kept under an id."""
    return Operation(summary, answer=answer, also=also, refusals=(404, *more))


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/health"): Operation("The process answers; needs no key", answer=answers.Status),
    ("GET", "/ready"): Operation("Whether the engines can answer now", answer=answers.Status, refusals=(503,)),
    ("GET", "/version"): Operation("The version of inhouse", answer=answers.Version),
    ("GET", "/metrics"): Operation("Metrics for Prometheus", also=TEXT),
    ("GET", "/openapi.json"): Operation("This document", answer=answers.Answer),
    ("GET", "/inhouse/requests/{id}"): kept("How long each stage of a recent request took", answers.Answer),
    ("GET", "/v1/models"): Operation("Names that can be asked for", answer=answers.ModelList),
    ("GET", "/v1/models/{id}"): kept("One of these names", answers.Model),
    ("POST", "/v1/chat/completions"): asking("Answer a conversation", ChatBody, answers.ChatCompletion, EVENTS),
    ("POST", "/v1/completions"): asking("Continue a text", CompletionBody, answers.Completion, EVENTS),
    ("POST", "/v1/embeddings"): asking("Vectors of texts", EmbeddingBody, answers.EmbeddingList),
    ("POST", "/tokenize"): asking("The tokens of a text or a conversation", TokenizeBody, answers.Tokens),
    ("POST", "/detokenize"): asking("The text of tokens", DetokenizeBody, answers.Prompt),
    ("POST", "/v1/responses"): asking("Answer, and keep the answer", ResponseBody, answers.Response, EVENTS),
    ("GET", "/v1/responses/{id}"): Operation(
        "A response that is kept", answer=answers.Response, refusals=(400, 404),
        queries=(("stream", {"type": "boolean", "const": False}),),
    ),
    ("DELETE", "/v1/responses/{id}"): kept("Keep a response no longer", answers.Deleted),
    ("POST", "/v1/responses/{id}/cancel"): kept("End a response that is being made", answers.Response, 400),
    ("GET", "/v1/responses/{id}/input_items"): Operation(
        "What a response answers", answer=answers.Page, refusals=(400, 404), queries=(PAGE[2],)
    ),
    ("POST", "/v1/messages"): asking("Answer, for Anthropic's clients", MessageBody, answers.AnthropicMessage, EVENTS),
    ("POST", "/v1/messages/count_tokens"): asking("The tokens of a message", Counted, answers.InputTokens),
    ("POST", "/v1/files"): Operation(
        "Send a file", answer=answers.StoredFile, form=FORM, refusals=(400, 408, 413, 415, 507)
    ),
    ("GET", "/v1/files"): Operation(
        "Files of this key", answer=answers.Page, refusals=(400,),
        queries=(("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}), *PAGE[1:],
                 ("purpose", {"type": "string"})),
    ),
    ("GET", "/v1/files/{id}"): kept("A file", answers.StoredFile),
    ("DELETE", "/v1/files/{id}"): kept("Keep a file no longer", answers.Deleted, 409),
    ("GET", "/v1/files/{id}/content"): kept("The bytes of a file", None, also=BYTES),
    ("POST", "/v1/batches"): Operation(
        "Have many requests answered", BatchBody, answers.Batch, refusals=(*READ, 404, 429)
    ),
    ("GET", "/v1/batches"): Operation("Batches of this key", answer=answers.Page, refusals=(400,), queries=PAGE),
    ("GET", "/v1/batches/{id}"): kept("A batch", answers.Batch),
    ("POST", "/v1/batches/{id}/cancel"): kept("End a batch", answers.Batch, 409),
    ("POST", "/v1/feedback"): Operation(
        "Say how good an answer was", FeedbackBody, answers.FeedbackKept, refusals=(*READ, 404)
    ),
    **{
        ("POST", path): asking("Put documents in the order of their fit", RerankBody, answers.Ranking)
        for path in ("/v1/rerank", "/rerank", "/v2/rerank")
    },
    **{
        ("POST", path): asking("How well texts fit", ScoreBody, answers.ScoreList)
        for path in ("/v1/score", "/score")
    },
    ("POST", "/api/chat"): asking("Answer a conversation", ollama.OllamaChat, answers.OllamaChatAnswer, LINES),
    ("POST", "/api/generate"): asking(
        "Answer a prompt", ollama.OllamaGenerate, answers.OllamaGenerateAnswer, LINES
    ),
    ("POST", "/api/embed"): asking("Vectors of texts", ollama.OllamaEmbed, answers.OllamaVectors),
    ("POST", "/api/embeddings"): asking("The vector of a text", ollama.OllamaEmbeddings, answers.OllamaVector),
    ("POST", "/api/show"): asking("What is known of a model", ollama.OllamaShow, answers.OllamaModel),
    ("GET", "/api/tags"): Operation("Models, for Ollama's clients", answer=answers.OllamaModels),
    ("GET", "/api/ps"): Operation("Models that are loaded", answer=answers.OllamaModels),
    ("GET", "/api/version"): Operation("The version of inhouse", answer=answers.Version),
}  # fmt: skip
