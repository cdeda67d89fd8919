"""The control tokens that a GGUF file names, read without the rest of its vocabulary."""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from inhouse.core.control_tokens import FAMILIES, ControlTokens, is_control, proven
from inhouse.core.errors import UserError
from inhouse.engines.gguf_header import ArrayValue, GgufHeader, items

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType
FIRST_BYTES = frozenset(text.encode()[0] for text in ("<", "[", *FAMILIES))  # of all that look like one, too
MOST = 20_000  # Gemma 3 has 6,400, the most that are known


def control_tokens(path: Path, header: GgufHeader) -> dict[str, int]:
    """Texts and ids of a GGUF file's control tokens; none where it has no vocabulary.

    Those that a family has, or that look like one, count whatever their type: llama.cpp makes the ends that it knows
    by their texts control tokens, and parses those that are user defined too.
    Raises gguf.damaged for more of them than any model has.
    """
    tokens = header.metadata.get(TOKENS)
    if not isinstance(tokens, ArrayValue):
        return {}
    marked = {at for at, kind in enumerate(items(path, header, TYPES)) if kind == CONTROL}
    with path.open("rb") as file:
        texts = _texts(file, tokens, header, marked)
        found = {text: at for at, text in texts if is_control(text, at in marked)}
    if len(found) > MOST:
        raise UserError("gguf.damaged", path=path, at=tokens.at, reason=f"it has {len(found)} control tokens")
    return found


def added_tokens(path: Path, header: GgufHeader) -> tuple[dict[str, int], frozenset[int]]:
    """Texts and ids of the tokens that no cutting of words makes, and which of them leave no text in an answer."""
    types = items(path, header, TYPES)
    wanted = {at for at, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    tokens = header.metadata.get(TOKENS)
    if not isinstance(tokens, ArrayValue) or not wanted:
        return {}, frozenset()
    with path.open("rb") as file:
        found = {text: at for at, text in _texts(file, tokens, header, wanted) if at in wanted}
    return found, frozenset(at for at in wanted if types[at] == CONTROL)


def control_of(path: Path, header: GgufHeader, tokenize: Callable[[str], Sequence[int]]) -> ControlTokens:
    """A file's control tokens, proven to be text once they are broken; `tokenize` parses control tokens in a text."""
    known = control_tokens(path, header)
    ids = set(known.values()) - {header.number("tokenizer.ggml.unknown_token_id"), known.get("<unk>")}

    def plain(texts: Sequence[str]) -> list[bool]:
        if ids.isdisjoint(tokenize("\n".join(texts))):  # one question for all of them, nearly always
            return [True] * len(texts)
        return [ids.isdisjoint(tokenize(text)) for text in texts]

    return ControlTokens(*proven(known, plain))


def _texts(file: BinaryIO, tokens: ArrayValue, header: GgufHeader, wanted: Container[int]) -> Iterator[tuple[int, str]]:
    """The texts of an array that are wanted or begin as control tokens do, with their places.

    `read_header` has found it to lie whole inside the file.
    """
    file.seek(tokens.at)
    held = file.read(header.data_offset - tokens.at)
    length_of, at = struct.Struct("<Q").unpack_from, 0
    for place in range(tokens.length):
        end = at + 8 + int(length_of(held, at)[0])
        if place in wanted or (end > at + 8 and held[at + 8] in FIRST_BYTES):
            yield place, held[at + 8 : end].decode("utf-8", "replace")
        at = end
