"""The keys that open a workspace's deployments: what each may do, and how much."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.release.keys import (
    MOST_NAME,
    USUAL,
    Key,
    Limits,
    Scope,
    Used,
    is_local,
    list_keys,
    revoke_key,
    rotate_key,
    usage_on,
)
from inhouse.release.keys import create_key as make_key
from inhouse.release.registry import open_registry


class KeyLine(Frozen):
    """What is known of a key."""

    id: int
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_day: int | None
    created: str
    expires: str | None
    revoked: str | None
    old_token_until: str | None = Field(None, description="until when the token before the last rotation opens too")
    expired: bool = False
    requests_today: int = Field(0, description="answered since 00:00 UTC, where the key has a limit")
    tokens_today: int = Field(0, description="spent since 00:00 UTC, where the key has a limit")


class Keys(Frozen):
    """Keys, oldest first."""

    keys: tuple[KeyLine, ...]


class NewKey(Frozen):
    """A key that was made now; the token is in no other place."""

    id: int
    name: str
    token: str


class CreateKeyRequest(Request):
    """A new key."""

    name: str = Field(description="who or what will use it", min_length=1, max_length=MOST_NAME)
    scopes: tuple[Scope, ...] = Field(USUAL, description="what it may do; all but admin when left out")
    models: tuple[str, ...] = Field((), description="deployments that it may use; every one when left out")
    requests_per_minute: int | None = Field(None, ge=1, le=10**7, description="requests a minute; no limit if absent")
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12, description="tokens a minute; no limit if absent")
    tokens_per_day: int | None = Field(None, ge=1, le=10**15, description="tokens a day (UTC); no limit if absent")
    expires_days: float | None = Field(None, gt=0, le=36500, description="days until it expires")


class ListKeysRequest(Request):
    """Which keys are shown."""

    all: bool = Field(False, description="also keys that conversations on this machine made for themselves and ended")


class RevokeKeyRequest(Request):
    """A key to revoke."""

    name: str = Field(description="its name or prefix")


class RotateKeyRequest(RevokeKeyRequest):
    """A key that gets a new token."""

    grace_hours: float = Field(0.0, ge=0, le=8784, description="hours that the old token opens still")


def show_keys(request: ListKeysRequest) -> Keys:
    """The keys of this workspace, without their secrets."""
    return _shown(request, request.all)


def _shown(request: Request, ended_too: bool = False) -> Keys:
    engine = open_registry(request.store).engine
    used = usage_on(engine, datetime.now(UTC).date().isoformat())
    shown = (key for key in list_keys(engine) if ended_too or key.revoked is None or not is_local(key))
    return Keys(keys=tuple(_line(key, used.get(key.id)) for key in shown))


def create_key(request: CreateKeyRequest) -> NewKey:
    """Make a key; its token is shown once.

    Raises keys.bad_name, keys.reserved_name, keys.name_taken, release.deployment_unknown for a model that is none.
    """
    registry = open_registry(request.store)
    for model in request.models:
        registry.deployment(model)
    limits = Limits(
        scopes=tuple(dict.fromkeys(request.scopes)) or USUAL,
        models=tuple(dict.fromkeys(request.models)),
        requests_per_minute=request.requests_per_minute,
        tokens_per_minute=request.tokens_per_minute,
        tokens_per_day=request.tokens_per_day,
    )
    name = request.name.strip()  # lists show no difference
    if not name or not name.isprintable():
        raise UserError("keys.bad_name")
    expires = None if request.expires_days is None else timedelta(days=request.expires_days)
    token, key = make_key(registry.engine, name, expires, limits)
    return NewKey(id=key.id, name=key.name, token=token)


def end_key(request: RevokeKeyRequest) -> Keys:
    """Revoke a key; running servers refuse it within a second."""
    revoke_key(open_registry(request.store).engine, request.name)
    return _shown(request)


def renew_key(request: RotateKeyRequest) -> NewKey:
    """Give a key a new token, shown once; its limits, files and batches stay."""
    token, key = rotate_key(open_registry(request.store).engine, request.name, timedelta(hours=request.grace_hours))
    return NewKey(id=key.id, name=key.name, token=token)


def _line(key: Key, used: Used | None) -> KeyLine:
    limits, now = key.limits, datetime.now(UTC)
    grace = key.grace if key.grace and datetime.fromisoformat(key.grace) > now else None
    return KeyLine(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        scopes=limits.scopes,
        models=limits.models,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        tokens_per_day=limits.tokens_per_day,
        created=key.created,
        expires=key.expires,
        revoked=key.revoked,
        old_token_until=None if key.revoked else grace,
        expired=key.expires is not None and datetime.fromisoformat(key.expires) <= now,
        requests_today=0 if used is None else used.requests,
        tokens_today=0 if used is None else used.tokens,
    )
