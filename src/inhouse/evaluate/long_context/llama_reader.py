"""Read with llama.cpp, over the HTTP listener of its child process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server
from inhouse.evaluate.long_context.reader import Read

if TYPE_CHECKING:
    import httpx

FORCE = 1e6  # a logit bias that outweighs every logit; llama.cpp reports probabilities from before it
SMALL = 256  # context of the process that the memory of a long one is compared with


@dataclass
class LlamaReader:
    """A GGUF file behind llama.cpp, one request at a time; what begins as the last one did is not reread."""

    name: str
    server: RunningEngine
    http: httpx.Client
    per_token: float | None

    def read(self, ids: Sequence[int], places: Sequence[int], choices: Sequence[Sequence[int]]) -> Read:
        """See Reader. Each scored token is a request of its own: the last one first, so that nothing is read again."""
        whole, began = list(ids), time.perf_counter()
        self._ask(whole, n_predict=1, cache_prompt=False)
        seconds = time.perf_counter() - began
        answer = self._ask(whole, n_predict=max(map(len, choices), default=1), return_tokens=True)["tokens"]
        chosen = []
        for choice in choices:
            steps = [self._logprob([*whole, *choice[:at]], token) for at, token in enumerate(choice)]
            chosen.append(sum(step for step in steps if step is not None))
        found = {place: self._logprob(whole[:place], whole[place]) for place in sorted(places, reverse=True)}
        return Read([found[place] for place in places], chosen, [int(token) for token in answer], seconds)

    def bytes_per_token(self) -> float | None:
        """By the memory of a process with a long context beside one with a short one."""
        return self.per_token

    def close(self) -> None:
        """End the child."""
        self.http.close()
        self.server.stop()

    def _logprob(self, prompt: list[int], token: int) -> float | None:
        """Of one token after a prompt; None where llama.cpp tells none, as for half a character."""
        entries = self._ask(prompt, n_predict=1, n_probs=1, logit_bias=[[token, FORCE]]).get("completion_probabilities")
        return float(entries[0]["logprob"]) if entries and entries[0]["id"] == token else None

    def _ask(self, prompt: list[int], **more: Any) -> dict[str, Any]:
        import httpx

        body = {"prompt": prompt, "temperature": 0.0, "top_k": 1, "ignore_eos": True, "cache_prompt": True} | more
        try:
            response = self.http.post("/completion", json=body)
        except httpx.TransportError as error:
            if self.server.process.wait(1.0):
                raise self.server.process.died() from error
            raise UserError("llamacpp.refused", name=self.name, reason=type(error).__name__) from error
        if response.status_code != httpx.codes.OK:
            raise UserError("llamacpp.refused", name=self.name, reason=str(response.status_code))
        reply: dict[str, Any] = response.json()
        return reply


def open_reader(name: str, model: Path, settings: LlamaCppSettings, per_token: float | None = None) -> LlamaReader:
    """Load a GGUF file with a context of exactly what `settings` asks for; `per_token`: of the cache, where known.

    Raises long_context.beyond where the model, as it is stretched, cannot read so much.
    """
    import httpx

    server = start_server(model, settings, name=name)
    if server.context_length < settings.context_length:
        server.stop()
        raise UserError("long_context.beyond", most=server.context_length, length=settings.context_length)
    if per_token is None:
        per_token = _measured(name, model, settings, server)
    http = httpx.Client(base_url=server.url, headers=server.headers, timeout=None, trust_env=False)
    return LlamaReader(name, server, http, per_token)


def _measured(name: str, model: Path, settings: LlamaCppSettings, long: RunningEngine) -> float | None:
    """Memory of a process with a long context less that of one with a short one, for each token between."""
    more = long.context_length - SMALL
    if more < SMALL:  # too few tokens tell nothing
        return None
    short = start_server(model, settings.model_copy(update={"context_length": SMALL}), name=name)
    try:
        return (_own(long) - _own(short)) / more
    finally:
        short.stop()


def _own(server: RunningEngine) -> int:
    """Memory that the child shares with nobody: the mapped model file is not counted."""
    import psutil

    return int(psutil.Process(server.process.pid).memory_full_info().uss)
