"""What other programs downloaded already: the cache that huggingface_hub keeps for all of them.

Its layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.settings import hub_cache
from inhouse.sources.hub import HubName, choose, require_space

INDEX = "model.safetensors.index.json"


def snapshot(name: HubName) -> Path | None:
    """The folder of a repository's revision in the hub's own cache; None where it has none."""
    kind = "datasets" if name.is_dataset else "models"
    folder = hub_cache() / f"{kind}--{name.repository.replace('/', '--')}"
    revision = name.revision or "main"
    ref = folder / "refs" / revision
    try:
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    except OSError:
        return None
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def copy(uri: str, name: HubName, source: Path, folder: Path) -> dict[str, Any]:
    """Copy the chosen files of a snapshot, and give its facts.

    Raises what hub.choose raises, and sources.incomplete where the cache lacks parts of the weights.
    """
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    chosen = choose(uri, name, sizes)
    missing = _parts(source) - set(chosen) if INDEX in chosen else set()
    if missing:
        raise UserError("sources.incomplete", uri=uri, files=", ".join(sorted(missing)[:6]), folder=source)
    require_space(folder, sum(sizes[file] for file in chosen))
    for file in chosen:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target)  # no link: what is kept here becomes read-only
    return {"repository": name.repository, "commit": source.name, "files": chosen}


def _parts(source: Path) -> set[str]:
    try:
        return set(json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return set()  # the loader says what is wrong with it
