"""Releases and the deployments that point at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.deployments import DeploymentLine, promoted
from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.store import Store
from inhouse.release.export import Demo, Exported, export
from inhouse.release.registry import Deployment, Release, open_registry


class ReleaseRequest(Request):
    """One release."""

    release: str = Field(description="name:v3, or the beginning of a release artifact's id")


class PromoteRequest(ReleaseRequest):
    """A release, and the deployment it goes to."""

    deployment: str | None = Field(None, description="deployment to point at the release; its project's when left out")


class ExportReleaseRequest(ReleaseRequest):
    """A release, and where its copy goes."""

    folder: Path = Field(description="folder to write: new, or empty")
    demo: Demo | None = Field(None, description="write a page to talk with it as well: a script for gradio")


class ReleaseLine(Frozen):
    """One release of the registry."""

    label: str
    artifact: str
    passed: bool
    created: str
    deployments: tuple[str, ...]


class Releases(Frozen):
    """Every release, oldest first."""

    releases: tuple[ReleaseLine, ...]


class ReleaseDetail(Frozen):
    """A release with its evidence."""

    line: ReleaseLine
    evidence: dict[str, Any]
    evidence_file: Path


def list_releases(request: Request) -> Releases:
    """The registry of this workspace."""
    registry = open_registry(request.store)
    deployments = registry.deployments()
    return Releases(releases=tuple(_line(r, deployments) for r in registry.list_releases()))


def show_release(request: ReleaseRequest) -> ReleaseDetail:
    """A release, its verdicts and everything behind them."""
    registry = open_registry(request.store)
    found = registry.show(request.release)
    folder = request.store.path(found.artifact) / "measured"
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    line = _line(found, registry.deployments())
    return ReleaseDetail(line=line, evidence=evidence, evidence_file=folder / "evidence.md")


def promote_release(request: PromoteRequest) -> DeploymentLine:
    """Point a deployment at a release: one transaction, refused when its gates failed."""
    registry = open_registry(request.store)
    found = registry.show(request.release)
    name = request.deployment or _deployment_of(request.store, found)
    return promoted(registry, name, found.label)


def export_release(request: ExportReleaseRequest) -> Exported:
    """Copy a release that passed its gates out of the workspace, for other machines and programs."""
    registry = open_registry(request.store)
    found = registry.show(request.release)
    return export(registry, found, _deployment_of(request.store, found), request.folder, request.demo)


def _deployment_of(store: Store, release: Release) -> str:
    """The deployment that the release's project file names, else the project's name."""
    asked = store.get(release.artifact).params["release"].get("deployment")
    return str(asked or release.name)


def _line(release: Release, deployments: list[Deployment]) -> ReleaseLine:
    return ReleaseLine(
        label=release.label,
        artifact=release.artifact,
        passed=release.passed,
        created=release.created,
        deployments=tuple(d.name for d in deployments if any(a.release.id == release.id for a in d.arms)),
    )
