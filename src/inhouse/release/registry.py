"""The registry: which releases exist, which ones answer for each deployment, and who changed that when."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import GateFailed, UserError
from inhouse.core.settings import settings
from inhouse.core.store import RECORD, Store
from inhouse.database import reading, sqlite_url, writing
from inhouse.release.arms import (
    Arm,
    Deployment,
    Layout,
    Release,
    deployment_names,
    find_release,
    main_of,
    read_before,
    read_deployment,
    read_layout,
    release_of,
    releases_by_id,
    write_layout,
)
from inhouse.release.audit import BY_SERVER, AuditEntry, now, read_entries, write_entry
from inhouse.release.database import connect
from inhouse.release.rules import WHOLE, Rules, write_rules
from inhouse.release.settings import NAME

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["Arm", "Deployment", "Registry", "Release", "model_path", "open_registry"]

URL_FILE = "registry.url"  # in a workspace: the database that its registry is in


@dataclass(frozen=True)
class Deed:
    """What is done, by whom, and what the audit says of it besides."""

    action: str
    actor: str | None
    facts: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """Releases and deployments of one workspace. Every change is one transaction: a crash leaves old or new."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.store = store
        self.engine = engine

    def register(self, name: str, record: Artifact, actor: str | None = None) -> Release:
        """Number a release artifact under `name`; the same artifact keeps the number it has."""
        from sqlalchemy import func, insert, select

        from inhouse.release.tables import releases

        same = select(releases).where(releases.c.name == name, releases.c.artifact == record.id)
        with reading(self.engine) as connection:
            if (known := connection.execute(same).first()) is not None:
                return release_of(known)
        passed = record.facts.get("passed") is True
        with writing(self.engine) as connection:
            if (known := connection.execute(same).first()) is not None:
                return release_of(known)
            last = connection.execute(select(func.max(releases.c.version)).where(releases.c.name == name)).scalar()
            version = (last or 0) + 1
            values = {"name": name, "version": version, "artifact": record.id, "passed": passed, "created": now()}
            connection.execute(insert(releases).values(values))
            release = release_of(connection.execute(same).one())
            write_entry(connection, actor, "register", release.label, {"artifact": record.id, "passed": passed})
        return release

    def list_releases(self, name: str | None = None) -> list[Release]:
        """Releases, oldest first."""
        from sqlalchemy import select

        from inhouse.release.tables import releases

        query = select(releases).order_by(releases.c.id)
        with reading(self.engine) as connection:
            rows = connection.execute(query if name is None else query.where(releases.c.name == name)).all()
        return [release_of(row) for row in rows]

    def show(self, reference: str) -> Release:
        """The release `name:v3`, or the one whose artifact id begins so."""
        with reading(self.engine) as connection:
            return find_release(connection, reference)

    def promote(self, deployment: str, reference: str, actor: str | None = None) -> Deployment:
        """Let one release answer everything; a canary ends, a shadow stays.

        Raises GateFailed for a release that did not pass its gates, release.files_gone when it cannot be served.
        """
        return self.split(deployment, {reference: WHOLE}, actor, action="promote")

    def split(
        self, deployment: str, weights: Mapping[str, int], actor: str | None = None, action: str = "split"
    ) -> Deployment:
        """Let several releases answer, each its part of a thousand requests; a canary ends, a shadow stays.

        Raises release.weight, release.split_sum, release.split_twice, and what `promote` raises.
        """
        check_weights(weights)
        if not re.fullmatch(NAME, deployment):
            raise UserError("release.bad_name", deployment=deployment[:64])
        with writing(self.engine) as connection:
            found = {reference: find_release(connection, reference) for reference in weights}
            live = {found[reference].id: weight for reference, weight in weights.items()}
            if len(live) < len(weights):
                raise UserError("release.split_twice", deployment=deployment)
            for release in found.values():
                self._check_servable(release, deployment)
            old = read_layout(connection, deployment)
            shadows = {r: w for r, w in (old.shadows if old else {}).items() if r not in live}
            return self._change(connection, deployment, Layout(live, None, shadows), Deed(action, actor))

    def rollback(self, deployment: str, actor: str | None = None) -> Deployment:
        """End the canary; without one, return to the live arms before. Doing that twice returns to where it was.

        Raises release.canary_ended where a server has just taken the canary back: who meant that one would otherwise
        put an earlier release in the place of the live one. Raises release.only_copies where the live one before gets
        copies now: it was taken back already, and is looked at again.
        """
        with writing(self.engine) as connection:
            before = read_deployment(connection, deployment)
            old = _layout(connection, deployment)
            live = old.live if old.canary else read_before(connection, deployment)
            if not live:
                raise UserError("release.no_previous", deployment=deployment, release=before.release.label)
            if old.canary is None:
                last = next(iter(read_entries(connection, 1, deployment)), None)
                if last is not None and last.action == "canary.rollback" and last.actor == BY_SERVER:
                    told = {"canary": last.detail.get("canary", "-"), "when": last.at, "release": before.release.label}
                    raise UserError("release.canary_ended", deployment=deployment, **told)
                for release in releases_by_id(connection, set(live)).values():
                    if release.id in old.shadows:
                        told = {"shadow": release.label, "release": before.release.label}
                        raise UserError("release.only_copies", deployment=deployment, **told)
                    self._check_servable(release, deployment)
            shadows = {r: w for r, w in old.shadows.items() if r not in live}
            return self._change(connection, deployment, Layout(live, None, shadows), Deed("rollback", actor))

    def start_canary(
        self, deployment: str, reference: str, weight: int, actor: str | None = None, rules: Rules | None = None
    ) -> Deployment:
        """Give a release a part of the requests, on trial; the live arms share the rest.

        For the release that is on trial already, only its weight changes. `rules` replace the deployment's. Raises
        release.weight, release.already_live, release.canary_running, and what `promote` raises.
        """
        with writing(self.engine) as connection:
            old = _layout(connection, deployment)
            release = find_release(connection, reference)
            _check_weight(release.label, weight, WHOLE - 1)
            self._check_servable(release, deployment)
            if release.id in old.live:
                raise UserError("release.already_live", deployment=deployment, release=release.label)
            if old.canary is not None and old.canary[0] != release.id:
                running = releases_by_id(connection, {old.canary[0]})[old.canary[0]].label
                raise UserError("release.canary_running", deployment=deployment, running=running)
            if rules is not None:
                _put_rules(connection, deployment, rules, actor)
            shadows = {r: w for r, w in old.shadows.items() if r != release.id}
            new = Layout(old.live, (release.id, weight), shadows)
            return self._change(connection, deployment, new, Deed("canary", actor))

    def advance_canary(self, deployment: str, canary: Arm, weight: int, actor: str | None = None) -> Deployment:
        """Give the canary more requests; at 1000 it is promoted.

        Nothing changes when it is not there any more with the weight that `canary` says: of several gateways that
        decide at once, one wins.
        """
        with writing(self.engine) as connection:
            old = _layout(connection, deployment)
            if old.canary != (canary.release.id, canary.weight):
                return read_deployment(connection, deployment)
            new = (canary.release.id, weight)
            if weight < WHOLE:
                return self._change(connection, deployment, replace(old, canary=new), Deed("canary.advance", actor))
            return self._change(connection, deployment, Layout(dict([new]), None, old.shadows), Deed("promote", actor))

    def roll_back_canary(self, deployment: str, canary: Arm, reason: str, actor: str | None = None) -> Deployment:
        """Take the canary back; `reason` goes into the audit. Nothing changes when it is gone already."""
        with writing(self.engine) as connection:
            old = _layout(connection, deployment)
            if old.canary is None or old.canary[0] != canary.release.id:
                return read_deployment(connection, deployment)
            deed = Deed("canary.rollback", actor, {"canary": canary.release.label, "reason": reason})
            return self._change(connection, deployment, replace(old, canary=None), deed)

    def shadow(self, deployment: str, reference: str, weight: int, actor: str | None = None) -> Deployment:
        """Send a release copies of a part of the requests, its answers to nobody; 0 ends that.

        Raises release.weight, release.already_live, release.no_shadow.
        """
        with writing(self.engine) as connection:
            old = _layout(connection, deployment)
            release = find_release(connection, reference)
            shadows = {r: w for r, w in old.shadows.items() if r != release.id}
            if weight:
                _check_weight(release.label, weight, WHOLE)
                self._check_servable(release, deployment)
                if release.id in old.live or (old.canary is not None and release.id == old.canary[0]):
                    raise UserError("release.already_live", deployment=deployment, release=release.label)
                shadows[release.id] = weight
            elif release.id not in old.shadows:
                raise UserError("release.no_shadow", deployment=deployment, release=release.label)
            return self._change(connection, deployment, replace(old, shadows=shadows), Deed("shadow", actor))

    def set_rules(self, deployment: str, rules: Rules, actor: str | None = None) -> Deployment:
        """Replace the rules of a deployment."""
        with writing(self.engine) as connection:
            _put_rules(connection, deployment, rules, actor)
            return read_deployment(connection, deployment)

    def _change(self, connection: Connection, name: str, new: Layout, deed: Deed) -> Deployment:
        """Write a new layout and its audit entry; the same as before is no change."""
        old = read_layout(connection, name)
        if old is not None and old.rows() == new.rows():
            return read_deployment(connection, name)
        before = None if old is None else releases_by_id(connection, {main_of(old.live)})[main_of(old.live)].label
        write_layout(connection, name, new)
        found = read_deployment(connection, name)
        arms = [{"release": a.release.label, "weight": a.weight, "role": a.role} for a in found.arms]
        detail = {"release": found.release.label, "before": before, "arms": arms, **deed.facts}
        write_entry(connection, deed.actor, deed.action, name, detail)
        return found

    def remove(self, deployment: str, actor: str | None = None) -> Deployment:
        """Forget a deployment, and what was counted and said of its arms; releases and history stay. As it was before.

        Raises release.deployment_unknown.
        """
        from sqlalchemy import delete

        from inhouse.release.tables import arm_results, arms, deployments, feedback

        with writing(self.engine) as connection:
            found = read_deployment(connection, deployment)
            for table in (arms, arm_results, feedback):
                connection.execute(delete(table).where(table.c.deployment == deployment))
            connection.execute(delete(deployments).where(deployments.c.name == deployment))
            write_entry(connection, actor, "remove", deployment, {"release": found.release.label})
        return found

    def deployment(self, name: str) -> Deployment:
        """What a deployment points at; raises release.deployment_unknown."""
        with reading(self.engine) as connection:
            return read_deployment(connection, name)

    def deployments(self) -> list[Deployment]:
        """Every deployment, by name."""
        with reading(self.engine) as connection:
            return [read_deployment(connection, name) for name in deployment_names(connection)]

    def audit(self, limit: int = 100, deployment: str | None = None) -> list[AuditEntry]:
        """The latest changes, newest first; of one deployment, or of everything."""
        with reading(self.engine) as connection:
            found = read_entries(connection, limit, deployment)
            if deployment is not None and not found:  # one that was removed has a history
                read_deployment(connection, deployment)
            return found

    def note(self, action: str, subject: str, actor: str | None, detail: dict[str, Any]) -> None:
        """Add to the audit what happened outside the registry, such as an engine that did not load."""
        with writing(self.engine) as connection:
            write_entry(connection, actor, action, subject, detail)

    def check_files(self, release: Release) -> Path:
        """The file or folder that a release serves; raises release.files_gone when anything of it is missing."""
        for path in (self.store.path(release.artifact) / RECORD, model_path(self.store, release.artifact)):
            if not path.exists():
                raise UserError("release.files_gone", release=release.label, path=path)
        return path

    def _check_servable(self, release: Release, deployment: str) -> None:
        if not release.passed:
            raise GateFailed("release.gates_failed", release=release.label, deployment=deployment)
        self.check_files(release)


def open_registry(store: Store, url: str | None = None) -> Registry:
    """The registry of a workspace: the database at an SQLAlchemy URL, else `registry.db` in the workspace.

    The URL is the one given, else INHOUSE_DATABASE_URL, else what the workspace's file `registry.url` says.
    """
    store.create()
    url = url or settings().database_url or _noted_url(store)
    return Registry(store, connect(url or sqlite_url(store.root / "registry.db")))


def _noted_url(store: Store) -> str | None:
    try:
        return (store.root / URL_FILE).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def model_path(store: Store, artifact: str) -> Path:
    """The file or folder that a release artifact serves."""
    try:
        release = json.loads((store.path(artifact) / "release.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return store.path(artifact) / "release.json"
    path: Path = store.path(release["model"]["artifact"]) / release["model"]["main"]
    return path


def check_weights(weights: Mapping[str, int]) -> None:
    """Weights of a split: each from 1 to 1000, together 1000."""
    for label, weight in weights.items():
        _check_weight(label, weight, WHOLE)
    if sum(weights.values()) != WHOLE:
        raise UserError("release.split_sum", found=f"{sum(weights.values()) / 10:g}")


def _check_weight(label: str, weight: int, most: int) -> None:
    if not 1 <= weight <= most:
        raise UserError("release.weight", release=label, weight=f"{weight / 10:g}", most=f"{most / 10:g}")


def _layout(connection: Connection, name: str) -> Layout:
    """The layout of a deployment that is there; raises release.deployment_unknown."""
    read_deployment(connection, name)
    found = read_layout(connection, name)
    assert found is not None  # a deployment has live arms from its first change on
    return found


def _put_rules(connection: Connection, name: str, rules: Rules, actor: str | None) -> None:
    from sqlalchemy import update

    from inhouse.release.tables import deployments

    if read_deployment(connection, name).rules == rules:
        return
    kept = write_rules(rules)
    values = {"rules": kept, "generation": deployments.c.generation + 1, "changed_at": now()}
    connection.execute(update(deployments).where(deployments.c.name == name).values(values))
    write_entry(connection, actor, "rules", name, {"rules": json.loads(kept)})
