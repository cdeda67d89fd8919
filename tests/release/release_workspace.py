"""A workspace with published artifacts, as flow leaves it, for the tests of releases and of serving."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact, Kind, Licence
from inhouse.core.fingerprint import hash_json, identity, list_files
from inhouse.core.protocols import Context, Input
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.release import stage
from inhouse.release.keys import Key
from inhouse.release.registry import Registry
from inhouse.release.settings import ReleaseNode

Make = Callable[..., Artifact]
APACHE = Licence(subject="model", spdx="Apache-2.0", source="LICENSE", use="any")


def publish(
    store: Store,
    kind: Kind,
    files: Mapping[str, bytes | Path],
    facts: dict[str, Any],
    licences: tuple[Licence, ...] = (),
) -> Artifact:
    """Publish an artifact with these files (bytes, or a file to link to)."""
    recipe = hash_json([kind, sorted(files), hash_json(facts), len(list(store.objects.glob("*")))])
    _, out = store.work_of(recipe)
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            os.link(content, path)
        else:
            path.write_bytes(content)
    return settle(store, kind, recipe, out, facts, licences)


def compressed(store: Store, model: Artifact, method: dict[str, Any]) -> Artifact:
    """The record of the same files as the stage of compression writes it."""
    facts = {**model.facts, "fallbacks": 2, "parity": {}}
    record = model.model_copy(update={"stage": "compress", "params": {"method": method}, "facts": facts})
    store.use(record)
    return record


def settle(
    store: Store, kind: Kind, recipe: str, out: Path, facts: dict[str, Any], licences: tuple[Licence, ...]
) -> Artifact:
    """Publish what lies in `out`."""
    files = list_files(out)
    record = Artifact(
        id=identity(kind, files),
        kind=kind,
        stage=kind,
        node=kind,
        stage_version="1",
        recipe=recipe,
        params={"asked": kind},
        files=files,
        facts=facts,
        licences=licences,
        seed=7,
        packages={"inhouse": "0.1.0"},
        commit="c0ffee",
        created="2026-01-01T00:00:00+00:00",
    )
    return store.publish(record)


def make_model(store: Store, gguf: Path | bytes, licences: tuple[Licence, ...] = (APACHE,)) -> Artifact:
    """A model artifact around one GGUF file."""
    model = {"format": "gguf", "main": "model.gguf", "name": "smollm2"}
    return publish(store, "model", {"model.gguf": gguf}, {"model": model}, licences)


def make_report(store: Store, figures: dict[str, Any], measured: dict[str, Any] | None = None) -> Artifact:
    """A report artifact with these figures."""
    files = {"report.json": json.dumps({"figures": figures}).encode()}
    if measured is not None:
        files["measured/report.json"] = json.dumps({"figures": measured}).encode()
    return publish(store, "report", files, {})


def run_stage(store: Store, params: ReleaseNode, inputs: dict[str, Artifact]) -> Artifact:
    """Run the release stage over published artifacts and publish its result."""
    recipe = hash_json([params.model_dump(mode="json"), {role: a.id for role, a in inputs.items()}])
    scratch, out = store.work_of(recipe)
    context = Context(
        inputs={role: Input(a, store.path(a.id)) for role, a in inputs.items()},
        out=out,
        scratch=scratch,
        sources=store.sources,
        project_dir=store.root,
        events=Events(store.root / "events.jsonl"),
        seed=7,
        offline=True,
        use=params.declared_use,
    )
    made = stage.run(params, context)
    return settle(store, "release", recipe, out, made.facts, made.licences)


def key_of(registry: Registry, token: str) -> Key | None:
    """The key that a server finds behind a token now."""
    from inhouse.serve.key_ring import KeyRing

    return asyncio.run(KeyRing(registry.engine).find(token))
