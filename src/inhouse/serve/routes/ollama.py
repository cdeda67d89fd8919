"""Ollama's API: /api/chat, generate, embed, embeddings, tags, show, ps, version."""

from __future__ import annotations

import time
from typing import Any

from inhouse import __version__
from inhouse.core.messages import text
from inhouse.core.model import ModelFacts
from inhouse.core.serving import EngineRefused
from inhouse.release.keys import Key
from inhouse.serve.direct import Borrowed, borrowed, vectors
from inhouse.serve.errors import ApiError, invalid
from inhouse.serve.http import Call
from inhouse.serve.ollama_replies import NS, ChatShape, GenerateShape, OllamaFace, Shape, now
from inhouse.serve.ollama_requests import (
    OllamaAsk,
    OllamaAsking,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaShow,
    chat_of,
    generation_of,
)
from inhouse.serve.requests import read_body
from inhouse.serve.routes import Route, Services
from inhouse.serve.routes.embeddings import shorten
from inhouse.serve.target import Target

Json = dict[str, Any]
LATEST = ":latest"  # Ollama's clients add it to names without a tag
NEVER = "9999-12-31T23:59:59Z"  # a release is not unloaded while it is served
PLAIN_TYPES = {"F32", "F16", "BF16"}
KILO = 1000


async def chat(services: Services, call: Call) -> None:
    """POST /api/chat."""
    body = read_body(OllamaChat, await call.body(call.most_bytes))
    name = served_name(services, body.model)
    if not body.messages:  # how clients have a model loaded before it is asked
        await _loaded(call, body, ChatShape())
        return
    await _answer(services, call, body, chat_of(body, name), ChatShape())


async def generate(services: Services, call: Call) -> None:
    """POST /api/generate."""
    body = read_body(OllamaGenerate, await call.body(call.most_bytes))
    name = served_name(services, body.model)
    if not body.prompt:
        await _loaded(call, body, GenerateShape())
        return
    await _answer(services, call, body, generation_of(body, name), GenerateShape())


async def embed(services: Services, call: Call) -> None:
    """POST /api/embed."""
    body = read_body(OllamaEmbed, await call.body(call.most_bytes))
    inputs = [body.input] if isinstance(body.input, str) else list(body.input)
    if any(not each for each in inputs):
        raise invalid(text("serve.empty_input"), "input")
    await call.while_there(_embed(services, call, body, inputs))


async def embeddings(services: Services, call: Call) -> None:
    """POST /api/embeddings."""
    body = read_body(OllamaEmbeddings, await call.body(call.most_bytes))
    if not body.prompt:
        await call.reply({"embedding": []})
        return
    await call.while_there(_embedding(services, call, body, body.prompt))


async def tags(services: Services, call: Call) -> None:
    """GET /api/tags: every name that can be asked for, with the file behind it."""
    await call.reply({"models": [_entry(services, name) for name in services.deployments.names(call.key)]})


async def running(services: Services, call: Call) -> None:
    """GET /api/ps: what is loaded, which is what is served."""
    names = [name for name in services.deployments.serving if call.key is None or call.key.may_use(name)]
    more = {"expires_at": NEVER, "size_vram": 0}
    told = [_entry(services, name) | more for name in names]
    for name, entry in zip(names, told, strict=True):
        entry["context_length"] = _target(services, name).limits.context_length
    await call.reply({"models": told})


async def show(services: Services, call: Call) -> None:
    """POST /api/show: what is known of a model without its weights."""
    body = read_body(OllamaShow, await call.body(call.most_bytes))
    target = _target(services, served_name(services, body.model or body.name or "", call.key))
    facts = target.model.facts
    _, engine = await target.pool.pick(None)
    able = engine.capabilities
    found = {"completion": able.chat, "tools": able.chat, "embedding": able.embeddings}
    info = {
        "general.architecture": facts.architecture,
        "general.basename": facts.name,
        "general.parameter_count": facts.parameters,
        f"{facts.architecture}.context_length": target.limits.context_length,
        f"{facts.architecture}.block_count": facts.layers,
        f"{facts.architecture}.embedding_length": facts.hidden,
        f"{facts.architecture}.attention.head_count": facts.heads,
        f"{facts.architecture}.attention.head_count_kv": facts.kv_heads,
    }
    await call.reply(
        {
            "modelfile": f"FROM {target.release.label}\n",
            "parameters": f"num_ctx {target.limits.context_length}\ntemperature {target.limits.temperature:g}",
            "template": "",
            "details": _details(facts),
            "model_info": {name: value for name, value in info.items() if value is not None},
            "capabilities": [name for name, can in found.items() if can],
            "modified_at": target.release.created,
        }
    )


async def version(services: Services, call: Call) -> None:
    """GET /api/version: of inhouse."""
    await call.reply({"version": __version__})


def served_name(services: Services, asked: str, key: Key | None = None) -> str:
    """The name under which a model is served here; `name:latest` is `name`. Raises ApiError 404."""
    names = services.deployments.names(key)
    for name in (asked, asked.removesuffix(LATEST)):
        if name in names:
            return name
    raise ApiError(404, "model_not_found", text("serve_faces.model_unknown", model=asked[:100]), "model")


async def _answer(services: Services, call: Call, body: OllamaAsk, asking: OllamaAsking, shape: Shape) -> None:
    caller = services.caller(call)
    face = OllamaFace(call.connection, body.model, shape)
    await call.while_there(services.pipeline.run(asking.body.model, asking.prepare, caller, face), wanted=caller.wanted)


async def _loaded(call: Call, body: OllamaAsk, shape: Shape) -> None:
    """The model is loaded already, and it stays, whatever keep_alive says."""
    reason = "unload" if body.keep_alive in (0, "0", "0s") else "load"
    told = {"model": body.model, "created_at": now(), **shape.said("", "", []), "done": True, "done_reason": reason}
    await call.reply(told)


async def _embed(services: Services, call: Call, body: OllamaEmbed, inputs: list[str]) -> None:
    began = time.monotonic()
    name = served_name(services, body.model)
    found: list[list[float]] = []
    tokens = 0
    if inputs:
        async with borrowed(services, services.caller(call), name, turn=True) as lent:
            found, tokens = await _cut_vectors(lent, inputs, cut=body.truncate is not False)
            call.connection.tell(lent.release, sorted(body.model_extra or {}))
    if body.dimensions is not None:
        found = [shorten(vector, body.dimensions) for vector in found]
    took = round((time.monotonic() - began) * NS)
    await call.reply(
        {
            "model": body.model,
            "embeddings": found,
            "total_duration": took,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
    )


async def _embedding(services: Services, call: Call, body: OllamaEmbeddings, prompt: str) -> None:
    name = served_name(services, body.model)
    async with borrowed(services, services.caller(call), name, turn=True) as lent:
        found, _ = await _cut_vectors(lent, [prompt], cut=True)
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    await call.reply({"embedding": found[0]})


async def _cut_vectors(lent: Borrowed, inputs: list[str], cut: bool) -> tuple[list[list[float]], int]:
    """Vectors of texts; where one is longer than the context, of what fits into it, as Ollama does by itself."""
    try:
        return await vectors(lent, inputs)
    except EngineRefused as refused:
        if not cut or refused.reason != "context":
            raise
    most = lent.limits.context_length
    return await vectors(lent, [(await lent.engine.tokenize(each, True))[:most] for each in inputs])


def _target(services: Services, name: str) -> Target:
    """The release behind a name, at this moment."""
    way = services.deployments.enter(name, lambda _: None)
    services.deployments.leave(way.target)
    return way.target


def _entry(services: Services, name: str) -> Json:
    target = _target(services, name)
    facts = target.model.facts
    shown = name if ":" in name else name + LATEST
    return {
        "name": shown,
        "model": shown,
        "modified_at": target.release.created,
        "size": facts.bytes or target.model.path.stat().st_size,
        "digest": target.model.sha256,
        "details": _details(facts),
    }


def _details(facts: ModelFacts) -> Json:
    return {
        "parent_model": "",
        "format": facts.format,
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": _counted(facts.parameters),
        "quantization_level": _precision(facts.tensor_types),
    }


def _counted(parameters: int | None) -> str:
    """As models are called: 134.5M, 7.0B."""
    if parameters is None:
        return "unknown"
    for unit, size in (("B", KILO**3), ("M", KILO**2), ("K", KILO)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters)


def _precision(types: dict[str, int]) -> str:
    """The type that most of the tensors have; norms stay in 32 bits and say nothing."""
    packed = {name: count for name, count in types.items() if name.upper() not in PLAIN_TYPES} or types
    return max(packed, key=lambda name: packed[name]).upper() if packed else "unknown"


ROUTES = (
    Route("POST", "/api/chat", chat),
    Route("POST", "/api/generate", generate),
    Route("POST", "/api/embed", embed, scope="embed"),
    Route("POST", "/api/embeddings", embeddings, scope="embed"),
    Route("GET", "/api/tags", tags),
    Route("GET", "/api/ps", running),
    Route("POST", "/api/show", show),
    Route("GET", "/api/version", version),
)
