"""Checkpoints that survive a kill at any moment, and that are used only whole and by the recipe that wrote them.

A checkpoint counts from the moment its mark is there: the recipe, and size and digest of every file. It is written
last, after everything else is on the disk, and taken away first when a checkpoint is removed.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from inhouse.core.fingerprint import hash_file, hash_json
from inhouse.core.params import deciding
from inhouse.core.plugins import package_version, source_digest
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.core.store import sync_tree, write_durably

MARK = "complete"
STATE = "trainer_state.json"
ASIDE = "set-aside"
NAME = re.compile(r"checkpoint-(\d+)$")
DISK_FULL = (  # what torch and safetensors say of it
    *("No space left", "Disk quota", "File too large", "PytorchStreamWriter failed", "file write failed"),
    *("iostream error", "unexpected pos"),
)
PACKAGES = ("torch", "transformers", "peft", "accelerate")

Recipe = Mapping[str, str]  # what a run is made of -> its digest or id; names are told when they differ


def recipe_of(params: BaseModel, context: Context, stage: ModuleType) -> Recipe:
    """What decides a training run: settings, base, dataset and other inputs, seed, and the code of `stage`."""
    code = [source_digest(stage), *sorted(_operators(params))]
    inputs = {role: given.record.id for role, given in context.inputs.items()}
    return {"settings": hash_json(deciding(params)), **inputs, "seed": str(context.seed), "code": hash_json(code)}


def _operators(params: BaseModel) -> Iterator[str]:
    """Code digests of the operators that stand anywhere in the settings."""
    if "use" in type(params).model_fields:
        yield source_digest(sys.modules[type(params).__module__])
    for name in type(params).model_fields:
        value = getattr(params, name)
        for member in value if isinstance(value, tuple | list) else (value,):
            if isinstance(member, BaseModel):
                yield from _operators(member)


def find_complete(folder: Path, recipe: Recipe, events: Events) -> Path | None:
    """The newest checkpoint below `folder` that is whole and was written by this recipe; None to begin anew.

    Unfinished ones are removed. Damaged ones are removed and told of (train.checkpoint_damaged), those of another
    recipe are set aside and told of (train.checkpoint_other): the run would write its own in their places. What an
    earlier start of the run has set aside is removed and told of (train.aside_removed).
    """
    if not folder.exists():
        return None
    _clear_aside(folder, events)
    for path, _ in _checkpoints(folder):
        _sort_out(path, recipe, events)
    for path, _ in reversed(_checkpoints(folder)):
        best = state_of(path).get("best_global_step")
        if best and not (folder / f"checkpoint-{best}" / MARK).exists():
            continue  # the weights that the run would end with are gone: an older checkpoint finds them again
        _tell_of_other_versions(path, events)
        return path
    return None


def _clear_aside(folder: Path, events: Events) -> None:
    left = folder.with_name(ASIDE)
    if left.is_dir():
        size = sum(file.stat().st_size for _, file in _files(left))
        shutil.rmtree(left)
        events.note("train.aside_removed", path=str(left), megabytes=f"{size / 1e6:.1f}")


def _sort_out(path: Path, recipe: Recipe, events: Events) -> None:
    if not (path / MARK).exists():
        shutil.rmtree(path)
        return
    mark = _read_mark(path)
    if mark is None or not _is_whole(path, mark["files"]):
        _remove(path)
        events.note("train.checkpoint_damaged", path=str(path))
    elif differs := sorted(k for k in {*mark["recipe"], *recipe} if mark["recipe"].get(k) != recipe.get(k)):
        place = path.parent.with_name(ASIDE) / f"{path.name}-{hash_json(mark['recipe'])[:8]}"
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
        events.note("train.checkpoint_other", path=str(place), differs=", ".join(differs))


def _read_mark(path: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((path / MARK).read_text(encoding="utf-8"))
    except ValueError:
        return None
    return mark if isinstance(mark, dict) and {"recipe", "files", "packages"} <= mark.keys() else None


def _is_whole(path: Path, files: Mapping[str, list[Any]]) -> bool:
    """Whether every file is there in the size and with the digest that the mark tells."""
    there = dict(_files(path))
    if there.keys() != files.keys() or any(there[name].stat().st_size != size for name, (size, _) in files.items()):
        return False
    return all(hash_file(there[name]) == digest for name, (_, digest) in files.items())


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(path.rglob("*")):
        if file.is_file() and file != path / MARK:
            yield file.relative_to(path).as_posix(), file


def _tell_of_other_versions(path: Path, events: Events) -> None:
    mark = _read_mark(path)
    now = _versions()
    before = mark["packages"] if mark else now
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        events.note("train.checkpoint_versions", changed=", ".join(changed))


def _versions() -> dict[str, str]:
    return {name: package_version(name) for name in PACKAGES}


def settle(folder: Path, recipe: Recipe, step: int, keep: tuple[int, int | None]) -> None:
    """Mark the checkpoint of `step` complete once its bytes are on disk, then remove what is not kept.

    `keep`: how many (train.save_total_limit), and the step of the best one so far, which is always among them.
    """
    newest = folder / f"checkpoint-{step}"
    files = {name: [file.stat().st_size, hash_file(file)] for name, file in _files(newest)}
    sync_tree(newest)
    write_durably(newest / MARK, json.dumps({"recipe": dict(recipe), "packages": _versions(), "files": files}))
    prune(folder, step, keep)


def prune(folder: Path, step: int, keep: tuple[int, int | None]) -> None:
    """Remove what `settle` would: a run that was cut off may have left one checkpoint too many."""
    limit, best = keep
    there = [number for _, number in _checkpoints(folder)]
    kept = {step, best} & set(there)
    others = [number for number in there if number not in kept]
    kept |= set(others[len(others) - max(limit - len(kept), 0) :])
    for path, number in _checkpoints(folder):
        if number not in kept:
            _remove(path)


def drop_since(folder: Path, step: int) -> None:
    """Remove the checkpoints of `step` and later: they hold what went wrong."""
    for path, number in _checkpoints(folder):
        if number >= step:
            _remove(path)


def newest_of(folder: Path) -> Path | None:
    """The newest checkpoint that is marked complete, unverified."""
    return next((path for path, _ in reversed(_checkpoints(folder)) if (path / MARK).exists()), None)


def step_of(checkpoint: Path | None) -> int:
    """The optimiser step that a checkpoint was written after; 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def stopped_early(checkpoint: Path | None) -> bool:
    """Whether early stopping had ended the run that wrote this: it must not take one step more."""
    if checkpoint is None:
        return False
    state = state_of(checkpoint)
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(control.get("should_training_stop")) and state["global_step"] < state["max_steps"]


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a full disk into an OSError that flow explains."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not any(sign in str(error) for sign in DISK_FULL):
            raise
        raise OSError(errno.ENOSPC, str(error), str(folder)) from error


def state_of(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state as the checkpoint holds it; empty when it has none."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def _remove(path: Path) -> None:
    (path / MARK).unlink(missing_ok=True)  # a removal that is cut off must not leave a half that counts
    shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[tuple[Path, int]]:
    """Checkpoints with their steps, oldest first."""
    found = [(path, int(match[1])) for path in folder.glob("checkpoint-*") if (match := NAME.search(path.name))]
    return sorted(found, key=lambda item: item[1])
