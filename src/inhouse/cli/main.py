"""The `inhouse` program."""

from __future__ import annotations

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from inhouse import __version__
from inhouse.cli import words
from inhouse.cli.commands import COMMANDS, Command
from inhouse.cli.terminal import plain
from inhouse.core.errors import InhouseError
from inhouse.core.messages import text, use_language
from inhouse.core.run import collect_seldom, end_quickly
from inhouse.core.settings import settings

ITSELF = "-"  # no command can be called so
PATHS = {c.path for c in COMMANDS}


class Lazy(click.Group):
    """A group that builds a command only when it is asked for, so that `--help` imports next to nothing.

    A group whose own path is a command too (`data label` beside `data label errors`) is that command when the first
    word is none of its commands.
    """

    def __init__(self, name: str, path: tuple[str, ...], **attributes: Any) -> None:
        super().__init__(
            name, options_metavar=text("cli.metavar"), subcommand_metavar=text("cli.metavar.commands"), **attributes
        )
        self.path = path  # the words that stand before this group's commands
        self.itself = next((c for c in COMMANDS if path and c.path == path), None)

    def _mine(self) -> dict[str, Command | None]:
        """Name -> command, or None for a group below."""
        depth = len(self.path)
        here = [c.path for c in COMMANDS if len(c.path) > depth and c.path[:depth] == self.path]
        groups = {path[depth] for path in here if len(path) > depth + 1}
        by_path = {c.path: c for c in COMMANDS}
        return {p[depth]: None if p[depth] in groups else by_path[p] for p in here}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.itself is not None and not (args and args[0] in self._mine()):
            args = [ITSELF, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == ITSELF else name), command, rest  # usage lines show the words that were typed

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._mine())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        mine = self._mine()
        command = self.itself if name == ITSELF else mine.get(name)
        if command is None and name in mine:
            path = (*self.path, name)
            group = Lazy(name, path, help=text("cli." + ".".join(path)), no_args_is_help=path not in PATHS)
            group.params.append(_language())
            return group
        if command is None:
            return None
        from inhouse.cli.build import click_command

        return click_command(command, call)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        words.usage(self, ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        words.options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return words.named(super().get_help_option(ctx))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command from the catalogue, without building the commands."""
        prefix = ".".join(("cli", *self.path, ""))
        with words.section(formatter, text("cli.commands")):
            formatter.write_dl([(name, text(prefix + name)) for name in self._mine()])


def call(command: Command, values: dict[str, Any], as_json: bool) -> None:
    """Run a command and show its result."""
    from inhouse.cli import views
    from inhouse.cli.build import api_function, request_model, request_of

    function = api_function(command)
    request: Any = request_of(request_model(function), values)
    if command.action:
        from inhouse.cli import actions

        getattr(actions, command.action)(request, as_json)
        return
    if command.long:
        from inhouse.api.jobs import attach
        from inhouse.cli.watch import watching

        with watching(as_json) as watch:
            result: Any = attach(function, request, watch)
    else:
        result = function(request)
    views.show(command.view, result, as_json)


def root() -> Lazy:
    """The top of the command tree, its texts in the language in use."""
    group = Lazy("inhouse", (), help=text("cli"), no_args_is_help=True)
    version = click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_version,
        help=text("cli.field.version"),
    )
    group.params += [_language(), version]
    return group


def _language() -> click.Option:
    kinds = click.Choice(["en", "zh"])
    return click.Option(["--lang"], type=kinds, expose_value=False, help=text("cli.field.lang"))


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"inhouse {__version__}")
        context.exit()


def choose_language(arguments: list[str]) -> None:
    """`--lang` wherever it stands, before any text is made; else the environment's language."""
    chosen = settings().language
    for index, word in enumerate(arguments):
        if word == "--lang" and index + 1 < len(arguments):
            chosen = arguments[index + 1]
        elif word.startswith("--lang="):
            chosen = word.removeprefix("--lang=")
    use_language(chosen)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 2 user error, 3 gate failed, 4 missing extra, 130 stopped)."""
    typed = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal of GBK has no ✓: better a ? than no verdict
            stream.reconfigure(errors="replace")
    choose_language(typed)
    try:
        ended = root().main(typed, prog_name="inhouse", standalone_mode=False)
    except click.ClickException as error:
        words.show(error)
        return error.exit_code
    except click.Abort:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`): not our user's error
        return 0
    except InhouseError as error:
        _complain(error, as_json="--json" in typed)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  the border of the program: a bug's traceback goes to a file
        told = _told(error)
        _complain(told, as_json="--json" in typed)
        return told.exit_code
    return ended if isinstance(ended, int) else 0  # click gives the code of an Exit as the result


def _told(error: Exception) -> InhouseError:
    """What is said of an error that nobody expected: a disk that takes nothing is no bug."""
    import tempfile
    import traceback

    from inhouse.core.plugins import unexpected  # not for --help
    from inhouse.core.store import disk_error

    if isinstance(error, OSError) and (told := disk_error(error, Path(error.filename or "."))) is not None:
        return told
    with tempfile.NamedTemporaryFile("w", prefix="inhouse-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    return unexpected(error, log.name)


def _complain(error: InhouseError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error.to_dict()}, ensure_ascii=False))
    else:
        click.secho(text("cli.error"), fg="red", bold=True, err=True, nl=False)
        click.echo(f" {plain(str(error))}", err=True)


def entry() -> None:
    """The console script."""
    collect_seldom()
    code = main()
    end_quickly()
    sys.exit(code)
