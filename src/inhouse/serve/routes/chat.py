"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from functools import partial

from inhouse.serve.http import Call, Connection
from inhouse.serve.pings import Pings
from inhouse.serve.replies import Reply, StreamReply, WholeReply
from inhouse.serve.requests import Asked, ChatBody, CompletionBody, prepare, read_chat, read_completion
from inhouse.serve.routes import Route, Services


class OpenAiFace:
    """Sends an answer as OpenAI's chat and completion clients expect it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.reply: StreamReply | WholeReply | None = None
        self._pings: Pings | None = None

    def begin(self, asked: Asked, release: str) -> Reply:
        """Say in headers which release answers, and which fields were not looked at."""
        self.connection.tell(release, asked.ignored)
        if asked.stream:
            self._pings = Pings(self.connection)
        self.reply = (StreamReply if asked.stream else WholeReply)(self.connection, asked)
        return self.reply

    def end(self) -> None:
        """Nothing more is sent."""
        if self._pings is not None:
            self._pings.end()


async def chat(services: Services, call: Call) -> None:
    """POST /v1/chat/completions."""
    raw = await call.json_body()
    if not await _known(services, call, raw):
        await _answer(services, call, read_chat(raw), raw)


async def complete(services: Services, call: Call) -> None:
    """POST /v1/completions."""
    raw = await call.json_body()
    if not await _known(services, call, raw):
        await _answer(services, call, read_completion(raw), raw)


async def _known(services: Services, call: Call, raw: bytes) -> bool:
    """Answer at once what is known byte for byte; False for anything else."""
    assert call.key is not None
    if call.background or call.fresh:
        return False
    found = services.pipeline.quick.find(call.key, call.path, raw, services.deployments.serving)
    if found is None:
        return False
    answer, seen = found
    call.connection.tell(seen.model, ())
    call.connection.headers.append((b"x-cache", b"hit"))
    await call.connection.reply(200, answer)
    seen.request_id = call.connection.request_id
    services.watchers.finished(seen)
    return True


async def _answer(services: Services, call: Call, body: ChatBody | CompletionBody, raw: bytes) -> None:
    caller = services.caller(call, body.user or body.safety_identifier)
    face = OpenAiFace(call.connection)
    try:
        await call.while_there(services.pipeline.run(body.model, partial(prepare, body), caller, face), caller.wanted)
    finally:
        face.end()
    if caller.kept_until is not None and isinstance(face.reply, WholeReply) and not face.reply.asked.ignored:
        serving = services.deployments.serving.get(body.model)
        if serving is not None and serving.deployment.rules.overflow is None:
            services.pipeline.quick.keep(caller, raw, face.reply.body, serving)


ROUTES = (Route("POST", "/v1/chat/completions", chat), Route("POST", "/v1/completions", complete))
