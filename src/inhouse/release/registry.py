"""The registry: which releases exist, which one each deployment points at, and who changed that when."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import GateFailed, UserError
from inhouse.core.store import RECORD, Store
from inhouse.database import reading, sqlite_url, writing
from inhouse.release.audit import AuditEntry, now, read_entries, write_entry
from inhouse.release.database import connect

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

REFERENCE = re.compile(r"(?P<name>[^:]+):v(?P<version>\d{1,9})")


@dataclass(frozen=True)
class Release:
    """A row of the registry. `label` is what people type: `desk-routing:v3`."""

    id: int
    name: str
    version: int
    artifact: str
    passed: bool
    created: str

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name}:v{self.version}"


@dataclass(frozen=True)
class Deployment:
    """A name that clients ask for, the release it points at and the one before. `generation` counts the changes."""

    name: str
    release: Release
    previous: Release | None
    changed_at: str
    generation: int


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
                return _release(known)
        passed = record.facts.get("passed") is True
        with writing(self.engine) as connection:
            if (known := connection.execute(same).first()) is not None:
                return _release(known)
            last = connection.execute(select(func.max(releases.c.version)).where(releases.c.name == name)).scalar()
            version = (last or 0) + 1
            values = {"name": name, "version": version, "artifact": record.id, "passed": passed, "created": now()}
            connection.execute(insert(releases).values(values))
            release = _release(connection.execute(same).one())
            write_entry(connection, actor, "register", release.label, {"artifact": record.id, "passed": passed})
        return release

    def list_releases(self, name: str | None = None) -> list[Release]:
        """Releases, oldest first."""
        from sqlalchemy import select

        from inhouse.release.tables import releases

        query = select(releases).order_by(releases.c.id)
        with reading(self.engine) as connection:
            rows = connection.execute(query if name is None else query.where(releases.c.name == name)).all()
        return [_release(row) for row in rows]

    def show(self, reference: str) -> Release:
        """The release `name:v3`, or the one whose artifact id begins so."""
        with reading(self.engine) as connection:
            return _find(connection, reference)

    def promote(self, deployment: str, reference: str, actor: str | None = None) -> Deployment:
        """Point a deployment at a release.

        Raises GateFailed for a release that did not pass its gates, release.files_gone when it cannot be served.
        """
        with writing(self.engine) as connection:
            release = _find(connection, reference)
            self._check_servable(release, deployment)
            before = _deployment(connection, deployment)
            if before is None or before.release.id != release.id:
                previous = None if before is None else before.release.id
                _point(connection, deployment, release.id, previous)
                old = None if before is None else before.release.label
                write_entry(connection, actor, "promote", deployment, {"release": release.label, "before": old})
            return _known(connection, deployment)

    def rollback(self, deployment: str, actor: str | None = None) -> Deployment:
        """Point a deployment at the release before; doing it twice returns to where it was."""
        with writing(self.engine) as connection:
            before = _known(connection, deployment)
            if before.previous is None:
                raise UserError("release.no_previous", deployment=deployment, release=before.release.label)
            self._check_servable(before.previous, deployment)
            _point(connection, deployment, before.previous.id, before.release.id)
            change = {"release": before.previous.label, "before": before.release.label}
            write_entry(connection, actor, "rollback", deployment, change)
            return _known(connection, deployment)

    def deployment(self, name: str) -> Deployment:
        """What a deployment points at; raises release.deployment_unknown."""
        with reading(self.engine) as connection:
            return _known(connection, name)

    def deployments(self) -> list[Deployment]:
        """Every deployment, by name."""
        with reading(self.engine) as connection:
            return [_known(connection, name) for name in _names(connection)]

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """The latest changes, newest first."""
        with reading(self.engine) as connection:
            return read_entries(connection, limit)

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
    """The registry of a workspace: `registry.db` in it, or the database at an SQLAlchemy URL."""
    store.create()
    return Registry(store, connect(url or sqlite_url(store.root / "registry.db")))


def model_path(store: Store, artifact: str) -> Path:
    """The file or folder that a release artifact serves."""
    try:
        release = json.loads((store.path(artifact) / "release.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return store.path(artifact) / "release.json"
    path: Path = store.path(release["model"]["artifact"]) / release["model"]["main"]
    return path


def _release(row: Row[Any]) -> Release:
    return Release(row.id, row.name, row.version, row.artifact, row.passed, row.created)


def _find(connection: Connection, reference: str) -> Release:
    from sqlalchemy import select

    from inhouse.release.tables import releases

    query = select(releases).order_by(releases.c.id)
    if match := REFERENCE.fullmatch(reference):
        query = query.where(releases.c.name == match["name"], releases.c.version == int(match["version"]))
    else:
        query = query.where(releases.c.artifact.startswith(reference, autoescape=True))
    rows = connection.execute(query).all() if reference else []
    if len(rows) != 1:
        raise UserError("release.ambiguous" if rows else "release.unknown", release=reference, found=len(rows))
    return _release(rows[0])


def _names(connection: Connection) -> list[str]:
    from sqlalchemy import select

    from inhouse.release.tables import deployments

    return list(connection.execute(select(deployments.c.name).order_by(deployments.c.name)).scalars())


def _deployment(connection: Connection, name: str) -> Deployment | None:
    from sqlalchemy import select

    from inhouse.release.tables import deployments, releases

    row = connection.execute(select(deployments).where(deployments.c.name == name)).first()
    if row is None:
        return None
    wanted = [i for i in (row.release, row.previous) if i is not None]
    found = {r.id: _release(r) for r in connection.execute(select(releases).where(releases.c.id.in_(wanted)))}
    return Deployment(row.name, found[row.release], found.get(row.previous), row.changed_at, row.generation)


def _known(connection: Connection, name: str) -> Deployment:
    found = _deployment(connection, name)
    if found is None:
        known = ", ".join(_names(connection)) or "-"
        raise UserError("release.deployment_unknown", deployment=name, known=known)
    return found


def _point(connection: Connection, name: str, release: int, previous: int | None) -> None:
    """Write the deployment's row: update, then insert when there was none (both inside one write lock)."""
    from sqlalchemy import insert, update

    from inhouse.release.tables import deployments

    values = {"release": release, "previous": previous, "changed_at": now()}
    changed = connection.execute(
        update(deployments)
        .where(deployments.c.name == name)
        .values({**values, "generation": deployments.c.generation + 1})
    )
    if changed.rowcount == 0:
        connection.execute(insert(deployments).values({"name": name, **values, "generation": 1}))
