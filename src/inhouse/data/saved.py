"""Folders that `save_to_disk` of the `datasets` library wrote: which of their files hold the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def with_rows(files: Sequence[tuple[str, Path]], place: str) -> list[tuple[str, Path]]:
    """The files without those beside the rows in saved datasets: state, and caches that are older or newer than it.

    Raises data.saved_splits where a dataset has several splits, data.saved_damaged where files or rows are amiss.
    """
    wanted = {folder: _data_files(folder, place) for folder in sorted({path.parent for _, path in files})}
    return [(name, path) for name, path in files if (only := wanted[path.parent]) is None or path.name in only]


def _data_files(folder: Path, place: str) -> set[str] | None:
    """The names that a saved dataset gives its data; None of any other folder."""
    if (folder / DICT).is_file():
        splits = _list(folder, DICT, "splits") or []
        shown, example = ", ".join(map(str, splits)) or "-", (folder / str((splits or ["train"])[0])).as_posix()
        raise UserError("data.saved_splits", place=place, splits=shown, example=example)
    if not (folder / STATE).is_file() or not (folder / INFO).is_file():
        return None
    listed = _list(folder, STATE, "_data_files")
    if listed is None:
        return None
    if _list(folder, STATE, "_indices_data_files"):
        raise _damaged(folder, "_indices_data_files")
    names = {str(file["filename"]) for file in listed if isinstance(file, dict) and file.get("filename")}
    missing = [name for name in sorted(names) if Path(name).name != name or not (folder / name).is_file()]
    if missing or len(names) != len(listed):
        raise _damaged(folder, ", ".join(missing) or "_data_files")
    return names


def _list(folder: Path, name: str, key: str) -> list[Any] | None:
    """A list in a JSON file of a saved dataset; None when it is not there."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(folder, f"{name}: {error}") from None
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _damaged(folder: Path, problem: str) -> UserError:
    return UserError("data.saved_damaged", place=folder.as_posix(), problem=problem)
