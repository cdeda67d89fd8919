"""Embeddings by llama.cpp: a second server over the same file, started when the first text comes."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from inhouse.core.errors import InhouseError
from inhouse.core.serving import EngineLost, EngineRefused
from inhouse.engines.backend import EngineSettings
from inhouse.engines.http_stream import Origin
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server
from inhouse.engines.openai_deltas import refused
from inhouse.engines.process import Child, Supervisor

TOGETHER = 32  # texts in one request to llama.cpp: those of other callers get their turn in between
MOST_CONTEXT = 8192  # the whole text is one step, and the memory for a step grows with its length
RETRY_S = 10.0  # a server that did not start is not tried again before
NO_POOLING = 0  # llama.cpp's number in the file for a model that was not made for embeddings
TOO_LONG = re.compile(rb"input \((\d+) tokens\) is (?:too large|larger)")  # llama.cpp has no code for it
log = logging.getLogger("inhouse.engines")


class Embedder:
    """The embedding server of one model. llama.cpp makes answers or embeddings in one server, never both.

    It lives at most as long as `owner`, the process that answers.
    """

    def __init__(self, model: Path, settings: EngineSettings, name: str, owner: Child) -> None:
        self._model = model
        self._settings = settings
        self._name = name
        self._owner = owner
        self._lock = threading.Lock()
        self._failed_at = float("-inf")
        self._supervisor: Supervisor[RunningEngine] | None = None

    def running(self) -> RunningEngine:
        """The server, started by the first call; blocks while it loads. Raises EngineLost when there is none."""
        with self._lock:
            if self._supervisor is None:
                self._supervisor = self._begin()
            found = self._supervisor.current
        if found is None:  # crashed, and being started again
            raise EngineLost
        return found

    def _begin(self) -> Supervisor[RunningEngine]:
        if not self._owner.running or time.monotonic() < self._failed_at + RETRY_S:
            raise EngineLost
        try:
            found = Supervisor(self._start)
        except InhouseError as error:
            self._failed_at = time.monotonic()
            log.error("the embedding server of %s does not start: %s", self._name, error)
            raise EngineLost from error
        threading.Thread(target=self._end_with_owner, args=(found,), name="end embedder", daemon=True).start()
        return found

    def _end_with_owner(self, supervisor: Supervisor[RunningEngine]) -> None:
        self._owner.wait()
        supervisor.close()

    def _start(self) -> RunningEngine:
        own = LlamaCppSettings(
            context_length=min(self._settings.context_length, MOST_CONTEXT),
            parallel=min(4, self._settings.parallel),
            threads=self._settings.threads,
            embedding=pooling(self._model),
            weights="map",
        )
        return start_server(self._model, own, name=self._name, load_timeout_s=self._settings.load_timeout_s)


def pooling(model: Path) -> Literal["mean", "model"]:
    """How one vector is made of a text's: as the file says, and the mean for a model that was made for answers."""
    from inhouse.engines.model_files import check_gguf

    metadata = check_gguf(model).metadata
    told = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", NO_POOLING)
    return "mean" if told == NO_POOLING else "model"


async def embed(origin: Origin, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
    """One vector of unit length a text, and the number of tokens read.

    Raises EngineLost, EngineSilent, EngineRefused.
    """
    vectors: list[list[float]] = []
    tokens = 0
    for begin in range(0, len(texts), TOGETHER):
        # base64: a tenth of the time that JSON's numbers take
        body = {"input": list(texts[begin : begin + TOGETHER]), "encoding_format": "base64"}
        status, said = await origin.call("/v1/embeddings", json.dumps(body).encode())
        if status != 200:
            found = TOO_LONG.search(said)
            raise EngineRefused("context", int(found[1])) if found else refused(status, said)
        try:
            answer = json.loads(said)
            entries = sorted(answer["data"], key=lambda entry: entry["index"])
            vectors.extend(_floats(entry["embedding"]) for entry in entries)
            tokens += int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineLost from error
    return vectors, tokens


def _floats(encoded: str) -> list[float]:
    """Little-endian float32 in base64."""
    found = array("f")
    found.frombytes(base64.b64decode(encoded))
    return found.tolist()
