"""`hf:org/name[@revision][#file]`: a model of the Hugging Face hub or of the mirror that HF_ENDPOINT names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError, from_dict
from inhouse.sources.cache import CONTENT, Request, entry_of, keep
from inhouse.sources.child import run_module
from inhouse.sources.hub import parse
from inhouse.sources.hub_cache import copy, snapshot

MODULE = "inhouse.sources.hf_download"


def fetch(request: Request) -> Path:
    """The repository's folder, or the one file asked for, downloaded when the cache has it not.

    Offline, what other programs left in the hub's own cache is copied from there.
    """
    name = parse(request.uri)
    entry = entry_of(request, "hf", name.repository.replace("/", "--"))
    at_hand = snapshot(name) if request.offline else None
    if at_hand is not None:
        here = replace(request, offline=False)  # no socket is opened for it
        return keep(here, entry, name.file or "", lambda to: copy(request.uri, name, at_hand, to / CONTENT))
    return keep(request, entry, name.file or "", lambda staging: _download(request, staging))


def _download(request: Request, staging: Path) -> dict[str, Any]:
    """Let huggingface_hub work in a child process: its transfers run in threads that cannot be stopped here."""
    answer = staging / "tmp" / "answer.json"
    answer.unlink(missing_ok=True)
    status, log = run_module([MODULE, request.uri, str(staging / CONTENT), str(answer)], staging, request.events)
    if not answer.exists():
        last = (log.strip().splitlines() or [f"exit status {status}"])[-1]
        raise UserError("sources.hub", uri=request.uri, reason=last)
    said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "code" in said:
        raise from_dict(said)
    shutil.rmtree(staging / "tmp")
    shutil.rmtree(staging / CONTENT / ".cache", ignore_errors=True)  # huggingface_hub's own bookkeeping
    return said
