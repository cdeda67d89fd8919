"""Versions: their numbers, what became of a row, what changed between two, and copies for other tools."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from inhouse.core import store
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.data import export, stage, tasks
from inhouse.data.diff import Difference, compare
from inhouse.data.settings import DataParams
from inhouse.data.versions import MEASURED_FILE, Version, find_version, measured, versions, write_measured
from inhouse.data.why import Why, explain
from inhouse.flow.plan import Node
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes

SPLIT = {"test": 0.25}


def doc(number: int) -> dict[str, Any]:
    """A document that is told apart from the others by its words."""
    return {"text": f"report {number} says that the rate was cut to {number * 7} basis points in week {number}"}


@pytest.fixture(autouse=True, scope="module")
def no_power_cuts() -> Iterator[None]:
    """Nothing here can tell whether an artifact was flushed to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((tasks, "sync_folder"), (store, "sync_folder")):
            patch.setattr(module, name, lambda path: None)
        yield


class Workspace:
    """A project folder and its store, without a project file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path / ".inhouse")

    def jsonl(self, name: str, rows: list[Any]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def build(self, again: bool = False, **data: Any) -> Version:
        params = DataParams.model_validate({"sources": "a.jsonl", "shape": "text", "steps": [], "split": SPLIT} | data)
        how = Run(self.store, self.path, Events(), True, frozenset({"data"} if again else ()))
        made = run_nodes((Node("dataset", stage, params, seed=3),), how)["dataset"]
        return next(v for v in versions(self.store) if v.record.id == made.id)

    def why(self, version: Version, row: str) -> Why:
        here = self.path
        context = Context({}, here, here, self.store.sources, here, Events(), 0, True)
        return explain(version, row, context)


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def ids(version: Version) -> dict[int, str]:
    """Offset -> id of the rows that were read and kept."""
    frames = [pl.read_parquet(path) for path in sorted(version.folder.glob("t*-*.parquet"))]
    return {row["offset"]: row["id"] for frame in frames for row in frame.to_dicts() if not row.get("parent")}


# Names


def test_versions_keep_their_numbers_over_a_rebuild_and_a_loss(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    first = space.build()
    second = space.build(steps=["exact_dedup"])
    assert (first.name, second.name) == ("v1", "v2")
    assert space.build(again=True).name == "v1"
    shutil.rmtree(first.folder)
    third = space.build(steps=[{"use": "length", "min_chars": 3}])
    assert [v.name for v in versions(space.store)] == ["v2", "v3"] and third.name == "v3"
    assert sum(second.rows.values()) == 20 and second.sources == ["a"]


def test_versions_are_numbered_where_nothing_can_be_written(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    shutil.rmtree(space.store.root / "refs")
    (space.store.root / "refs").write_text("in the way")
    assert [(v.name, v.record.id) for v in versions(space.store)] == [("v1", made.record.id)]


def test_version_is_found_by_name_id_and_beginning(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    for name in ("v1", "V1", made.record.id, made.record.id[:4]):
        assert find_version(space.store, name).record.id == made.record.id


def renamed(space: Workspace, version: Version, id_: str) -> None:
    """Another dataset under an id of our choice."""
    folder = space.store.objects / id_
    shutil.copytree(version.folder, folder)
    record = version.record.model_copy(update={"id": id_})
    (folder / "record.json").write_text(record.model_dump_json(), encoding="utf-8")


def test_version_that_is_not_there_is_answered_with_what_was_meant(space: Workspace) -> None:
    with pytest.raises(UserError, match="no dataset yet") as none:
        find_version(space.store, "v1")
    assert none.value.code == "data.version_none"
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    for id_ in ("feed1" + "0" * 19, "feed2" + "0" * 19):
        renamed(space, made, id_)
    with pytest.raises(UserError) as error:
        find_version(space.store, "feed")
    assert error.value.code == "data.version_ambiguous" and "feed2" in str(error.value)
    for name, near in (("v9", "v"), ("fee1", "feed"), ("zzz", "v3"), ("fee", "feed")):
        with pytest.raises(UserError) as error:
            find_version(space.store, name)
        assert error.value.code == "data.version_unknown" and error.value.facts["near"].startswith(near)


def test_dataset_of_an_earlier_layout_is_refused(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    path = made.folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "format": 1}), encoding="utf-8")
    with pytest.raises(UserError) as error:
        space.why(made, "a:0")
    assert error.value.code == "data.version_old"


# What became of a row


def test_kept_row_is_shown_with_text_figures_limits_and_original(space: Workspace) -> None:
    space.jsonl("a.jsonl", [{"text": f"  {doc(n)['text']}\u200b"} for n in range(20)])
    made = space.build(steps=["fix_text", "normalize_space", {"use": "length", "min_chars": 5, "max_words": 99}])
    why = space.why(made, "a:4")
    assert (why.fate, why.row.source, why.row.file, why.row.offset) == ("kept", "a", "a.jsonl", 4)
    assert why.row.texts[0][1].strip() == doc(4)["text"]
    assert why.original == {"text": f"  {doc(4)['text']}\u200b"} and why.missing is None
    length = next(trace for trace in why.traces if trace.step == "03-length")
    assert length.figures == {"words": len(doc(4)["text"].split()), "chars": len(why.row.texts[0][1])}
    assert length.limits == {"chars": "≥ 5", "words": "≤ 99"} and length.settings == {}
    assert next(trace for trace in why.traces if trace.step == "01-fix_text").notes
    for name in (why.row.id, why.row.id[:5].upper(), "a/a.jsonl:4"):
        assert space.why(made, name).row == why.row


def test_dropped_duplicate_is_shown_beside_the_row_that_stays(space: Workspace) -> None:
    space.jsonl("a.jsonl", [*(doc(n) for n in range(20)), doc(7)])
    made = space.build(steps=["exact_dedup"])
    both = {n: space.why(made, f"a:{n}") for n in (7, 20)}
    (gone,) = (why for why in both.values() if why.fate == "dropped")
    (kept,) = (why for why in both.values() if why.fate == "kept")
    assert (gone.step, gone.number, gone.reason) == ("exact_dedup", 1, "duplicate")
    assert gone.told == "equal to another row" and gone.stays == kept.row
    assert gone.original == doc(7)
    assert space.why(made, gone.row.id).stays == kept.row


def test_duplicate_of_a_row_that_went_later_says_so(space: Workspace) -> None:
    space.jsonl("a.jsonl", [*(doc(n) for n in range(20)), {"text": "short"}, {"text": "short"}])
    made = space.build(steps=["exact_dedup", {"use": "length", "min_chars": 10}])
    fates = [space.why(made, f"a:{n}") for n in (20, 21)]
    duplicate = next(why for why in fates if why.step == "exact_dedup")
    short = next(why for why in fates if why.step == "length")
    assert duplicate.stays is not None and duplicate.stays.id == short.row.id and duplicate.stays.part is None
    assert duplicate.stays.offset == short.row.offset and duplicate.stays.texts == ()


def test_rejected_row_is_named_with_line_and_reason(space: Workspace) -> None:
    space.jsonl("a.jsonl", [*(doc(n) for n in range(20)), "{broken", {"text": None}])
    made = space.build(fail_above=0.2)
    why = space.why(made, "a:20")
    assert (why.fate, why.line, why.reason, why.told) == ("rejected", 21, "broken_json", "broken JSON")
    assert why.original is None and why.row.id == "" and "broken" in why.excerpt
    assert space.why(made, "a/a.jsonl:21").original == {"text": "null"}


def test_row_made_by_augmentation_and_its_parent_name_each_other(space: Workspace) -> None:
    space.jsonl("a.jsonl", [{"text": f"He said that week {n} was hard for his brother."} for n in range(30)])
    made = space.build(steps=["counterfactual"])
    children = {
        r["id"]: r["parent"] for r in pl.read_parquet(made.folder / "train-00000.parquet").to_dicts() if r["parent"]
    }
    child, parent = min(children.items())
    why = space.why(made, child)
    assert why.parent is not None and why.parent.id == parent and why.parent.texts[0][1].startswith("He said")
    assert why.row.texts[0][1].startswith("She said")
    above = space.why(made, f"a:{why.row.offset}")
    assert above.row.id == parent and above.children == (child,) and above.parent is None


def test_dropped_parent_is_told_from_its_dropped_children_by_place(space: Workspace) -> None:
    rows = [{"text": f"He said that week {n} was hard for his brother."} for n in range(30)]
    space.jsonl("a.jsonl", [*rows, *({"text": f"He {'very ' * 20} {n}"} for n in range(30))])
    made = space.build(steps=["counterfactual", {"use": "length", "max_words": 15}])
    places = pl.read_parquet(made.folder / "dropped.parquet").group_by("offset").len()
    twice = places.filter(pl.col("len") == 2)["offset"].min()
    assert twice is not None
    why = space.why(made, f"a:{twice}")
    assert why.fate == "dropped" and why.original is not None and why.original["text"].startswith("He")


def test_rows_that_a_mix_repeats_or_leaves_out_are_told(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(30)])
    space.jsonl("b.jsonl", [doc(n) for n in range(100, 104)])
    space.jsonl("t.jsonl", [doc(200)])
    sources = ["a.jsonl", "b.jsonl", {"from": "t.jsonl", "part": "test"}]
    shares = {"a": 1, "b": 1, "by": "rows"}
    made = space.build(sources=sources, mix=shares, split=None)
    fates = [space.why(made, f"a:{n}") for n in range(30)]
    assert sorted(why.step or "" for why in fates) == [""] * 4 + ["mix"] * 26
    assert all(why.original is not None for why in fates)
    with pytest.raises(UserError):
        space.why(made, "a:30")
    figures = space.build(sources=sources, mix=shares, split=None, steps=[{"use": "length", "min_chars": 3}])
    left = next(why for n in range(30) if (why := space.why(figures, f"a:{n}")).step == "mix")
    assert left.row.id and left.traces[0].figures["chars"] > 3
    assert space.why(figures, left.row.id).reason == "not_in_mix"
    again = space.build(sources=sources, mix={**shares, "short": "repeat", "epochs": 4}, split=None)
    assert space.why(again, "b:0").copies == 4
    assert space.why(again, f"{space.why(again, 'b:0').row.id}#3").row.offset == 0


def test_place_in_one_of_several_files_needs_its_file(space: Workspace) -> None:
    for name in ("one", "two"):
        space.jsonl(f"d/{name}.jsonl", [{"text": f"{name} {doc(n)['text']}"} for n in range(20)] + ["{"])
    made = space.build(sources={"name": "d", "from": "d"}, fail_above=0.1)
    for place in ("d:3", "d:20"):
        with pytest.raises(UserError) as error:
            space.why(made, place)
        assert error.value.code == "data.row_ambiguous" and "two.jsonl" in str(error.value)
    why = space.why(made, "d/two.jsonl:3")
    assert why.original == {"text": f"two {doc(3)['text']}"}
    with pytest.raises(UserError) as error:
        space.why(made, "d/three.jsonl:3")
    assert error.value.code == "data.row_unknown"


@pytest.mark.parametrize("name", ["abc", "a:99", "nowhere:1", "0123456789abcdef", "what?", ""])
def test_row_that_is_not_there_is_answered_with_how_rows_are_named(space: Workspace, name: str) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    with pytest.raises(UserError) as error:
        space.why(made, name)
    assert error.value.code == "data.row_unknown" and "source:offset" in str(error.value)


def test_original_is_not_shown_from_a_source_that_changed_or_went(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    space.jsonl("a.jsonl", [doc(n) for n in range(5, 20)])
    assert (space.why(made, "a:3").original, space.why(made, "a:3").missing) == (None, "changed")
    (space.path / "a.jsonl").unlink()
    assert space.why(made, "a:3").missing == "not_at_hand"


def test_original_far_down_a_large_file_is_found_by_its_stretch(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inhouse.data.why.SHARD_BYTES", 500)
    space.jsonl("a.jsonl", [doc(n) for n in range(60)])
    made = space.build()
    assert [space.why(made, f"a:{n}").original for n in (0, 31, 59)] == [doc(0), doc(31), doc(59)]


# What changed


def changes(found: Difference) -> dict[str, Any]:
    return {change.setting: (change.first, change.second) for change in found.settings}


def test_same_dataset_differs_in_nothing(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    found = compare(made, made)
    assert found.same == 20 and not (found.sources or found.settings or found.only_first or found.moved)
    assert found.text_changed.count == found.renumbered == 0


def test_stricter_step_is_named_with_the_rows_it_took(space: Workspace) -> None:
    space.jsonl("a.jsonl", [*(doc(n) for n in range(20)), {"text": "short one"}, {"text": "short too"}])
    one = space.build(steps=[{"use": "length", "min_chars": 3}])
    two = space.build(steps=["fix_text", {"use": "length", "min_chars": 20}])
    found = compare(one, two)
    assert changes(found) == {
        "02-length.min_chars": (3, 20),
        "01-fix_text": (None, two.record.params["steps"][0]),
    }
    (gone,) = found.only_first
    assert (gone.fate, gone.step, gone.reason, gone.told) == ("dropped", "length", "too_short", "too short")
    assert set(gone.ids) == {ids(one)[20], ids(one)[21]} and found.same == 20
    (back,) = compare(two, one).only_second
    assert (back.fate, back.step, set(back.ids)) == ("dropped", "length", set(gone.ids))


def test_changed_text_label_and_part_are_told_by_row(space: Workspace) -> None:
    rows = [{**doc(n), "label": "xy"[n % 2]} for n in range(24)]
    space.jsonl(
        "a.jsonl", [{**row, "text": f"{row['text']}  {row['text']}"} if n == 5 else row for n, row in enumerate(rows)]
    )
    shape = {"use": "classification"}
    one = space.build(shape=shape, split={"test": 0.25})
    two = space.build(shape=shape, split={"test": 0.5}, steps=["normalize_space"])
    found = compare(one, two)
    assert found.text_changed.ids == (ids(one)[5],)
    assert changes(found)["split.test"] == (0.25, 0.5)
    parts = [{row: part for part in ("train", "test") for row in _ids_of(v, part)} for v in (one, two)]
    moved = {row for row in parts[0] if parts[0][row] != parts[1][row]}
    assert {row for move in found.moved for row in move.ids} == moved and moved
    assert found.same == 24 - len(moved | {ids(one)[5]})
    space.jsonl("a.jsonl", [{**row, "label": "x"} if n == 3 else row for n, row in enumerate(rows)])
    three = space.build(shape=shape, split={"test": 0.25})
    told = compare(one, three)
    assert ids(three)[3] in told.label_changed.ids + told.text_changed.ids


def _ids_of(version: Version, part: str) -> list[str]:
    frames = [pl.read_parquet(path)["id"] for path in sorted(version.folder.glob(f"{part}-*.parquet"))]
    return [row for frame in frames for row in frame]


def test_rows_of_a_source_that_grew_are_known_again_by_their_text(space: Workspace) -> None:
    rows = [doc(n) for n in range(20)]
    space.jsonl("a.jsonl", [*rows, {"text": "tiny tale"}])
    one = space.build()
    space.jsonl(
        "a.jsonl", [doc(77), *rows[:10], {"text": "rewritten from top to bottom"}, *rows[11:], {"text": "tiny tale"}]
    )
    two = space.build(steps=[{"use": "length", "min_chars": 12}])
    found = compare(one, two)
    assert [(s.name, s.change, s.rows) for s in found.sources] == [("a", "content", (21, 22))]
    assert found.renumbered == 20 and found.text_changed.ids == (ids(two)[11],)
    assert [(g.fate, g.step, g.ids) for g in found.only_first] == [("dropped", "length", (ids(one)[20],))]
    assert [(g.fate, g.ids) for g in found.only_second] == [("not_read", (ids(two)[0],))]


def test_row_that_cannot_be_read_any_more_is_told_with_its_reason(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    one = space.build(fail_above=0.2)
    space.jsonl("a.jsonl", [*(doc(n) for n in range(19)), "{broken"])
    two = space.build(fail_above=0.2)
    (gone,) = compare(one, two).only_first
    assert (gone.fate, gone.reason, gone.ids) == ("rejected", "broken_json", (ids(one)[19],))


def test_sources_that_come_and_go_take_their_rows_along(space: Workspace) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    space.jsonl("b.jsonl", [doc(n) for n in range(50, 54)])
    both = {"sources": ["a.jsonl", "b.jsonl"]}
    one, two = space.build(**both), space.build(sources=[{"from": "a.jsonl", "licence": "MIT"}])
    found = compare(one, two)
    assert [(s.name, s.change, s.rows) for s in found.sources] == [("b", "removed", (4, 0))]
    assert [(g.fate, g.count) for g in found.only_first] == [("source_removed", 4)]
    assert changes(found) == {"sources.a.licence": (None, "MIT")}
    back = compare(two, one)
    assert [(s.name, s.change) for s in back.sources] == [("b", "added")]
    assert [(g.fate, g.count) for g in back.only_second] == [("source_removed", 4)]


def test_rows_of_mix_and_augmentation_that_only_one_has_are_told(space: Workspace) -> None:
    space.jsonl("a.jsonl", [{"text": f"He said that week {n} was hard."} for n in range(30)])
    space.jsonl("b.jsonl", [doc(n) for n in range(4)])
    whole = space.build(sources=["a.jsonl", "b.jsonl"])
    mixed = space.build(
        sources=["a.jsonl", "b.jsonl"], mix={"a": 1, "b": 1, "by": "rows", "short": "repeat", "epochs": 2}
    )
    found = compare(whole, mixed)
    assert [(g.fate, g.step) for g in found.only_first] == [("dropped", "mix")] and not found.only_second
    assert changes(found)["mix"][0] is None
    more = compare(whole, space.build(sources=["a.jsonl", "b.jsonl"], steps=["counterfactual"]))
    assert [g.fate for g in more.only_second] == ["not_made"] and not more.only_first


def test_conversations_are_compared_turn_by_turn(space: Workspace) -> None:
    space.jsonl("a.jsonl", [{"prompt": f"q {n}", "completion": f"a  {n}"} for n in range(20)])
    one = space.build(shape="auto")
    two = space.build(shape="auto", steps=["normalize_space"])
    assert compare(one, two).text_changed.count == 20
    assert space.why(one, "a:2").row.texts == (("user", "q 2"), ("assistant", "a  2"))


def test_difference_is_cut_to_a_sample_of_ids(space: Workspace) -> None:
    space.jsonl("a.jsonl", [*(doc(n) for n in range(20)), *({"text": f"no {n}"} for n in range(7))])
    found = compare(space.build(), space.build(steps=[{"use": "length", "min_chars": 12}])).sampled(3)
    assert (found.only_first[0].count, len(found.only_first[0].ids)) == (7, 3)


# Copies


def test_parquet_copy_has_the_tables_as_they_are(space: Workspace, tmp_path: Path) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    out = tmp_path / "copies" / "set"
    found = export.export(made, out, "parquet")
    assert set(found.files) >= {"README.md", "dataset.json", "test-00000.parquet", "train-00000.parquet"}
    for name in found.files:
        assert (out / name).read_bytes() == (made.folder / name).read_bytes()
    with pytest.raises(UserError) as error:
        export.export(made, out, "jsonl")
    assert error.value.code == "data.export_exists"


def test_pictures_go_along_into_an_empty_folder(space: Workspace, tmp_path: Path) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    made = space.build()
    (made.folder / "pictures").mkdir(exist_ok=True)
    (made.folder / "pictures" / "funnel.svg").write_text("<svg/>")
    (tmp_path / "out").mkdir()
    assert "pictures/funnel.svg" in export.export(made, tmp_path / "out", "parquet").files


def test_jsonl_copy_reads_back_as_the_same_rows(space: Workspace, tmp_path: Path) -> None:
    space.jsonl("a.jsonl", [{"prompt": f"问 {n}", "completion": f"答 {n}"} for n in range(20)])
    made = space.build(shape="auto")
    export.export(made, tmp_path / "chat", "jsonl")
    rows = [
        json.loads(line)
        for path in (tmp_path / "chat").glob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    assert {row["id"]: row["messages"] for row in rows} == {
        ids(made)[n]: [{"role": "user", "content": f"问 {n}"}, {"role": "assistant", "content": f"答 {n}"}]
        for n in range(20)
    }
    again = space.build(
        sources=[{"name": p, "from": f"chat/{p}.jsonl", "part": p} for p in ("train", "test")], shape="auto", split=None
    )
    assert again.rows == made.rows
    space.jsonl("a.jsonl", [doc(n) for n in range(20)])
    export.export(space.build(), tmp_path / "plain", "jsonl")
    plain = json.loads((tmp_path / "plain" / "train.jsonl").read_text("utf-8").splitlines()[0])
    assert list(plain) == ["id", "text", "source", "file", "offset"]


def test_dvc_pointer_is_what_dvc_writes(tmp_path: Path) -> None:
    """The pointers below were written by `dvc add` of DVC 3.67.1 for these folders."""
    first = {"a.txt": "hello\n", "pictures/名 字.svg": "数据\n", "B.empty": ""}
    second = {"a/b": "1\n", "a.txt": "2\n", "a-b": "3\n", "Z": "4\n", "pic/q": "x"}
    for folder, files in (("v1", first), ("s2", second), ("名: 1", {"x": "1\n"})):
        for name, content in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content.encode())
        export.write_dvc(tmp_path / folder)
    told = "outs:\n- md5: {}.dir\n  size: {}\n  nfiles: {}\n  hash: md5\n  path: {}\n"
    wanted = {
        "v1": ("88648a459c299d44d3e16a4cbf923696", 13, 3, "v1"),
        "s2": ("16f856a4b26c4caf649cdd661a0c193d", 9, 5, "s2"),
        "名: 1": ("2bb1ab0d4a051c86389bd68a9371f6ba", 2, 1, "'名: 1'"),
    }
    for name, values in wanted.items():
        assert (tmp_path / f"{name}.dvc").read_text("utf-8") == told.format(*values)


def test_mlflow_input_is_what_mlflow_makes_of_it(space: Workspace, tmp_path: Path) -> None:
    """The shape is that of DatasetInput.to_dictionary() of MLflow 3.17.2, whose Schema.from_json reads the schema."""
    space.jsonl("a.jsonl", [{"text": doc(n)["text"], "label": "xy"[n % 2]} for n in range(20)])
    made = space.build(shape="classification")
    folder = tmp_path / "set"
    export.export(made, folder, "parquet")
    content = export.mlflow_input(made, folder)
    assert json.loads(export.write_mlflow(content, folder).read_text("utf-8")) == content
    dataset = content["dataset"]
    assert {k: dataset[k] for k in ("name", "digest", "source_type")} == {
        "name": "set", "digest": made.record.id, "source_type": "local",
    }  # fmt: skip
    assert json.loads(dataset["source"]) == {"uri": str(folder)}
    turn = {"content": {"type": "string", "required": False}, "role": {"type": "string", "required": True}}
    columns = json.loads(dataset["schema"])["mlflow_colspec"]
    assert columns[:3] == [
        {"type": "string", "name": "id", "required": True},
        {"type": "array", "items": {"type": "object", "properties": turn}, "name": "messages", "required": True},
        {"type": "string", "name": "label", "required": False},
    ]
    assert columns[-1] == {"type": "long", "name": "offset", "required": True}
    assert json.loads(dataset["profile"])["num_rows"] == 20
    assert content["tags"]["mlflow.data.context"] == "training" and content["tags"]["inhouse.version"] == "v1"


def test_mlflow_input_is_not_logged_without_mlflow() -> None:
    assert export.log_mlflow({}, False) == (None, "not_installed")


@pytest.mark.parametrize("open_run", [True, False])
def test_mlflow_input_is_logged_to_the_open_run_or_a_new_one(monkeypatch: pytest.MonkeyPatch, open_run: bool) -> None:
    """A stand-in with the few names of MLflow 3.17.2 that are used; the real one was tried by hand."""
    logged: list[tuple[str, Any]] = []
    run = SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    class Started:
        def __enter__(self) -> Any:
            return run

        def __exit__(self, *_: object) -> None:
            return None

    uri = {"value": ""}
    module = SimpleNamespace(
        __spec__=SimpleNamespace(), is_tracking_uri_set=lambda: bool(uri["value"]),
        get_tracking_uri=lambda: uri["value"],
        active_run=lambda: run if open_run else None, start_run=lambda run_name: Started(),
        MlflowClient=lambda: SimpleNamespace(log_inputs=lambda run_id, datasets: logged.append((run_id, datasets))),
    )  # fmt: skip
    entities = SimpleNamespace(
        InputTag=lambda key, value: (key, value),
        Dataset=lambda **fields: SimpleNamespace(**fields),
        DatasetInput=lambda dataset, tags: SimpleNamespace(dataset=dataset, tags=tags),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    content = {"dataset": {"name": "n", "digest": "0123456789"}, "tags": {"a": "b"}}
    assert export.log_mlflow(content, False) == (None, "no_tracking_uri")
    uri["value"] = "http://mlflow.example"
    assert export.log_mlflow(content, True) == (None, "offline")
    assert export.log_mlflow(content, False) == ("r1", None)
    assert logged[0][0] == "r1" and logged[0][1][0].tags == [("a", "b")]


# What a build cost


def test_measured_names_every_step_and_adds_up_to_the_seconds_of_the_build(folder: Any) -> None:
    words = [f"word{n}" for n in range(4000)]
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(words, k=200))} for _ in range(2000)]
    folder.jsonl("a.jsonl", rows)
    steps = ["fix_text", {"use": "length", "min_chars": 3}, "exact_dedup", "near_dedup", "rare_words", "leaks"]
    ran = folder.run({"sources": "a.jsonl", "shape": "text", "steps": steps})
    found = json.loads((ran.out / MEASURED_FILE).read_text("utf-8"))
    spent = {step["step"]: step["seconds"] for step in found["steps"]}
    assert list(spent) == ["01-fix_text", "02-length", "03-exact_dedup", "04-near_dedup", "05-rare_words", "06-leaks"]
    assert all(seconds > 0 for seconds in spent.values())
    listed = sum(spent.values()) + found["shards"]["seconds"] + found["write"]["seconds"]
    listed += sum(source["seconds"] for source in found["read"])
    assert found["workers"] == 1
    assert 0.6 * found["seconds"] < listed <= found["seconds"] + 0.05


def test_measured_has_times_of_inputs_and_rates_of_steps(space: Workspace, tmp_path: Path) -> None:
    space.jsonl("a.jsonl", [doc(n) for n in range(50)])
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    context = Context({}, out, scratch, tmp_path / "sources", space.path, Events(), 1, True)
    data = {"sources": "a.jsonl", "shape": "text", "steps": ["fix_text", {"use": "length", "min_chars": 3}]}
    params = DataParams.model_validate(data)
    result = stage.perform(params, stage.located_of(params, context), context)
    found = measured(result.built, result.tables, result.seconds, result.workers)
    write_measured(found, out)
    assert json.loads((out / MEASURED_FILE).read_text("utf-8")) == found
    (source,) = found["inputs"]
    assert (source["name"], source["files"], source["collected"]) == ("a", 1, None)
    assert source["bytes"] == (space.path / "a.jsonl").stat().st_size and source["oldest"] == source["newest"]
    assert [step["step"] for step in found["steps"]] == ["01-fix_text", "02-length"]
    size = sum(len(doc(n)["text"]) for n in range(50)) / 1e6
    assert all(step["mb"] == pytest.approx(size, abs=0.001) for step in found["steps"])
    assert found["peak_bytes"] > 10**7
