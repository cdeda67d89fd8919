"""API keys: made once, shown once, kept only as a hash."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError
from inhouse.database import reading, writing
from inhouse.release.audit import write_entry

if TYPE_CHECKING:
    from sqlalchemy import Engine

LOCAL_KEY = "chat"  # name of the keys that a conversation on this machine makes, and revokes at its end
SHOWN = 11  # characters of a token that lists show: 'ih-' and 8 more


@dataclass(frozen=True)
class Key:
    """What is known of a key; the token itself is not kept anywhere."""

    name: str
    prefix: str
    created: str
    expires: str | None
    revoked: str | None

    def valid(self, now: datetime) -> bool:
        """Whether the key opens anything at this moment."""
        if self.revoked is not None:
            return False
        return self.expires is None or now < datetime.fromisoformat(self.expires)


def hash_token(token: str) -> str:
    """sha256 of a token.

    A slow password hash (argon2) protects what people can guess. A token is 256 random bits: nobody can try them,
    so one fast hash is as safe, and every request can afford it.
    """
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def create_key(engine: Engine, name: str, expires_in: timedelta | None = None) -> tuple[str, Key]:
    """Make a key. The token in the answer is the only copy."""
    from sqlalchemy import insert

    from inhouse.release.tables import api_keys

    now = datetime.now(UTC)
    token = "ih-" + secrets.token_urlsafe(32)
    expires = None if expires_in is None else (now + expires_in).isoformat(timespec="seconds")
    key = Key(name=name, prefix=token[:SHOWN], created=_text(now), expires=expires, revoked=None)
    with writing(engine) as connection:
        row = {**vars(key), "hash": hash_token(token)}
        connection.execute(insert(api_keys).values(row))
        write_entry(connection, None, "key.create", name, {"prefix": key.prefix, "expires": expires})
    return token, key


def check_key(engine: Engine, token: str) -> Key | None:
    """The key that this token belongs to, when it is valid now."""
    found = active_keys(engine).get(hash_token(token))
    return found if found is not None and found.valid(datetime.now(UTC)) else None


def active_keys(engine: Engine) -> dict[str, Key]:
    """Every key that is not revoked, by hash.

    Looked up by hash, so that the time of a lookup tells nothing of a token: to learn from it, one would have to
    choose sha256 values at will.
    """
    from sqlalchemy import select

    from inhouse.release.tables import api_keys

    with reading(engine) as connection:
        rows = connection.execute(select(api_keys).where(api_keys.c.revoked.is_(None))).all()
    return {row.hash: Key(row.name, row.prefix, row.created, row.expires, row.revoked) for row in rows}


def list_keys(engine: Engine) -> list[Key]:
    """Every key, oldest first, revoked ones too."""
    from sqlalchemy import select

    from inhouse.release.tables import api_keys

    with reading(engine) as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.id)).all()
    return [Key(row.name, row.prefix, row.created, row.expires, row.revoked) for row in rows]


def revoke_key(engine: Engine, which: str) -> Key:
    """Revoke the one active key with this name or prefix."""
    from sqlalchemy import or_, select, update

    from inhouse.release.tables import api_keys

    matches = or_(api_keys.c.name == which, api_keys.c.prefix == which)
    now = _text(datetime.now(UTC))
    with writing(engine) as connection:
        rows = connection.execute(select(api_keys).where(matches, api_keys.c.revoked.is_(None))).all()
        if len(rows) != 1:
            raise UserError("release.key_ambiguous" if rows else "release.key_unknown", key=which, found=len(rows))
        row = rows[0]
        connection.execute(update(api_keys).where(api_keys.c.id == row.id).values(revoked=now))
        write_entry(connection, None, "key.revoke", row.name, {"prefix": row.prefix})
    return Key(row.name, row.prefix, row.created, row.expires, now)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
