"""How a model is named in a project file, and what is known of a model artifact without loading its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.params import Params

Format = Literal["gguf", "safetensors", "remote"]


class ModelParams(Params):
    """An open model, by where it comes from."""

    base: str = Field(
        min_length=1,
        description="a catalogue name, a folder, a .gguf, pypi:…, hf:org/name, ms:org/name or an OpenAI-compatible URL",
    )
    revision: str | None = Field(None, pattern=r"^[\w./-]+$", description="commit or tag of a hub model")
    name: str | None = Field(None, description="for a URL that serves several models: which one")
    licence: str | None = Field(None, description="SPDX id that you have checked; stands in place of what is read")
    allowed_use: Literal["any", "research", "evaluation"] | None = Field(
        None, description="what the base's terms allow, as you have checked; stands in place of what is concluded"
    )
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="pins a base that is a single file")
    trust_remote_code: bool = Field(
        False, description="run the Python code in a hub model's repository; needs revision: a full commit hash"
    )


class ModelFacts(Frozen):
    """The header of a model; stands in a model artifact's record as `facts["model"]`.

    `main` is the path, inside the artifact, of the .gguf file or of the Hugging Face folder ("." or "merged").
    A remote model has no files: `main` is its base URL and `name` the model's name there.
    """

    format: Format
    main: str
    name: str
    architecture: str = "unknown"
    parameters: int | None = None
    active_parameters: int | None = Field(None, description="per token; smaller than parameters for experts (MoE)")
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    vocabulary: int | None = None
    context_length: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    tensor_types: dict[str, int] = Field(default_factory=dict, description="tensor type -> how many tensors")
    bytes: int = 0
    chat_template: bool = False
    adapter: str | None = Field(None, description="folder of the PEFT adapter inside the artifact, when there is one")
    unmerged: bool = Field(False, description="main is the bare base: it must be read with the adapter before it")
    four_bit: bool = Field(False, description="the adapter belongs to the base in 4 bits, as merged holds it")
    labels: tuple[str, ...] = Field(
        (), description="what a classifier answers, in the order of its outputs; empty: the model writes text"
    )
    remote_code: bool = Field(False, description="the folder brings Python code that the project file trusts")
