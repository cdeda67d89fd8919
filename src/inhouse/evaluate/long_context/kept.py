"""Readings that outlive the process: a text of hours is not read again because the machine went down."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from inhouse.evaluate.long_context.reader import Read


@dataclass(frozen=True)
class Reading:
    """One text as it was read, how long that took, and bytes of the cache for each token."""

    read: Read
    seconds: float
    per_token: float | None


class Readings:
    """Readings of one run, by name, in a file to which each is added at once; without a file, in memory.

    `asked` stands for everything that a reading depends on: those of a run that asked for something else do not count.
    """

    def __init__(self, path: Path | None = None, asked: str = "") -> None:
        self._path, self._asked = path, asked
        self._known: dict[str, Reading] = {}
        for line in (
            path.read_text(encoding="utf-8", errors="replace").splitlines()
            if path is not None and path.exists()
            else ()
        ):
            self._take(line)

    def get(self, name: str) -> Reading | None:
        """What was read before under this name."""
        return self._known.get(name)

    def add(self, name: str, reading: Reading) -> None:
        """Keep a reading: it is on the disk when this returns."""
        self._known[name] = reading
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"asked": self._asked, "name": name, **asdict(reading)})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # begun anew, should the line before have been cut off
            file.flush()
            os.fsync(file.fileno())

    def _take(self, line: str) -> None:
        try:
            found = json.loads(line)
            if found["asked"] == self._asked:
                read = Read(**found["read"])
                self._known[found["name"]] = Reading(read, float(found["seconds"]), found["per_token"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # a line that was cut off or damaged
