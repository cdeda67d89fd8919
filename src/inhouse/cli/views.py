"""How each result looks on a terminal. With --json every result prints as its model."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from inhouse.cli import (
    bench_views,
    compare_views,
    data_views,
    dataset_views,
    deployment_views,
    key_views,
    label_views,
    launch_views,
    long_context_views,
    model_views,
    request_views,
    token_views,
    train_views,
)
from inhouse.cli.table import Mark, escape, size, table
from inhouse.cli.watch import Lines, step_name
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.jobs import Jobs
    from inhouse.api.lineage import Lineage
    from inhouse.api.models import Models
    from inhouse.api.project import Created, Schema
    from inhouse.api.releases import ReleaseDetail, ReleaseLine, Releases
    from inhouse.api.reports import Report
    from inhouse.api.retune import RetuneResult
    from inhouse.api.run import RunResult, TableLine
    from inhouse.api.serving import ServeCommand
    from inhouse.core.gate import Verdict
    from inhouse.flow.jobs import Job
    from inhouse.release.export import Exported
    from inhouse.select.doctor import Diagnosis


def show(view: str, result: Any, as_json: bool) -> None:
    """Print a result the way its command shows it."""
    if view == "served":
        served(result)
    elif isinstance(result, Iterator):
        _stream(result, as_json)
    elif as_json:
        print(result.model_dump_json() if isinstance(result, BaseModel) else json.dumps(result, ensure_ascii=False))
    else:
        from rich.console import Console

        VIEWS[view](result, Console(highlight=False, soft_wrap=True))


def _stream(events: Iterator[dict[str, Any]], as_json: bool) -> None:
    lines = Lines(sys.stdout)
    for event in events:
        if as_json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        else:
            lines(event)


def mark(passed: bool) -> Mark:
    """Passed or failed, in colour."""
    return Mark(f"[green]✓ {text('cell.passed')}[/]" if passed else f"[red]✗ {text('cell.failed')}[/]")


def run(result: RunResult, console: Console) -> None:
    """Steps of a dry run; else the table, the gates, the release and what to type next."""
    if result.dry_run:
        rows = [(step_name(s.name), text(f"cell.{s.state}"), (s.id or "")[:8]) for s in result.steps]
        table(console, text("cell.step"), text("cell.state"), text("cell.artifact"), rows=rows)
        return
    if result.table:
        summary_table(result.table, console)
    elif result.dataset is not None:
        dataset_views.built(result.dataset, console)
    else:
        rows = [(step_name(s.name), (s.id or "")[:8], size(s.bytes)) for s in result.steps]
        table(console, text("cell.step"), text("cell.artifact"), f">{text('cell.size')}", rows=rows)
        train_views.trained(result.facts.get("tuned", {}), console)
        train_views.forgotten(result.facts.get("tuned_forgetting", {}), console)
        tuned = next((step.id for step in result.steps if step.name == "tuned"), None)
        if tuned:
            console.print(text("cell.train.left", folder=result.workspace / "objects" / tuned), soft_wrap=True)
    if result.verdicts:
        verdicts(result.verdicts, console)
    if result.release is not None:
        _released(result, console)


def summary_table(found: tuple[TableLine, ...], console: Console) -> None:
    """One line per figure, one column per model."""
    roles = list(found[0].cells)
    lines = [(line.title, *(line.cells[r] for r in roles)) for line in found]
    table(console, text("cell.figure"), *(f">{text(f'cell.{r}')}" for r in roles), rows=lines)
    console.print(f"[dim]{text('cell.interval')}[/]")


def verdicts(found: tuple[Verdict, ...], console: Console) -> None:
    """One line per gate: what was asked, what was measured, passed or not."""
    rows = []
    for verdict in found:
        seen = "" if verdict.measured is None else f"{verdict.measured:.4g}"
        rows.append((mark(verdict.passed), verdict.figure, verdict.rule, seen or verdict.reason))
    columns = (text("cell.gate"), text("cell.figure"), text("cell.rule"), f">{text('cell.measured')}")
    table(console, *columns, rows=rows)


def _released(result: RunResult, console: Console) -> None:
    release = result.release
    assert release is not None
    if release.serving == release.label:
        console.print(f"[bold green]{text('cell.promoted', release=release.label, deployment=release.deployment)}[/]")
    elif release.passed and release.deployment:
        console.print(
            text("cell.not_moved", release=release.label, deployment=release.deployment, serving=release.serving or "-")
        )
    elif release.passed:
        console.print(text("cell.registered", release=release.label))
    console.print(f"[dim]{text('cell.evidence')} {escape(str(release.evidence))}[/]")
    if result.report is not None:
        console.print(f"[dim]{text('cell.report')} {escape(str(result.report))}[/]")


def show_next_steps() -> None:
    """What to type after a run."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n{text('cell.next')}")
    for command in ("inhouse serve", "inhouse chat", "inhouse report", "inhouse release list"):
        console.print(f"  [bold]{command}[/]  [dim]{text('cli.' + '.'.join(command.split()[1:]))}[/]")


def created(result: Created, console: Console) -> None:
    """The files of a new project."""
    for path in result.files:
        console.print(f"[green]+[/] {escape(str(path))}")
    console.print(text("cell.created", project=shlex.quote(str(result.files[0]))), markup=False)


def schema(result: Schema, console: Console) -> None:
    """The schema itself, or where it was written."""
    if result.output is None:
        print(json.dumps(result.document, indent=1, ensure_ascii=False))
    else:
        console.print(f"[green]+[/] {escape(str(result.output))}")


def releases(result: Releases, console: Console) -> None:
    """The registry."""
    if not result.releases:
        console.print(text("cell.no_releases"))
        return
    rows = [_release_row(line) for line in result.releases]
    columns = (text("cell.release"), text("cell.gates"), text("cell.deployment"), text("cell.created_at"), "id")
    table(console, *columns, rows=rows)


def _release_row(line: ReleaseLine) -> tuple[str, ...]:
    return line.label, mark(line.passed), ", ".join(line.deployments), line.created, line.artifact[:8]


def release(result: ReleaseDetail, console: Console) -> None:
    """The evidence of one release."""
    from rich.markdown import Markdown

    console.print(Markdown(result.evidence_file.read_text(encoding="utf-8")))
    console.print(f"[dim]{escape(str(result.evidence_file))}[/]")


def release_exported(result: Exported, console: Console) -> None:
    """The files of a copy, and what to type next."""
    console.print(f"[green]+[/] {escape(str(result.folder))}  {result.bytes / 1e6:,.1f} MB")
    for name in result.files:
        console.print(f"  {escape(name)}")
    name = result.release.partition(":")[0]
    if result.ollama is not None:
        told = text(f"cell.release.ollama_{result.ollama}", name=name, modelfile=result.folder / "Modelfile")
        console.print(Mark(f"[dim]{escape(told)}[/]"))
    if result.demo is not None:
        console.print(Mark(f"[dim]{escape(text('cell.release.demo', script=result.folder / result.demo))}[/]"))


def jobs(result: Jobs, console: Console) -> None:
    """Jobs, newest first."""
    if not result.jobs:
        console.print(text("cell.no_jobs"))
        return
    rows = [(j.id, j.function, text(f"cell.{j.status}"), f"{j.seconds:.0f} s", j.error or "") for j in result.jobs]
    columns = (text("cell.job"), text("cell.work"), text("cell.state"), f">{text('cell.time')}", text("cell.note"))
    table(console, *columns, rows=rows)


def job(result: Job, console: Console) -> None:
    """One job."""
    console.print(text("cell.job_line", id=result.id, status=text(f"cell.{result.status}")))


def lineage(result: Lineage, console: Console) -> None:
    """A tree from an artifact to its sources."""
    if not result.lines:
        console.print(text("cell.no_artifacts"))
    for line in result.lines:
        record = line.record
        role = f"{line.role}: " if line.role else ""
        again = " …" if line.repeated else ""
        head = f"{'  ' * line.depth}{'└ ' if line.depth else ''}{role}[bold]{record.kind}[/] {record.id[:12]}{again}"
        console.print(f"{head}  [dim]{record.stage} · {record.created} · seed {record.seed}[/]")
        if line.repeated:
            continue
        for name, content in record.external.items():
            console.print(f"{'  ' * line.depth}    [cyan]{escape(name)}[/] {escape(content)}")
    if result.made:
        console.print(text("cell.made_from"))
    for made in result.made:
        told = f"  [green]{escape(', '.join(made.releases))}[/]" if made.releases else ""
        head = f"  [bold]{made.record.kind}[/] {made.record.id[:12]}{told}"
        console.print(f"{head}  [dim]{made.record.stage} · {made.record.created}[/]")


def doctor(result: Diagnosis, console: Console) -> None:
    """One line per check."""
    marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "missing": "[red]✗[/]"}
    for check in result.checks:
        console.print(f"{marks[check.status]} [bold]{check.name}[/]  {escape(check.message)}")


def models(result: Models, console: Console) -> None:
    """The catalogue with sizes and whether it fits."""
    rows = [
        (
            m.name, f"{m.parameters / 1e9:.2f} B", m.licence,
            f"{m.serve_bytes / 1e9:.1f} GB {text(f'cell.{m.serve}')}",
            f"{m.train_bytes / 1e9:.1f} GB {text(f'cell.{m.train}')}",
        )
        for m in result.models
    ]  # fmt: skip
    columns = ("model", "size", "licence", "serve", "tune")
    table(console, *(text(f"cell.{c}") for c in columns), rows=rows)


def retuned(result: RetuneResult, console: Console) -> None:
    """What every step that judges figures drops, and would drop with other thresholds."""
    rows = [
        (s.step, *map(str, (s.measured, s.dropped, s.would_drop)), f"+{s.newly_dropped}", f"−{s.newly_kept}")
        for s in result.steps
    ]
    names = ("measured_rows", "drops", "would_drop", "newly_dropped", "newly_kept")
    table(console, text("cell.step"), *(f">{text(f'cell.{name}')}" for name in names), rows=rows)
    for step in result.steps:
        if step.samples:
            console.print(f"[dim]{escape(f'{step.step}: ' + ', '.join(step.samples))}[/]")
    console.print(text("cell.retune_note", dataset=f"{result.version} ({result.dataset[:12]})"))


def report(result: Report, console: Console) -> None:
    """The table of a report and where its page lies."""
    summary_table(result.table, console)
    console.print(f"{text('cell.report')} {escape(str(result.page))}")


def served(result: ServeCommand) -> None:
    """Become the gateway: the same process id, so that signals reach it."""
    sys.stdout.flush()
    os.execv(result.argv[0], result.argv)


VIEWS: dict[str, Callable[[Any, Console], None]] = {
    "run": run,
    "init": created,
    "schema": schema,
    "launched": launch_views.launched,
    "releases": releases,
    "release": release,
    "release_exported": release_exported,
    **deployment_views.VIEWS,
    "jobs": jobs,
    "job": job,
    "lineage": lineage,
    "doctor": doctor,
    "models": models,
    "model": model_views.model,
    "checked": dataset_views.checked,
    "retuned": retuned,
    "report": report,
    **key_views.VIEWS,
    **request_views.VIEWS,
    **data_views.VIEWS,
    **train_views.VIEWS,
    **compare_views.VIEWS,
    **long_context_views.VIEWS,
    **bench_views.VIEWS,
    "tokens": token_views.tokens,
    "labelled": label_views.labelled,
    "label_errors": label_views.label_errors,
    "review_added": label_views.review_added,
    "review_tasks": label_views.review_tasks,
    "review_status": label_views.review_status,
    "review_exported": label_views.review_exported,
}
