"""Ask a model behind an OpenAI-compatible endpoint: every answer kept, every request counted against a budget."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from inhouse.core.addresses import stays_here
from inhouse.core.errors import Cancelled, UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.params import OnlyHow, Params
from inhouse.core.rows import Message
from inhouse.core.settings import openai_headers, settings
from inhouse.remote.answers import Answers, Spent
from inhouse.remote.http import check, reaching
from inhouse.remote.reply import fitting

if TYPE_CHECKING:
    import httpx

BUSY = (408, 409, 425, 429)  # worth asking again, as is every 5xx
ROW_AT_FAULT = (400, 413, 422)  # the endpoint refuses this text (too long, filtered), not all of them
LONGEST_WAIT_S = 60.0
BYTES_PER_TOKEN = 3  # of common tokenizers, rounded down: 4 in English, 3 a character in Chinese
Schema = dict[str, Any]
Tick = Callable[[int], None]


class Budget(Params):
    """What one task may cost, all its runs together. A changed model, instruction or schema is a new task."""

    requests: int = Field(1000, ge=0, description="requests, repeated ones included; kept answers cost nothing")
    tokens: int = Field(2_000_000, ge=0, description="tokens of questions and answers, by the endpoint's own count")


class Endpoint(Params):
    """A model behind an OpenAI-compatible endpoint.

    OPENAI_API_KEY of the environment goes to OPENAI_BASE_URL alone (absent: to OpenAI), never to another address.
    """

    base_url: str | None = Field(
        None, min_length=1, description="for example http://127.0.0.1:8080/v1; absent: OPENAI_BASE_URL"
    )
    model: str = Field(min_length=1, description="the model's name at the endpoint")
    temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest answer")
    max_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    timeout_s: Annotated[float, OnlyHow()] = Field(
        120.0, gt=0, description="seconds without a byte after which a request has failed"
    )
    attempts: Annotated[int, OnlyHow()] = Field(
        4, ge=1, le=10, description="how often a busy or failing endpoint is asked"
    )
    wait_s: Annotated[float, OnlyHow()] = Field(
        1.0, gt=0, le=60, description="seconds before the second attempt; doubled each time"
    )
    at_once: Annotated[int, OnlyHow()] = Field(4, ge=1, le=64, description="requests at the same time")
    budget: Annotated[Budget, OnlyHow()] = Field(Budget(), description="what asking may cost")


def address_of(endpoint: Endpoint) -> str:
    """Where the endpoint is: as the settings say, else as the environment does; blank when neither does."""
    return endpoint.base_url or settings().openai_base_url or ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question: its text, or the problem that left it without one."""

    text: str | None
    problem: UserError | None = None


class Said(BaseModel):
    """The message of a reply."""

    content: str | None = None


class Choice(BaseModel):
    """One answer of a reply."""

    message: Said


class Usage(BaseModel):
    """The endpoint's own count of tokens."""

    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class Completion(BaseModel):
    """A reply of /chat/completions."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


Conversation = Sequence[Message | Mapping[str, Any]]


def ask(
    endpoint: Endpoint, messages: Conversation, *, schema: Schema | None = None, cache: Path, offline: bool = False
) -> str:
    """One answer, from `cache` when the same was asked before; with `schema` it is JSON that fits it.

    Raises remote.* when the endpoint fails, label.* when the reply does not fit, nothing may be spent any more, or
    the answer is not kept and `offline` forbids asking.
    """
    [answer] = ask_many(endpoint, [messages], schema=schema, cache=cache, offline=offline)
    if answer.problem is not None:
        raise answer.problem
    assert answer.text is not None
    return answer.text


def ask_many(
    endpoint: Endpoint,
    conversations: Sequence[Conversation],
    *,
    schema: Schema | None = None,
    cache: Path,
    offline: bool = False,
    tick: Tick | None = None,
) -> list[Answer]:
    """Answers in the order of the conversations; equal ones are asked once, `tick(n)` after every n that are done.

    A conversation that the endpoint refuses, or answers twice out of shape, has a problem instead of a text. What
    concerns all of them raises as in `ask`; answers that came before are kept, so that another run goes on there.
    """
    asker = _Asker(endpoint, schema, cache)
    try:
        return asker.answers([asker.body(messages) for messages in conversations], offline, tick or (lambda n: None))
    finally:
        asker.close()


class _Asker:
    """The connections, the kept answers and the settings of one call."""

    def __init__(self, endpoint: Endpoint, schema: Schema | None, cache: Path) -> None:
        self.endpoint = endpoint
        self.schema = schema
        self.url = address_of(endpoint)
        if not self.url:
            raise UserError("label.no_endpoint", model=endpoint.model)
        self.kept = Answers(cache)
        self.stop = threading.Event()
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections and the kept answers."""
        if self._client is not None:
            self._client.close()
        self.kept.close()

    def body(self, messages: Conversation) -> dict[str, Any]:
        """The request, in the form that is also its key."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [m.as_dict() if isinstance(m, Message) else dict(m) for m in messages],
            "max_tokens": self.endpoint.max_tokens,
            "temperature": self.endpoint.temperature,
        }
        if self.schema is not None:
            shape = {"name": "reply", "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        return body

    def answers(self, bodies: list[dict[str, Any]], offline: bool, tick: Tick) -> list[Answer]:
        """Kept answers at once, the rest from the endpoint."""
        keys = [hash_json({"url": self.url, **body}) for body in bodies]
        wanted = dict(zip(keys, bodies, strict=True))
        found: dict[str, Answer] = {}
        for key in wanted:
            if (reply := self.kept.find(key)) is not None:
                found[key] = Answer(reply)
        missing = {key: body for key, body in wanted.items() if key not in found}
        if missing and offline:
            raise UserError("label.offline", url=self.url, missing=len(missing), asked=len(wanted))
        tick(sum(key in found for key in keys))
        if missing:
            self._connect()
            found |= self._all(missing, Counter(keys), tick)
        return [found[key] for key in keys]

    def _connect(self) -> None:
        import httpx

        headers = openai_headers(self.url)
        with reaching(self.url, self.endpoint.timeout_s):
            self._client = httpx.Client(
                base_url=self.url.rstrip("/") + "/", headers=headers, timeout=self.endpoint.timeout_s,
                trust_env=not stays_here(self.url),
            )  # fmt: skip

    def _all(self, missing: dict[str, dict[str, Any]], counts: Mapping[str, int], tick: Tick) -> dict[str, Answer]:
        """Ask with `at_once` threads; the first problem that concerns all stops the others."""
        found: dict[str, Answer] = {}
        waiting = iter(missing.items())
        running: dict[Future[Answer], str] = {}
        with ThreadPoolExecutor(self.endpoint.at_once) as pool:
            try:
                while True:
                    while len(running) < self.endpoint.at_once and (item := next(waiting, None)):
                        running[pool.submit(self._one, *item)] = item[0]
                    if not running:
                        return found
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(future)
                        found[key] = future.result()
                        tick(counts[key])
            finally:
                self.stop.set()

    def _one(self, key: str, body: dict[str, Any]) -> Answer:
        """The answer to one request, asked a second time when the first does not fit the schema."""
        try:
            reply = self._reply(body)
            if self.schema is not None:
                reply = self._fitting(body, reply)
        except UserError as error:
            if error.code == "label.reply_invalid" or error.facts.get("status") in ROW_AT_FAULT:
                return Answer(None, error)
            raise
        self.kept.keep(key, reply)
        return Answer(reply)

    def _fitting(self, body: dict[str, Any], reply: str) -> str:
        assert self.schema is not None
        try:
            return fitting(reply, self.schema)
        except ValueError as error:
            correction = f"That does not fit: {error}. Answer again with the JSON object only."
        turns = [{"role": "assistant", "content": reply}, {"role": "user", "content": correction}]
        again = self._reply({**body, "messages": [*body["messages"], *turns]})
        try:
            return fitting(again, self.schema)
        except ValueError as error:
            raise UserError("label.reply_invalid", url=self.url, problem=error, got=again[:200]) from None

    def _reply(self, body: dict[str, Any]) -> str:
        """The text of one reply; a busy endpoint is asked again after a while."""
        for attempt in range(self.endpoint.attempts):
            last = attempt + 1 == self.endpoint.attempts
            try:
                response = self._paid(body)
            except UserError as error:
                if last or error.code not in ("remote.timeout", "remote.unreachable"):
                    raise
                self._pause(attempt, None)
                continue
            if last or not (response.status_code in BUSY or response.status_code >= 500):
                break
            self._pause(attempt, response.headers.get("retry-after"))
        check(response, self.url, self.endpoint.model)
        return _completion(response, self.url).choices[0].message.content or ""

    def _pause(self, attempt: int, asked: str | None) -> None:
        """Wait as long as the endpoint asks, else twice as long each time; give up when the others have."""
        seconds = float(asked) if asked and asked.replace(".", "", 1).isdigit() else self.endpoint.wait_s * 2**attempt
        if self.stop.wait(min(seconds, LONGEST_WAIT_S)):
            raise Cancelled

    def _paid(self, body: dict[str, Any]) -> httpx.Response:
        """Make one request within the budget and charge what it cost."""
        assert self._client is not None
        task = self._task(body)
        length = sum(len(str(m.get("content") or "").encode()) for m in body["messages"])
        reserved = length // BYTES_PER_TOKEN + body["max_tokens"]
        most = self.endpoint.budget
        if spent := self.kept.reserve(task, reserved, Spent(most.requests, most.tokens)):
            raise UserError(
                "label.budget", url=self.url, requests=spent.requests, tokens=spent.tokens,
                most_requests=most.requests, most_tokens=most.tokens,
            )  # fmt: skip
        try:
            with reaching(self.url, self.endpoint.timeout_s):
                response = self._client.post("chat/completions", json=body)
        except UserError as error:
            if error.code == "remote.unreachable":  # after a timeout the endpoint may have worked, and may charge
                self.kept.settle(task, -reserved)
            raise
        self.kept.settle(task, _cost(response, reserved) - reserved)
        return response

    def _task(self, body: dict[str, Any]) -> str:
        """What a budget is for: this model at this endpoint with these instructions and this schema."""
        told = [m["content"] for m in body["messages"] if m["role"] == "system"]
        return hash_json({"url": self.url, **{name: body[name] for name in body if name != "messages"}, "told": told})


def _completion(response: httpx.Response, url: str) -> Completion:
    try:
        return Completion.model_validate_json(response.content)
    except ValidationError:
        raise UserError("remote.not_openai", url=url, got=response.text[:200]) from None


def _cost(response: httpx.Response, reserved: int) -> int:
    """Tokens by the endpoint's count; nothing for a refusal, all that was reserved when it does not say."""
    if not response.is_success:
        return 0
    try:
        usage = Completion.model_validate_json(response.content).usage
    except ValidationError:
        return reserved
    return usage.prompt_tokens + usage.completion_tokens if usage else reserved
