"""The words that the command-line library says by itself, in the user's language."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import click

from inhouse.core.messages import text

EXTRA = "Got unexpected extra argument"  # how the library's message begins, for which it has no class


class Spoken(click.Command):
    """A command whose help is in the user's language."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        usage(self, ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options(self, ctx, formatter)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return named(super().get_help_option(ctx))


def named(option: click.Option | None) -> click.Option | None:
    """The option --help with a text of ours."""
    if option is not None:
        option.help = text("cli.field.help")
    return option


def usage(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """The usage line."""
    pieces = " ".join(command.collect_usage_pieces(context))
    formatter.write_usage(context.command_path.rstrip(), pieces, prefix=text("cli.usage"))


@contextmanager
def section(formatter: click.HelpFormatter, heading: str) -> Iterator[None]:
    """An indented part of a help text below its heading, which has a colon of the language."""
    formatter.write_paragraph()
    formatter.write(f"{heading}\n")
    with formatter.indentation():
        yield


def options(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """The list of options."""
    found = [p.get_help_record(context) for p in command.get_params(context) if isinstance(p, click.Option)]
    lines = [(name, told.replace("[required]", f"[{text('cli.required')}]")) for name, told in filter(None, found)]
    if lines:
        with section(formatter, text("cli.options")):
            formatter.write_dl(lines)


def show(error: click.ClickException) -> None:
    """Print what is wrong with the words that were typed, and how to get help."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if context is not None:
        formatter = context.make_formatter()
        usage(context.command, context, formatter)
        click.echo(formatter.getvalue().rstrip("\n"), err=True)
        click.echo(text("cli.try_help", command=f"{context.command_path} --help") + "\n", err=True)
    click.secho(text("cli.error"), fg="red", bold=True, err=True, nl=False)
    click.echo(f" {problem(error)}", err=True)


def problem(error: click.ClickException) -> str:
    """One error of the library in our words; its own where there are no others."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        return text("cli.no_option", name=error.option_name) + _near(list(error.possibilities or ()))
    if isinstance(error, click.NoSuchCommand) and error.ctx is not None:
        group = error.ctx.command
        names = group.list_commands(error.ctx) if isinstance(group, click.Group) else []
        near = get_close_matches(error.command_name, names, n=1)
        return text("cli.no_command", name=error.command_name) + _near(near)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return text("cli.missing", name=_name(error.param, error.ctx))
    if isinstance(error, click.BadOptionUsage):
        return text("cli.option_value", name=error.option_name)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _bad_value(error, error.param)
    if message.startswith(EXTRA):
        return text("cli.extra_words", words=message.partition("(")[2].rstrip(").").strip())
    return message


def _bad_value(error: click.BadParameter, parameter: click.Parameter) -> str:
    name = _name(parameter, error.ctx)
    if isinstance(parameter.type, click.Choice):
        allowed = [str(choice) for choice in parameter.type.choices]
        told = text("cli.choice", name=name, allowed=", ".join(allowed))
        example = " ".join(f"{name} {choice}" for choice in allowed[:2])
        several = isinstance(parameter, click.Option) and parameter.multiple  # a list with commas is not taken
        return told + (text("cli.repeat", example=example) if several else "")
    kinds = {"integer": "problem.type_int", "float": "problem.type_float", "boolean": "problem.type_bool"}
    if parameter.type.name in kinds:
        return text("cli.value", name=name, wanted=text(kinds[parameter.type.name]))
    return f"{name}: {error.message}"


def _name(parameter: click.Parameter, context: click.Context | None) -> str:
    """`--queue`, or the capital letters that stand for an argument."""
    if isinstance(parameter, click.Option):
        return parameter.opts[-1]
    return parameter.make_metavar(context) if context is not None else parameter.human_readable_name


def _near(names: list[str]) -> str:
    return text("problem.did_you_mean", near=", ".join(sorted(names))) if names else ""
