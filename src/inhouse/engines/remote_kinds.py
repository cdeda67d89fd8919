"""The kinds of OpenAI-compatible endpoints: how each is told from the others, and how it wants to be asked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from inhouse.core.serving import Ask, Constraint, EngineRefused, Limit, Sampling

Kind = Literal["vllm", "sglang", "tgi", "ollama", "llama-server", "openai"]
Tools = Literal["no", "forced", "auto"]
JSON: frozenset[Limit] = frozenset({"json_object", "json_schema"})
ALL: frozenset[Limit] = JSON | {"regex", "grammar", "choice"}
STRUCTURED = (0, 11)  # vLLM takes `structured_outputs` from here on, and `guided_*` before


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a kind of endpoint understands beside OpenAI's common fields."""

    constraints: frozenset[Limit] = JSON
    tools: Tools = "auto"
    logprobs: bool = True
    logit_bias: bool = True
    many: bool = True  # answers n > 1
    ids: bool = False  # takes a prompt as token ids
    extras: frozenset[str] = frozenset()  # of top_k, min_p, ignore_eos
    neutral: Mapping[str, Any] = field(default_factory=dict)  # sent where a request says nothing
    cancels_whole: bool = True  # ends a plain request when its client has gone
    prefix_cache: bool = False


EXTRAS = frozenset({"top_k", "min_p", "ignore_eos"})
# A model's generation_config, and llama.cpp's own defaults, would make the same request mean another distribution
# than on other engines.
OFF = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
DIALECTS: dict[Kind, Dialect] = {
    # `auto` tools need flags at the start of vLLM and SGLang which no route tells of; forced ones always work.
    "vllm": Dialect(ALL, "forced", ids=True, extras=EXTRAS, neutral=OFF, prefix_cache=True),
    "sglang": Dialect(ALL, "forced", ids=True, extras=EXTRAS, neutral=OFF, prefix_cache=True),
    "tgi": Dialect(JSON | {"regex", "choice"}, logit_bias=False, many=False),
    "ollama": Dialect(logit_bias=False, many=False),
    # A 900-token answer ran on for 10 s after the client of a plain request had gone.
    "llama-server": Dialect(
        JSON | {"grammar", "choice"}, ids=True, extras=EXTRAS, cancels_whole=False, prefix_cache=True,
        neutral={"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0},
    ),
    "openai": Dialect(),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """An endpoint that answered: what it is, and how long a request may be."""

    kind: Kind
    version: str
    api: str  # the address below which /chat/completions lies
    root: str  # the address below which the kind's own routes lie
    model: str
    context_length: int | None
    adapters: tuple[str, ...] = ()

    @property
    def dialect(self) -> Dialect:
        """How it wants to be asked."""
        return DIALECTS[self.kind]


def request_body(ask: Ask, found: Found) -> dict[str, Any]:
    """An Ask in an endpoint's words. Raises EngineRefused for what it cannot do, rather than leave it out."""
    dialect = found.dialect
    body: dict[str, Any] = {"model": ask.adapter or found.model, **_sampling(ask.sampling, found)}
    if ask.messages is not None:
        body["messages"] = ask.messages
    else:
        _need(isinstance(ask.prompt, str) or dialect.ids)
        body["prompt"] = ask.prompt
    if ask.sampling.logprobs is not None:
        _need(dialect.logprobs)
        others = max(1, ask.sampling.logprobs)  # with none of them llama-server tells nothing
        body |= {"logprobs": True, "top_logprobs": others} if ask.messages is not None else {"logprobs": others}
    if ask.constraint is not None:
        body |= constrained(ask.constraint, found)
    if ask.tools:
        _need(dialect.tools != "no" and (found.kind != "ollama" or ask.tool_choice in ("auto", "none")))
        body |= {"tools": ask.tools, "tool_choice": ask.tool_choice}
        if not ask.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    return body


def _need(holds: bool) -> None:
    if not holds:
        raise EngineRefused("unsupported")


def _sampling(asked: Sampling, found: Found) -> dict[str, Any]:
    dialect = found.dialect
    _need(asked.n == 1 or dialect.many)
    _need(not asked.logit_bias or dialect.logit_bias)
    limit = "max_completion_tokens" if found.api.startswith("https://api.openai.com/") else "max_tokens"
    body: dict[str, Any] = {**dialect.neutral, limit: asked.max_tokens, "temperature": asked.temperature}
    body |= _repetition(asked.repetition_penalty, found)
    for name, value in (("top_k", asked.top_k), ("min_p", asked.min_p), ("ignore_eos", asked.ignore_end)):
        if value:
            _need(name in dialect.extras)
            body[name] = value
    if asked.top_p is not None:
        body["top_p"] = asked.top_p
    if asked.seed is not None:
        body["seed"] = asked.seed % (2**32 - 1)  # llama.cpp and Ollama take 32 bits
    if asked.stop:
        body["stop"] = list(asked.stop)
    if asked.n > 1:
        body["n"] = asked.n
    for name in ("presence_penalty", "frequency_penalty"):
        if penalty := getattr(asked, name):
            body[name] = penalty
    if asked.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in asked.logit_bias.items()}
    return body


def _repetition(penalty: float, found: Found) -> dict[str, Any]:
    if penalty == 1:
        return {}
    neutral = found.dialect.neutral
    _need("repetition_penalty" in neutral or "repeat_penalty" in neutral)
    if "repetition_penalty" in neutral:
        return {"repetition_penalty": penalty}
    last = {} if found.context_length is None else {"repeat_last_n": found.context_length}
    return {"repeat_penalty": penalty, **last}  # over the prompt too, as the others do


def constrained(asked: Constraint, found: Found) -> dict[str, Any]:
    """The fields that hold an answer to a form. Raises EngineRefused for a form that the endpoint does not know."""
    _need(asked.kind in found.dialect.constraints)
    if found.kind == "tgi":
        return {"response_format": _tgi(asked)}
    if asked.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if asked.kind == "json_schema":
        named = {"name": "answer", "schema": asked.value, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if found.kind == "vllm":
        value = list(asked.value) if asked.kind == "choice" else asked.value
        if numbers(found.version) >= STRUCTURED:
            return {"structured_outputs": {asked.kind: value}}
        return {f"guided_{asked.kind}": value}
    if found.kind == "sglang":
        return {"ebnf": asked.value} if asked.kind == "grammar" else {"regex": _expression(asked)}
    if asked.kind == "choice":  # llama-server
        return {"grammar": "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in asked.value)}
    return {"grammar": asked.value}


def _tgi(asked: Constraint) -> dict[str, Any]:
    if asked.kind in JSON:
        return {"type": "json_object", "value": asked.value if asked.kind == "json_schema" else {"type": "object"}}
    return {"type": "regex", "value": _expression(asked)}


def _expression(asked: Constraint) -> str:
    if asked.kind == "choice":
        return "(" + "|".join(re.escape(choice) for choice in asked.value) + ")"
    return str(asked.value)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 0.12.0rc1 -> (0, 12, 0)."""
    found = re.match(r"(\d+(?:\.\d+)*)", version.lstrip("v"))
    return tuple(int(part) for part in found[1].split(".")) if found else (0,)
