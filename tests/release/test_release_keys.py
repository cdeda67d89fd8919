from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from release_workspace import key_of
from sqlalchemy import select, update

from inhouse.core.errors import UserError
from inhouse.database import reading, writing
from inhouse.release.keys import (
    Limits,
    Used,
    add_usage,
    create_key,
    create_numbered_key,
    is_local,
    list_keys,
    revoke_key,
    rotate_key,
    usage_on,
)
from inhouse.release.registry import Registry
from inhouse.release.tables import api_keys


def test_key_opens_until_it_is_revoked_and_only_its_hash_is_kept(registry: Registry) -> None:
    token, key = create_key(registry.engine, "laptop")
    assert key_of(registry, token) == key
    assert key_of(registry, token + "x") is None
    with reading(registry.engine) as connection:
        assert token[12:] not in str(connection.execute(select(api_keys)).all())
    assert revoke_key(registry.engine, "laptop").revoked is not None
    assert key_of(registry, token) is None
    assert [k.revoked is not None for k in list_keys(registry.engine)] == [True]


def test_key_expires(registry: Registry) -> None:
    token, key = create_key(registry.engine, "short", timedelta(hours=1))
    assert key_of(registry, token) == key
    assert not key.valid(datetime.now(UTC) + timedelta(hours=2))
    old, _ = create_key(registry.engine, "old", timedelta(seconds=-1))
    assert key_of(registry, old) is None


def test_revoking_an_unknown_or_an_ambiguous_key_says_so(registry: Registry) -> None:
    create_key(registry.engine, "twin")
    _, key = create_key(registry.engine, "other")
    with writing(registry.engine) as connection:  # as versions before made them
        connection.execute(update(api_keys).values(name="twin"))
    for which, code in (("nobody", "release.key_unknown"), ("twin", "release.key_ambiguous")):
        with pytest.raises(UserError) as error:
            revoke_key(registry.engine, which)
        assert error.value.code == code and str(error.value)
    assert revoke_key(registry.engine, key.prefix).prefix == key.prefix


def test_name_of_a_key_is_refused_to_another_until_it_is_revoked_and_no_list_has_it_twice(registry: Registry) -> None:
    long = "n" * 64
    for name in ("web", long):
        for _ in range(2):
            token, key = create_key(registry.engine, name)
            for expires in (None, timedelta(seconds=-1)):
                with pytest.raises(UserError) as error:
                    create_key(registry.engine, name, expires)
                assert error.value.code == "keys.name_taken" and key.prefix in str(error.value)
            assert revoke_key(registry.engine, name).id == key.id and key_of(registry, token) is None
        create_key(registry.engine, name)
    names = [key.name for key in list_keys(registry.engine)]
    assert names == ["web#1", "web#2", "web", "n" * 62 + "#4", "n" * 62 + "#5", long]


@pytest.mark.parametrize("name", ["a#1", "#", "ih-fmuS09tf", "IH-x", "ih-"])
def test_name_that_a_revoked_key_or_a_token_could_have_is_refused(registry: Registry, name: str) -> None:
    for make in (create_key, create_numbered_key):
        with pytest.raises(UserError) as error:
            make(registry.engine, name)
        assert error.value.code == "keys.reserved_name" and name in str(error.value)
    assert list_keys(registry.engine) == []


def test_revoked_names_and_prefixes_stay_apart_from_names(registry: Registry) -> None:
    _, first = create_key(registry.engine, "a")
    revoke_key(registry.engine, "a")
    _, second = create_key(registry.engine, "a")
    assert [key.name for key in list_keys(registry.engine)] == [f"a#{first.id}", "a"]
    assert revoke_key(registry.engine, second.prefix).id == second.id


def test_numbered_key_takes_the_first_name_that_is_free(registry: Registry) -> None:
    made = [create_numbered_key(registry.engine, "chat")[1] for _ in range(3)]
    assert [key.name for key in made] == ["chat", "chat-2", "chat-3"] and all(map(is_local, made))
    revoke_key(registry.engine, "chat-2")
    assert create_numbered_key(registry.engine, "chat")[1].name == "chat-2"
    assert not is_local(create_key(registry.engine, "chat-web")[1])


def test_key_does_what_its_scopes_say_on_the_deployments_that_it_names(registry: Registry) -> None:
    limits = Limits(scopes=("chat", "embed"), models=("desk",), requests_per_minute=60, tokens_per_day=10**12)
    token, made = create_key(registry.engine, "laptop", limits=limits)
    found = key_of(registry, token)
    assert found == made and found is not None and found.limits == limits
    assert [found.allows(s) for s in ("chat", "embed", "files", "metrics", "admin")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert found.may_use("desk") and not found.may_use("disk")


def test_key_without_words_does_all_but_admin_and_admin_does_all(registry: Registry) -> None:
    _, usual = create_key(registry.engine, "usual")
    _, admin = create_key(registry.engine, "admin", limits=Limits(scopes=("admin",)))
    assert [usual.allows(s) for s in ("chat", "files", "metrics", "admin")] == [True, True, True, False]
    assert admin.allows("chat") and admin.allows("admin") and usual.may_use("anything")
    assert usual.id != admin.id


def test_rotated_key_stays_the_same_tenant_and_its_old_token_ends_with_the_grace(registry: Registry) -> None:
    old, key = create_key(registry.engine, "laptop", timedelta(days=2), Limits(models=("desk",)))
    new, rotated = rotate_key(registry.engine, "laptop", timedelta(hours=1))
    assert new != old and rotated.id == key.id and rotated.limits == key.limits
    before, after = key_of(registry, old), key_of(registry, new)
    assert before is not None and after is not None and before.id == after.id == key.id
    assert not before.valid(datetime.now(UTC) + timedelta(hours=2)) and after.valid(
        datetime.now(UTC) + timedelta(hours=2)
    )
    rotate_key(registry.engine, rotated.prefix)
    assert key_of(registry, old) is None and key_of(registry, new) is None
    assert len(list_keys(registry.engine)) == 1


def test_revoking_a_rotated_key_ends_its_old_token_too(registry: Registry) -> None:
    old, _ = create_key(registry.engine, "laptop")
    new, _ = rotate_key(registry.engine, "laptop", timedelta(hours=1))
    revoke_key(registry.engine, "laptop")
    assert key_of(registry, old) is None and key_of(registry, new) is None
    with pytest.raises(UserError) as error:
        rotate_key(registry.engine, "laptop")
    assert error.value.code == "release.key_unknown"


def test_usage_of_a_day_adds_up_by_key(registry: Registry) -> None:
    _, one = create_key(registry.engine, "one")
    _, two = create_key(registry.engine, "two")
    add_usage(registry.engine, "2026-01-31", [Used(one.id, 2, 100), Used(two.id, 1, 7)])
    add_usage(registry.engine, "2026-01-31", [Used(one.id, 1, 50)])
    add_usage(registry.engine, "2026-02-01", [Used(one.id, 9, 9)])
    assert usage_on(registry.engine, "2026-01-31") == {one.id: Used(one.id, 3, 150), two.id: Used(two.id, 1, 7)}
    assert usage_on(registry.engine, "2026-03-01") == {}
