"""Which engine reads a release's model, how it is started, and what it needs."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.model_card import trained_name
from inhouse.core.settings import usable_cores
from inhouse.core.store import Store
from inhouse.engines.adapters import base_named
from inhouse.engines.backend import Backend, EngineSettings, Use
from inhouse.engines.gguf_adapter import adapter_for, peft_folder
from inhouse.release.settings import RemoteParams, ServeParams
from inhouse.serve.replica import Finder, Reached, Replica, local

log = logging.getLogger("inhouse.serve")
PACKAGES = {"llamacpp": "xllamacpp", "openvino": "openvino-genai", "transformers": "transformers"}


class Start(Protocol):
    """`start` of an engine's module."""

    def __call__(self, source: Path, settings: EngineSettings, name: str) -> Backend: ...


def kinds_for(path: Path, asked: str, release: str) -> tuple[Use, ...]:
    """The engines for a model file or folder: the one to start with and, for `auto`, the one to compare it with."""
    gguf = path.suffix == ".gguf"
    if asked == "auto":
        second: tuple[Use, ...] = ("openvino",) if gguf and find_spec("openvino_genai") is not None else ()
        return ("llamacpp" if gguf else "transformers", *second)
    if asked != "transformers" and not gguf:
        raise UserError("serve_pool.engine_reads", release=release, path=path.name, engine=asked)
    return (cast(Use, asked),)


def engine_settings(settings: ServeParams, params: ServeParams) -> EngineSettings:
    """What each engine starts with; engines of one machine share its threads. `params` are this server's own."""
    share = (settings.threads or usable_cores()) // max(params.replicas.least, params.replicas.most)
    return EngineSettings(
        context_length=settings.context_length,
        parallel=settings.parallel,
        threads=max(1, share) if params.replicas.most > 1 or params.replicas.least > 1 else settings.threads,
        load_timeout_s=settings.load_timeout_s,
        silence_s=params.first_token_s,
        embeddings=settings.embeddings,
        speculation=params.speculation,
        kv_cache=settings.kv_cache,
    )


def with_adapters(
    settings: EngineSettings, store: Store, model: Path, wanted: Mapping[str, str], kinds: Sequence[str]
) -> EngineSettings:
    """The same settings with the LoRA adapters of the release, as its engines of these kinds read them.

    `wanted` names artifacts or PEFT folders. Raises engines.adapter_*, store.unknown.
    """
    if not wanted:
        return settings
    make = peft_folder if "transformers" in kinds else adapter_for
    return settings.model_copy(update={"adapters": {name: make(store, said, model) for name, said in wanted.items()}})


def check_bases(store: Store, served: str, wanted: Mapping[str, str]) -> None:
    """Refuse adapters that were trained here on another model than the artifact `served`; equal shapes hide it.

    Of a folder from elsewhere only a name is known, that may be anything: another one is told in the log. Raises
    serve_pool.adapter_base, store.unknown.
    """
    if not wanted:
        return
    source = store.get(served)
    kin = {source.id}
    while source.stage == "compress":  # the same model in another form
        source = store.get(source.inputs.get("tuned") or source.inputs["base"])
        kin.add(source.id)
    name = ModelFacts.model_validate(source.facts["model"]).name
    name = trained_name(source, name) if source.stage == "train" else name
    for adapter, said in wanted.items():
        folder = peft_folder(store, said, store.path(served))
        made_for = Path(base_named(folder) or name).name
        if made_for.lower() == name.lower():
            continue
        facts = {"adapter": adapter, "wants": made_for, "base": name}
        if folder == Path(said):
            log.warning("the adapter %s names %s as its base, and %s is served", adapter, made_for, name)
        elif store.get(said).inputs.get("base") not in kin:
            raise UserError("serve_pool.adapter_base", **facts, folder=folder)


def replica(kind: str, name: str, source: Path, settings: EngineSettings) -> Replica:
    """Start an engine in a child process. Raises what keeps it from loading."""
    return local(name, kind, starter(kind, source, settings, name), settings.parallel)


def starter(kind: str, source: Path, settings: EngineSettings, name: str) -> Callable[[], Backend]:
    """What starts an engine, once and again."""
    start: Start = importlib.import_module(f"inhouse.engines.{kind}_serving").start
    return lambda: start(source, settings, name)


def remote(number: int, asked: RemoteParams, silence_s: float) -> Replica:
    """An endpoint that others run, given up when it is silent for so long; it is looked for until it is there."""
    from inhouse.core.settings import settings
    from inhouse.engines.remote_serving import RemoteSettings, start

    told = RemoteSettings(**asked.model_dump(exclude={"weight"}), silence_s=silence_s)

    def find() -> Reached:
        return start(told, settings().offline)

    return Replica(f"remote{number} {asked.url}", "remote", Finder(find), asked.parallel, asked.weight)


def memory_of(source: Path, settings: EngineSettings, facts: ModelFacts) -> int:
    """Bytes that an engine needs: the weights, and keys and values in 16 bits for every request's whole context."""
    files = [source] if source.is_file() else [f for f in source.rglob("*.safetensors") if f.is_file()]
    heads = facts.kv_heads or facts.heads or 0
    width = (facts.hidden or 0) // (facts.heads or 1)
    per_token = 2 * 2 * (facts.layers or 0) * heads * width
    return sum(f.stat().st_size for f in files) + per_token * settings.context_length * settings.parallel


def versions(kinds: tuple[str, ...]) -> Mapping[str, str]:
    """The installed versions of the engines' packages."""
    return {kind: _version(PACKAGES[kind]) for kind in kinds}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
