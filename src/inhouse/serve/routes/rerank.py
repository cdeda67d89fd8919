"""POST /v1/rerank and /v1/score: how well texts fit a query."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.serve.direct import borrowed, vectors
from inhouse.serve.errors import invalid
from inhouse.serve.http import Call
from inhouse.serve.ids import new_id
from inhouse.serve.requests import Body, read_body
from inhouse.serve.routes import Route, Services

MOST_DOCUMENTS = 1024
METHOD = "embedding_cosine"  # told in every answer: scores of other methods are on another scale
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
    (query, *others), tokens = await _vectors(services, call, body, [body.query, *documents])
    scores = [similarity(query, other) for other in others]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents is not False:
        results = [found | {"document": {"text": documents[found["index"]]}} for found in results]
    await call.reply(
        {
            "id": new_id("rerank"),
            "model": body.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results,
            "inhouse": {"method": METHOD},
        }
    )


async def _score(services: Services, call: Call, body: ScoreBody) -> None:
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) not in (1, len(second)):
        raise invalid(text("serve.score_pairs"), "text_2")
    found, tokens = await _vectors(services, call, body, [*first, *second])
    left = found[: len(first)] * (len(second) if len(first) == 1 else 1)
    scores = [similarity(one, other) for one, other in zip(left, found[len(first) :], strict=True)]
    await call.reply(
        {
            "id": new_id("score"),
            "object": "list",
            "model": body.model,
            "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "inhouse": {"method": METHOD},
        }
    )


async def _vectors(
    services: Services, call: Call, body: RerankBody | ScoreBody, texts: list[str]
) -> tuple[list[list[float]], int]:
    async with borrowed(services, services.caller(call), body.model, turn=True) as lent:
        found = await vectors(lent, texts)
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    return found


def similarity(one: list[float], other: list[float]) -> float:
    """The cosine of two vectors of unit length."""
    return math.fsum(x * y for x, y in zip(one, other, strict=True))


# vLLM answers these under several names, and its clients use them all.
ROUTES = (
    *(Route("POST", path, rerank, scope="embed") for path in ("/v1/rerank", "/rerank", "/v2/rerank")),
    *(Route("POST", path, score, scope="embed") for path in ("/v1/score", "/score")),
)
