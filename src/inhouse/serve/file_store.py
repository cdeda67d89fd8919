"""Files of clients: bytes under the workspace by ids of ours, records in the registry."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.messages import text
from inhouse.core.store import sync_folder
from inhouse.release.settings import FileParams
from inhouse.release.stored import (
    StoredFile,
    add_file,
    delete_file,
    expired_files,
    get_file,
    new_id,
    stored_bytes,
)
from inhouse.serve.errors import ApiError
from inhouse.serve.http import Call
from inhouse.serve.registry_writes import written
from inhouse.serve.uploads import Upload, receive_upload

if TYPE_CHECKING:
    from sqlalchemy import Engine

ID = re.compile(r"file-[0-9a-f]{32}")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ABANDONED_S = 86_400  # an upload that was cut off by a crash
READ_BYTES = 256 * 2**10


@dataclass
class FileStore:
    """The files of every key; each question names the key that asks it."""

    engine: Engine
    root: Path
    params: FileParams
    _adding: asyncio.Lock = field(default_factory=asyncio.Lock)

    def path(self, file: str) -> Path:
        """Where the bytes of a file lie. Only ids of ours become part of a path."""
        if not ID.fullmatch(file):
            raise unknown_file(file)
        return self.root / file

    async def receive(self, call: Call, key: int) -> tuple[StoredFile, Upload]:
        """Take an upload of this key. Raises ApiError."""
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = self.root / f".upload-{secrets.token_hex(8)}"
        try:
            with no_space(), scratch.open("wb") as out:
                upload = await receive_upload(call, out, self.params.most_bytes)
                out.flush()
                await asyncio.to_thread(os.fsync, out.fileno())
            made = StoredFile(
                id=new_id("file-"),
                key=key,
                purpose=_purpose(upload),
                filename=upload.filename,
                bytes=upload.bytes,
                sha256=upload.sha256,
                created=int(time.time()),
                expires=_expires(upload),
            )
            async with self._adding:
                await self._keep(made, scratch)
        finally:
            scratch.unlink(missing_ok=True)
        return made, upload

    async def _keep(self, file: StoredFile, scratch: Path) -> None:
        used = await asyncio.to_thread(stored_bytes, self.engine, file.key)
        if used + file.bytes > self.params.quota_bytes:
            raise ApiError(413, "file_quota_exceeded", text("serve.file_quota", most=self.params.quota_bytes))
        scratch.replace(self.path(file.id))
        await asyncio.to_thread(sync_folder, self.root)
        await written(add_file, self.engine, file)

    def write(self, file: StoredFile, lines: Iterator[bytes]) -> StoredFile | None:
        """Write a file of ours, whole or not at all; None when there are no lines. Written twice, it is one file.

        The results of batches are kept even when they exceed the quota: they were paid for.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = self.root / f".upload-{secrets.token_hex(8)}"
        hashed, size = hashlib.sha256(), 0
        try:
            with scratch.open("wb") as out:
                for line in lines:
                    out.write(line)
                    hashed.update(line)
                    size += len(line)
                out.flush()
                os.fsync(out.fileno())
            if size == 0:
                return None
            scratch.replace(self.path(file.id))
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(self.root)
        if (found := get_file(self.engine, file.key, file.id)) is not None:
            return found
        return add_file(
            self.engine,
            StoredFile(file.id, file.key, file.purpose, file.filename, size, hashed.hexdigest(), file.created),
        )

    async def get(self, key: int, file: str) -> StoredFile:
        """The record of a file of this key. Raises ApiError 404."""
        found = await asyncio.to_thread(get_file, self.engine, key, file)
        if found is None or not self.path(file).is_file():
            raise unknown_file(file)
        return found

    async def delete(self, key: int, file: str) -> None:
        """Forget a file of this key. Raises ApiError 404."""
        path = self.path(file)
        if not await written(delete_file, self.engine, key, file):
            raise unknown_file(file)
        path.unlink(missing_ok=True)  # after its record: a crash between leaves bytes that nobody sees

    def tidy(self) -> None:
        """Delete files whose time is over, and what crashes left of uploads."""
        now = int(time.time())
        for file in expired_files(self.engine, now):
            delete_file(self.engine, file.key, file.id)
            self.path(file.id).unlink(missing_ok=True)
        for scratch in self.root.glob(".upload-*"):
            if scratch.stat().st_mtime < now - ABANDONED_S:
                scratch.unlink(missing_ok=True)


@contextmanager
def no_space() -> Iterator[None]:
    """Tell a client of a full disk, without the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ApiError(507, "insufficient_storage", text("serve.disk_full")) from None


def unknown_file(file: str) -> ApiError:
    """There is no such file of this key."""
    return ApiError(404, "not_found", text("serve.no_stored_file", id=file[:80]), "file_id")


def _purpose(upload: Upload) -> str:
    purpose = upload.fields.get("purpose")
    if purpose != "batch":
        raise ApiError(400, None, text("serve.file_purpose"), "purpose")
    return purpose


def _expires(upload: Upload) -> int | None:
    told = upload.fields.get("expires_after[seconds]")
    if told is None:
        return None
    if not told.isdigit() or not 3600 <= int(told) <= 30 * 86_400:
        raise ApiError(400, None, text("serve.file_expires"), "expires_after.seconds")
    return int(time.time()) + int(told)
