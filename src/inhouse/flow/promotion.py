"""What follows a run: the release gets its number, and its deployment when every gate passed."""

from __future__ import annotations

from dataclasses import dataclass

from inhouse.core.artifact import Artifact
from inhouse.core.store import Store
from inhouse.flow.project import Project
from inhouse.release.registry import Registry, Release, open_registry


@dataclass(frozen=True)
class Promotion:
    """A registered release. `serving` is the label that the deployment points at now, None without a deployment."""

    release: Release
    deployment: str | None
    serving: str | None


def register(project: Project, store: Store, record: Artifact) -> Promotion:
    """Number the release and, the first time it is seen, promote it. Safe to repeat after a crash.

    A release that was promoted once before is not promoted again: a rollback by hand stays as it is.
    """
    assert project.release is not None
    registry = open_registry(store)
    release = registry.register(project.name, record)
    name = project.release.deployment
    if name is None:
        return Promotion(release, None, None)
    if release.passed and project.release.promote and not _promoted_before(registry, name, release):
        return Promotion(release, name, registry.promote(name, release.label).release.label)
    serving = next((d.release.label for d in registry.deployments() if d.name == name), None)
    return Promotion(release, name, serving)


def _promoted_before(registry: Registry, deployment: str, release: Release) -> bool:
    return any(
        entry.action == "promote" and entry.subject == deployment and entry.detail["release"] == release.label
        for entry in registry.audit(limit=1_000_000)
    )
