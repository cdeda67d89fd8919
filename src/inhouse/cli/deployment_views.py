"""How deployments look on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.calibrations import Calibrated, Calibrations
    from inhouse.api.deployments import (
        Change,
        DeploymentDetail,
        DeploymentLine,
        DeploymentLines,
        DeploymentReport,
        History,
    )
    from inhouse.release.experiments import ArmFigures, Comparison


def deployments(result: DeploymentLines, console: Console) -> None:
    """Every deployment, a line for each of its releases."""
    if not result.deployments:
        console.print(text("cell.no_deployments"))
        return
    _arms(result.deployments, console)


def deployment(result: DeploymentDetail, console: Console) -> None:
    """One deployment: its releases, and the rules that differ from nothing."""
    _arms((result.line,), console)
    rules = _flat(result.rules.model_dump(mode="json"))
    table(console, text("cell.rule"), text("cell.value"), rows=list(rules.items()))


def deployed(result: DeploymentLine, console: Console) -> None:
    """What answers after a change."""
    if result.changed is False:
        console.print(text("cell.deployed_already", deployment=result.deployment, release=result.release))
        return
    if len(result.arms) == 1:
        previous = result.previous or "-"
        console.print(text("cell.deployed", deployment=result.deployment, release=result.release, previous=previous))
        return
    _arms((result,), console)
    console.print(text("cell.follows"))


def removed(result: DeploymentLine, console: Console) -> None:
    """What is there no more, and how it comes back."""
    console.print(text("cell.deployment_removed", deployment=result.deployment, release=result.release))


def report(result: DeploymentReport, console: Console) -> None:
    """What each arm did, each comparison, and what follows."""
    found = result.experiment
    names = ("release", "role", "share", "requests", "errors", "alarms", "score", "p50", "p95")
    table(console, *(text(f"cell.{name}") for name in names), rows=[_figures(arm) for arm in found.arms])
    if found.comparisons:
        columns = ("figure", "release", "against", "difference", "bounds", "outcome")
        table(console, *(text(f"cell.{name}") for name in columns), rows=[_comparison(c) for c in found.comparisons])
    console.print(text(f"cell.experiment.{found.reason}", winner=found.winner or "-"))
    console.print(f"[dim]{text('cell.experiment.method', percent=f'{result.alpha:.0%}')}[/]")


def history(result: History, console: Console) -> None:
    """The changes, newest first."""
    rows = [(c.at, c.actor, c.action, _told(c)) for c in result.changes]
    table(console, *(text(f"cell.{name}") for name in ("when", "who", "change", "after")), rows=rows)


def calibrated(result: Calibrations, console: Console) -> None:
    """Which engine answers for how many requests, and how fast each one was."""
    names = ("release", "engine", "tokens_per_s", "others_cpu")
    table(console, *(text(f"cell.{name}") for name in names), rows=[_calibrated(each) for each in result.releases])
    console.print(text("cell.calibrated.follows"))


def _calibrated(found: Calibrated) -> tuple[str, ...]:
    if found.few is None or found.many is None:
        return found.release, found.detail or text("cell.calibrated.one"), "-", "-"
    from_when = text("cell.calibrated.long") if found.crossover is None else f"≥ {found.crossover}"
    chosen = found.few if found.few == found.many else f"{found.few}, {found.many} {from_when}"
    rates = "; ".join(
        f"{name} " + ", ".join(f"{rate:g} @{load}" for load, rate in own.items())
        for name, own in found.tokens_per_s.items()
    )
    return found.release, chosen, rates or "-", "-" if found.others_cpu is None else f"{found.others_cpu:.0%}"


def _arms(found: tuple[DeploymentLine, ...], console: Console) -> None:
    rows = [
        (
            line.deployment if first == 0 else "",
            arm.release,
            text(f"cell.role.{arm.role}"),
            f"{arm.share:g} %",
            arm.since,
        )
        for line in found
        for first, arm in enumerate(line.arms)
    ]
    columns = (text("cell.deployment"), text("cell.release"), text("cell.role"), f">{text('cell.share')}")
    table(console, *columns, text("cell.since"), rows=rows)


def _figures(arm: ArmFigures) -> tuple[str, ...]:
    errors = "-" if arm.error_rate is None else f"{arm.errors} ({arm.error_rate:.1%})"
    score = "-" if arm.mean_score is None else f"{arm.mean_score:+.2f} (n={arm.scored})"
    waits = ["-" if s is None else f"{s * 1000:,.0f} ms" for s in (arm.latency_p50_s, arm.latency_p95_s)]
    alarms = f"{arm.alarms:,}" if arm.looked_at is None else f"{arm.alarms:,} / {arm.looked_at:,}"
    alarms = "-" if arm.looked_at == 0 else alarms
    counts = (f"{arm.weight / 10:g} %", f"{arm.requests:,}", errors, alarms)
    return arm.release, text(f"cell.role.{arm.role}"), *counts, score, *waits


def _comparison(found: Comparison) -> tuple[str, ...]:
    bounds = f"{found.low:+.3f} … {found.high:+.3f}"
    outcome = text(f"cell.outcome.{found.outcome}")
    name = text(f"cell.figure.{found.figure}")
    return name, found.release, found.control, f"{found.difference:+.3f}", bounds, outcome


def _told(change: Change) -> str:
    """What answered after a change, in one line; for others, what the audit says."""
    arms = change.detail.get("arms")
    if arms is None:
        return json.dumps(change.detail, ensure_ascii=False)
    told = ", ".join(f"{a['release']} {a['weight'] / 10:g} % {text('cell.role.' + a['role'])}" for a in arms)
    reason = change.detail.get("reason")
    return f"{told} ({reason})" if reason else told


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested rules by their dotted names."""
    found: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = "-" if value is None else json.dumps(value, ensure_ascii=False).strip('"')
    return found


VIEWS: dict[str, Callable[[Any, Console], None]] = {
    "deployments": deployments,
    "deployment": deployment,
    "promoted": deployed,
    "deployment_report": report,
    "removed": removed,
    "deployment_history": history,
    "calibrated": calibrated,
}
