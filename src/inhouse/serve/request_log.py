"""The request log: one JSON line a request, in files that are turned over by size and removed by age and size.

No word of a prompt or an answer is in it unless `content: redacted` is set; then personal data is masked first, and
where that fails the line goes without them. Lines are written by a thread: no request waits for the disk, and a full
queue drops lines and counts them.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from inhouse.guard.ready import compile_apart
from inhouse.release.request_records import FILES
from inhouse.release.settings import LogParams

WAITING = 50_000  # lines
CLOSE_S = 30.0  # the first text that is masked loads what finds personal data
# Lines are gathered: a thread that woke for every request would take the interpreter from the requests.
GATHER_S = 0.25
TELL_S = 60.0  # how often it is said that nothing can be written
LOOK_S = 60.0  # how often old files are looked for
log = logging.getLogger("inhouse.serve")
Record = dict[str, Any]


class RequestLog:
    """Writes records below a folder."""

    def __init__(self, folder: Path, params: LogParams, on_dropped: Callable[[int], None] = lambda count: None) -> None:
        self.folder = folder
        self.params = params
        self.on_dropped = on_dropped
        self._ready = False  # to mask personal data
        self._told_at = float("-inf")  # that it cannot be masked
        self._lines: deque[Record] = deque()
        self._dice = random.Random()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="request log", daemon=True)
        self._thread.start()

    def wants(self, failed: bool) -> bool:
        """Whether this request is in the sample; failures always are."""
        return self.params.enabled and (failed or self._dice.random() < self.params.sample)

    def add(self, record: Record) -> None:
        """Queue one record; nobody is woken for it."""
        if len(self._lines) < WAITING:
            self._lines.append(record)
        else:
            self.on_dropped(1)

    def close(self) -> None:
        """Write what is queued."""
        self._closing.set()
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        looked = told = float("-inf")
        while True:
            last = self._closing.wait(GATHER_S)
            together = [self._lines.popleft() for _ in range(len(self._lines))]
            try:
                if together:
                    self._append(together)
                if time.monotonic() - looked > LOOK_S:
                    looked = time.monotonic()
                    remove_old(self.folder, self.params)
            except OSError as error:
                self.on_dropped(len(together))
                if time.monotonic() - told > TELL_S:
                    told = time.monotonic()
                    log.error("the request log cannot be written below %s: %s", self.folder, error)
            if last:
                return

    def _append(self, records: list[Record]) -> None:
        lines = b"".join(_line(self._masked(each)) for each in records)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._file().open("ab") as file:
            file.write(lines)

    def _masked(self, record: Record) -> Record:
        """With personal data masked in what was said; done here, in the writer's thread."""
        said = record.get("content")
        if said is None:
            return record
        try:
            if not self._ready:
                compile_apart()
                self._ready = True
            return record | {"content": {name: redacted(words) for name, words in said.items()}}
        except Exception:  # whatever it is: nothing is written unmasked, and the lines go on
            if time.monotonic() - self._told_at > TELL_S:
                self._told_at = time.monotonic()
                log.exception("personal data cannot be masked: requests are logged without content")
            return record | {"content": None}

    def _file(self) -> Path:
        """Today's file, the next one when it has its full size."""
        day = datetime.now(UTC).strftime("%Y%m%d")
        numbers = [_number(file) for file in self.folder.glob(f"requests-{day}-*.jsonl")]
        number = max(numbers, default=1)  # the first ones may have been removed
        last = self.folder / f"requests-{day}-{number:04d}.jsonl"
        if last.exists() and last.stat().st_size >= self.params.file_mb * 2**20:
            return self.folder / f"requests-{day}-{number + 1:04d}.jsonl"
        return last


def _number(file: Path) -> int:
    """Which of its day's files it is; 0 for one of another name."""
    _, _, number = file.stem.rpartition("-")
    return int(number) if number.isdecimal() else 0


def _line(record: Record) -> bytes:
    try:
        return to_json(record) + b"\n"
    except PydanticSerializationError:  # half a character, where a client sent one
        return json.dumps(record).encode() + b"\n"


def redacted(words: str) -> str:
    """A text with every piece of personal data replaced by its type."""
    from inhouse.guard.pii import find

    for span in sorted(find(words), key=lambda span: span.start, reverse=True):
        words = f"{words[: span.start]}[{span.type}]{words[span.end :]}"
    return words


def remove_old(folder: Path, params: LogParams) -> None:
    """Remove files beyond the age and the size that are kept, oldest first."""
    files = sorted(folder.glob(FILES), key=lambda file: (file.stem.rpartition("-")[0], _number(file)))
    oldest = time.time() - params.keep_days * 86_400
    kept = sum(file.stat().st_size for file in files)
    for file in files[:-1]:
        size = file.stat().st_size
        if file.stat().st_mtime < oldest or kept > params.keep_mb * 2**20:
            file.unlink()
            kept -= size
