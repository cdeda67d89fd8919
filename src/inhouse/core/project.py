"""Read a project file into a frozen model: errors carry the file, the line and a 'did you mean'."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from inhouse.core.errors import UserError

M = TypeVar("M", bound=BaseModel)
Key = tuple[str | int, ...]
Lines = dict[Key, int]


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
        raise explain(error, path, lines, model) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file as plain values, and the line (from 1) of every key and item."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError("project.missing", path=path) from None
    except UnicodeDecodeError as error:
        raise UserError("project.yaml", path=path, line=1, problem=f"not UTF-8 (byte {error.start})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError("project.yaml", path=path, line=mark.line + 1 if mark else 1, problem=problem) from None
    if not isinstance(data, dict):
        raise UserError("project.yaml", path=path, line=1, problem="expected a mapping of sections")
    lines: Lines = {}
    if node is not None:
        _number(node, (), lines)
    return data, lines


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
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        last = keys[-1]
        value = _scalar(raw)
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UserError("project.override", override=override) from None


def _scalar(raw: str) -> Any:
    value = yaml.safe_load(raw)
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as text: people mean the number
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain(error: ValidationError, path: Path, lines: Lines, model: type[BaseModel]) -> UserError:
    """The first problem as a UserError with its line; every problem is in `facts['problems']`."""
    problems = [_problem(e, lines, model) for e in error.errors(include_url=False)]
    line, where, what = problems[0]
    rest = "".join(f"\n  {path}:{n}: {w}: {t}" for n, w, t in problems[1:6])
    return UserError("project.invalid", path=path, line=line, where=where, problem=what, rest=rest)


def _problem(error: Any, lines: Lines, model: type[BaseModel]) -> tuple[int, str, str]:
    at = _in_file(error["loc"], lines)
    line = next(lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines)
    where = ".".join(str(k) for k in at) or "project"
    what = str(error["msg"])
    if error["type"] == "extra_forbidden":
        near = get_close_matches(str(at[-1]), known_keys(model), n=1)
        what = f"unknown key{f'; did you mean {near[0]!r}?' if near else ''}"
    elif near_name := (error.get("ctx") or {}).get("near"):
        what += f"; did you mean '{near_name}'?"
    return line, where, what


def _in_file(location: tuple[Any, ...], lines: Lines) -> Key:
    """A pydantic location without the union tags it puts between the keys that the file has."""
    at: Key = ()
    for index, key in enumerate(location):
        last = index == len(location) - 1
        if (*at, key) in lines or last:
            at = (*at, key)
    return at


def known_keys(model: type[BaseModel]) -> set[str]:
    """Every key that may stand anywhere in a project file, for 'did you mean'."""
    schema = model.model_json_schema()
    keys = set(schema.get("properties", {}))
    for part in schema.get("$defs", {}).values():
        keys |= set(part.get("properties", {}))
    return keys


def choices(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal."""
    return tuple(str(a) for a in get_args(annotation))
