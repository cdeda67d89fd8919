"""Run a GGUF model with llama.cpp, in a child process behind a load timeout."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.control_tokens import NONE, ControlTokens
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.protocols import Generation, Input, Prompt, Question, Scored, Tick, question_of
from inhouse.core.rows import Message
from inhouse.core.settings import large_pages, usable_cores
from inhouse.core.thoughts import continued
from inhouse.core.tool_words import as_prompted
from inhouse.engines.gguf_adapter import check_adapter
from inhouse.engines.gguf_header import read_header
from inhouse.engines.gguf_tokens import control_of
from inhouse.engines.model_files import check_gguf
from inhouse.engines.process import Child, python_module
from inhouse.engines.rope import RopeScaling
from inhouse.engines.waiting import SLEEPING, waiting

if TYPE_CHECKING:
    import httpx

Tokens = tuple[int, ...]
Speculation = Literal["off", "ngram", "auto"]
CacheType = Literal["f16", "q8_0", "q4_0"]
DEFAULT_CONTEXT = 2048
EVALUATION_CONTEXT = 4096
SPINS = 300_000  # of GNU OpenMP where nothing is set: about a millisecond
LIKELY = 200  # choices are looked for among so many likeliest tokens before each is asked for by itself
EVERY = 1 << 20  # llama.cpp cuts it to the size of the vocabulary
FORCE = 1e6  # a logit bias that outweighs every logit
# llama.cpp closes a connection after a stream without saying so: a request that follows at once would be lost on it.
CLOSE = {"Connection": "close"}
GREEDY = {"temperature": 0.0, "top_k": 1, "cache_prompt": True}


class LlamaCppSettings(Params):
    """How llama.cpp holds a model: context, parallel requests, threads."""

    context_length: int = Field(DEFAULT_CONTEXT, ge=64, description="tokens a request may use, prompt and answer")
    parallel: int = Field(1, ge=1, le=256, description="requests answered at the same time, each with a full context")
    threads: int | None = Field(None, ge=1, description="CPU threads; left out = all cores this process may use")
    batch: int = Field(2048, ge=32, description="most prompt tokens in one step; smaller = shorter stalls for others")
    waiting: Literal["auto", "spin", "sleep"] = Field(
        "auto", description="how threads wait for each other; spin is fastest alone, sleep on a machine with other work"
    )
    weights: Literal["auto", "map", "copy"] = Field(
        "auto",
        description="map = read from the file, which replicas share; copy = into large pages, a few percent faster;"
        " auto = copy where it takes at most a quarter of the free memory",
    )
    prompt_cache_mb: int = Field(0, ge=0, description="memory for the prompts of finished conversations")
    adapters: dict[str, Path] = Field({}, description="LoRA adapters by name, each a GGUF adapter file for this model")
    speculation: Speculation = Field(
        "off",
        description="guess tokens from the request's own text: pays where answers copy from the prompt and few clients "
        "ask; auto = ngram with parallel: 1",
    )
    cache_type_k: CacheType = Field("f16", description="type of the keys kept of each token; q8_0 halves their memory")
    cache_type_v: CacheType = Field("f16", description="type of the values; other than f16 turns flash attention on")
    rope_scaling: RopeScaling | None = Field(
        None, description="positions stretched over longer texts than the model was made for; dynamic is not known here"
    )
    embedding: Literal["mean", "model"] | None = Field(
        None, description="make embeddings, not answers: the mean over the tokens, or what the model's file says"
    )


@dataclass(frozen=True)
class RunningEngine:
    """A llama.cpp server in a child process. Every request but GET /health must carry `headers`."""

    url: str
    key: str
    context_length: int
    process: Child
    adapters: tuple[str, ...] = ()  # names in the order of llama.cpp's ids
    control: ControlTokens = NONE
    template: str | None = None  # of the model's file

    def lora(self, adapter: str | None) -> list[dict[str, float]]:
        """What a request carries as `lora` so that this adapter answers it, or with None the base alone.

        Every request to an engine with adapters must carry it: for one without, llama.cpp goes on with keys and values
        that the adapter of the request before left in its cache.
        """
        if adapter is not None and adapter not in self.adapters:
            raise UserError("engines.adapter_unknown", adapter=adapter, known=", ".join(self.adapters) or "-")
        return [{"id": at, "scale": float(name == adapter)} for at, name in enumerate(self.adapters)]

    @property
    def headers(self) -> dict[str, str]:
        """The authorisation that the engine asks for: a key made for this child only."""
        return {"Authorization": f"Bearer {self.key}"}

    def alive(self) -> bool:
        """Whether the child process is running."""
        return self.process.running

    def healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the engine answers its health check."""
        # http.client: asked twice a second inside the gateway, and httpx takes 20 ms of CPU to make a client.
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=timeout_s)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def stop(self, grace_s: float = 5.0) -> None:
        """End the child: politely, then by force."""
        self.process.stop(grace_s)


def start_server(
    model: Path, settings: LlamaCppSettings, *, name: str = "model", load_timeout_s: float = 120.0
) -> RunningEngine:
    """Load a GGUF file in a child process and return its address once it answers.

    The file's header and template are tried first: llama.cpp is not made for hostile files. A context longer than
    the model was made for is cut to what it can. Raises gguf.*, engines.template_refused, llamacpp.not_loaded,
    process.load_timeout, process.died.
    """
    require("serve", "xllamacpp")
    if settings.rope_scaling is not None and settings.rope_scaling.rope_type == "dynamic":
        raise UserError("rope.dynamic_gguf", name=name)
    context = _context_length(model, settings)
    for adapter in settings.adapters.values():
        check_adapter(adapter)
    asked = settings.model_dump(mode="json") | {
        "model": str(model),
        "name": name,
        "context_length": context,
        "threads": settings.threads or usable_cores(),
        "copied": _copied(model, settings),
        "parent": os.getpid(),
    }
    command = python_module("llama.cpp", "inhouse.engines.llamacpp_child", json.dumps(asked), load_timeout_s)
    child = Child(replace(command, environment=_waiting(settings) | large_pages()))
    try:
        ready = child.wait_ready()
    except UserError as error:
        if error.code != "llamacpp.not_loaded":
            raise
        raise UserError("llamacpp.not_loaded", path=model, context=context, line=_reason(child)) from None
    running = RunningEngine(ready["url"], ready["key"], context, child, tuple(settings.adapters))
    with ExitStack() as failed:
        failed.callback(running.stop)
        header = read_header(model)
        control = control_of(model, header, lambda text: _parsed(running, text))
        failed.pop_all()
    return replace(running, control=control, template=header.text("tokenizer.chat_template"))


def _parsed(running: RunningEngine, text: str) -> list[int]:
    """Ids of a text, control tokens in it parsed."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(running.url.removeprefix("http://"), timeout=60.0)
    body = json.dumps({"content": text, "add_special": False, "parse_special": True})
    try:
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json", **running.headers})
        found: list[int] = json.loads(connection.getresponse().read())["tokens"]
    except (OSError, HTTPException, ValueError, KeyError) as error:
        raise UserError("llamacpp.refused", name=running.url, reason=type(error).__name__) from error
    finally:
        connection.close()
    return found


def _waiting(settings: LlamaCppSettings) -> dict[str, str]:
    """How the threads wait for each other, which they do hundreds of times per token.

    Beside two busy processes on 2 cores an answer took 4.5 s spinning and 0.5 s asleep; alone on the machine 0.12 s
    spinning and 0.20 s asleep (SmolLM2-135M Q8_0, 3 tokens).
    """
    if settings.waiting == "auto":
        return waiting(SPINS)
    return SLEEPING if settings.waiting == "sleep" else {"GOMP_SPINCOUNT": str(SPINS)}


def _copied(model: Path, settings: LlamaCppSettings) -> bool:
    """Whether the weights are copied into memory of the process. Tokens at one client: 1.05 times as many a second."""
    import psutil

    if settings.weights != "auto":
        return settings.weights == "copy"
    return model.stat().st_size <= int(psutil.virtual_memory().available) // 4


def _reason(child: Child) -> str:
    """The first error in llama.cpp's log: what follows it is housekeeping."""
    found = (line.partition(" E ")[2] for line in tuple(child.log) if " E " in line[:24])
    return next(found, child.last_line).strip()


def open_model(
    source: Input, *, threads: int | None = None, context_length: int = EVALUATION_CONTEXT
) -> LlamaCppEngine:
    """Load a GGUF model artifact for greedy answers. Raises llamacpp.not_gguf for another format."""
    facts = ModelFacts.model_validate(source.record.facts["model"])
    if facts.format != "gguf":
        raise UserError("llamacpp.not_gguf", name=facts.name, format=facts.format)
    path = source.path / facts.main
    settings = LlamaCppSettings(threads=threads, context_length=context_length)
    server = start_server(path, settings, name=facts.name)
    return LlamaCppEngine(facts.name, server, _end_tokens(path))


def _end_tokens(model: Path) -> frozenset[int]:
    metadata = read_header(model).metadata
    found = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
    return frozenset(token for token in found if isinstance(token, int))


def _context_length(model: Path, settings: LlamaCppSettings) -> int:
    if not model.is_file():
        raise UserError("llamacpp.no_file", path=model)
    metadata = check_gguf(model).metadata
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if not isinstance(trained, int) or trained <= 0:
        return settings.context_length
    if (scaling := settings.rope_scaling) is not None:
        trained = int((scaling.original_max_position_embeddings or trained) * scaling.factor)
    return min(settings.context_length, trained)


class LlamaCppEngine:
    """A GGUF model behind llama.cpp that answers greedily, one request at a time.

    One slot only: with several, which requests share a batch depends on timing, and batches of another shape
    round differently. One at a time, the same calls in the same order give the same bytes.
    """

    def __init__(self, name: str, server: RunningEngine, ends: frozenset[int]) -> None:
        import httpx

        self.name = name
        self.server = server
        self._ends = ends
        # trust_env off: a proxy from the environment must not see, or break, requests to our own child.
        self._http = httpx.Client(base_url=server.url, headers=server.headers, timeout=None, trust_env=False)
        self._answers: dict[str, tuple[int, ...]] = {}

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the conversation through the model's own template, ready for the answer to follow."""
        return self._ids(self._written(question_of(prompt), answer_follows=True))

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, tick: Tick, ignore_end: bool = False
    ) -> list[Generation]:
        """Greedy answers in the order of the prompts; `tokens` counts the end-of-turn token too."""
        answers = []
        for prompt in prompts:
            answers.append(self._answer(self.token_ids(prompt), max_tokens, ignore_end))
            tick(1)
        return answers

    def score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], tick: Tick) -> list[list[Scored]]:
        """How likely each of a prompt's choices is as its whole answer, end of turn included.

        Exact: llama.cpp reports the probability of a sampled token from the untouched logits, so each token of a
        choice is forced in turn by a logit bias. Choices with a common beginning share its steps.
        """
        scores = []
        for prompt, own in zip(prompts, choices, strict=True):
            ids = self.token_ids(prompt)
            wanted = [self._choice_ids(prompt, choice) for choice in own]
            logprobs = self._tree_logprobs(ids, wanted)
            scores.append([_sum(choice, logprobs) for choice in wanted])
            tick(1)
        return scores

    def next_logprobs(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        """Natural-log probabilities of the `top` likeliest next token ids after each prompt."""
        return [self._top(self.token_ids(prompt), top) for prompt in prompts]

    def logprobs_of(self, prompt: Prompt, tokens: Sequence[int]) -> dict[int, float]:
        """Natural-log probability of each of `tokens` as the next one after the prompt."""
        return self._logprobs(self.token_ids(prompt), tokens)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a plain text: no template, no special tokens."""
        asked = {"content": text, "add_special": False, "parse_special": False}
        ids: list[int] = self._post("/tokenize", asked)["tokens"]
        return ids

    def memory_bytes(self) -> int:
        """Peak resident memory of the child, the mapped model file included."""
        import psutil

        pid = self.server.process.pid
        status = Path(f"/proc/{pid}/status")
        if status.is_file():
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
            if found:
                return int(found[1]) * 1024
        return psutil.Process(pid).memory_info().rss  # elsewhere: what it holds now

    def close(self) -> None:
        """End the child."""
        self._http.close()
        self.server.stop()

    def _written(self, asked: Question, answer_follows: bool) -> str:
        told = self.server.control.in_turns([message.as_dict() for message in asked.turns])
        turns, tools = as_prompted(self.server.template, told, asked.tools)
        body: dict[str, Any] = {"messages": turns, "add_generation_prompt": answer_follows}
        if tools:
            body |= {"tools": tools, "tool_choice": "none"}  # written by the template; no form of answer is demanded
        text: str = self._post("/apply-template", body)["prompt"]
        return text

    def _ids(self, text: str) -> list[int]:
        # As the chat endpoint does: special tokens are parsed, and a BOS is added when the model asks for one.
        parsed = {"content": text, "add_special": True, "parse_special": True}
        ids: list[int] = self._post("/tokenize", parsed)["tokens"]
        return ids

    def _choice_ids(self, prompt: Prompt, choice: str) -> tuple[int, ...]:
        """A choice as the answer's ids, end of turn included. The template separates turns: any prompt will do."""
        if choice not in self._answers:
            asked = question_of(prompt)
            answered = [*asked.turns, Message(role="assistant", content=choice)]
            before = self._written(asked, answer_follows=True)
            told = continued(before, self._written(Question(answered, asked.tools), answer_follows=False))
            begin, whole = self._ids(before), self._ids(told or "")
            if whole[: len(begin)] != begin:
                raise UserError("llamacpp.template_shifts", name=self.name)
            stop = next((at for at in range(len(begin), len(whole)) if whole[at] in self._ends), len(whole) - 1)
            self._answers[choice] = tuple(whole[len(begin) : stop + 1])
        return self._answers[choice]

    def _tree_logprobs(self, prompt: list[int], choices: Sequence[Tokens]) -> dict[Tokens, dict[int, float]]:
        """For every beginning that the choices have: the log-probability of each way they go on."""
        ways: dict[Tokens, set[int]] = {}
        for choice in choices:
            for at, token in enumerate(choice):
                ways.setdefault(choice[:at], set()).add(token)
        # Sorted = depth first: the engine keeps the longest common beginning of one request for the next.
        return {begin: self._logprobs([*prompt, *begin], sorted(ways[begin])) for begin in sorted(ways)}

    def _logprobs(self, ids: list[int], tokens: Sequence[int]) -> dict[int, float]:
        found = self._top(ids, LIKELY) if len(tokens) > 1 else {}
        for token in tokens:
            if token not in found and (logprob := self._forced(ids, token)) is not None:
                found[token] = logprob
        if any(token not in found for token in tokens):
            found = self._top(ids, EVERY)
        return {token: found[token] for token in tokens}

    def _top(self, ids: list[int], top: int) -> dict[int, float]:
        # The end of turn is forced as the sampled token: llama.cpp lists nothing for one that is half a character.
        end = min(self._ends, default=None)
        entry = self._next(ids, end, top)
        if entry is None:
            raise UserError("llamacpp.refused", name=self.name, reason="no probabilities")
        return {each["id"]: float(each["logprob"]) for each in entry["top_logprobs"]}

    def _forced(self, ids: list[int], token: int) -> float | None:
        """The log-probability of one token; None when llama.cpp lists none, for it is half a character."""
        entry = self._next(ids, token, 1)
        return float(entry["logprob"]) if entry is not None and entry["id"] == token else None

    def _next(self, ids: list[int], forced: int | None, top: int) -> dict[str, Any] | None:
        """What llama.cpp says of the next token: the sampled one's log-probability, and the `top` likeliest.

        All are taken from the logits before any sampling, so a bias that forces a token does not change them.
        """
        bias = [] if forced is None else [[forced, FORCE]]
        body = {"prompt": ids, "n_predict": 1, "n_probs": top, "logit_bias": bias, **GREEDY}
        entries: list[dict[str, Any]] = self._post("/completion", body).get("completion_probabilities", [])
        return entries[0] if entries else None

    def _answer(self, ids: list[int], max_tokens: int, ignore_end: bool) -> Generation:
        import httpx

        body = {"prompt": ids, "n_predict": max_tokens, "ignore_eos": ignore_end, "stream": True, **GREEDY}
        text, first, last = "", 0.0, {}
        started = time.perf_counter()
        try:
            with self._http.stream("POST", "/completion", json=body, headers=CLOSE) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise self._refused(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        first = first or time.perf_counter() - started
                        last = json.loads(line[6:])
                        text += last["content"]
        except httpx.TransportError as error:
            raise self._lost(error) from error
        total = time.perf_counter() - started
        finish = "length" if last["stop_type"] == "limit" else "stop"
        return Generation(text, last["tokens_predicted"], finish, first, total)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            response = self._http.post(path, json=body)
        except httpx.TransportError as error:
            raise self._lost(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refused(response)
        reply: dict[str, Any] = response.json()
        return reply

    def _refused(self, response: httpx.Response) -> UserError:
        try:
            reason = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = response.text[:200]
        return UserError("llamacpp.refused", name=self.name, reason=reason)

    def _lost(self, error: Exception) -> UserError:
        if self.server.process.wait(1.0):
            return self.server.process.died()
        return UserError("llamacpp.refused", name=self.name, reason=str(error))


def _sum(choice: Tokens, logprobs: dict[Tokens, dict[int, float]]) -> Scored:
    steps = [logprobs[choice[:at]][token] for at, token in enumerate(choice)]
    return Scored(math.fsum(steps), len(steps))
