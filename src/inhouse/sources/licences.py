"""Read the terms that came with a model or dataset: licence files, README front matter, wheel metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Literal

from inhouse.core.artifact import Licence
from inhouse.core.model_card import read_front_matter
from inhouse.sources.cache import CONTENT, LICENCE, entry_holding

LONGEST_BYTES = 2**20
FILE_NAME = re.compile(r"^(licen[cs]e|copying)([._-].*)?$", re.IGNORECASE)
Use = Literal["any", "evaluation", "research", "unknown"]
STRICTEST: tuple[Use, ...] = ("evaluation", "research", "unknown", "any")

# Terms whose text allows commercial use without asking (attribution and the like remain the user's duty).
PERMISSIVE = {
    "Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ODC-By-1.0", "PDDL-1.0",
    "Unlicense", "0BSD", "Zlib", "BSL-1.0", "AFL-3.0", "ECL-2.0",
}  # fmt: skip
# Copyleft binds those who pass a work on, not those who use it.
COPYLEFT = re.compile(r"^[AL]?GPL-\d")
RESEARCH = re.compile(r"-NC-|-NC$|research|non-?commercial", re.IGNORECASE)
# What a licence file of each kind says, in the order in which to look: the longer texts contain the shorter ones.
TEXTS = (
    ("AGPL-3.0-or-later", r"gnu affero general public license"),
    ("LGPL-3.0-or-later", r"gnu lesser general public license"),
    ("GPL-3.0-or-later", r"gnu general public license.{0,80}version 3"),
    ("Apache-2.0", r"apache license,?\s+version 2\.0"),
    ("CC-BY-NC-4.0", r"attribution-noncommercial 4\.0 international"),
    ("CC-BY-SA-4.0", r"attribution-sharealike 4\.0 international"),
    ("CC-BY-4.0", r"attribution 4\.0 international"),
    ("CC0-1.0", r"cc0 1\.0 universal"),
    ("MIT", r"permission is hereby granted, free of charge"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the name"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("LicenseRef-Qwen-Research", r"qwen research license"),
    ("LicenseRef-Llama-Community", r"llama [\d.]+ community license"),
    ("LicenseRef-Gemma", r"gemma terms of use"),
)
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
}


@dataclass(frozen=True)
class Reading:
    """One place that names the terms."""

    spdx: str
    source: str


def read_licences(path: Path) -> list[Reading]:
    """Every place beside a fetched file or folder that names its terms, the most formal first."""
    found = [reading for folder in _folders(path) for reading in _in_folder(folder)]
    return list(dict.fromkeys(found))


def licence_files(path: Path) -> list[Path]:
    """The licence texts that came with a fetched file or folder."""
    files = [p for folder in _folders(path) for p in sorted(folder.iterdir())]
    return [p for p in files if FILE_NAME.match(p.name) and _is_small(p)]


def _folders(path: Path) -> list[Path]:
    """Where terms may lie. A LICENSE beside a lone local file is more likely the project's own: not read."""
    entry = entry_holding(path)
    places = [path] if entry is None else [entry / LICENCE, entry / CONTENT, path]
    return [p for p in dict.fromkeys(places) if p.is_dir()]


def _in_folder(folder: Path) -> list[Reading]:
    found = []
    metadata, readme = folder / "METADATA", folder / "README.md"
    if _is_small(metadata) and (spdx := from_metadata(_text(metadata))):
        found.append(Reading(spdx, "wheel METADATA"))
    if _is_small(readme) and (spdx := from_front_matter(_text(readme))):
        found.append(Reading(spdx, "README.md"))
    for path in sorted(folder.iterdir()):
        if FILE_NAME.match(path.name) and _is_small(path) and (spdx := from_text(_text(path))):
            found.append(Reading(spdx, path.name))
    return found


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LONGEST_BYTES


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def from_text(text: str) -> str | None:
    """The SPDX id of a licence text; None when it is none that is known here."""
    flat = re.sub(r"\s+", " ", text.lower())
    return next((spdx for spdx, pattern in TEXTS if re.search(pattern, flat)), None)


def from_front_matter(readme: str) -> str | None:
    """The `license:` of a model card, with `license_name:` where that is 'other'."""
    facts = read_front_matter(readme)  # a card that is not YAML names no terms
    name = facts.get("license")
    if name == "other":
        name = facts.get("license_name", name)
    return normal(name) if isinstance(name, str) and name.strip() else None


def from_metadata(text: str) -> str | None:
    """License-Expression, else License, else the licence classifier of a wheel's METADATA."""
    headers = HeaderParser().parsestr(text)
    for key in ("License-Expression", "License"):
        value = (headers.get(key) or "").strip()
        if value and "\n" not in value and len(value) < 100:
            return normal(value)
    for classifier in headers.get_all("Classifier") or ():
        if classifier.startswith("License ::"):
            name = classifier.split("::")[-1].strip()
            return CLASSIFIERS.get(name) or normal(name)
    return None


def normal(name: str) -> str:
    """`name` as an SPDX expression; what SPDX does not know becomes LicenseRef-<name>."""
    if name.startswith("LicenseRef-"):
        return name
    from license_expression import ExpressionError, get_spdx_licensing

    try:
        return str(get_spdx_licensing().parse(name, validate=True))
    except ExpressionError:  # words that are no expression, or licences that SPDX does not list
        pass
    return "LicenseRef-" + (re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "unknown")


def use_of(spdx: str) -> Use:
    """What the terms allow, where that is plain: of A OR B the freer, of A AND B the stricter."""
    if " " not in spdx:
        return _use_of_one(spdx)
    from license_expression import ExpressionError, Licensing

    try:
        return _use_of_parsed(Licensing().parse(spdx))
    except ExpressionError:
        return _use_of_one(spdx)


def strictest(uses: Iterable[str]) -> Use:
    """What terms that all hold allow together."""
    stated = set(uses)
    return next((use for use in STRICTEST if use in stated), "unknown")


def _use_of_parsed(parsed: Any) -> Use:
    uses = {_use_of_parsed(part) for part in parsed.args}
    if not uses:  # one licence; an exception (A WITH B) only ever adds permissions
        return _use_of_one(parsed.render().partition(" WITH ")[0])
    if parsed.operator.strip() == "OR" and "any" in uses:
        return "any"
    return strictest(uses)


def _use_of_one(spdx: str) -> Use:
    if spdx in PERMISSIVE or COPYLEFT.match(spdx):
        return "any"
    return "research" if RESEARCH.search(spdx) else "unknown"


def copyleft_note(spdx: str) -> str | None:
    """What to bear in mind where terms hold a copyleft licence."""
    if not any(COPYLEFT.match(word) for word in re.split(r"[\s()]+", spdx)):
        return None
    return "copyleft: use is free, passing it on (AGPL: also offering it over a network) obliges to share the source"


def settle(subject: str, readings: list[Reading], url: str | None = None) -> tuple[Licence, ...]:
    """One record for each set of terms that was read; places that agree share a record, disagreement is noted."""
    places: dict[str, list[str]] = {}
    for reading in readings:
        places.setdefault(reading.spdx, []).append(reading.source)
    records = []
    for spdx, sources in places.items():
        others = "; ".join(f"{s}: {', '.join(p)}" for s, p in places.items() if s != spdx)
        notes = (f"conflict, elsewhere {others}" if others else None, copyleft_note(spdx))
        note = "; ".join(n for n in notes if n) or None
        source = ", ".join(sources)
        records.append(Licence(subject=subject, spdx=spdx, source=source, url=url, use=use_of(spdx), note=note))
    return tuple(records)
