"""What is wrong with a body, in our words and in two languages: pydantic's are English and name its own parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from pydantic import ValidationError

from inhouse.core.messages import text
from inhouse.serve.errors import ApiError, invalid

Found = Mapping[str, Any]
Path = tuple[str | int, ...]
MODELS = {"Document"}  # members of a union that pydantic names as a client could name a field
MOST_PARAM = 200

KINDS: dict[str, Callable[[], str]] = {
    "string_type": lambda: text("serve.kind_text"),
    "int_type": lambda: text("serve.kind_whole"),
    "float_type": lambda: text("serve.kind_number"),
    "bool_type": lambda: text("serve.kind_switch"),
    "list_type": lambda: text("serve.kind_list"),
    "dict_type": lambda: text("serve.kind_object"),
    "model_type": lambda: text("serve.kind_object"),
}


def _too_long(told: Found) -> str:
    most, count = told["max_length"], told["actual_length"]
    if count is None:  # of an object, and of a list that ends at its first fault
        return text("serve.body_entries_over", most=most)
    return text("serve.body_entries_most", most=most, count=count)


TOLD: dict[str, Callable[[Found], str]] = {
    "missing": lambda _: text("serve.body_missing"),
    "too_long": _too_long,
    "too_short": lambda told: text("serve.body_entries_least", least=told["min_length"]),
    "string_too_long": lambda told: text("serve.body_text_most", most=told["max_length"]),
    "string_too_short": lambda told: text("serve.body_text_least", least=told["min_length"]),
    "greater_than_equal": lambda told: text("serve.body_least", least=f"{told['ge']:g}"),
    "less_than_equal": lambda told: text("serve.body_most", most=f"{told['le']:g}"),
    "greater_than": lambda told: text("serve.body_above", least=f"{told['gt']:g}"),
    "literal_error": lambda told: text("serve.body_one_of", known=", ".join(re.findall(r"'(.*?)'", told["expected"]))),
    "int_parsing_size": lambda _: text("serve.body_number"),
    "finite_number": lambda _: text("serve.body_number"),
}
PATTERNS: dict[str, Callable[[], str]] = {
    "logit_bias": lambda: text("serve.body_token_id"),
    "name": lambda: text("serve.body_name"),
}


def refusal_of(error: ValidationError) -> ApiError:
    """The first fault of a body; where a field may be of several kinds, that of the kind that fits best."""
    found = error.errors(include_url=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return invalid(text("serve.bad_json"), "body")
    group = _same_value(found)
    best = max(group, key=_fit)
    path = _path(best["loc"])
    names = ".".join(str(part) for part in path)
    return invalid(_words(best, [each for each in group if _path(each["loc"]) == path]), names[:MOST_PARAM] or None)


def _same_value(found: Sequence[Any]) -> list[Any]:
    """The errors that the members of a union have for one value: pydantic puts their names into the place."""
    place = found[0]["loc"]
    tag = next((at for at, part in enumerate(place) if _is_tag(part)), None)
    return [found[0]] if tag is None else [each for each in found if each["loc"][:tag] == place[:tag]]


def _fit(each: Found) -> tuple[int, tuple[int, ...], bool]:
    """How far a member came: deep inside, late in a list, and of the right type."""
    path = _path(each["loc"])
    return len(path), tuple(part for part in path if isinstance(part, int)), each["type"] not in KINDS


def _path(place: Path) -> Path:
    """A place without the names of a union's members: what is left is what the client wrote."""
    return tuple(part for part in place if not _is_tag(part))


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and (not part.isidentifier() or part in MODELS)


def _words(best: Found, same: Sequence[Found]) -> str:
    kind, more = best["type"], best.get("ctx", {})
    if kind in KINDS:
        kinds = dict.fromkeys(KINDS[each["type"]]() for each in same if each["type"] in KINDS)
        return text("serve.body_type", kinds=reduce(_either, kinds))
    if kind == "string_pattern_mismatch" and (names := [part for part in best["loc"] if part in PATTERNS]):
        return PATTERNS[names[-1]]()
    return TOLD[kind](more) if kind in TOLD else text("serve.body_wrong")


def _either(first: str, second: str) -> str:
    return text("serve.kind_either", first=first, second=second)
