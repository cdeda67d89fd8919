from __future__ import annotations

from dataclasses import replace

import pytest

from inhouse.release.keys import create_key
from inhouse.release.registry import Registry
from inhouse.release.stored import (
    Page,
    StoredFile,
    StoredResponse,
    add_file,
    delete_file,
    delete_response,
    drop_expired_responses,
    expired_files,
    get_file,
    get_response,
    list_files,
    new_id,
    put_response,
    stored_bytes,
)


@pytest.fixture
def keys(registry: Registry) -> tuple[int, int]:
    """Ids of two tenants."""
    return create_key(registry.engine, "one")[1].id, create_key(registry.engine, "two")[1].id


def file_of(key: int, number: int = 1, expires: int | None = None) -> StoredFile:
    return StoredFile(
        f"file-{key}-{number}", key, "batch", f"in {number}.jsonl", 10, "ab" * 32, 100 + number // 2, expires=expires
    )


def test_file_is_found_listed_and_deleted_only_by_its_key(registry: Registry, keys: tuple[int, int]) -> None:
    mine, theirs = keys
    kept = add_file(registry.engine, file_of(mine))
    assert get_file(registry.engine, mine, kept.id) == kept
    assert get_file(registry.engine, theirs, kept.id) is None
    assert list_files(registry.engine, theirs) == [] and not delete_file(registry.engine, theirs, kept.id)
    assert stored_bytes(registry.engine, mine) == 10 and stored_bytes(registry.engine, theirs) == 0
    assert delete_file(registry.engine, mine, kept.id) and not delete_file(registry.engine, mine, kept.id)


def test_files_are_listed_page_by_page_without_a_gap_where_moments_are_equal(
    registry: Registry, keys: tuple[int, int]
) -> None:
    made = [add_file(registry.engine, file_of(keys[0], n)) for n in range(1, 8)]
    for newest_first in (True, False):
        found: list[StoredFile] = []
        while more := list_files(registry.engine, keys[0], Page(3, found[-1].id if found else None, newest_first)):
            found += more
        assert found == (made[::-1] if newest_first else made)
    assert list_files(registry.engine, keys[0], Page(after="file-of-nobody")) == []
    assert list_files(registry.engine, keys[0], purpose="assistants") == []
    assert len(list_files(registry.engine, keys[0], purpose="batch")) == 7


def test_file_name_that_a_database_cannot_hold_is_made_one_that_it_can(
    registry: Registry, keys: tuple[int, int]
) -> None:
    kept = add_file(
        registry.engine, replace(file_of(keys[0]), filename="a\x00b\ud800'; DROP TABLE files; --" + "x" * 999)
    )
    found = get_file(registry.engine, keys[0], kept.id)
    assert found == kept and kept.filename.startswith("a?b?'; DROP") and len(kept.filename) == 255


def test_files_whose_time_is_over_are_told_for_every_key(registry: Registry, keys: tuple[int, int]) -> None:
    old = [add_file(registry.engine, file_of(key, 1, expires=50)) for key in keys]
    add_file(registry.engine, file_of(keys[0], 2, expires=500))
    add_file(registry.engine, file_of(keys[0], 3))
    assert expired_files(registry.engine, 50) == old


def test_response_is_replaced_found_and_deleted_only_by_its_key(registry: Registry, keys: tuple[int, int]) -> None:
    mine, theirs = keys
    begun = StoredResponse("resp_1", mine, "desk", 100, None, "in_progress", {"text": "\x00 你好 \ud83d"}, 200)
    put_response(registry.engine, begun)
    done = replace(begun, status="completed", body={"text": "hello"})
    put_response(registry.engine, done)
    assert get_response(registry.engine, mine, "resp_1", 199) == done
    assert get_response(registry.engine, mine, "resp_1", 200) is None  # its time is over
    assert get_response(registry.engine, theirs, "resp_1", 100) is None
    assert not delete_response(registry.engine, theirs, "resp_1")
    assert delete_response(registry.engine, mine, "resp_1")


def test_responses_whose_time_is_over_are_forgotten(registry: Registry, keys: tuple[int, int]) -> None:
    for name, expires in (("resp_1", 100), ("resp_2", 300), ("resp_3", None)):
        put_response(registry.engine, StoredResponse(name, keys[0], "desk", 1, None, "completed", {}, expires))
    assert drop_expired_responses(registry.engine, 100) == 1
    assert get_response(registry.engine, keys[0], "resp_3", 10**10) is not None


def test_ids_differ_and_say_their_kind() -> None:
    made = {new_id("file-") for _ in range(100)}
    assert len(made) == 100 and all(len(name) == 37 and name.startswith("file-") for name in made)
