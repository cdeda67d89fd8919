"""Turn a command's request model into flags and arguments."""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from inhouse.cli.commands import Command
from inhouse.cli.words import Spoken
from inhouse.core.messages import known, text
from inhouse.core.project import said

PROJECT_FIELDS = ("project", "overrides")


def api_function(command: Command) -> Callable[..., Any]:
    """The API function behind a command, imported now."""
    module, _, name = command.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f"inhouse.api.{module}"), name)
    return function


def request_model(function: Callable[..., Any]) -> type[BaseModel]:
    """The type of a function's `request`."""
    found: type[BaseModel] = typing.get_type_hints(function)["request"]
    return found


def click_command(command: Command, call: Callable[..., None]) -> click.Command:
    """A click command whose callback is `call(command, values, as_json)`."""
    model = request_model(api_function(command))
    fixed = dict(command.fixed)
    parameters: list[click.Parameter] = []
    if command.project:
        parameters.append(click.Argument(["items"], nargs=-1, metavar=text("cli.arg.items")))
    for name, field in model.model_fields.items():
        if name in fixed or (command.project and name in PROJECT_FIELDS):
            continue
        positional = name in command.arguments
        parameters.append(_argument(name, field) if positional else _option(name, field, command.path[0]))
    parameters.append(click.Option(["--json", "as_json"], is_flag=True, help=text("cli.field.json")))
    parameters.append(click.Option(["--lang"], type=click.Choice(["en", "zh"]), help=text("cli.field.lang")))

    def callback(as_json: bool, lang: str | None, **values: Any) -> None:
        given = {k: v for k, v in values.items() if v is not None and v != ()}
        if command.project:
            given |= split_items(given.pop("items", ()))
        call(command, given | fixed, as_json)

    return Spoken(
        command.path[-1], params=parameters, callback=callback, help=_help(command), short_help=text(command.help),
        options_metavar=text("cli.metavar"),
    )  # fmt: skip


def _help(command: Command) -> str:
    more = f"{command.help}.more"
    return text(command.help) + (f"\n\n\b\n{text(more)}" if known(more) else "")


def split_items(items: Iterable[str]) -> dict[str, Any]:
    """`[PROJECT] [section.key=value]...` in any order: what has a '=' and is no file is an override."""
    overrides = tuple(i for i in items if "=" in i and not Path(i).exists())
    projects = [i for i in items if i not in overrides]
    if len(projects) > 1:
        raise click.UsageError(text("cli.one_project", given=" ".join(projects)))
    return {"overrides": overrides} | ({"project": Path(projects[0])} if projects else {})


def _argument(name: str, field: FieldInfo) -> click.Argument:
    kind, many = _kind(field.annotation)
    word = text(told) if known(told := f"cli.arg.{name}") else name.upper()
    shown = (word if field.is_required() else f"[{word}]") + ("..." if many else "")
    return click.Argument([name], required=field.is_required(), type=kind, nargs=-1 if many else 1, metavar=shown)


def _option(name: str, field: FieldInfo, group: str) -> click.Option:
    """A flag; its help is the group's own where it has one (`cli.field.bench.rows`), else that of the field's name."""
    kind, many = _kind(field.annotation)
    flag = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
    is_flag = kind is bool
    return click.Option(
        [f"{flag}/--no-{name.replace('_', '-')}" if is_flag and field.default is True else flag, name],
        type=None if is_flag else kind,
        is_flag=is_flag,
        default=None,
        multiple=many,
        required=field.is_required(),
        help=text(own if known(own := f"cli.field.{group}.{name}") else f"cli.field.{name}"),
    )


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The click type of an annotation, and whether the option may be given several times."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return _kind(args[0])[0], True
    if origin is Literal:
        return click.Choice([str(a) for a in args]), False
    if annotation is Path:
        return click.Path(path_type=Path), False
    return annotation, False


def request_of(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    """The request, or a usage error that names the flag."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{str(first['loc'][0]).replace('_', '-')}"
        if first["type"] == "missing":
            raise click.UsageError(text("cli.missing", name=name)) from None
        raise click.UsageError(f"{name}: {said(first)}") from None
