"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from functools import partial

from inhouse.serve.http import Call, Connection
from inhouse.serve.replies import Reply, StreamReply, WholeReply
from inhouse.serve.requests import Asked, ChatBody, CompletionBody, prepare, read_chat, read_completion
from inhouse.serve.routes import Route, Services


class OpenAiFace:
    """Sends an answer as OpenAI's chat and completion clients expect it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def begin(self, asked: Asked, release: str) -> Reply:
        """Say in headers which release answers, and which fields were not looked at."""
        mark(self.connection, asked, release)
        return (StreamReply if asked.stream else WholeReply)(self.connection, asked)


def mark(connection: Connection, asked: Asked, release: str) -> None:
    """The headers that all faces over HTTP share."""
    connection.tell(release, asked.ignored)


async def chat(services: Services, call: Call) -> None:
    """POST /v1/chat/completions."""
    await _answer(services, call, read_chat(await call.json_body()))


async def complete(services: Services, call: Call) -> None:
    """POST /v1/completions."""
    await _answer(services, call, read_completion(await call.json_body()))


async def _answer(services: Services, call: Call, body: ChatBody | CompletionBody) -> None:
    caller = services.caller(call, body.user)
    face = OpenAiFace(call.connection)
    await call.while_there(services.pipeline.run(body.model, partial(prepare, body), caller, face), caller.wanted)


ROUTES = (Route("POST", "/v1/chat/completions", chat), Route("POST", "/v1/completions", complete))
