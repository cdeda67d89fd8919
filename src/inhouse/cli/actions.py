"""Commands that do more than call a function and show its result."""

from __future__ import annotations

import json
import sys
import time

import click

from inhouse.api.data import DiffRequest, compare_datasets
from inhouse.api.run import DemoRequest, RunRequest, RunResult, demo, left_to_do, perform
from inhouse.api.serving import Chat, ChatRequest, open_chat
from inhouse.cli import views
from inhouse.cli.review import review_adjudicate, review_next
from inhouse.cli.terminal import plain
from inhouse.cli.watch import watching
from inhouse.core.errors import GateFailed, InhouseError
from inhouse.core.messages import text

__all__ = ["chat", "review_adjudicate", "review_next", "run_demo", "run_project"]


def run_project(request: RunRequest, as_json: bool) -> None:
    """Run, show what came out, ask one question when wanted; a failed gate ends in exit code 3.

    With `watch`, what changes later is run too, until Ctrl-C. What failed is run again when what it reads has changed.
    """
    if request.watch is None or request.dry_run:
        _run_once(request, as_json)
        return
    told, tried, pause_s = "", None, 60 * request.watch
    while True:
        try:
            found = left_to_do(request)
            if tried is None or not found <= tried:
                try:
                    _run_once(request, as_json)
                finally:  # also what is left behind a step that failed
                    request = request.model_copy(update={"again": ()})
                    tried = found | left_to_do(request)
                print(text("cell.watching", minutes=f"{request.watch:g}"), file=sys.stderr)
        except click.exceptions.Exit:
            pass  # a gate failed, which the result has told
        except InhouseError as error:
            if str(error) != told:
                told = str(error)
                click.echo(json.dumps({"error": error.to_dict()}, ensure_ascii=False) if as_json else plain(told))
        time.sleep(pause_s)


def _run_once(request: RunRequest, as_json: bool) -> None:
    with watching(as_json) as watch:
        result = perform(request, watch)
    views.show("run", result, as_json)
    if failed := [v.figure for v in result.verdicts if not v.passed]:
        label = result.release.label if result.release else ""
        error = GateFailed(
            "run.gates_failed", failed=len(failed), count=len(result.verdicts), release=label, names=", ".join(failed)
        )
        raise click.exceptions.Exit(error.exit_code) if as_json else error  # one JSON document, not two
    if request.ask and not request.dry_run:
        _ask(result, request.offline, as_json)
    if result.release and not as_json:
        views.show_next_steps()


def run_demo(request: DemoRequest, as_json: bool) -> None:
    """Write the example and run it."""
    run_project(demo(request), as_json)


def _ask(result: RunResult, offline: bool, as_json: bool) -> None:
    from inhouse.api.trial import open_trial

    with open_trial(result, offline) as trial:
        out = sys.stderr if as_json else sys.stdout
        print(text("cell.asked", deployment=trial.chat.model, url=trial.chat.endpoint.url), file=out)
        print(f"  {trial.question.splitlines()[-1]}\n> ", end="", file=out, flush=True)
        for piece in trial.chat.ask(trial.question):
            print(plain(piece), end="", file=out, flush=True)
        print(f"\n  ({text('cell.expected', label=trial.row.answer)})", file=out)


def chat(request: ChatRequest, as_json: bool) -> None:
    """One answer to a question on the command line, else a conversation until an empty line."""
    with open_chat(request) as conversation:
        if request.message is not None:
            _answer(conversation, request.message, as_json)
            return
        print(text("chat.welcome", model=conversation.model, url=conversation.endpoint.url), file=sys.stderr)
        while question := _question():
            _answer(conversation, question, as_json)


def diff(request: DiffRequest, as_json: bool) -> None:
    """What changed between two datasets; a person sees a few ids of each kind, a program all of them."""
    if request.samples is None and not as_json:
        request = request.model_copy(update={"samples": 5})
    views.show("difference", compare_datasets(request), as_json)


def _question() -> str:
    """The next line that the user types; empty at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _answer(conversation: Chat, question: str, as_json: bool) -> None:
    pieces = conversation.ask(question)
    if as_json:
        print(json.dumps({"model": conversation.model, "answer": "".join(pieces)}, ensure_ascii=False), flush=True)
        return
    for piece in pieces:
        print(plain(piece), end="", flush=True)
    print(flush=True)
