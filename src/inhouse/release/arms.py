"""The arms of a deployment: which releases answer for it, each with its part; read and written as rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.release.audit import now
from inhouse.release.rules import WHOLE, Rules, read_rules

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

Role = Literal["live", "canary", "shadow"]
ROLES: tuple[Role, ...] = ("live", "canary", "shadow")
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
class Arm:
    """A release of a deployment. `weight` is in parts of a thousand.

    The weights of live arms and canary add up to 1000: each is the arm's part of the requests. A shadow's weight is
    the part of the requests of which it gets a copy; its answers go to nobody.
    """

    release: Release
    weight: int
    role: Role
    since: str


@dataclass(frozen=True)
class Deployment:
    """A name that clients ask for, and what answers. `generation` counts the changes.

    `release` is the live arm with the greatest weight, `previous` that of the live arms that a rollback returns to.
    """

    name: str
    release: Release
    previous: Release | None
    changed_at: str
    generation: int
    arms: tuple[Arm, ...] = ()
    rules: Rules = field(default_factory=Rules)

    @property
    def canary(self) -> Arm | None:
        """The release on trial."""
        return next((arm for arm in self.arms if arm.role == "canary"), None)


@dataclass(frozen=True)
class Layout:
    """What the rows of a deployment say, by release id. Live weights add up to 1000, whatever the canary's is."""

    live: Mapping[int, int]
    canary: tuple[int, int] | None = None
    shadows: Mapping[int, int] = field(default_factory=dict)

    def rows(self) -> dict[tuple[int, Role], int]:
        """(release, role) -> weight."""
        found: dict[tuple[int, Role], int] = {(release, "live"): weight for release, weight in self.live.items()}
        if self.canary is not None:
            found[self.canary[0], "canary"] = self.canary[1]
        return found | {(release, "shadow"): weight for release, weight in self.shadows.items()}


def apportion(weights: Mapping[int, int], whole: int) -> dict[int, int]:
    """Share `whole` in proportion to weights, by largest remainders: the parts are integers and add up to it."""
    total = sum(weights.values())
    shares = {key: divmod(weight * whole, total) for key, weight in weights.items()}
    left = whole - sum(share for share, _ in shares.values())
    first = sorted(shares, key=lambda key: (-shares[key][1], key))[:left]
    return {key: share + (key in first) for key, (share, _) in shares.items()}


def main_of(live: Mapping[int, int]) -> int:
    """The release with the greatest weight; of equal ones, the newest."""
    return max(live, key=lambda release: (live[release], release))


def release_of(row: Row[Any]) -> Release:
    """A row of `releases`."""
    return Release(row.id, row.name, row.version, row.artifact, row.passed, row.created)


def find_release(connection: Connection, reference: str) -> Release:
    """The release `name:v3`, or the one whose artifact id begins so; raises release.unknown, release.ambiguous."""
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
    return release_of(rows[0])


def releases_by_id(connection: Connection, wanted: set[int]) -> dict[int, Release]:
    """Releases by their row's id."""
    from sqlalchemy import select

    from inhouse.release.tables import releases

    rows = connection.execute(select(releases).where(releases.c.id.in_(sorted(wanted)))).all()
    return {row.id: release_of(row) for row in rows}


def deployment_names(connection: Connection) -> list[str]:
    """Every deployment, by name."""
    from sqlalchemy import select

    from inhouse.release.tables import deployments

    return list(connection.execute(select(deployments.c.name).order_by(deployments.c.name)).scalars())


def read_layout(connection: Connection, name: str) -> Layout | None:
    """The rows of a deployment; None when there is none of this name."""
    from sqlalchemy import select

    from inhouse.release.tables import arms

    rows = connection.execute(select(arms).where(arms.c.deployment == name).order_by(arms.c.release)).all()
    by_role = {role: {row.release: row.weight for row in rows if row.role == role} for role in ROLES}
    if not by_role["live"]:
        return None
    return Layout(by_role["live"], next(iter(by_role["canary"].items()), None), by_role["shadow"])


def read_before(connection: Connection, name: str) -> dict[int, int]:
    """The live arms that a rollback returns to; empty when there was only ever one state."""
    from sqlalchemy import select

    from inhouse.release.tables import deployments

    text = connection.execute(select(deployments.c.before).where(deployments.c.name == name)).scalar_one()
    return {row["release"]: row["weight"] for row in json.loads(text)}


def read_deployment(connection: Connection, name: str) -> Deployment:
    """A deployment; raises release.deployment_unknown."""
    from sqlalchemy import select

    from inhouse.release.tables import arms, deployments

    row = connection.execute(select(deployments).where(deployments.c.name == name)).first()
    if row is None:
        known = ", ".join(deployment_names(connection)) or "-"
        raise UserError("release.deployment_unknown", deployment=name, known=known)
    kept = connection.execute(select(arms).where(arms.c.deployment == name)).all()
    wanted = {row.release, *(arm.release for arm in kept)} | ({row.previous} if row.previous else set())
    found = releases_by_id(connection, wanted)
    return Deployment(
        name=row.name,
        release=found[row.release],
        previous=found.get(row.previous),
        changed_at=row.changed_at,
        generation=row.generation,
        arms=_arms(kept, found),
        rules=read_rules(row.rules),
    )


def _arms(rows: Any, found: Mapping[int, Release]) -> tuple[Arm, ...]:
    """Arms as a router needs them: the live ones share what the canary leaves."""
    canary = sum(row.weight for row in rows if row.role == "canary")
    live = apportion({row.release: row.weight for row in rows if row.role == "live"}, WHOLE - canary)
    arms = [Arm(found[r.release], live[r.release] if r.role == "live" else r.weight, r.role, r.since) for r in rows]
    return tuple(sorted(arms, key=lambda arm: (ROLES.index(arm.role), -arm.weight, -arm.release.id)))


def write_layout(connection: Connection, name: str, new: Layout) -> None:
    """Make a deployment's rows say `new`: arms, main release, what a rollback returns to, generation.

    Only a change of the live arms changes what a rollback returns to: a canary and a shadow are on trial.
    """
    from sqlalchemy import insert, update

    from inhouse.release.tables import deployments

    old = read_layout(connection, name)
    moment = now()
    values: dict[str, Any] = {"release": main_of(new.live), "changed_at": moment}
    if old is None:
        row = {"name": name, **values, "previous": None, "generation": 1, "before": "[]", "rules": "{}"}
        connection.execute(insert(deployments).values(row))
    else:
        if dict(old.live) != dict(new.live):
            before = [{"release": release, "weight": weight} for release, weight in old.live.items()]
            values |= {"before": json.dumps(before), "previous": main_of(old.live)}
        values["generation"] = deployments.c.generation + 1
        connection.execute(update(deployments).where(deployments.c.name == name).values(values))
    _write_arms(connection, name, new, moment)


def _write_arms(connection: Connection, name: str, new: Layout, moment: str) -> None:
    """Replace the arms; all begin anew: what is compared has to be of one period, with one way to share requests."""
    from sqlalchemy import delete, insert

    from inhouse.release.tables import arms

    connection.execute(delete(arms).where(arms.c.deployment == name))
    rows = [
        {"deployment": name, "release": r, "weight": w, "role": role, "since": moment}
        for (r, role), w in new.rows().items()
    ]
    connection.execute(insert(arms), rows)
