"""Look through an answer for what its prompt did not give it: personal data, or the instructions themselves."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from inhouse.guard.spans import PiiType

Alarm = Literal["personal-data", "prompt-leak"]
# What stands for one person. Names, places and addresses of machines are in answers that nobody minds.
PERSONAL: frozenset[PiiType] = frozenset(
    {"phone", "cn_resident_id", "bank_card", "email", "passport", "plate", "wechat", "qq"}
)
# A verbatim part of 95 bytes holds one of the windows wherever it begins, and one of less than 64 holds none: about
# 64 to 95 Latin letters, 21 to 32 Chinese characters.
WINDOW, STRIDE = 64, 32


@dataclass(frozen=True)
class Heard:
    """An answer beside what it was made from: the instructions (system messages), and everything else."""

    answer: str
    instructions: str
    told: str


def alarms(wanted: Collection[Alarm], heard: Heard) -> tuple[Alarm, ...]:
    """What is wrong with an answer, of what is wanted. Linear in the lengths of the texts."""
    found: list[Alarm] = []
    if "personal-data" in wanted and new_personal_data(heard):
        found.append("personal-data")
    if "prompt-leak" in wanted and repeats_instructions(heard):
        found.append("prompt-leak")
    return tuple(found)


def new_personal_data(heard: Heard) -> bool:
    """Whether the answer holds a person's number or address that was nowhere in the prompt, however it was written."""
    from inhouse.guard.pii import Wanted, find  # many patterns: rules of deployments are read without them

    spans = find(heard.answer, Wanted(types=PERSONAL))
    if not spans:
        return False
    given = _bare(f"{heard.instructions}\n{heard.told}")
    return any(value not in given for value in {_bare(heard.answer[span.start : span.end]) for span in spans})


def repeats_instructions(heard: Heard) -> bool:
    """Whether the answer holds a long verbatim part of the instructions that its reader did not write too."""
    instructions = _plain(heard.instructions)
    kept = {instructions[at : at + WINDOW] for at in range(0, len(instructions) - WINDOW + 1, STRIDE)}
    said = kept.intersection(_windows(_plain(heard.answer))) if kept else set()
    return bool(said and said.difference(_windows(_plain(heard.told))))


def _windows(words: bytes) -> Iterator[bytes]:
    return (words[at : at + WINDOW] for at in range(len(words) - WINDOW + 1))


def _plain(text: str) -> bytes:
    """Small letters, one space between words."""
    return " ".join(text.casefold().split()).encode("utf-8", "replace")


def _bare(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).casefold()
