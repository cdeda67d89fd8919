"""The workspace folder: objects, recipes, work, jobs. Published by one rename; a crash leaves old or new."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError

RECORD = "record.json"
PENDING = "pending.json"
LEAST_FREE = 2**16  # bytes that a disk must have for a process to say what ended it


class Store:
    """Artifacts of one workspace.

    `objects/<id>/` holds an artifact's files and record.json, `recipes/<recipe>.json` the record of each recipe
    that was made, `work/<recipe>/` what a stage is making (kept over a crash: resume starts there).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.recipes = root / "recipes"
        self.work = root / "work"
        self.jobs = root / "jobs"
        self.sources = root / "sources"
        self.locks = root / "locks"

    def create(self) -> None:
        """Make the folders; raise store.read_only when that is not allowed."""
        with disk_errors(self.root):
            for folder in (self.objects, self.recipes, self.work, self.jobs, self.sources, self.locks):
                folder.mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")

    def find(self, recipe: str) -> Artifact | None:
        """The artifact that `recipe` made, when all its files are still there in full size."""
        try:
            text = (self.recipes / f"{recipe}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        record = Artifact.model_validate_json(text)
        return record if self._whole(record) else None

    def _whole(self, record: Artifact) -> bool:
        folder = self.objects / record.id
        try:
            sizes = all((folder / f.path).stat().st_size == f.bytes for f in record.files if f.counts)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return sizes and (folder / RECORD).exists()

    def get(self, name: str) -> Artifact:
        """The artifact with this id, or with an unambiguous beginning of it."""
        found = sorted(self.objects.glob(f"{name}*")) if name.isalnum() else []
        if len(found) != 1:
            raise UserError("artifact.ambiguous" if found else "artifact.unknown", id=name, found=len(found))
        return Artifact.model_validate_json((found[0] / RECORD).read_text(encoding="utf-8"))

    def path(self, artifact_id: str) -> Path:
        """The folder of an artifact."""
        return self.objects / artifact_id

    def records(self) -> Iterator[Artifact]:
        """The record of every recipe made here, least recently used first."""
        paths = sorted(self.recipes.glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        for path in paths:
            yield Artifact.model_validate_json(path.read_text(encoding="utf-8"))

    def use(self, record: Artifact) -> None:
        """Note that a recipe was used now: `records` lists it last, and its record stands beside the files.

        Two recipes may end in the same bytes; the one used last says what they are.
        """
        for path in (self.recipes / f"{record.recipe}.json", self.objects / record.id / RECORD):
            if Artifact.model_validate_json(path.read_text(encoding="utf-8")) != record:
                write_durably(path, record.model_dump_json(indent=1))
        now = time.time_ns()  # given in full: the kernel's own "now" has ticks of milliseconds
        os.utime(self.recipes / f"{record.recipe}.json", ns=(now, now))

    def work_of(self, recipe: str) -> tuple[Path, Path]:
        """Scratch and output folder of a recipe in the making; the scratch survives, the output starts empty."""
        folder = self.work / recipe
        out = folder / "out"
        with disk_errors(folder):
            if out.exists():
                shutil.rmtree(out)
            out.mkdir(parents=True)
            (folder / "scratch").mkdir(exist_ok=True)
        return folder / "scratch", out

    def publish(self, record: Artifact) -> Artifact:
        """Move `work/<recipe>/out` to its place in one rename and note the recipe.

        The record is written to `pending.json` first: `recover` finishes what a crash interrupts between the renames.
        """
        folder = self.work / record.recipe
        with disk_errors(folder):
            write_durably(folder / "out" / RECORD, record.model_dump_json(indent=1))
            sync_tree(folder / "out")
            write_durably(folder / PENDING, record.model_dump_json())
            self._settle(record)
        return record

    def recover(self) -> None:
        """Finish publications and clearing up that a crash interrupted. Call it with the run lock held."""
        for folder in self.work.iterdir():
            if (folder / PENDING).exists():
                self._settle(Artifact.model_validate_json((folder / PENDING).read_text(encoding="utf-8")))
            elif self.find(folder.name) is not None:
                shutil.rmtree(folder)

    def _settle(self, record: Artifact) -> None:
        """Put the new files in place, of equal ones too: theirs may be damaged, or measured on another day."""
        folder, target = self.work / record.recipe, self.objects / record.id
        if (folder / "out" / RECORD).exists():
            if target.exists():
                target.rename(folder / f"old-{secrets.token_hex(4)}")
            (folder / "out").rename(target)
            sync_folder(self.objects)
        write_durably(self.recipes / f"{record.recipe}.json", record.model_dump_json(indent=1))
        (folder / PENDING).unlink()
        shutil.rmtree(folder)


def write_durably(path: Path, text: str) -> None:
    """Replace a small file so that a crash leaves the old or the new content, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())  # without it ext4 can publish an empty file after a power cut
    scratch.replace(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in (folder, *folder.rglob("*")):
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path, taken: UserError) -> Iterator[Path]:
    """A draft that becomes `folder` at the end of the block: a folder that is there is whole.

    Raises `taken` where it holds something already, and what disk_errors does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise taken
    target = folder.absolute()
    draft = target.with_name(f".{target.name}.part")
    with disk_errors(target):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            if target.exists():
                target.rmdir()
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space', 'quota', 'read-only' and 'not permitted' into errors that name the path and what to do."""
    try:
        yield
    except OSError as error:
        if (told := disk_error(error, path)) is not None:
            raise told from error
        if error.errno in (errno.ENOTDIR, errno.EISDIR):
            raise UserError("store.read_only", path=path) from error
        raise


def disk_error(error: OSError, path: Path) -> UserError | None:
    """The error of a disk that is full or must not be written to; None for any other. `path`: where it was met."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _no_space(path)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError("store.read_only", path=path)
    return None


def full_disk(path: Path) -> UserError | None:
    """The error of a disk that holds nothing more, as for a process that could not even say what ended it; else None.

    `path` exists.
    """
    return _no_space(path) if shutil.disk_usage(path).free < LEAST_FREE else None


def _no_space(path: Path) -> UserError:
    return UserError("store.no_space", path=path, free_mb=shutil.disk_usage(_existing(path)).free // 2**20)


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of ours."""
    value: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return value
