"""Judge a release: the project's gates, the licences it inherited, and whether its report says anything at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from inhouse.core.artifact import MEASURED, Licence
from inhouse.core.errors import UserError
from inhouse.core.gate import Figure, Gate, Verdict, figures_of, judge

REPORT = "report.json"
ALLOWED: dict[str, frozenset[str]] = {
    "any": frozenset({"evaluation", "internal", "commercial"}),
    "evaluation": frozenset({"evaluation"}),
    "research": frozenset({"evaluation"}),
    "unknown": frozenset({"evaluation", "internal"}),
}


def read_figures(report: Path | None) -> dict[str, Figure]:
    """The figures of a report artifact; those that were timed (below measured/) stand beside the others."""
    if report is None:
        return {}
    found: dict[str, Figure] = {}
    for path in (report / REPORT, report / MEASURED / REPORT):
        if path.exists():
            try:
                found |= figures_of(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError("release.bad_report", path=path) from None
    return found


def judge_release(
    gates: Iterable[Gate], figures: Mapping[str, Figure], licences: Iterable[Licence], use: str, exported: bool
) -> tuple[Verdict, ...]:
    """Every verdict on a release; it passes when all of them do.

    `exported` says that the model was compressed: then parity with what was trained must have been measured.
    """
    built_in = [_has_figures(figures)]
    if exported:
        built_in.append(_has_parity(figures))
    terms = [judge_licence(licence, use) for licence in licences]
    return (*(judge(gate, figures) for gate in gates), *built_in, *terms)


def judge_licence(licence: Licence, use: str) -> Verdict:
    """Whether the terms of one input allow the declared use; terms that nobody could read never allow commerce."""
    passed = use in ALLOWED[licence.use]
    reason = "ok" if passed and licence.use != "unknown" else f"terms_{licence.use}"
    return Verdict(
        figure=f"licence.{licence.subject}",
        rule=f"{licence.spdx} allows {use} use",
        measured=None,
        passed=passed,
        reason=reason,
    )


def _has_figures(figures: Mapping[str, Figure]) -> Verdict:
    count = len(figures)
    reason = "ok" if count else "missing"
    return Verdict(figure="report.figures", rule=">= 1", measured=count, passed=count > 0, reason=reason)


def _has_parity(figures: Mapping[str, Figure]) -> Verdict:
    count = sum(name.startswith("parity.") for name in figures)
    reason = "ok" if count else "missing"
    return Verdict(figure="report.parity_figures", rule=">= 1", measured=count, passed=count > 0, reason=reason)
