"""Errors of the HTTP surface, in OpenAI's shape. Nothing of the inside (paths, addresses, stacks) is in them."""

from __future__ import annotations

import json

from inhouse.core.messages import text

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# Anthropic's names where they are others, https://docs.anthropic.com/en/api/errors
MESSAGE_KINDS = {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
RETRY_AFTER_S = 1
END_S = 2  # for requests that are not done after drain_s to be told so, and for clients to read it
STOPPING = "stopping"  # with this word a request is cancelled that is not done when the server has to end


class ApiError(Exception):
    """A refusal that the client sees."""

    def __init__(
        self, status: int, code: str | None, message: str, param: str | None = None, retry_after_s: int = RETRY_AFTER_S
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.counted = False  # among the requests of a release
        self.allow: str | None = None  # the verbs that a 405 has to name (RFC 9110, section 15.5.6)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """SDKs try again by themselves on 429 and 503, after the pause that is named here."""
        if self.allow is not None:
            return [(b"allow", self.allow.encode())]
        return [(b"retry-after", str(self.retry_after_s).encode())] if self.status in (429, 503) else []

    def body(self) -> bytes:
        """`{"error": {message, type, param, code}}`."""
        return _encoded({"error": self._facts("server_error")})

    def message_body(self) -> bytes:
        """`{"type": "error", "error": {type, message}}`, as Anthropic's clients read it; with our param and code."""
        facts = self._facts("api_error")
        facts["type"] = MESSAGE_KINDS.get(self.status, facts["type"])
        return _encoded({"type": "error", "error": facts})

    def plain_body(self) -> bytes:
        """`{"error": text}`, as Ollama's clients read it; they are not told of the field otherwise."""
        named = self.param is None or f"'{self.param}'" in self.message
        told = self.message if named else f"{self.param}: {self.message}"
        return _encoded({"error": told})

    def _facts(self, ours: str) -> dict[str, str | None]:
        """`ours`: what a failure that is not the client's is called."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else ours)
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def _encoded(body: dict[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def invalid(message: str, param: str | None = None) -> ApiError:
    """A request that cannot be understood or is out of bounds."""
    return ApiError(400, None, message, param)


def unsupported(field: str) -> ApiError:
    """A field that OpenAI knows and this endpoint does not: refused, never silently left out."""
    return ApiError(400, "unsupported_parameter", text("serve.unsupported", field=field), field)


def unheld(field: str | None, keyword: str | None) -> ApiError:
    """A field that the engine which answers cannot serve; of a JSON schema, the keyword that it cannot hold."""
    if keyword is not None:
        told = text("serve.engine_keyword", keyword=keyword[:64], field=field or "-")
    elif field is not None:
        told = text("serve.engine_field", field=field)
    else:
        told = text("serve.engine_request")
    return ApiError(400, "unsupported_parameter", told, field)


def unavailable() -> ApiError:
    """The engine is being started again."""
    return ApiError(503, "engine_unavailable", text("serve.engine_unavailable"))


def overloaded(status: int = 429) -> ApiError:
    """More requests than the queue holds, or no turn before the deadline."""
    code = "rate_limit_exceeded" if status == 429 else "overloaded"
    return ApiError(status, code, text("serve.overloaded"))


def stopping() -> ApiError:
    """The server ends, and this request has had its time."""
    return ApiError(503, STOPPING, text("serve.stopping"))


def too_late(seconds: float) -> ApiError:
    """The request's deadline has passed."""
    return ApiError(504, "deadline_exceeded", text("serve.deadline", seconds=f"{seconds:g}"))


def too_long(found: str, context: int, field: str = "messages") -> ApiError:
    """The prompt does not fit the context. `field`: where it stood."""
    return ApiError(400, "context_length_exceeded", text("serve.too_long", found=found, context=context), field)
