"""Which replica has read the beginning of a prompt before: its KV cache still holds it."""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from inhouse.core.serving import Ask

BLOCK_BYTES = 256
MOST_BLOCKS = 64
MOST_KEPT = 16_384


def blocks(ask: Ask) -> list[bytes]:
    """Hashes of the prompt's beginnings, one a block of 256 bytes, each over all before it; the rest is left out.

    The hash covers the messages, not what the template makes of them: equal messages make an equal prompt.
    """
    if ask.messages is not None:
        told = json.dumps([ask.tools, *ask.messages], ensure_ascii=False, default=str).encode("utf-8", "replace")
    elif isinstance(ask.prompt, str):
        told = ask.prompt.encode("utf-8", "replace")
    else:
        told = array("q", ask.prompt or ()).tobytes()
    found = []
    chain = (ask.adapter or "").encode()
    for place in range(0, min(len(told), BLOCK_BYTES * MOST_BLOCKS) - BLOCK_BYTES + 1, BLOCK_BYTES):
        chain = blake2b(chain + told[place : place + BLOCK_BYTES], digest_size=16).digest()
        found.append(chain)
    return found


class PrefixTable:
    """Who served which beginning last. Bounded: the beginnings used longest ago are forgotten first."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def holder(self, chain: Sequence[bytes]) -> str | None:
        """The name of the replica that served the longest common beginning."""
        return next((self._seen[block] for block in reversed(chain) if block in self._seen), None)

    def served(self, chain: Sequence[bytes], name: str) -> None:
        """Note who serves these beginnings now."""
        for block in chain:
            self._seen[block] = name
            self._seen.move_to_end(block)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)

    def forget(self, name: str) -> None:
        """A replica's cache is gone with its process."""
        for block in [block for block, holder in self._seen.items() if holder == name]:
            del self._seen[block]
