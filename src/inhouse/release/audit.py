"""The audit: who changed what, when. Written in the transaction of the change itself."""

from __future__ import annotations

import getpass
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

BY_SERVER = "serve"  # who changes a deployment when nobody does


@dataclass(frozen=True)
class AuditEntry:
    """Who did what, when."""

    at: str
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


def write_entry(connection: Connection, actor: str | None, action: str, subject: str, detail: dict[str, Any]) -> None:
    """Add an entry; without an actor it is the user of this process."""
    from sqlalchemy import insert

    from inhouse.release.tables import audit

    values = {"at": now(), "actor": actor or _user(), "action": action, "subject": subject}
    connection.execute(insert(audit).values({**values, "detail": json.dumps(detail, ensure_ascii=False)}))


def read_entries(connection: Connection, limit: int, deployment: str | None = None) -> list[AuditEntry]:
    """The latest entries, newest first; of one deployment, or of everything."""
    from sqlalchemy import select

    from inhouse.release.tables import audit

    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if deployment is not None:  # a key may have the same name
        query = query.where(audit.c.subject == deployment, audit.c.action.not_like("key.%"))
    rows = connection.execute(query).all()
    return [AuditEntry(row.at, row.actor, row.action, row.subject, json.loads(row.detail)) for row in rows]


def now() -> str:
    """This moment: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a uid that has no name
        return "unknown"
