"""Deployments: which releases answer for a name, in which parts, under which rules, and how each one does."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.project import apply_override, said
from inhouse.release.arms import Arm, Deployment, Role
from inhouse.release.experiments import Experiment, judge_experiment
from inhouse.release.registry import Registry, open_registry
from inhouse.release.results import read_results, read_scores
from inhouse.release.rules import Rules, weight_of


class DeploymentRequest(Request):
    """One deployment."""

    deployment: str = Field(description="name that clients ask for")


class SplitRequest(DeploymentRequest):
    """The shares of the releases that answer."""

    shares: tuple[str, ...] = Field(description="RELEASE=PERCENT, together 100", min_length=1)


class ArmRequest(DeploymentRequest):
    """A deployment and a release."""

    release: str = Field(description="name:v3, or the beginning of a release artifact's id")


class CanaryRequest(ArmRequest):
    """A release on trial. What is left out of the rules stays as it is."""

    weight: float = Field(5.0, description="its first share in percent")
    max_error_rate: float | None = Field(None, description="share of failures above which it is taken back")
    max_latency_ratio: float | None = Field(None, description="p95, as a multiple of the live one, above which it is")
    min_requests: int | None = Field(None, description="requests before it is given more")
    window_s: float | None = Field(None, description="seconds that each step lasts at least")
    steps: str | None = Field(None, description="its shares in percent, one after the other: 5,25,50,100")


class ShadowRequest(ArmRequest):
    """A release that gets copies of requests."""

    share: float = Field(100.0, description="percent of the requests that are copied; 0 ends it")


class RulesRequest(DeploymentRequest):
    """Rules to change; without any, they are shown."""

    changes: tuple[str, ...] = Field((), description="sticky=user, canary.min_requests=200, overflow=null, ...")


class HistoryRequest(DeploymentRequest):
    """The changes of a deployment."""

    limit: int = Field(50, ge=1, le=100_000, description="changes shown, newest first")


class ArmLine(Frozen):
    """One release of a deployment. `share` is in percent: of answered requests, for a shadow of copied ones."""

    release: str
    share: float
    role: Role
    since: str


class DeploymentLine(Frozen):
    """A deployment: what answers now, and what a rollback returns to. `release` has the greatest share."""

    deployment: str
    release: str
    previous: str | None
    changed_at: str
    generation: int
    arms: tuple[ArmLine, ...]
    changed: bool | None = Field(None, description="of a promotion: whether it has changed anything")


class DeploymentLines(Frozen):
    """Every deployment, by name."""

    deployments: tuple[DeploymentLine, ...]


class DeploymentDetail(Frozen):
    """A deployment with its rules."""

    line: DeploymentLine
    rules: Rules


class DeploymentReport(Frozen):
    """How the arms of a deployment do, and whether one is better."""

    deployment: str
    experiment: Experiment
    alpha: float
    method: str = "beta-binomial mixture e-process, universal inference (valid at every look)"


class Change(Frozen):
    """One change of a deployment."""

    at: str
    actor: str
    action: str
    detail: dict[str, Any]


class History(Frozen):
    """The changes of a deployment, newest first."""

    deployment: str
    changes: tuple[Change, ...]


def list_deployments(request: Request) -> DeploymentLines:
    """Every deployment of this workspace."""
    return DeploymentLines(deployments=tuple(line_of(d) for d in open_registry(request.store).deployments()))


def show_deployment(request: DeploymentRequest) -> DeploymentDetail:
    """One deployment with its rules."""
    return _detail(open_registry(request.store).deployment(request.deployment))


def split_deployment(request: SplitRequest) -> DeploymentLine:
    """Let several releases answer, each its share: one transaction."""
    pairs = [_pair(one) for one in request.shares]
    weights = dict(pairs)
    if len(weights) < len(pairs):
        raise UserError("release.split_twice", deployment=request.deployment)
    return line_of(open_registry(request.store).split(request.deployment, weights))


def start_canary(request: CanaryRequest) -> DeploymentLine:
    """Give a release a small share, on trial; a running gateway gives it more or takes it back."""
    registry = open_registry(request.store)
    rules = registry.deployment(request.deployment).rules
    given = request.model_dump(include={"max_error_rate", "max_latency_ratio", "min_requests", "window_s"})
    changes = [f"canary.{name}={value}" for name, value in given.items() if value is not None]
    if request.steps is not None:
        changes.append(f"canary.steps=[{request.steps}]")
    weight = _weight(request.release, request.weight)
    changed = changed_rules(rules, changes) if changes else None
    return line_of(registry.start_canary(request.deployment, request.release, weight, rules=changed))


def shadow_deployment(request: ShadowRequest) -> DeploymentLine:
    """Send a release copies of requests; its answers go to nobody."""
    weight = 0 if request.share == 0 else _weight(request.release, request.share)
    return line_of(open_registry(request.store).shadow(request.deployment, request.release, weight))


def promote_deployment(request: ArmRequest) -> DeploymentLine:
    """Let one release answer everything: one transaction, refused when its gates failed."""
    return promoted(open_registry(request.store), request.deployment, request.release)


def promoted(registry: Registry, deployment: str, release: str) -> DeploymentLine:
    """The deployment after a promotion, and whether that was one."""
    before = next((each.generation for each in registry.deployments() if each.name == deployment), None)
    found = registry.promote(deployment, release)
    return line_of(found).model_copy(update={"changed": found.generation != before})


def rollback_deployment(request: DeploymentRequest) -> DeploymentLine:
    """End the canary; without one, return to what answered before."""
    return line_of(open_registry(request.store).rollback(request.deployment))


def report_deployment(request: DeploymentRequest) -> DeploymentReport:
    """What each arm did since it was added, and whether one is better."""
    registry = open_registry(request.store)
    found = registry.deployment(request.deployment)
    return DeploymentReport(
        deployment=found.name, experiment=experiment_of(registry, found), alpha=found.rules.experiment.alpha
    )


def experiment_of(registry: Registry, found: Deployment) -> Experiment:
    """The comparison of a deployment's arms by what gateways counted and people said."""
    counters = read_results(registry.engine, found.name, found.arms)
    scores = read_scores(registry.engine, found.name, found.arms)
    return judge_experiment(found.arms, counters, scores, found.rules.experiment)


def change_rules(request: RulesRequest) -> DeploymentDetail:
    """Change rules by their dotted names, all or none; without any, show them."""
    registry = open_registry(request.store)
    found = registry.deployment(request.deployment)
    if request.changes:
        changed = changed_rules(found.rules, request.changes)
        if "personal-data" in changed.guard:
            require("data", "numba")
        found = registry.set_rules(request.deployment, changed)
    return _detail(found)


def remove_deployment(request: DeploymentRequest) -> DeploymentLine:
    """Forget a deployment: running servers end it too. Its releases and its history stay."""
    return line_of(open_registry(request.store).remove(request.deployment))


def show_history(request: HistoryRequest) -> History:
    """Who changed a deployment, when and how."""
    entries = open_registry(request.store).audit(request.limit, request.deployment)
    changes = tuple(Change(at=e.at, actor=e.actor, action=e.action, detail=e.detail) for e in entries)
    return History(deployment=request.deployment, changes=changes)


def changed_rules(rules: Rules, changes: list[str] | tuple[str, ...]) -> Rules:
    """Rules with some set anew: `canary.min_requests=200`. Raises release.bad_rule."""
    data = rules.model_dump(mode="json", exclude_none=True)
    for change in changes:
        apply_override(data, change)
    try:
        return Rules.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError("release.bad_rule", rule=name, problem=said(first)) from None


def line_of(found: Deployment) -> DeploymentLine:
    """A deployment as faces show it."""
    return DeploymentLine(
        deployment=found.name,
        release=found.release.label,
        previous=found.previous.label if found.previous else None,
        changed_at=found.changed_at,
        generation=found.generation,
        arms=tuple(_arm(arm) for arm in found.arms),
    )


def _arm(arm: Arm) -> ArmLine:
    return ArmLine(release=arm.release.label, share=arm.weight / 10, role=arm.role, since=arm.since)


def _detail(found: Deployment) -> DeploymentDetail:
    return DeploymentDetail(line=line_of(found), rules=found.rules)


def _pair(written: str) -> tuple[str, int]:
    """`desk:v2=12.5` as the release and its weight."""
    release, _, share = written.rpartition("=")
    try:
        percent = float(share.removesuffix("%"))
    except ValueError:
        raise UserError("release.bad_share", given=written) from None
    if not release:
        raise UserError("release.bad_share", given=written)
    return release, _weight(release, percent)


def _weight(release: str, percent: float) -> int:
    weight = weight_of(percent)
    if weight is None:
        raise UserError("release.weight", release=release, weight=f"{percent:g}", most="100")
    return weight
