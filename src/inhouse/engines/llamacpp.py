"""Run a GGUF model with llama.cpp, in a child process behind a load timeout."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.settings import usable_cores
from inhouse.engines.process import Child, python_module

DEFAULT_CONTEXT = 2048


class LlamaCppSettings(Params):
    """How llama.cpp holds a model: context, parallel requests, threads."""

    context_length: int = Field(DEFAULT_CONTEXT, ge=64, description="tokens a request may use, prompt and answer")
    parallel: int = Field(1, ge=1, le=256, description="requests answered at the same time, each with a full context")
    threads: int | None = Field(None, ge=1, description="CPU threads; left out = all cores this process may use")
    batch: int = Field(2048, ge=32, description="most prompt tokens in one step; smaller = shorter stalls for others")
    prompt_cache_mb: int = Field(0, ge=0, description="memory for the prompts of finished conversations")


@dataclass(frozen=True)
class RunningEngine:
    """A llama.cpp server in a child process. Every request but GET /health must carry `headers`."""

    url: str
    key: str
    context_length: int
    process: Child

    @property
    def headers(self) -> dict[str, str]:
        """The authorisation that the engine asks for: a key made for this child only."""
        return {"Authorization": f"Bearer {self.key}"}

    def alive(self) -> bool:
        """Whether the child process is running."""
        return self.process.running

    def healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the engine answers its health check."""
        import httpx

        try:
            return httpx.get(f"{self.url}/health", timeout=timeout_s, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, grace_s: float = 5.0) -> None:
        """End the child: politely, then by force."""
        self.process.stop(grace_s)


def start_server(
    model: Path, settings: LlamaCppSettings, *, name: str = "model", load_timeout_s: float = 120.0
) -> RunningEngine:
    """Load a GGUF file in a child process and return its address once it answers.

    The file's header is checked first: llama.cpp is not made for hostile files. A context longer than the model
    was made for is cut to what it can. Raises gguf.*, llamacpp.not_loaded, process.load_timeout, process.died.
    """
    require("serve", "xllamacpp")
    context = _context_length(model, settings)
    asked = settings.model_dump() | {
        "model": str(model),
        "name": name,
        "context_length": context,
        "threads": settings.threads or usable_cores(),
        "parent": os.getpid(),
    }
    child = Child(python_module("llama.cpp", "inhouse.engines.llamacpp_child", json.dumps(asked), load_timeout_s))
    ready = child.wait_ready()
    return RunningEngine(url=ready["url"], key=ready["key"], context_length=context, process=child)


def _context_length(model: Path, settings: LlamaCppSettings) -> int:
    from inhouse.engines.gguf_header import read_header

    if not model.is_file():
        raise UserError("llamacpp.no_file", path=model)
    metadata = read_header(model).metadata
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return (
        min(settings.context_length, trained) if isinstance(trained, int) and trained > 0 else settings.context_length
    )
