"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.serve.direct import borrowed, vectors
from inhouse.serve.errors import invalid
from inhouse.serve.http import Call
from inhouse.serve.requests import Body, Text, read_body
from inhouse.serve.routes import Route, Services

MOST_INPUTS = 2048  # as OpenAI
MOST_TOKEN_ID = 2**31 - 1
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=MOST_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=2**20, fail_fast=True)]


class EmbeddingBody(Body):
    """What to embed: a text, texts, token ids, or lists of token ids."""

    model: Name
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=65536)
    user: Annotated[str, StringConstraints(max_length=512)] | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """As a list of texts, or a list of lists of token ids."""
        given: Any = self.input
        found: list[str] | list[list[int]] = (
            [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        )
        if any(len(each) == 0 for each in found):
            raise invalid(text("serve.empty_input"), "input")
        return found


async def embeddings(services: Services, call: Call) -> None:
    """POST /v1/embeddings."""
    body = read_body(EmbeddingBody, await call.json_body())
    await call.while_there(_answer(services, call, body, body.inputs()))


async def _answer(services: Services, call: Call, body: EmbeddingBody, inputs: list[str] | list[list[int]]) -> None:
    async with borrowed(services, services.caller(call, body.user), body.model, turn=True) as lent:
        found, tokens = await vectors(lent, inputs)
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    if body.dimensions is not None:
        found = [shorten(vector, body.dimensions) for vector in found]
    whole = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(found)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    await call.connection.reply(200, json.dumps(whole).encode())


def shorten(vector: list[float], dimensions: int) -> list[float]:
    """The first `dimensions` numbers, brought back to unit length: right for models trained for it (Matryoshka)."""
    if dimensions > len(vector):
        raise invalid(text("serve.dimensions", most=len(vector)), "dimensions")
    begin = vector[:dimensions]
    length = math.sqrt(math.fsum(x * x for x in begin))
    return begin if dimensions == len(vector) or length == 0 else [x / length for x in begin]


def _encoded(vector: list[float], encoding: str | None) -> list[float] | str:
    """base64 of little-endian float32, as OpenAI's clients ask for it."""
    if encoding != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ROUTES = (Route("POST", "/v1/embeddings", embeddings, scope="embed"),)
