"""Text of others on the user's terminal: what would command it is shown instead of obeyed."""

from __future__ import annotations

import re

# Control characters (of 7 and of 8 bits) but tab and line end, and halves of characters, which no terminal can take.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
PICTURES = 0x2400  # where Unicode has a visible sign for each of the first 32


def plain(said: str) -> str:
    """A model's or a server's text without the power to move the cursor, set the title or write the clipboard."""
    return UNFIT.sub(_shown, said)


def _shown(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20:
        return chr(PICTURES + code)
    return "\u2421" if code == 0x7F else "\ufffd"
