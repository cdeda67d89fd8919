"""The front matter of a model card: what Hugging Face's hub and tools read of a README.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import yaml

from inhouse.core.artifact import Artifact, Licence

BLOCK = re.compile(r"^---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)
HUB_PAGE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
HUB_URI = re.compile(r"hf:([\w.-]+/[\w.-]+)")
UNKNOWN = ("NOASSERTION", "NONE", "LicenseRef-unknown")
# Licences that the hub knows by SPDX's name in small letters, and those that it calls otherwise.
HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "isc", "zlib", "ncsa",
    "ms-pl", "postgresql", "unlicense", "wtfpl", "afl-3.0", "artistic-2.0", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "lppl-1.3c", "mpl-2.0", "ofl-1.1", "osl-3.0", "c-uda", "cc0-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "gemma",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "openrail", "openrail++",
    "bigscience-openrail-m", "bigscience-bloom-rail-1.0", "creativeml-openrail-m", "bigcode-openrail-m",
}  # fmt: skip
HUB_NAMES = {
    "agpl-3.0-only": "agpl-3.0",
    "agpl-3.0-or-later": "agpl-3.0",
    "gpl-2.0-only": "gpl-2.0",
    "gpl-2.0-or-later": "gpl-2.0",
    "gpl-3.0-only": "gpl-3.0",
    "gpl-3.0-or-later": "gpl-3.0",
    "lgpl-2.1-only": "lgpl-2.1",
    "lgpl-2.1-or-later": "lgpl-2.1",
    "lgpl-3.0-only": "lgpl-3.0",
    "lgpl-3.0-or-later": "lgpl-3.0",
    "odc-by-1.0": "odc-by",
    "odbl-1.0": "odbl",
    "pddl-1.0": "pddl",
}


def front_matter(facts: Mapping[str, Any]) -> str:
    """The block that a card begins with. A fact without a value is left out; no facts give no block."""
    known = {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items() if value}
    if not known:
        return ""
    return f"---\n{yaml.safe_dump(known, allow_unicode=True, sort_keys=False, width=inf)}---\n\n"


def read_front_matter(readme: str) -> dict[str, Any]:
    """The facts that a card begins with; none where it is no YAML."""
    match = BLOCK.match(readme)
    try:
        facts = yaml.safe_load(match.group(1)) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def licence_facts(licences: Iterable[Licence]) -> dict[str, str]:
    """`license` as the hub spells it; `other` with its name where the hub has none; nothing where none is known."""
    found = list(dict.fromkeys(licence.spdx for licence in licences if licence.spdx not in UNKNOWN))
    if not found:
        return {}
    if len(found) == 1:
        name = found[0].removeprefix("LicenseRef-").lower()
        name = HUB_NAMES.get(name, name)
        return {"license": name} if _on_hub(name) else {"license": "other", "license_name": found[0]}
    joined = " AND ".join(f"({spdx})" if " " in spdx else spdx for spdx in found)
    return {"license": "other", "license_name": joined}


def _on_hub(name: str) -> bool:
    return name in HUB_LICENCES or name in HUB_NAMES.values()


def base_model(base: Artifact, name: str) -> str:
    """What a model was made from: its id on the hub where it has one, its `name` where not.

    A base that was itself trained here is told by its artifact's id too.
    """
    if base.stage == "train":
        return trained_name(base, name)
    uri = HUB_URI.match(str(base.facts.get("source", {}).get("uri", "")))
    pages = [page for licence in base.licences if (page := HUB_PAGE.fullmatch(licence.url or ""))]
    found = uri or next(iter(pages), None)
    return found[1] if found else name


def trained_name(record: Artifact, name: str) -> str:
    """A name for a model that was trained here: that of its base, and its artifact's id."""
    return f"{name}-{record.id[:12]}"
