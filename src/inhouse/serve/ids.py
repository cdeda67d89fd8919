"""Ids for requests and answers: unique, and no secret (who may read what they name is asked by its key)."""

from __future__ import annotations

import random
import secrets

_dice = random.Random(secrets.randbits(256))  # ten times as fast as asking the system for each


def new_id(kind: str) -> str:
    """`chatcmpl-…`: the kind, and 24 hexadecimal digits."""
    return f"{kind}-{_dice.getrandbits(96):024x}"


def new_request_id() -> str:
    """32 hexadecimal digits."""
    return f"{_dice.getrandbits(128):032x}"
