"""The store publishes whole artifacts or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import FileHashes, hash_file, hash_json, identity, list_files
from inhouse.core.store import PENDING, Store, disk_errors, full_disk, new_folder, read_json, write_durably


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "ws")
    store.create()
    return store


def record(store: Store, recipe: str, files: dict[str, str]) -> Artifact:
    _, out = store.work_of(recipe)
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    entries = list_files(out)
    return Artifact(
        id=identity("dataset", entries), kind="dataset", stage="data", node="dataset", stage_version="1",
        recipe=recipe, params={}, files=entries, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_publish_makes_artifact_findable_and_leaves_no_work(store: Store) -> None:
    made = store.publish(record(store, "aa", {"a.txt": "1"}))
    assert store.find("aa") == made
    assert store.get(made.id) == made == store.get(made.id[:6])
    assert (store.path(made.id) / "a.txt").read_text() == "1"
    assert not list(store.work.iterdir())
    assert list(store.records()) == [made]
    assert made.bytes == 1


def test_publish_equal_bytes_from_another_recipe_gives_same_id(store: Store) -> None:
    first = store.publish(record(store, "aa", {"a.txt": "1"}))
    second = store.publish(record(store, "bb", {"a.txt": "1"}))
    assert first.id == second.id and store.find("bb") == second
    assert len(list(store.objects.iterdir())) == 1


def test_identity_ignores_measured_files_only(store: Store) -> None:
    one = record(store, "aa", {"a.txt": "1", "measured/speed.json": "3"})
    two = record(store, "bb", {"a.txt": "1", "measured/speed.json": "4"})
    three = record(store, "cc", {"a.txt": "2"})
    assert one.id == two.id != three.id


def test_records_lists_the_latest_used_last(store: Store) -> None:
    made = [store.publish(record(store, name, {"a": name})) for name in ("aa", "bb", "cc")]
    store.use(made[0])
    store.use(made[1])
    assert list(store.records()) == [made[2], made[0], made[1]]


@pytest.mark.parametrize("renamed", [False, True])
def test_recover_finishes_interrupted_publication(store: Store, renamed: bool) -> None:
    made = record(store, "aa", {"a.txt": "1"})
    folder = store.work / "aa"
    write_durably(folder / "out" / "record.json", made.model_dump_json())
    write_durably(folder / PENDING, made.model_dump_json())
    if renamed:
        (folder / "out").rename(store.objects / made.id)
    store.recover()
    assert store.find("aa") == made
    assert (store.path(made.id) / "a.txt").exists() and not folder.exists()


def test_work_keeps_scratch_and_empties_output(store: Store) -> None:
    scratch, out = store.work_of("aa")
    (scratch / "checkpoint").write_text("x")
    (out / "half").write_text("x")
    again, out = store.work_of("aa")
    assert (again / "checkpoint").exists() and not list(out.iterdir())


def test_find_forgets_recipe_whose_files_are_gone(store: Store) -> None:
    made = store.publish(record(store, "aa", {"a.txt": "1"}))
    store.path(made.id).rename(store.root / "elsewhere")
    assert store.find("aa") is None and store.find("zz") is None


@pytest.mark.parametrize("damage", ["gone", "short", "folder"])
def test_publish_again_repairs_a_damaged_artifact(store: Store, damage: str) -> None:
    made = store.publish(record(store, "aa", {"a.txt": "12", "measured/t": "1"}))
    file = store.path(made.id) / "a.txt"
    if damage == "folder":
        (store.path(made.id)).rename(store.root / "moved")
        store.path(made.id).write_text("a file in its place")
    else:
        file.unlink() if damage == "gone" else file.write_text("1")
    assert store.find("aa") is None
    if damage == "folder":
        store.path(made.id).unlink()
    again = store.publish(record(store, "aa", {"a.txt": "12", "measured/t": "22"}))
    assert again.id == made.id and store.find("aa") == again
    assert file.read_text() == "12" and (store.path(made.id) / "measured" / "t").read_text() == "22"
    assert not list(store.work.iterdir())


def test_use_puts_the_record_of_that_recipe_beside_the_files(store: Store) -> None:
    first = store.publish(record(store, "aa", {"a": "1"}))
    store.publish(record(store, "bb", {"a": "1"}))
    assert store.get(first.id).recipe == "bb"
    store.use(first.model_copy(update={"seed": 5}))
    assert store.get(first.id).recipe == "aa" and store.find("aa").seed == 5  # type: ignore[union-attr]


def test_recover_clears_up_what_a_crash_left_after_publishing(store: Store) -> None:
    store.publish(record(store, "aa", {"a": "1"}))
    for name in ("aa", "bb"):
        (store.work / name / "scratch").mkdir(parents=True)
    store.recover()
    assert [p.name for p in store.work.iterdir()] == ["bb"]


@pytest.mark.parametrize("name", ["ffff", "../..", ""])
def test_get_unknown_id_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UserError) as caught:
        store.get(name)
    assert caught.value.code == "artifact.unknown"


def test_get_ambiguous_id_asks_for_more(store: Store) -> None:
    for n in range(40):
        store.publish(record(store, f"r{n}", {"a": str(n)}))
    shared = next(c for c in "0123456789abcdef" if len(list(store.objects.glob(f"{c}*"))) > 1)
    with pytest.raises(UserError) as caught:
        store.get(shared)
    assert caught.value.code == "artifact.ambiguous"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "store.no_space"), (errno.EFBIG, "store.no_space"), (errno.EROFS, "store.read_only")],
)
def test_disk_errors_name_the_path(tmp_path: Path, number: int, code: str) -> None:
    with pytest.raises(UserError) as caught, disk_errors(tmp_path / "not" / "there"):
        raise OSError(number, "x")
    assert caught.value.code == code and str(tmp_path) in str(caught.value)


def test_disk_errors_leave_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "none").read_text()


def test_file_hashes_remember_until_the_file_changes(tmp_path: Path) -> None:
    file, memory = tmp_path / "a", tmp_path / "hashes.json"
    file.write_text("1")
    first = FileHashes(memory).of(file)
    assert first == hash_file(file)
    key = next(iter(read_json(memory)))
    memory.write_text(memory.read_text().replace(first, "remembered"))
    assert FileHashes(memory).of(file) == "remembered", key
    file.write_text("22")
    os.utime(file, ns=(1, 1))
    assert FileHashes(memory).of(file) == hash_file(file)


def test_file_hashes_survive_a_damaged_memory(tmp_path: Path) -> None:
    memory = tmp_path / "hashes.json"
    memory.write_text("{")
    (tmp_path / "a").write_text("1")
    assert FileHashes(memory).of(tmp_path / "a") == hash_file(tmp_path / "a")


def test_tree_fingerprint_sees_names_and_contents(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.json")
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    before = hashes.of_tree(folder)
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    assert hashes.of_tree(folder) != before
    assert hashes.of_tree(folder / "sub" / "b") == hash_file(folder / "sub" / "b")


def test_hash_json_ignores_key_order_and_refuses_nan() -> None:
    assert hash_json({"a": 1, "b": "中"}) == hash_json({"b": "中", "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        hash_json(float("nan"))


def test_list_files_skips_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").symlink_to("/etc/hostname")
    assert [f.path for f in list_files(tmp_path)] == ["a"]


def test_disk_that_holds_nothing_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert full_disk(tmp_path) is None
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    found = full_disk(tmp_path)
    assert found is not None and (found.code, found.facts["free_mb"]) == ("store.no_space", 0)


def test_new_folder_is_there_when_it_is_whole_and_never_over_another(tmp_path: Path) -> None:
    taken = UserError("data.export_exists", folder="x")
    target = tmp_path / "copies" / "one"
    with pytest.raises(ZeroDivisionError), new_folder(target, taken) as draft:
        (draft / "half").write_text("a")
        raise ZeroDivisionError
    assert not target.exists() and not list(target.parent.iterdir())
    target.mkdir()  # empty
    with new_folder(target, taken) as draft:
        (draft / "whole").write_text("b")
        assert not any(target.iterdir())
    assert [path.name for path in target.parent.rglob("*")] == ["one", "whole"]
    for place in (target, target / "whole"):
        with pytest.raises(UserError) as refused, new_folder(place, taken):
            pass
        assert refused.value is taken
