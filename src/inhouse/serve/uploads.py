"""A form with one file, written to disk while it comes in."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from inhouse.core.messages import text
from inhouse.serve.errors import ApiError, invalid
from inhouse.serve.http import Call, Gone

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM_BYTES = 64 * 2**10  # a form around its file
VALUE_BYTES = 1024
MOST_PARTS = 16
IDLE_S = 30.0  # without a byte


@dataclass
class Upload:
    """What a form brought: its short fields, and the file, which lies where it was told to."""

    fields: dict[str, str]
    filename: str
    bytes: int
    sha256: str


async def receive_upload(call: Call, out: IO[bytes], most: int) -> Upload:
    """Read a multipart form; its part `file` is written to `out`.

    Raises ApiError 400 for a broken form, 413 for a file of more than `most` bytes, 408, 415; Gone.
    """
    form = Form(call.header("content-type"), out, most)
    length = call.header("content-length") or "0"
    if not length.isdigit() or int(length) > most + FORM_BYTES:
        raise ApiError(413, "request_too_large", text("serve.too_large", most=most))
    if call.header("content-encoding") not in ("", "identity"):
        raise ApiError(415, "unsupported_encoding", text("serve.encoding"))
    while True:
        try:
            message = await asyncio.wait_for(call.receive(), IDLE_S)
        except TimeoutError:
            raise ApiError(408, "request_timeout", text("serve.slow_body", seconds=int(IDLE_S))) from None
        if message["type"] == "http.disconnect":
            raise Gone
        form.write(message.get("body", b""))
        if not message.get("more_body", False):
            return form.end()


@dataclass
class Part:
    """A part of a form."""

    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class Form:
    """The parts of one form, as they come."""

    def __init__(self, content_type: str, out: IO[bytes], most: int) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header

        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise ApiError(415, "unsupported_media_type", text("serve.form_type"))
        self._options = parse_options_header
        self._broken: type[Exception] = FormParserError
        self._out = out
        self._most = most
        self._read = 0
        self._hash = hashlib.sha256()
        self._size = 0
        self._parts: list[Part] = []
        self._file: Part | None = None
        self._header = bytearray()
        self._value = bytearray()
        self._whole = False
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError:
            raise invalid(text("serve.bad_form")) from None

    def write(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._read += len(data)
        if self._read > self._most + FORM_BYTES:
            raise ApiError(413, "request_too_large", text("serve.too_large", most=self._most))
        try:
            self._parser.write(data)
        except self._broken:
            raise invalid(text("serve.bad_form")) from None

    def end(self) -> Upload:
        """The form is whole."""
        if not self._whole:
            raise invalid(text("serve.bad_form"))
        if self._file is None:
            raise invalid(text("serve.no_file"), "file")
        fields = {part.name: part.value.decode("utf-8", "replace") for part in self._parts if part is not self._file}
        return Upload(fields, self._file.filename or "file", self._size, self._hash.hexdigest())

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begins,
            "on_part_data": self._part_data,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_end": self._ends,
        }

    def _part_begins(self) -> None:
        if len(self._parts) >= MOST_PARTS:
            raise invalid(text("serve.bad_form"))
        self._parts.append(Part())

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            _, options = self._options(bytes(self._value))
            part = self._parts[-1]
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            if (name := options.get(b"filename")) is not None:
                part.filename = name.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        if self._parts[-1].name == "file" and self._file is None:
            self._file = self._parts[-1]

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        if part is not self._file:
            part.value += data[start:end]
            if len(part.value) > VALUE_BYTES:
                raise invalid(text("serve.bad_form"), part.name[:64] or None)
            return
        self._size += end - start
        if self._size > self._most:
            raise ApiError(413, "request_too_large", text("serve.too_large", most=self._most))
        piece = data[start:end]
        self._hash.update(piece)
        self._out.write(piece)

    def _ends(self) -> None:
        self._whole = True
