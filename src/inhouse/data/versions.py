"""The datasets of a workspace as numbered versions, and what building one cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.run import peak_memory
from inhouse.core.store import RECORD, Store, write_durably
from inhouse.data.build import Built, SourceRead
from inhouse.data.source import Located, size_of
from inhouse.data.summary import FORMAT
from inhouse.data.tasks import Finished
from inhouse.dataset import FACTS
from inhouse.sources import scheme_of

NUMBERS = "refs/datasets.json"  # ids in the order in which they were first seen: a rebuild renumbers nothing
SHORTEST = 4  # characters of an id that name a dataset
MEASURED_FILE = "measured/build.json"


@dataclass(frozen=True)
class Version:
    """A dataset of a workspace: its name (v1, v2, …), its record, and its folder."""

    name: str
    record: Artifact
    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        """What its dataset.json says. Raises data.version_old for one of an earlier layout."""
        facts: dict[str, Any] = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
        if facts.get("format", 1) != FORMAT:
            raise UserError("data.version_old", name=self.name)
        return facts

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each part."""
        return {part: int(count) for part, count in self.record.facts.get("rows", {}).items()}

    @property
    def sources(self) -> list[str]:
        """Names of its sources."""
        return [str(source["name"]) for source in self.record.params.get("sources", ())]


def versions(store: Store) -> list[Version]:
    """Every dataset of the workspace, v1 first; a number is never given twice."""
    records = {r.id: r for r in _records(store) if r.kind == "dataset"}
    # `created` counts whole seconds: of two made within one, the folder that was published first comes first
    by_time = sorted(records.values(), key=lambda r: (r.created, store.path(r.id).stat().st_mtime_ns, r.id))
    order = _numbers(store, by_time)
    numbered = [(f"v{number}", records.get(id_)) for number, id_ in enumerate(order, 1)]
    return [Version(name, record, store.path(record.id)) for name, record in numbered if record is not None]


def find_version(store: Store, name: str) -> Version:
    """The dataset called v2, or with this id or beginning of one. Raises data.version_* errors."""
    found = versions(store)
    if not found:
        raise UserError("data.version_none", workspace=store.root)
    wanted = name.strip().lower()
    for version in found:
        if wanted in (version.name, version.record.id):
            return version
    begins = [v for v in found if len(wanted) >= SHORTEST and v.record.id.startswith(wanted)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        ids = ", ".join(f"{v.name} {v.record.id}" for v in begins)
        raise UserError("data.version_ambiguous", name=name, found=ids)
    known = [v.name for v in found]
    near = get_close_matches(
        wanted, [*known, *(v.record.id[: max(len(wanted), SHORTEST)] for v in found)], n=1, cutoff=0.5
    )
    raise UserError("data.version_unknown", name=name, known=_shown(known), near=(near or known[-1:])[0])


def version_of(store: Store, record: Artifact) -> Version:
    """The version that an artifact is."""
    return next(version for version in versions(store) if version.record.id == record.id)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{names[0]} … {names[-1]}"


def _records(store: Store) -> Iterable[Artifact]:
    for path in sorted(store.objects.glob(f"*/{RECORD}")):
        yield Artifact.model_validate_json(path.read_text(encoding="utf-8"))


def _numbers(store: Store, records: Sequence[Artifact]) -> list[str]:
    """Ids by number: those numbered before, then new ones by their time. A read-only workspace keeps no new number."""
    path = store.root / NUMBERS
    known = _known(path)
    if not {record.id for record in records} - set(known):
        return known
    try:
        return _extended(store, path, records)
    except OSError:
        return [*known, *(record.id for record in records if record.id not in known)]


def _extended(store: Store, path: Path, records: Sequence[Artifact]) -> list[str]:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    store.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(store.locks / "datasets.lock"):
        known = _known(path)  # another command may have numbered them meanwhile
        known += [record.id for record in records if record.id not in known]
        write_durably(path, json.dumps(known, indent=1) + "\n")
    return known


def _known(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # a list that is lost or damaged costs numbers, never data
        return []


def measured(built: Built, tables: Sequence[Finished], seconds_in_all: float, workers: int) -> dict[str, Any]:
    """What a build cost on this machine at this time, for measured/build.json.

    `seconds` are those of the whole build, by the clock. Those of `read`, `steps`, `shards` (opening and storing them
    around the steps) and `write` are of all workers together: with one worker they add up to the whole but for a rest,
    such as flushing files to the disk and the figures of the card. What a killed build had done before counts with the
    seconds that it took then. MB are 10**6 bytes, of files for reading and of text for steps.
    """
    seconds: dict[str, float] = dict(built.deciding)
    sizes: dict[str, int] = {}
    for done in (task for segment in built.passes for task in segment):
        for label, spent in done.facts.get("steps", {}).items():
            seconds[label] = seconds.get(label, 0.0) + float(spent)
            sizes[label] = sizes.get(label, 0) + int(done.facts.get("bytes", 0))
    passes = [task for segment in built.passes for task in segment] + list(built.looks)
    for done in built.looks:
        for label, spent in done.facts.get("steps", {}).items():
            seconds[label] = seconds.get(label, 0.0) + float(spent)
    moving = _seconds(passes) - sum(float(s) for task in passes for s in task.facts.get("steps", {}).values())
    written = sum(int(done.facts.get("bytes", 0)) for done in built.passes[-1]) if built.passes else 0
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds_in_all, 3),
        "workers": workers,
        "inputs": [input_times(source.located) for source in built.sources],
        "read": [{"name": s.located.params.name, **_rate(_seconds(s.reads), _bytes(s))} for s in built.sources],
        "steps": [{"step": label, **_rate(seconds[label], sizes.get(label, 0))} for label in sorted(seconds)],
        "shards": {"seconds": round(max(moving, 0.0), 3)},
        "write": _rate(_seconds(tables), written),
        "peak_bytes": peak_memory(),
    }


def input_times(located: Located) -> dict[str, Any]:
    """When the files of a source were last changed, and, for a fetched source, when they were collected (UTC)."""
    stats = [path.stat() for _, path in located.files if path.exists()]
    local = scheme_of(located.params.from_) == "local"
    return {
        "name": located.params.name,
        "files": len(located.files),
        "bytes": sum(stat.st_size for stat in stats),
        "oldest": _time(min((stat.st_mtime for stat in stats), default=None)),
        "newest": _time(max((stat.st_mtime for stat in stats), default=None)),
        # the time at which the file came to this disk: the other two may be those of the publisher
        "collected": None if local else _time(max((stat.st_ctime for stat in stats), default=None)),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _seconds(done: Iterable[Finished]) -> float:
    return sum(float(task.facts.get("seconds", 0.0)) for task in done)


def _bytes(source: SourceRead) -> int:
    return sum(size_of(path) for _, path in source.located.files)


def _rate(seconds: float, size: int) -> dict[str, float]:
    rate = size / 1e6 / seconds if seconds else 0.0
    return {"seconds": round(seconds, 3), "mb": round(size / 1e6, 3), "mb_per_s": round(rate, 1)}


def write_measured(content: Mapping[str, Any], out: Path) -> None:
    """Write measured/build.json, which is no part of the dataset's identity."""
    path = out / MEASURED_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
