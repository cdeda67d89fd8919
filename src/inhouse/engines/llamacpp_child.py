"""The child process that holds a GGUF model: llama.cpp's own HTTP server, on loopback, behind a key of its own.

Run by `llamacpp.start_server` as `python -m inhouse.engines.llamacpp_child '<json>'`.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from typing import Any

from inhouse.core.errors import InhouseError, UserError
from inhouse.core.run import die_with_parent
from inhouse.engines.process import Reporter, heed_only_parent


def main(argument: str) -> int:
    """Load the model, report the address, and serve until the parent says stop or ends."""
    asked = json.loads(argument)
    die_with_parent(asked["parent"])
    reporter = Reporter()
    stop = threading.Event()
    heed_only_parent(stop.set)
    # The listener is on loopback, which every local user and every web page in a local browser can reach.
    key = secrets.token_urlsafe(24)
    try:
        server = _load(asked, key)
    except InhouseError as error:
        reporter.error(error)
        return error.exit_code
    reporter.ready(url=server.listening_address, key=key)
    stop.wait()
    return 0


def _load(asked: dict[str, Any], key: str) -> Any:
    from xllamacpp import Server

    try:
        return Server(_parameters(asked, key))
    except RuntimeError:  # llama.cpp wrote the reason to the log; this exception has none
        context = asked["context_length"]
        raise UserError("llamacpp.not_loaded", path=asked["model"], context=context, line="-") from None


def _parameters(asked: dict[str, Any], key: str) -> Any:
    from xllamacpp import CommonParams, llama_load_mode

    parameters = CommonParams()
    parameters.model.path = asked["model"]
    if asked["copied"]:
        parameters.load_mode = llama_load_mode.LLAMA_LOAD_MODE_NONE
    parameters.model_alias = {asked["name"]}
    parameters.n_parallel = asked["parallel"]
    # kv_unified is off: llama.cpp splits n_ctx evenly over the slots, so a long request cannot starve another.
    parameters.n_ctx = asked["context_length"] * asked["parallel"]
    parameters.n_batch = asked["batch"]
    parameters.n_ubatch = min(asked["batch"], 512)
    parameters.cpuparams.n_threads = asked["threads"]
    parameters.cpuparams_batch.n_threads = asked["threads"]
    parameters.cache_ram_mib = asked["prompt_cache_mb"]
    _lengthen(parameters, asked)
    _adapt(parameters, asked["adapters"])
    _speculate(parameters, asked["speculation"], asked["parallel"])
    if asked["embedding"]:
        _embed(parameters, asked)
    # As everywhere else: a conversation that ends with an assistant's turn is rendered whole, not continued.
    parameters.prefill_assistant = False
    parameters.port = 0  # the kernel picks a free one: no race between choosing and binding
    parameters.hostnames = ["127.0.0.1"]
    parameters.api_keys = [key]
    parameters.cors_origins = ""
    parameters.ui = False
    parameters.endpoint_slots = True  # how full they are; texts are not told, and nobody else has the key
    parameters.endpoint_metrics = True
    # Each open stream holds an HTTP thread; the health check must still find one free.
    parameters.n_threads_http = 2 * asked["parallel"] + 32
    return parameters


def _adapt(parameters: Any, adapters: dict[str, str]) -> None:
    """Load every adapter with scale 0: each request says which it wants."""
    from xllamacpp import CommonAdapterLoraInfo

    # `lora_init_without_apply` would leave them at 1 (llama.cpp issue 28674).
    parameters.lora_adapters = [CommonAdapterLoraInfo(path, 0.0) for path in adapters.values()]


def _speculate(parameters: Any, how: str, slots: int) -> None:
    """Guess what follows from the request's own earlier text; llama.cpp checks each guess in one step.

    ngram-simple looks in nothing but the request. ngram-mod has one table for all requests, so that the speed of an
    answer would tell what others had said. 24 tokens at a time: longer guesses cost more when they are wrong.
    """
    from xllamacpp import common_speculative_type

    if how == "ngram" or (how == "auto" and slots == 1):
        parameters.speculative.types = [common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        parameters.speculative.ngram_simple.size_m = 24


def _lengthen(parameters: Any, asked: dict[str, Any]) -> None:
    """How keys and values are kept, and how positions are stretched."""
    from xllamacpp import ggml_type, llama_flash_attn_type, llama_rope_scaling_type

    kinds = {kind: ggml_type[f"GGML_TYPE_{kind.upper()}"] for kind in ("f16", "q8_0", "q4_0")}
    parameters.cache_type_k, parameters.cache_type_v = kinds[asked["cache_type_k"]], kinds[asked["cache_type_v"]]
    if asked["cache_type_v"] != "f16":  # llama.cpp keeps values transposed otherwise, and such cannot be quantised
        parameters.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    if (scaling := asked["rope_scaling"]) is not None:
        kind = f"LLAMA_ROPE_SCALING_TYPE_{scaling['rope_type'].upper()}"
        parameters.rope_scaling_type = llama_rope_scaling_type[kind]
        parameters.rope_freq_scale = 1 / scaling["factor"]
        parameters.yarn_orig_ctx = scaling["original_max_position_embeddings"] or 0  # 0: what the file says


def _embed(parameters: Any, asked: dict[str, Any]) -> None:
    """One vector a text, and no answers. A text must fit into one step: it is pooled there."""
    from xllamacpp import llama_pooling_type

    parameters.embedding = True
    # Apart, texts of unequal length that are read together are cut over several steps, and the mean is the last one's.
    parameters.kv_unified = True
    length = asked["context_length"]
    parameters.n_batch = parameters.n_ubatch = length
    # It ends itself at a step's length that the number of texts read together does not divide.
    parameters.n_parallel = next(count for count in range(asked["parallel"], 0, -1) if length % count == 0)
    parameters.n_ctx = length * parameters.n_parallel
    if asked["embedding"] == "mean":
        parameters.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
