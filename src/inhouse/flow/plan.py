"""Which steps of a project must run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.params import deciding
from inhouse.core.plugins import source_digest
from inhouse.core.store import Store
from inhouse.flow.pipeline import Node as Node
from inhouse.flow.pipeline import pipeline as pipeline

State = Literal["cached", "run", "waits"]


@dataclass(frozen=True)
class Planned:
    """A step with what is known before the run. `recipe` is None while an input still has to be made."""

    node: Node
    state: State
    recipe: str | None
    artifact: Artifact | None


def until(nodes: tuple[Node, ...], room: str | None) -> tuple[Node, ...]:
    """The steps needed for those of one room; all of them when `room` is None."""
    if room is None:
        return nodes
    wanted = {n.name for n in nodes if n.room == room}
    if not wanted:
        raise UserError("plan.no_step", room=room)
    by_name = {n.name: n for n in nodes}
    pending = list(wanted)
    while pending:
        for name in by_name[pending.pop()].inputs.values():
            if name not in wanted:
                wanted.add(name)
                pending.append(name)
    return tuple(n for n in nodes if n.name in wanted)


def recipe(node: Node, inputs: Mapping[str, Artifact], project_dir: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    """The cache key of a step, with the outside content and the operators that entered it.

    A release judges the terms of its inputs, so they enter its key; nothing else runs again when terms are restated.
    """
    external = node.stage.external(node.params, project_dir)
    used = dict(sorted(operator_versions(node.params)))
    key = {
        "stage": node.room,
        "kind": node.stage.KIND,
        "version": node.stage.VERSION,
        "params": deciding(node.params),
        "operators": used,
        "inputs": {role: artifact.id for role, artifact in inputs.items()},
        "external": external,
        "seed": node.seed,
        "use": node.use,
    }
    if node.stage.KIND == "release":
        key["terms"] = sorted({t.model_dump_json() for artifact in inputs.values() for t in artifact.licences})
    return hash_json(key)[:24], external, used


def operator_versions(params: BaseModel) -> Iterator[tuple[str, str]]:
    """Name and code digest of every operator that stands anywhere in `params`."""
    if hasattr(type(params), "model_fields") and "use" in type(params).model_fields:
        module = sys.modules[type(params).__module__]
        yield f"{type(params).__module__}", source_digest(module)
    for name in type(params).model_fields:
        yield from _inside(getattr(params, name))


def _inside(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from operator_versions(value)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, dict):
        yield from _inside(list(value.values()))


def plan(nodes: tuple[Node, ...], store: Store, project_dir: Path) -> tuple[Planned, ...]:
    """What a run would do now, without doing it."""
    planned: dict[str, Planned] = {}
    for node in nodes:
        before = {role: planned[name].artifact for role, name in node.inputs.items()}
        inputs = {role: artifact for role, artifact in before.items() if artifact is not None}
        if len(inputs) < len(before):
            planned[node.name] = Planned(node, "waits", None, None)
            continue
        key, _, _ = recipe(node, inputs, project_dir)
        found = store.find(key)
        state: State = "cached" if found else "run"
        planned[node.name] = Planned(node, state, key, found and found.inheriting(inputs.values()))
    return tuple(planned.values())
