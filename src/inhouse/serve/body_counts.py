"""How many of everything a large body holds, found before it is checked field by field.

Checking 50,000 wrong entries takes half a second of the event loop, and telling of each takes as long again: the marks
of a body are counted before it is parsed, because a million empty lists take seconds and gigabytes; then it is parsed
once more, in some milliseconds, to see that there are no more of anything than could be right.
"""

from __future__ import annotations

from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import invalid
from inhouse.serve.media import PARTS

SMALL_BYTES = 32 * 2**10  # what fits in here is checked soon, whatever it is
FIELDS = 200
NUMBERS = 2**20  # token ids, and as many commas in a whole body
CONTAINERS = 2**15  # lists and objects, at any depth
TEXTS = 2**17  # texts and names of fields
BEGIN_BYTES = 2**17  # where the field that holds too many is looked for
TEXTS_OR_LISTS = 2048
MOST = {
    "messages": 2000, "logit_bias": 1000, "stop": 16, "stop_sequences": 16, "tools": 128, "functions": 128,
    "include": 20, "metadata": FIELDS, "documents": 1024, "text_1": 1024, "text_2": 1024,
}  # fmt: skip
NUMBERED = ("prompt", "input", "tokens", "context")  # token ids; where they may be texts or lists, there are fewer


def check_counts(raw: bytes) -> None:
    """Raises ApiError 400 with the field that holds too many. What is no JSON is left to those who say why."""
    if len(raw) <= SMALL_BYTES:
        return
    from pydantic_core import from_json

    if (marks := _marks(raw)) is not None:
        _refuse_marks(raw, *marks)
    try:
        body = from_json(raw, cache_strings="none")  # its cache makes many different keys twice as slow
    except ValueError:
        return
    if not isinstance(body, dict):
        return
    _check_fields(body)


def _marks(raw: bytes) -> tuple[int, int] | None:
    """How many there may be and are of what a body has too many of: lists and objects, texts, or values."""
    if _too_many(raw, raw.count(b'"') // 2) is None:
        return None
    # Texts may be full of marks, code is: they are left out.
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    texts = plain.count(b'"') // 2
    return (TEXTS, texts) if texts > TEXTS else _too_many(b"".join(plain.split(b'"')[::2]), texts)


def _too_many(plain: bytes, texts: int) -> tuple[int, int] | None:
    counts = ((TEXTS, texts), (CONTAINERS, plain.count(b"[") + plain.count(b"{")), (NUMBERS, plain.count(b",")))
    return next(((most, count) for most, count in counts if count > most), None)


def _refuse_marks(raw: bytes, most: int, count: int) -> None:
    """Raises ApiError 400, with the field where its beginning already shows it."""
    from pydantic_core import from_json

    try:
        begin = from_json(raw[:BEGIN_BYTES], allow_partial=True, cache_strings="none")
    except ValueError:
        begin = None
    if isinstance(begin, dict):
        _check_fields(begin)
    raise invalid(text("serve.too_many", field="body", most=most, count=count), "body")


def _check_fields(body: dict[str, Any]) -> None:
    _check(body, FIELDS, "body")
    for field in NUMBERED:
        value = body.get(field)
        if isinstance(value, list):
            _check(value, NUMBERS if value and isinstance(value[0], int) else TEXTS_OR_LISTS, field)
    for field, most in MOST.items():
        _check(body.get(field), most, field)
    messages = body.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _check(message.get("content"), PARTS, f"messages.{number}.content")


def _check(value: Any, most: int, place: str) -> None:
    if isinstance(value, list | dict) and len(value) > most:
        raise invalid(text("serve.too_many", field=place, most=most, count=len(value)), place)
