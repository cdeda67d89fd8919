"""API keys: made once, shown once, kept only as a hash; what each may do and use."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal, get_args

from inhouse.core.errors import UserError
from inhouse.database import reading, writing
from inhouse.release.audit import write_entry

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

Scope = Literal["chat", "embed", "files", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL: tuple[Scope, ...] = ("chat", "embed", "files", "metrics")  # all but admin
LOCAL_KEY = "chat"  # name of the keys that a conversation on this machine makes, and revokes at its end
MOST_NAME = 64
BEGINNING = "ih-"  # of every token
SHOWN = 11  # characters of a token that lists show: 'ih-' and 8 more


@dataclass(frozen=True)
class Limits:
    """What a key may do. No models: every deployment; None: no limit."""

    scopes: tuple[Scope, ...] = USUAL
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True)
class Key:
    """What is known of a key; the token itself is not kept anywhere. `id` is the tenant: a rotation keeps it.

    `grace`: until when the token before the last rotation opens too.
    """

    name: str
    prefix: str
    created: str
    expires: str | None
    revoked: str | None
    id: int = 0
    limits: Limits = UNLIMITED
    grace: str | None = None

    def valid(self, now: datetime) -> bool:
        """Whether the key opens anything at this moment."""
        if self.revoked is not None:
            return False
        return self.expires is None or now < datetime.fromisoformat(self.expires)

    def allows(self, scope: Scope) -> bool:
        """Whether it may do this; `admin` includes everything."""
        return scope in self.limits.scopes or "admin" in self.limits.scopes

    def may_use(self, deployment: str) -> bool:
        """Whether it may ask this deployment."""
        return not self.limits.models or deployment in self.limits.models


@dataclass(frozen=True)
class Used:
    """What a key used on one day (UTC)."""

    key: int
    requests: int
    tokens: int


def hash_token(token: str) -> str:
    """sha256 of a token.

    A slow password hash (argon2) protects what people can guess. A token is 256 random bits: nobody can try them,
    so one fast hash is as safe, and every request can afford it.
    """
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def create_key(
    engine: Engine, name: str, expires_in: timedelta | None = None, limits: Limits = UNLIMITED
) -> tuple[str, Key]:
    """Make a key. The token in the answer is the only copy.

    Raises keys.name_taken: limits, logs and lists tell keys by their names. The name of a revoked one is free again.
    Raises keys.reserved_name: a name that could be a revoked key's, or the beginning of another key's token.
    """
    _refuse_reserved(name)
    with writing(engine) as connection:
        taken = _named(connection, name)
        if taken is not None and taken.revoked is None:
            raise UserError("keys.name_taken", name=name, prefix=taken.prefix)
        return _create(connection, name, expires_in, limits)


def create_numbered_key(
    engine: Engine, name: str, expires_in: timedelta | None = None, limits: Limits = UNLIMITED
) -> tuple[str, Key]:
    """Make a key with this name, or with the first of `name-2`, `name-3`, … that is free. Raises keys.reserved_name."""
    _refuse_reserved(name)
    with writing(engine) as connection:
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        free = next(n for n in names if (taken := _named(connection, n)) is None or taken.revoked is not None)
        return _create(connection, free, expires_in, limits)


def is_local(key: Key) -> bool:
    """Whether a conversation on this machine made it, for itself."""
    return re.fullmatch(rf"{LOCAL_KEY}(-\d+)?(#\d+)?", key.name) is not None


def _refuse_reserved(name: str) -> None:
    if "#" in name or name.lower().startswith(BEGINNING):
        raise UserError("keys.reserved_name", name=name)


def _create(connection: Connection, name: str, expires_in: timedelta | None, limits: Limits) -> tuple[str, Key]:
    from sqlalchemy import insert

    from inhouse.release.tables import api_keys

    _free_name(connection, name)
    now = datetime.now(UTC)
    token = _new_token()
    expires = None if expires_in is None else _text(now + expires_in)
    values = {
        "name": name, "prefix": token[:SHOWN], "created": _text(now), "expires": expires, "revoked": None,
        "hash": hash_token(token), "scopes": json.dumps(limits.scopes), "models": json.dumps(limits.models),
        "requests_per_minute": limits.requests_per_minute, "tokens_per_minute": limits.tokens_per_minute,
        "tokens_per_day": limits.tokens_per_day,
    }  # fmt: skip
    made = connection.execute(insert(api_keys).values(values)).inserted_primary_key
    assert made is not None
    detail = {"prefix": token[:SHOWN], "expires": expires, "scopes": list(limits.scopes)}
    write_entry(connection, None, "key.create", name, detail)
    return token, Key(name, token[:SHOWN], _text(now), expires, None, made[0], limits)


def active_keys(engine: Engine) -> dict[str, Key]:
    """Every key that is not revoked, by hash; a rotated one also by the hash of its old token, until that ends.

    Looked up by hash, so that the time of a lookup tells nothing of a token: to learn from it, one would have to
    choose sha256 values at will.
    """
    from sqlalchemy import select

    from inhouse.release.tables import api_keys

    with reading(engine) as connection:
        rows = connection.execute(select(api_keys).where(api_keys.c.revoked.is_(None))).all()
    found = {row.hash: _key(row) for row in rows}
    ending = [row for row in rows if row.old_hash is not None and row.old_expires is not None]
    return found | {row.old_hash: replace(_key(row), expires=_sooner(row.expires, row.old_expires)) for row in ending}


def list_keys(engine: Engine) -> list[Key]:
    """Every key, oldest first, revoked ones too."""
    from sqlalchemy import select

    from inhouse.release.tables import api_keys

    with reading(engine) as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.id)).all()
    return [_key(row) for row in rows]


def revoke_key(engine: Engine, which: str) -> Key:
    """Revoke the one active key with this name or prefix, at once, also an old token of it."""
    from sqlalchemy import update

    from inhouse.release.tables import api_keys

    now = _text(datetime.now(UTC))
    with writing(engine) as connection:
        row = _one(connection, which)
        connection.execute(update(api_keys).where(api_keys.c.id == row.id).values(revoked=now))
        write_entry(connection, None, "key.revoke", row.name, {"prefix": row.prefix})
    return replace(_key(row), revoked=now)


def rotate_key(engine: Engine, which: str, grace: timedelta = timedelta(0)) -> tuple[str, Key]:
    """Give the one active key with this name or prefix a new token; the old one opens until `grace` has passed.

    Limits, expiry and what is stored for the key stay. A second rotation ends the first one's grace.
    """
    from sqlalchemy import update

    from inhouse.release.tables import api_keys

    token = _new_token()
    with writing(engine) as connection:
        row = _one(connection, which)
        values = {"hash": hash_token(token), "prefix": token[:SHOWN], "old_hash": None, "old_expires": None}
        if grace > timedelta(0):
            values |= {"old_hash": row.hash, "old_expires": _text(datetime.now(UTC) + grace)}
        connection.execute(update(api_keys).where(api_keys.c.id == row.id).values(values))
        write_entry(connection, None, "key.rotate", row.name, {"prefix": token[:SHOWN], "before": row.prefix})
    return token, replace(_key(row), prefix=token[:SHOWN])


def add_usage(engine: Engine, day: str, used: Iterable[Used]) -> None:
    """Add what keys used on a day (`2026-01-31`, UTC), so that a daily quota survives a restart."""
    from sqlalchemy import insert, select, update

    from inhouse.release.tables import key_usage as table

    with writing(engine) as connection:
        for one in used:
            mine = (table.c.key == one.key) & (table.c.day == day)
            if connection.execute(select(table.c.key).where(mine)).first() is None:
                values = {"key": one.key, "day": day, "requests": one.requests, "tokens": one.tokens}
                connection.execute(insert(table).values(values))
            else:
                more = {"requests": table.c.requests + one.requests, "tokens": table.c.tokens + one.tokens}
                connection.execute(update(table).where(mine).values(more))


def usage_on(engine: Engine, day: str) -> dict[int, Used]:
    """What every key used on a day, by key id."""
    from sqlalchemy import select

    from inhouse.release.tables import key_usage as table

    with reading(engine) as connection:
        rows = connection.execute(select(table).where(table.c.day == day)).all()
    return {row.key: Used(row.key, row.requests, row.tokens) for row in rows}


def _named(connection: Connection, name: str) -> Row[Any] | None:
    """The key with this name, an active one first."""
    from sqlalchemy import select

    from inhouse.release.tables import api_keys

    named = select(api_keys).where(api_keys.c.name == name)
    return connection.execute(named.order_by(api_keys.c.revoked.is_not(None), api_keys.c.id)).first()


def _free_name(connection: Connection, name: str) -> None:
    """Give revoked keys of this name one with their number: lists show no name twice."""
    from sqlalchemy import select, update

    from inhouse.release.tables import api_keys

    for own in connection.execute(select(api_keys.c.id).where(api_keys.c.name == name)).scalars().all():
        mark = f"#{own}"
        change = update(api_keys).where(api_keys.c.id == own)
        connection.execute(change.values(name=name[: MOST_NAME - len(mark)] + mark))


def _one(connection: Connection, which: str) -> Row[Any]:
    from sqlalchemy import or_, select

    from inhouse.release.tables import api_keys

    matches = or_(api_keys.c.name == which, api_keys.c.prefix == which)
    rows = connection.execute(select(api_keys).where(matches, api_keys.c.revoked.is_(None))).all()
    if len(rows) != 1:
        raise UserError("release.key_ambiguous" if rows else "release.key_unknown", key=which, found=len(rows))
    return rows[0]


def _key(row: Row[Any]) -> Key:
    limits = Limits(
        scopes=tuple(json.loads(row.scopes)),
        models=tuple(json.loads(row.models)),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        tokens_per_day=row.tokens_per_day,
    )
    return Key(row.name, row.prefix, row.created, row.expires, row.revoked, row.id, limits, row.old_expires)


def _new_token() -> str:
    return BEGINNING + secrets.token_urlsafe(32)


def _sooner(one: str | None, other: str) -> str:
    return other if one is None else min(one, other, key=datetime.fromisoformat)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
