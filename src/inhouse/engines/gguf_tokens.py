"""The control tokens that a GGUF file names, read without the rest of its vocabulary."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from inhouse.core.control_tokens import ControlTokens, is_control, proven
from inhouse.core.errors import UserError
from inhouse.engines.gguf_header import ArrayValue, GgufHeader

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType; the latter are tokens that a text is searched for too
MOST = 20_000  # Gemma 3 has 6,400, the most that are known


def control_tokens(path: Path, header: GgufHeader) -> dict[str, int]:
    """Texts and ids of a GGUF file's control tokens; none where it has no vocabulary.

    Raises gguf.damaged for more of them than any model has.
    """
    tokens, types = header.metadata.get(TOKENS), header.metadata.get(TYPES)
    if not isinstance(tokens, ArrayValue) or not isinstance(types, ArrayValue):
        return {}
    with path.open("rb") as file:
        kinds = _kinds(file, types)
        marked = {at: kind == CONTROL for at, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}
        found = {text: at for at, text in _texts(file, tokens, header, marked) if is_control(text, marked[at])}
    if len(found) > MOST:
        raise UserError("gguf.damaged", path=path, at=tokens.at, reason=f"it has {len(found)} control tokens")
    return found


def control_of(path: Path, header: GgufHeader, tokenize: Callable[[str], Sequence[int]]) -> ControlTokens:
    """A file's control tokens, proven to be text once they are broken; `tokenize` parses control tokens in a text."""
    known = control_tokens(path, header)
    ids = set(known.values()) - {header.number("tokenizer.ggml.unknown_token_id")}

    def plain(texts: Sequence[str]) -> list[bool]:
        if ids.isdisjoint(tokenize("\n".join(texts))):  # one question for all of them, nearly always
            return [True] * len(texts)
        return [ids.isdisjoint(tokenize(text)) for text in texts]

    return ControlTokens(*proven(known, plain))


def _kinds(file: BinaryIO, types: ArrayValue) -> array[int]:
    """The type of each token (int32)."""
    file.seek(types.at)
    kinds = array("i")
    held = file.read(types.length * kinds.itemsize)
    kinds.frombytes(held[: len(held) // kinds.itemsize * kinds.itemsize])
    return kinds


def _texts(file: BinaryIO, tokens: ArrayValue, header: GgufHeader, wanted: Container[int]) -> Iterator[tuple[int, str]]:
    """The wanted texts of an array, with their places; `read_header` has found it to lie whole inside the file."""
    file.seek(tokens.at)
    held = file.read(header.data_offset - tokens.at)
    length_of, at = struct.Struct("<Q").unpack_from, 0
    for place in range(tokens.length):
        end = at + 8 + int(length_of(held, at)[0])
        if place in wanted:
            yield place, held[at + 8 : end].decode("utf-8", "replace")
        at = end
