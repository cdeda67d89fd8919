"""How labels, doubtful labels and reviews look on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inhouse.cli.table import escape, table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.label import LabelDone, LabelErrors
    from inhouse.api.review import Added, Exported, TaskViews
    from inhouse.core.agreement import Agreement
    from inhouse.data.label.apply import LabelFigures
    from inhouse.data.label.review.figures import ReviewStatus

LINE_CHARS = 100


def labelled(result: LabelDone, console: Console) -> None:
    """How many rows got a label from whom, how each rule did, and where the rows are."""
    found = result.figures
    counts = (
        ("read", found.rows), ("given", found.given), ("by_rules", found.by_rules), ("by_model", found.by_model),
        ("unlabelled", found.open), ("ties", found.ties), ("rejected", found.rejected),
    )  # fmt: skip
    rows = [(text(f"cell.{name}"), str(count)) for name, count in counts]
    table(console, text("cell.label"), f">{text('cell.rows')}", rows=rows)
    if found.rules:
        _rules(found, console)
    table(
        console, text("cell.label"), f">{text('cell.rows')}", rows=[(name, str(n)) for name, n in found.labels.items()]
    )  # fmt: skip
    if found.agreement is not None:
        console.print(text("cell.rules_agree", agreement=_agreement(found.agreement)), markup=False)
    if found.model is not None:
        _model(found, console)
    console.print(text("cell.labelled_file", rows=result.written, path=result.output), markup=False)
    if result.queue is not None:
        console.print(text("cell.queued", rows=result.queued, queue=result.queue), markup=False)


def _rules(found: LabelFigures, console: Console) -> None:
    rows = []
    for rule in found.rules:
        right = "-"
        if rule.accuracy is not None:
            right = f"{rule.accuracy:.1%} [{rule.low:.1%}, {rule.high:.1%}] (n={rule.judged})"
        shares = (f"{share:.1%}" for share in (rule.coverage, rule.overlaps, rule.conflicts))
        rows.append((rule.name, *shares, right))
    names = ("coverage", "overlaps", "conflicts", "right")
    table(console, text("cell.rule"), *(f">{text(f'cell.{name}')}" for name in names), rows=rows)


def _model(found: LabelFigures, console: Console) -> None:
    model = found.model
    assert model is not None
    asked = text("cell.model_asked", asked=model.asked, labelled=model.labelled, unsure=model.unsure)
    console.print(asked, markup=False)
    if model.failed:
        console.print(text("cell.model_failed", failed=model.failed, problem=model.problem or ""), markup=False)
    if model.agreement is not None:
        console.print(text("cell.model_agree", agreement=_agreement(model.agreement)), markup=False)


def _agreement(found: Agreement) -> str:
    """Share with its interval and count, and kappa with its own."""
    shown = f"{found.share:.1%} [{found.low:.1%}, {found.high:.1%}] (n={found.rows})"
    if found.kappa is None:
        return shown
    return f"{shown}, kappa {found.kappa:.3f} [{found.kappa_low:.3f}, {found.kappa_high:.3f}]"


def label_errors(result: LabelErrors, console: Console) -> None:
    """The worst rows, and how noisy each label is."""
    rows = [
        (s.id[:8], s.given, s.likely, f"{s.margin:.2f}", "✓" if s.confident else "", _line(s.text))
        for s in result.suspects
    ]
    names = (text("cell.given"), text("cell.likely"), f">{text('cell.margin')}", text("cell.sure"), text("cell.text"))
    table(console, "id", *names, rows=rows)
    noise = [(one.label, str(one.rows), f"{one.wrong:.1%}") for one in result.noise]
    table(console, text("cell.label"), f">{text('cell.rows')}", f">{text('cell.wrong')}", rows=noise)
    said = text(
        "cell.doubted", found=result.found, confident=result.confident, rows=result.rows, skipped=result.skipped
    )
    console.print(said, markup=False)
    console.print(text("cell.judge", agreement=_agreement(result.judge)), markup=False)
    if result.weak:
        console.print(text("cell.weak_judge"), style="yellow", markup=False)
    if result.queue is not None:
        console.print(text("cell.queued", rows=result.queued, queue=result.queue), markup=False)


def _line(value: str) -> str:
    return " ".join(value[: LINE_CHARS * 2].split())[:LINE_CHARS]


def review_added(result: Added, console: Console) -> None:
    """What went into the queue, and what to type next."""
    console.print(text("cell.queued", rows=result.added, queue=result.queue), markup=False)
    labels = ", ".join(result.labels) or text("cell.written_answers")
    console.print(text("cell.queue_labels", labels=labels, rows=result.rows), markup=False)
    if result.left_out:
        console.print(text("cell.left_out", count=result.left_out), markup=False)
    console.print(f"[dim]inhouse data review next --queue {escape(result.queue)} --reviewer …[/]")


def review_tasks(result: TaskViews, console: Console) -> None:
    """One line per text."""
    if not result.tasks:
        console.print(text("cell.no_tasks", queue=result.queue), markup=False)
        return
    rows = []
    for task in result.tasks:
        answers = ", ".join(f"{name}: {label}" for name, label in task.answers.items())
        rows.append((task.id[:8], text(f"cell.{task.state}"), task.label or "", answers, _line(task.text)))
    names = ("state", "label", "answers", "text")
    table(console, "id", *(text(f"cell.{name}") for name in names), rows=rows)


def review_status(result: ReviewStatus, console: Console) -> None:
    """Progress, agreement of reviewers and of labels."""
    counts = ("tasks", "open", "disputed", "decided", "adjudicated")
    rows = [(text(f"cell.{name}"), str(getattr(result, name))) for name in counts]
    if result.given:
        before = (("given_before", result.given), ("checked", result.checked), ("corrected", result.corrected))
        rows += [(text(f"cell.{name}"), str(count)) for name, count in before]
    rows += [(text("cell.answers_of", name=name), str(count)) for name, count in result.answers.items()]
    table(console, result.queue, f">{text('cell.rows')}", rows=rows)
    for pair in result.pairs:
        console.print(f"{' · '.join(pair.reviewers)}: {_agreement(pair.agreement)}", markup=False)
    labels = [(one.label, str(one.answers), f"{one.share:.1%}") for one in result.by_label]
    if labels:
        names = (f">{text('cell.answers')}", f">{text('cell.agree')}")
        table(console, text("cell.label"), *names, rows=labels)


def review_exported(result: Exported, console: Console) -> None:
    """What was written; for Label Studio also the configuration that belongs to it."""
    console.print(text("cell.exported_rows", rows=result.rows, path=result.file), markup=False)
    if result.config is not None:
        console.print(result.config, markup=False)
