"""Gates: pure rules over measured figures. A figure that is missing or not finite fails its gate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from inhouse.core.artifact import Frozen
from inhouse.core.messages import text as say
from inhouse.core.params import Params


class Figure(Frozen):
    """A measured number, its 95 % interval when it has one, and the count of items behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""


class Gate(Params):
    """Block a release unless `figure` keeps its bounds."""

    figure: str = Field(description="name of a measured figure, as `inhouse report` lists them: tuned.macro_f1")
    at_least: float | None = Field(None, description="smallest value that passes")
    at_most: float | None = Field(None, description="largest value that passes")
    bound: str = Field(
        "value",
        pattern="^(value|low|high)$",
        description="judge the value itself or an end of its 95 % interval",
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Gate:
        if self.at_least is None and self.at_most is None:
            raise ValueError(say("problem.gate_rule"))
        return self


class Verdict(Frozen):
    """What one gate said, with the number it saw."""

    figure: str
    rule: str
    measured: float | None
    passed: bool
    reason: str


def judge(gate: Gate, figures: Mapping[str, Figure]) -> Verdict:
    """Apply one gate. Same figures, same verdict: no clock, no files."""
    found = figures.get(gate.figure)
    seen = None if found is None else getattr(found, gate.bound)
    if seen is None or not math.isfinite(seen):
        reason = "missing" if seen is None else "not_finite"
        return Verdict(figure=gate.figure, rule=rule_text(gate), measured=None, passed=False, reason=reason)
    low_ok = gate.at_least is None or seen >= gate.at_least
    high_ok = gate.at_most is None or seen <= gate.at_most
    reason = "ok" if low_ok and high_ok else ("too_low" if not low_ok else "too_high")
    return Verdict(figure=gate.figure, rule=rule_text(gate), measured=seen, passed=low_ok and high_ok, reason=reason)


def rule_text(gate: Gate) -> str:
    """The rule in symbols: `>= 0.7`, `low >= 0 <= 1`."""
    parts = [] if gate.bound == "value" else [gate.bound]
    if gate.at_least is not None:
        parts.append(f">= {gate.at_least:g}")
    if gate.at_most is not None:
        parts.append(f"<= {gate.at_most:g}")
    return " ".join(parts)


def figures_of(report: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of a report file: its `figures` object, name -> Figure."""
    return {name: Figure.model_validate(value) for name, value in report["figures"].items()}
