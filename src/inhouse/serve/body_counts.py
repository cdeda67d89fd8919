"""How many of everything a large body holds, found before it is checked field by field.

Checking 50,000 wrong entries takes half a second of the event loop, and telling of each takes as long again: a body
is parsed once more, in some milliseconds, to see that there are no more than could be right.
"""

from __future__ import annotations

from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import invalid
from inhouse.serve.media import PARTS

SMALL_BYTES = 32 * 2**10  # what fits in here is checked soon, whatever it is
FIELDS = 200
MOST = {"messages": 2000, "logit_bias": 1000, "stop": 16, "tools": 128, "functions": 128}


def check_counts(raw: bytes) -> None:
    """Raises ApiError 400 with the field that holds too many. What is no JSON is left to those who say why."""
    if len(raw) <= SMALL_BYTES:
        return
    from pydantic_core import from_json

    try:
        body = from_json(raw, cache_strings="none")  # its cache makes many different keys twice as slow
    except ValueError:
        return
    if not isinstance(body, dict):
        return
    _check(body, FIELDS, "body")
    for field, most in MOST.items():
        _check(body.get(field), most, field)
    messages = body.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _check(message.get("content"), PARTS, f"messages.{number}.content")


def _check(value: Any, most: int, place: str) -> None:
    if isinstance(value, list | dict) and len(value) > most:
        raise invalid(text("serve.too_many", field=place, most=most, count=len(value)), place)
