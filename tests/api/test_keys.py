"""Keys as the command line makes them, and which deployments `serve` serves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inhouse.api.keys import (
    CreateKeyRequest,
    KeyLine,
    ListKeysRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
    create_key,
    end_key,
    renew_key,
    show_keys,
)
from inhouse.api.serving import ServeRequest, local_key, serve
from inhouse.cli.key_views import _row as row
from inhouse.cli.key_views import _state as state
from inhouse.core.errors import UserError
from inhouse.core.store import Store
from inhouse.release.keys import Used, add_usage
from inhouse.release.registry import open_registry


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    Store(tmp_path).create()
    return tmp_path


def test_two_keys_with_one_name_are_refused_and_a_revoked_ones_name_is_free(workspace: Path) -> None:
    create_key(CreateKeyRequest(workspace=workspace, name="web"))
    for name in ("web", " web "):
        with pytest.raises(UserError) as error:
            create_key(CreateKeyRequest(workspace=workspace, name=name))
        assert error.value.code == "keys.name_taken" and "keys rotate 'web'" in str(error.value)
    end_key(RevokeKeyRequest(workspace=workspace, name="web"))
    assert create_key(CreateKeyRequest(workspace=workspace, name="web")).name == "web"
    assert [key.name for key in show_keys(ListKeysRequest(workspace=workspace)).keys] == ["web#1", "web"]


def test_ended_keys_of_conversations_are_listed_on_request_only(workspace: Path) -> None:
    create_key(CreateKeyRequest(workspace=workspace, name="web"))
    registry = open_registry(Store(workspace))
    for _ in range(3):
        with local_key(registry, None), local_key(registry, None):
            assert [k.name for k in show_keys(ListKeysRequest(workspace=workspace)).keys] == ["web", "chat", "chat-2"]
    end_key(RevokeKeyRequest(workspace=workspace, name="web"))
    assert [key.name for key in show_keys(ListKeysRequest(workspace=workspace)).keys] == ["web"]
    assert len(show_keys(ListKeysRequest(workspace=workspace, all=True)).keys) == 7


def test_old_token_of_a_rotated_key_is_listed_as_long_as_it_opens(workspace: Path) -> None:
    def line() -> KeyLine:
        return show_keys(ListKeysRequest(workspace=workspace)).keys[0]

    create_key(CreateKeyRequest(workspace=workspace, name="web", expires_days=9))
    renew_key(RotateKeyRequest(workspace=workspace, name="web", grace_hours=5))
    until = line().old_token_until
    assert until is not None and timedelta(hours=4) < datetime.fromisoformat(until) - datetime.now(UTC)
    assert state(line()).count(",") == 1 and f"old token until {until[:16]}" in state(line())
    renew_key(RotateKeyRequest(workspace=workspace, name="web"))
    assert line().old_token_until is None


def test_expired_keys_are_told_and_what_a_daily_quota_has_left(workspace: Path) -> None:
    create_key(CreateKeyRequest(workspace=workspace, name="web", tokens_per_day=300))
    create_key(CreateKeyRequest(workspace=workspace, name="old", expires_days=1e-9))
    engine = open_registry(Store(workspace)).engine
    add_usage(engine, datetime.now(UTC).date().isoformat(), [Used(1, 3, 1234)])
    add_usage(engine, "2026-01-31", [Used(1, 9, 9999)])
    web, old = show_keys(ListKeysRequest(workspace=workspace)).keys
    assert (web.requests_today, web.tokens_today, web.expired, old.expired) == (3, 1234, False, True)
    assert row(web)[4].endswith("300 tok/day (1,234 used today)") and state(old).startswith("expired 20")


@pytest.mark.parametrize("name", ["  ", "a\nb", "a\x00"])
def test_name_that_does_not_show_is_refused(workspace: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        create_key(CreateKeyRequest(workspace=workspace, name=name))
    assert error.value.code == "keys.bad_name"


def test_serving_one_deployment_and_all_of_them_is_refused(workspace: Path) -> None:
    with pytest.raises(UserError) as error:
        serve(ServeRequest(workspace=workspace, deployment="desk", all=True))
    assert error.value.code == "serve.all_and_one" and "'desk'" in str(error.value)
