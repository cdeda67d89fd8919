"""What every engine that serves starts as: settings that all share, and the running thing the gateway connects to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.serving import ServingEngine
from inhouse.engines.process import Child

Use = Literal["llamacpp", "openvino", "transformers"]


class EngineSettings(Params):
    """What any engine is started with."""

    context_length: int = Field(2048, ge=64, description="tokens a request may use, prompt and answer")
    parallel: int = Field(2, ge=1, le=256, description="requests answered at the same time")
    threads: int | None = Field(None, ge=1, description="CPU threads; left out = all cores this process may use")
    load_timeout_s: float = Field(120.0, gt=0, description="a model that is not ready by then is not served")
    silence_s: float = Field(300.0, gt=0, description="an engine that says nothing for so long is given up")
    adapters: dict[str, Path] = Field(
        {}, description="adapters by name: for a GGUF file its GGUF adapters, else folders that PEFT wrote"
    )
    speculation: Literal["off", "ngram", "auto"] = Field("auto", description="guess tokens from the request's own text")
    kv_cache: Literal["f16", "q8_0", "q4_0"] = Field("f16", description="precision of kept keys and values")
    cache: Path | None = Field(None, description="folder for files that can be made again; left out = the user's cache")
    embeddings: bool = Field(False, description="answer /v1/embeddings too; needs a second copy of the model")


class Backend(Protocol):
    """A started engine: a child process, and the way to it."""

    @property
    def process(self) -> Child: ...

    @property
    def context_length(self) -> int: ...

    def healthy(self) -> bool:
        """Whether it answers its health check; called from a thread."""
        ...

    def open(self) -> ServingEngine:
        """A connection for the running event loop."""
        ...
