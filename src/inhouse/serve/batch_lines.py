"""The lines of a batch's input: checked before the first is answered, read again when it is its turn."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from inhouse.core.messages import text
from inhouse.release.batches import Line

Json = dict[str, Any]
MOST_ERRORS = 100  # told of one input
MOST_ID = 512
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


@dataclass(frozen=True)
class Bounds:
    """What an input may hold."""

    endpoint: str
    most_lines: int
    most_bytes: int  # of a line


def check_input(path: Path, bounds: Bounds) -> tuple[list[Line], list[Json]]:
    """The lines of an input, and what is wrong with it, as OpenAI tells it: a code, a message, the line's number."""
    lines: list[Line] = []
    errors: list[Json] = []
    seen: set[str] = set()
    for number, start, raw in read_lines(path, bounds.most_bytes):
        if len(errors) >= MOST_ERRORS:
            break
        if not raw.strip():
            continue
        if len(lines) >= bounds.most_lines:
            errors.append(_error("too_many_requests", text("serve.batch_lines", most=bounds.most_lines), number))
            break
        found = _line(raw, number, bounds)
        if isinstance(found, str) and found in seen:
            found = _error("duplicate_custom_id", text("serve.batch_twice", id=found[:80]), number, "custom_id")
        if isinstance(found, str):
            seen.add(found)
            lines.append(Line(number, found, start, len(raw)))
        else:
            errors.append(found)
    if not lines and not errors:
        errors.append(_error("empty_file", text("serve.batch_empty"), None))
    return lines, errors


def read_lines(path: Path, most: int) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, place and bytes of every line. One that is too long is cut: it is refused by its size."""
    with path.open("rb") as source:
        begin = source.read(len(BOM_UTF8))
        number, start = 0, len(BOM_UTF8) if begin == BOM_UTF8 else 0  # as editors on Windows write it
        source.seek(start)
        while raw := source.readline(most + 1):
            number += 1
            size = len(raw)
            while not raw.endswith(b"\n") and (rest := source.readline(most + 1)):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield number, start, raw
            start += size


def body_of(path: Path, line: Line) -> bytes:
    """The body of one request, as its route reads it."""
    with path.open("rb") as source:
        source.seek(line.start)
        request = json.loads(source.read(line.size))
    return json.dumps(request["body"]).encode()


def _line(raw: bytes, number: int, bounds: Bounds) -> str | Json:
    """The custom id of a line, or what is wrong with it."""
    if len(raw) > bounds.most_bytes:
        return _error("line_too_long", text("serve.too_large", most=bounds.most_bytes), number)
    try:
        request = from_json(raw, allow_inf_nan=False)
    except ValueError:
        return _error("invalid_json_line", text("serve.batch_json"), number)
    if not isinstance(request, dict):
        return _error("invalid_json_line", text("serve.batch_json"), number)
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MOST_ID:
        return _error("missing_custom_id", text("serve.batch_id", most=MOST_ID), number, "custom_id")
    if request.get("method") != "POST":
        return _error("invalid_method", text("serve.batch_method"), number, "method")
    if request.get("url") != bounds.endpoint:
        return _error("mismatched_url", text("serve.batch_url", endpoint=bounds.endpoint), number, "url")
    body = request.get("body")
    if not isinstance(body, dict):
        return _error("invalid_body", text("serve.batch_body"), number, "body")
    if body.get("stream") or body.get("background"):
        return _error("invalid_body", text("serve.batch_stream"), number, "body.stream")
    return custom_id


def _error(code: str, message: str, line: int | None, param: str | None = None) -> Json:
    return {"code": code, "message": message, "line": line, "param": param}
