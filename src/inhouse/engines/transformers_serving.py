"""torch and transformers as an engine that serves, in a child process: any Hugging Face folder, or a .gguf."""

from __future__ import annotations

import json
import os
from pathlib import Path

from inhouse.core.plugins import require
from inhouse.engines.backend import EngineSettings
from inhouse.engines.process import Child, python_module
from inhouse.engines.wire import WireBackend, backend


def start(source: Path, settings: EngineSettings, name: str) -> WireBackend:
    """Load a model folder or .gguf in a child. Raises what speaks against its files, torch.*, process.*."""
    require("train", "torch", "transformers", "safetensors", "accelerate")
    asked = settings.model_dump(mode="json") | {"model": str(source), "name": name, "parent": os.getpid()}
    command = python_module(
        "transformers", "inhouse.engines.transformers_child", json.dumps(asked), settings.load_timeout_s
    )
    child = Child(command)
    return backend("transformers", child, child.wait_ready(), settings.silence_s)
