"""From an artifact back to everything it was made from."""

from __future__ import annotations

from dataclasses import dataclass

from inhouse.core.artifact import Artifact
from inhouse.core.store import Store


@dataclass(frozen=True)
class Ancestor:
    """An artifact in a lineage: how deep it lies, and the role it plays for the one above it."""

    depth: int
    role: str
    artifact: Artifact
    repeated: bool  # shown above already: its own inputs are not listed again


def lineage(store: Store, artifact_id: str) -> tuple[Ancestor, ...]:
    """The artifact and its inputs, depth first; an artifact that serves twice is expanded once."""
    found: list[Ancestor] = []
    seen: set[str] = set()

    def visit(artifact: Artifact, role: str, depth: int) -> None:
        found.append(Ancestor(depth, role, artifact, artifact.id in seen))
        if artifact.id in seen:
            return
        seen.add(artifact.id)
        for name, used in artifact.inputs.items():
            visit(store.get(used), name, depth + 1)

    visit(store.get(artifact_id), "", 0)
    return tuple(found)


def made_from(store: Store, artifact_id: str) -> tuple[Artifact, ...]:
    """What came from the artifact, at any distance, that used last behind: to be made again without it."""
    records = {record.id: record for record in store.records()}
    found = {artifact_id}
    while more := {id for id, record in records.items() if id not in found and found & set(record.inputs.values())}:
        found |= more
    return tuple(record for id, record in records.items() if id in found and id != artifact_id)
