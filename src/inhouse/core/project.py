"""Read a project file into a frozen model: errors carry the file, the line and a 'did you mean'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say

M = TypeVar("M", bound=BaseModel)
Key = tuple[str | int, ...]
Lines = dict[Key, int]

MOST_PLACES, DEEPEST = 3, 6  # sections that are named, and how deep they are looked for
# What a Chinese keyboard writes for the signs of YAML.
FULL_WIDTH = dict(zip("：，｛｝［］“”‘’　－", [*":,{}[]\"\"''", " ", "-"], strict=True))
MOST_NODES = 100_000  # of a project file with its aliases written out
WANTED = {
    "int": "problem.type_int",
    "float": "problem.type_float",
    "finite": "problem.type_float",
    "bool": "problem.type_bool",
    "string": "problem.type_text",
    "list": "problem.type_list",
    "tuple": "problem.type_list",
    "dict": "problem.type_mapping",
    "model": "problem.type_mapping",
}
BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def load_project(path: Path, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Read `path`, apply dotted overrides (`train.learning_rate=2e-4`), and validate.

    Raises project.missing, project.yaml, project.invalid (the first problem, with the count of the rest).
    """
    data, lines = read_yaml(path)
    for override in overrides:
        apply_override(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error, Written(path, data, lines, tuple(overrides)), model) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file as plain values, and the line (from 1) of every key and item."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError("project.missing", path=path) from None
    except UnicodeDecodeError as error:
        raise UserError("project.yaml", path=path, line=1, problem=say("problem.not_utf8", byte=error.start)) from None
    try:
        node, data = _parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line, problem = _yaml_problem(text, error)
        raise UserError("project.yaml", path=path, line=line, problem=problem) from None
    if node is None or not isinstance(data, dict):
        raise UserError("project.yaml", path=path, line=1, problem=say("problem.sections"))
    lines: Lines = {}
    _number(node, (), lines)
    return _apart(data), lines


def _yaml_problem(text: str, error: Exception) -> tuple[int, str]:
    """The line of what is no YAML, and what is wrong: a full-width sign or a tab where that stands in the way."""
    mark = getattr(error, "problem_mark", None)
    last = mark.line + 1 if mark else 1
    lines = text.splitlines()
    for number in range(min(last, len(lines)), max(0, last - 3), -1):
        line = lines[number - 1]
        if line.lstrip(" ").startswith("\t"):
            return number, say("problem.tab")
        found = next((sign for sign in line if sign in FULL_WIDTH), None)
        plain = [*lines[: number - 1], line.translate(str.maketrans(FULL_WIDTH)), *lines[number:]]
        if found is not None and _reads_on("\n".join(plain), last):  # else it is prose, and something else is wrong
            return number, say("problem.full_width", sign=found, plain=FULL_WIDTH[found])
    return last, getattr(error, "problem", None) or str(error).splitlines()[0]


def _reads_on(text: str, line: int) -> bool:
    """Whether YAML finds nothing wrong up to this line."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return mark is not None and mark.line + 1 > line
    return True


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes and the values of a YAML text; keys that stand twice and runaway aliases raise a YAMLError."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None:
        _check(node, {})
    return node, yaml.safe_load(text)


def _check(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many nodes `node` is with its aliases written out; `sizes` holds None for those being counted."""
    known = sizes.get(id(node), 0)
    if known is None:
        raise _refused(node, say("problem.alias_cycle"))
    if known:
        return known
    sizes[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    size = 1 + sum(_check(part, sizes) for part in parts)
    if size > MOST_NODES:
        raise _refused(node, say("problem.too_large", most=MOST_NODES))
    sizes[id(node)] = size
    return size


def _apart(value: Any) -> Any:
    """The values with every alias as a copy of its own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _apart(member) for key, member in value.items()}
    return [_apart(member) for member in value] if isinstance(value, list) else value


def _refuse_twice(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value) if isinstance(key, yaml.ScalarNode) else f"node {id(key)}")
        if name in seen:
            raise _refused(key, say("problem.duplicate", key=key.value))
        seen.add(name)


def _refused(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _number(node: yaml.Node, at: Key, lines: Lines) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*at, str(key.value))] = key.start_mark.line + 1
            _number(value, (*at, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _number(value, (*at, index), lines)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one value by its dotted path; list items are numbered from 0. The value is read as YAML."""
    dotted, equals, raw = override.partition("=")
    if not equals or not dotted:
        raise UserError("project.override", override=override)
    at: Any = data
    keys = dotted.split(".")
    try:
        for key in keys[:-1]:
            at = _item(at, int(key)) if isinstance(at, list) else at.setdefault(key, {})
        last = keys[-1]
        value = _scalar(raw)
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    except (yaml.YAMLError, RecursionError, ValueError, IndexError, TypeError, AttributeError):
        raise UserError("project.override", override=override) from None


def _item(items: list[Any], place: int) -> Any:
    """An item of a list; an operator in its short form is written out, so that a setting can be put in."""
    if isinstance(items[place], str):
        items[place] = {"use": items[place]}
    return items[place]


def _scalar(raw: str) -> Any:
    _, value = _parse(raw)
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as text: people mean the number
        try:
            return float(value)
        except ValueError:
            return value
    return value


@dataclass(frozen=True)
class Written:
    """A project file as its author wrote it, overrides applied, with the line of every key that is in the file."""

    path: Path
    data: dict[str, Any]
    lines: Lines
    overrides: tuple[str, ...] = ()

    def overridden(self, where: str) -> bool:
        """Whether what stands at a dotted path was said on the command line."""
        said = [override.partition("=")[0] for override in self.overrides]
        return any(f"{where}.".startswith(f"{place}.") for place in said)


def explain(error: ValidationError, written: Written, model: type[BaseModel]) -> UserError:
    """The first problem as a UserError with its line; up to five more stand in `rest`, a line each."""
    found = error.errors(include_url=False)
    # An item that is wrong does not count as one of its list, which then seems to be too short.
    real = [e for e in found if e["type"] != "too_short" or not any(_is_below(o["loc"], e["loc"]) for o in found)]
    problems = [_problem(e, written, model) for e in real]
    told = [_told(problem, written) for problem in problems[:6]]
    rest = "".join(f"\n  {say(code, **facts, rest='')}" for code, facts in told[1:])
    code, facts = told[0]
    return UserError(code, **facts, rest=rest)


def _told(problem: tuple[int, str, str], written: Written) -> tuple[str, dict[str, Any]]:
    """A problem as a code and its facts: with its line in the file, or as one of the command line."""
    line, where, what = problem
    if written.overridden(where):
        return "project.invalid_override", {"where": where, "problem": what}
    return "project.invalid", {"path": written.path, "line": line, "where": where, "problem": what}


def _is_below(place: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _problem(error: Any, written: Written, model: type[BaseModel]) -> tuple[int, str, str]:
    at, lines = _in_file(error, written.data), written.lines
    line = next(lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines)
    where = ".".join(str(k) for k in at) or "project"
    near = (error.get("ctx") or {}).get("near")
    what = said(error)
    if error["type"] == "extra_forbidden":
        *above, key = error["loc"]
        here, elsewhere = places(model, above, str(at[-1]))
        near = next(iter(get_close_matches(str(at[-1]), here, n=1)), None)
        if not near and (kinds := _kinds_with(model, above, str(key))):
            what = say("problem.of_another", kinds=", ".join(kinds), kind=above[-1])
        elif not near and elsewhere:
            what += say("problem.belongs", where=", ".join(elsewhere))
    return line, where, what + (say("problem.did_you_mean", near=near) if near else "")


def said(error: Any) -> str:
    """What is wrong, in the language in use; pydantic's own words where there are no others."""
    kind, facts, message = str(error["type"]), error.get("ctx") or {}, str(error["msg"])
    wanted = WANTED.get(kind.partition("_")[0])
    if wanted and kind.endswith(("_type", "_parsing", "_from_float", "finite_number")):
        return say("problem.type", wanted=say(wanted))
    if kind in BOUNDS:
        sign, bound = BOUNDS[kind]
        return say("problem.range", sign=sign, bound=facts[bound])
    if kind.endswith("too_short"):
        return say("problem.too_short", least=facts["min_length"])
    if kind.endswith("too_long"):
        return say("problem.too_long", most=facts["max_length"])
    if kind.startswith("operator_"):
        return message  # made from a text by OneOf
    simple = {
        "extra_forbidden": lambda: say("problem.unknown_key"),
        "missing": lambda: say("problem.missing"),
        "literal_error": lambda: say("problem.choice", allowed=facts["expected"].replace(" or ", ", ")),
        "string_pattern_mismatch": lambda: say("problem.pattern", pattern=facts["pattern"]),
    }
    other = say("problem.other", said=message.removeprefix("Value error, "))
    return simple[kind]() if kind in simple else other


def _in_file(error: Any, data: Any) -> Key:
    """Where an error is, without the tags that pydantic puts between the keys that were written."""
    at: Key = ()
    value = data
    for key in error["loc"]:
        known = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if key in known:
            value, at = value[key], (*at, key)
    return (*at, error["loc"][-1]) if error["type"] == "missing" else at


def places(model: type[BaseModel], location: Sequence[Any], key: str) -> tuple[set[str], list[str]]:
    """The keys that may stand at a location of a project file, and the sections elsewhere that have `key`."""
    schema = model.model_json_schema()
    found = _standing_at(location, schema)
    here = {name for part in found for name in part.get("properties", {})}
    return here, sorted(set(_sections(schema, schema, key, "")), key=lambda w: (w.count("."), w))[:MOST_PLACES]


def _kinds_with(model: type[BaseModel], location: Sequence[Any], key: str) -> list[str]:
    """The operators that have `key`, where the one at the location, which names it last, is one of several."""
    found = _standing_at(location[:-1], model.model_json_schema())
    options = [part["properties"] for part in found if "use" in part.get("properties", {})]
    kinds = {keys["use"].get("const"): keys for keys in options}
    has = [kind for kind, keys in kinds.items() if key in keys]
    return has[:MOST_PLACES] if location and location[-1] in kinds else []


def _standing_at(location: Sequence[Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What may stand at a location of a project file; past a step that no schema has, what stood before it."""
    found = _objects(schema, schema)
    for step in location:
        found = [below for part in found for below in _below(part, step, schema)] or found
    return found


def _objects(part: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a part of a schema may be, its references and alternatives resolved."""
    if "$ref" in part:
        return _objects(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
    options = [*part.get("anyOf", ()), *part.get("oneOf", ()), *part.get("allOf", ())]
    return [found for option in options for found in _objects(option, schema)] if options else [part]


def _below(part: dict[str, Any], step: Any, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands under a key or a place of a list; under the tag of an operator it is that operator."""
    if isinstance(step, int):
        return _objects(part["items"], schema) if "items" in part else []
    if step in part.get("properties", {}):
        return _objects(part["properties"][step], schema)
    if named := part.get("patternProperties"):  # a mapping whose keys are names that the user gives
        return [found for below in named.values() for found in _objects(below, schema)]
    return [part] if part.get("properties", {}).get("use", {}).get("const") == step else []


def _sections(part: dict[str, Any], schema: dict[str, Any], key: str, where: str) -> Iterator[str]:
    """Sections that have the key, by their dotted paths; operators of a list are too many to name."""
    for found in _objects(part, schema):
        properties = found.get("properties", {})
        if key in properties:
            yield where or say("problem.top")
        for name, below in properties.items() if where.count(".") < DEEPEST else ():
            yield from _sections(below, schema, key, f"{where}.{name}".lstrip("."))
