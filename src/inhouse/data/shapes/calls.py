"""Texts inside tool calls: what stands in their arguments is data as much as what is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inhouse.data.records import Unfit

CALL = "tool_call"  # the name of such a text
CALLED = ("function", "custom")
NOT_TEXT = ("id", "type", "index", "name")  # what ties a call to its result and to the tool's definition
LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
TELLING = re.compile(r"\d{6}|@")  # a number or a key can hold a phone, an id or an address as well
Visit = Callable[[str], str]


def calls_of(value: object, place: str) -> list[dict[str, Any]]:
    """Calls as OpenAI's API has them: what is called has a name, its arguments are an object or the JSON of one.

    Calls that stand by themselves (name, arguments) are put so; no arguments are {}. Raises Unfit.
    """
    if not isinstance(value, list) or not value:
        raise Unfit("wrong_type", place)
    return [_call(call, place) for call in value]


def spelled(content: str, place: str) -> list[dict[str, Any]]:
    """The calls in JSON: a list of them, or one. Raises Unfit."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise Unfit("wrong_type", f"{place}: not JSON") from None
    return calls_of(found if isinstance(found, list) else [found], place)


def _call(call: object, place: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise Unfit("wrong_type", place)
    kind = next((name for name in CALLED if isinstance(call.get(name), dict)), None)
    called = call[kind] if kind else call
    if not isinstance(called.get("name"), str) or not called["name"].strip():
        raise Unfit("wrong_type", f"{place}: name")
    if kind == "custom":
        return call
    function = {"name": called["name"], "arguments": _whole(called, place)}
    beside = {} if kind is None else {key: item for key, item in call.items() if key not in ("type", kind)}
    return {**beside, "type": "function", "function": function}


def _whole(called: Mapping[str, Any], place: str) -> str:
    """The arguments of a call as JSON, as they are written where they are JSON. Llama's templates say `parameters`."""
    given = called.get("arguments", called.get("parameters"))
    if given is None or given == "":
        return "{}"
    if isinstance(given, dict):
        return json.dumps(given, ensure_ascii=False)
    told = None
    if isinstance(given, str):
        try:
            told = json.loads(given)
        except (ValueError, RecursionError):
            told = None
    if not isinstance(given, str) or not isinstance(told, dict):
        raise Unfit("wrong_type", f"{place}: arguments")
    return given


def texts_in(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of some calls in order: string values that are not blank, and keys and numbers with many digits."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    mapped(calls, note)
    return found


def mapped(calls: Sequence[Mapping[str, Any]], visit: Visit) -> list[dict[str, Any]]:
    """The calls with another text for each one; where a text stays, so does how it was written."""
    return [_named(call, visit) for call in calls]


def without_texts(calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the texts of some calls do not tell: what is called, with which keys, short numbers and switches."""
    bare = mapped([_opened(call) for call in calls], lambda _: "")
    return [{key: value for key, value in call.items() if key not in ("id", "index", "type")} for call in bare]


def _opened(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as values: how their JSON is written says nothing."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return dict(call)
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def _named(value: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    """A call, or what it calls: the name stays, the arguments may be JSON or an object."""
    found = {}
    for key, item in value.items():
        if key in NOT_TEXT:
            found[key] = item
        else:
            found[key] = _named(item, visit) if key in CALLED and isinstance(item, dict) else _inside(item, visit)
    return found


def _inside(value: Any, visit: Visit) -> Any:
    if isinstance(value, str):
        return _arguments(value, visit)
    if isinstance(value, dict):
        return {_told(key, visit, TELLING): _inside(item, visit) for key, item in value.items()}
    if isinstance(value, list):
        return [_inside(item, visit) for item in value]
    return _number(value, visit)


def _arguments(raw: str, visit: Visit) -> str:
    """A string: the texts of the JSON in it, or the whole of it where it is none."""
    if raw.lstrip()[:1] not in ("{", "[", '"') or not _is_json(raw):
        return _told(raw, visit)

    def literal(found: re.Match[str]) -> str:
        token = found[0]
        if token[0] != '"':
            new = _told(token, visit, TELLING)
            return token if new == token else json.dumps(new, ensure_ascii=False)
        bare = token[: found.start(1) - found.start()] if found[1] else token
        old = json.loads(bare)
        new = _told(old, visit, TELLING if found[1] else None)
        return token if new == old else json.dumps(new, ensure_ascii=False) + (found[1] or "")

    return LITERAL.sub(literal, raw)


def _is_json(raw: str) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _told(text: str, visit: Visit, only: re.Pattern[str] | None = None) -> str:
    if not text.strip() or (only and not only.search(text)):
        return text
    return visit(text)


def _number(value: Any, visit: Visit) -> Any:
    """A number as it is, or as text where its text was changed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    old = repr(value)
    new = _told(old, visit, TELLING)
    return value if new == old else new
