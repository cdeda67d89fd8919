"""POST /v1/rerank and /v1/score: how well texts fit a query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.serve.direct import Borrowed, borrowed, scored, vectors
from inhouse.serve.errors import invalid
from inhouse.serve.http import Call
from inhouse.serve.ids import new_id
from inhouse.serve.requests import Body, read_body
from inhouse.serve.routes import Route, Services

MOST_DOCUMENTS = 1024
# Told in every answer: their scores are on other scales.
VECTORS, PAIRS = "embedding_cosine", "cross_encoder"
Filled = Annotated[str, StringConstraints(min_length=1, max_length=4 * 2**20)]
Texts = Annotated[list[Filled], Field(min_length=1, max_length=MOST_DOCUMENTS, fail_fast=True)]


class Document(Body):
    """A document of a rerank request, where it is an object."""

    text: Filled


class RerankBody(Body):
    """Documents to put in the order of how well they fit a query."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    query: Filled
    documents: Annotated[list[Filled | Document], Field(min_length=1, max_length=MOST_DOCUMENTS, fail_fast=True)]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


@dataclass(frozen=True)
class Compared:
    """A score for each pair of texts, and how they were made."""

    scores: list[float]
    tokens: int
    told: dict[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI writes it."""
        return {"prompt_tokens": self.tokens, "total_tokens": self.tokens}


class ScoreBody(Body):
    """Pairs to score: one text against several, or as many against as many."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    text_1: Filled | Texts
    text_2: Filled | Texts


async def rerank(services: Services, call: Call) -> None:
    """POST /v1/rerank."""
    body = read_body(RerankBody, await call.json_body())
    await call.while_there(_rerank(services, call, body))


async def score(services: Services, call: Call) -> None:
    """POST /v1/score."""
    body = read_body(ScoreBody, await call.json_body())
    await call.while_there(_score(services, call, body))


async def _rerank(services: Services, call: Call, body: RerankBody) -> None:
    documents = [each if isinstance(each, str) else each.text for each in body.documents]
    found = await _compared(services, call, body, [body.query], documents)
    order = sorted(range(len(documents)), key=lambda index: -found.scores[index])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": found.scores[index]} for index in order]
    if body.return_documents is not False:
        results = [each | {"document": {"text": documents[each["index"]]}} for each in results]
    await call.reply(
        {
            "id": new_id("rerank"),
            "model": body.model,
            "usage": found.usage,
            "results": results,
            "inhouse": found.told,
        }
    )


async def _score(services: Services, call: Call, body: ScoreBody) -> None:
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) not in (1, len(second)):
        raise invalid(text("serve.score_pairs"), "text_2")
    found = await _compared(services, call, body, first, second)
    await call.reply(
        {
            "id": new_id("score"),
            "object": "list",
            "model": body.model,
            "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(found.scores)],
            "usage": found.usage,
            "inhouse": found.told,
        }
    )


async def _compared(
    services: Services, call: Call, body: RerankBody | ScoreBody, first: list[str], second: list[str]
) -> Compared:
    """One text with each of several, or as many with as many: by a cross-encoder where the release is one."""
    async with borrowed(services, services.caller(call), body.model, turn=True) as lent:
        read = _read_together if lent.engine.capabilities.rerank else _read_apart
        found = await read(lent, first, second)
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    return found


async def _read_apart(lent: Borrowed, first: list[str], second: list[str]) -> Compared:
    found, tokens = await vectors(lent, [*first, *second])
    left = found[: len(first)] * (len(second) if len(first) == 1 else 1)
    scores = [similarity(one, other) for one, other in zip(left, found[len(first) :], strict=True)]
    return Compared(scores, tokens, {"method": VECTORS})


async def _read_together(lent: Borrowed, first: list[str], second: list[str]) -> Compared:
    pairs = list(zip(first * (len(second) if len(first) == 1 else 1), second, strict=True))
    found = await scored(lent, pairs)
    told: dict[str, Any] = {"method": PAIRS}
    if found.cut:  # by their place among the documents
        told["truncated"] = list(found.cut)
    return Compared(found.scores, found.tokens, told)


def similarity(one: list[float], other: list[float]) -> float:
    """The cosine of two vectors of unit length."""
    return math.fsum(x * y for x, y in zip(one, other, strict=True))


# vLLM answers these under several names, and its clients use them all.
ROUTES = (
    *(Route("POST", path, rerank, scope="embed") for path in ("/v1/rerank", "/rerank", "/v2/rerank")),
    *(Route("POST", path, score, scope="embed") for path in ("/v1/score", "/score")),
)
