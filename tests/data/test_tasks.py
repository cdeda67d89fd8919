"""What a task leaves on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inhouse.core import store
from inhouse.data import tasks


def test_published_task_is_on_the_disk_in_every_folder_before_and_after_its_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    rename = Path.rename

    def flushed(path: Path) -> None:
        happened.append(os.path.relpath(path, tmp_path))

    def renamed(self: Path, target: Path) -> Path:
        happened.append("rename")
        return rename(self, target)

    for module in (store, tasks):
        monkeypatch.setattr(module, "sync_folder", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    with tasks.publish(tmp_path / "one" / "0001") as (draft, facts):
        (draft / "figures" / "deep").mkdir(parents=True)
        (draft / "figures" / "deep" / "a.parquet").write_bytes(b"x")
        (draft / "b.parquet").write_bytes(b"y")
        facts["rows"] = 2
    begin, end = happened[: happened.index("rename")], happened[happened.index("rename") + 1 :]
    name = draft.relative_to(tmp_path).as_posix()
    inside = {"", "/b.parquet", "/result.json", "/figures", "/figures/deep", "/figures/deep/a.parquet"}
    assert set(begin) == {name + path for path in inside}
    assert end == ["one"]
    assert tasks.finished(tmp_path / "one" / "0001").facts["rows"] == 2
