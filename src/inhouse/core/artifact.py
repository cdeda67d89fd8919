"""An artifact: an immutable folder with a record of how it came to be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["model", "dataset", "predictions", "report", "release"]

MEASURED = "measured/"  # files below this folder hold timings of one machine at one time


class Frozen(BaseModel):
    """A frozen value that is written to disk; unknown keys of a newer version are kept out."""

    model_config = ConfigDict(frozen=True)


class FileEntry(Frozen):
    """One file of an artifact. `path` is relative, with forward slashes."""

    path: str
    bytes: int
    sha256: str

    @property
    def counts(self) -> bool:
        """Whether the file is part of the artifact's identity: what was only timed is not."""
        return not self.path.startswith(MEASURED)


class Licence(Frozen):
    """What is known of the terms of one input, and where that was read."""

    subject: str
    spdx: str = Field(description="SPDX expression, or LicenseRef-… for terms that SPDX does not list")
    source: str = Field(description="where it was read: file, header key, project file")
    url: str | None = None
    use: Literal["any", "evaluation", "research", "unknown"] = "unknown"
    note: str | None = None


class Artifact(Frozen):
    """The record of an artifact, kept beside its files as record.json.

    `id` hashes what it holds, `recipe` what it was made from; two recipes may end in the same id.
    """

    id: str
    kind: Kind
    stage: str
    node: str
    stage_version: str
    recipe: str
    params: dict[str, Any]
    operators: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict, description="role -> artifact id")
    external: dict[str, str] = Field(default_factory=dict, description="outside content: name -> fingerprint")
    files: tuple[FileEntry, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict, description="counts, seconds, peak memory, model header")
    stated: tuple[Licence, ...] = Field((), description="terms that this step itself read")
    licences: tuple[Licence, ...] = Field((), description="the stated terms and those of every input")
    seed: int = 0
    packages: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    created: str = Field(description="UTC, ISO 8601")

    def inheriting(self, inputs: Iterable[Artifact]) -> Artifact:
        """This record with the terms that its inputs have now: they may be stated anew without a rerun."""
        terms = (*self.stated, *(licence for i in inputs for licence in i.licences))
        return self.model_copy(update={"licences": tuple(dict.fromkeys(terms))})

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(f.bytes for f in self.files)
