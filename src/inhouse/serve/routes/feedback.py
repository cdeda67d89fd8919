"""POST /v1/feedback: what a person says of an answer, counted for the arm that gave it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.release.results import Feedback, add_feedback
from inhouse.serve.errors import ApiError, invalid
from inhouse.serve.http import Call
from inhouse.serve.measured import CLIENT_LEFT
from inhouse.serve.registry_writes import written
from inhouse.serve.requests import Body, read_body
from inhouse.serve.routes import Route, Services


class FeedbackBody(Body):
    """A score from -1 to 1 or a thumb, for the request with this id (header x-request-id of its answer)."""

    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    score: float | None = Field(None, ge=-1, le=1)
    thumb: Literal["up", "down"] | None = None
    comment: Annotated[str, StringConstraints(max_length=2000)] | None = None


async def feedback(services: Services, call: Call) -> None:
    """POST /v1/feedback."""
    assert call.key is not None
    body = read_body(FeedbackBody, await call.json_body())
    if (body.score is None) == (body.thumb is None):
        raise invalid(text("serve.score_or_thumb"), "score")
    seen = services.watchers.recent(body.request_id, str(call.key.id))
    answered = seen is not None and seen.status in (200, CLIENT_LEFT) and not seen.aside
    if seen is None or seen.arm is None or not answered:
        raise ApiError(404, "request_not_found", text("serve.request_unknown"), "request_id")
    score = body.score if body.score is not None else (1.0 if body.thumb == "up" else -1.0)
    said = Feedback(
        body.request_id, seen.deployment, seen.arm.release.id, seen.arm.role, call.key.id, score, body.comment
    )
    if not seen.elsewhere:  # else another model gave the answer
        await written(add_feedback, services.deployments.registry.engine, said)
    told = {"object": "feedback", "request_id": body.request_id, "score": score, "counted": not seen.elsewhere}
    await call.reply(told)


ROUTES = (Route("POST", "/v1/feedback", feedback),)
