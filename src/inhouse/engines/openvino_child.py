"""The child process that holds a GGUF model in OpenVINO's continuous batching, behind our wire.

Run by `openvino_serving.start` as `python -m inhouse.engines.openvino_child '<json>'`.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
import psutil

from inhouse.core.errors import InhouseError, UserError
from inhouse.core.run import die_with_parent
from inhouse.core.serving import Ask, Capabilities, Delta, EngineRefused, Finish, Sampling, Stats, Usage
from inhouse.core.thoughts import writes_thoughts
from inhouse.core.tool_words import defined, writes_tools
from inhouse.engines.chat_template import ChatTemplate, TemplateFailed
from inhouse.engines.gguf_header import GgufHeader, read_header
from inhouse.engines.gguf_tokens import added_tokens, control_of
from inhouse.engines.openvino_file import readable
from inhouse.engines.openvino_schema import HELD, forced_call, grammar_of, schema_of
from inhouse.engines.process import Reporter
from inhouse.engines.text_stream import TextStream
from inhouse.engines.wire_child import Outbox, TookTooLong, opener_of, serve, time_limit

RENDER_S = 1.0
MOST_CHARS_PER_TOKEN = 64  # no text that fits the context is longer; a longer one is refused without tokenising it
SEEDS = 2**63
MOST_MIN_P = 0.999999  # the library takes less than 1
# Texts of the tokens that end an answer beside the one the file names; llama.cpp knows the same (llama-vocab.cpp).
ENDS = (
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"),
    *("</s>", "<EOT>", "<｜end▁of▁sentence｜>"),
)


def main(argument: str) -> int:
    """Load the model, report the socket, and serve until the parent says stop or ends."""
    asked = json.loads(argument)
    die_with_parent(asked["parent"])
    reporter = Reporter()
    try:
        engine = OpenVinoEngine(asked)
        engine.warm_up()
    except InhouseError as error:
        reporter.error(error)
        return error.exit_code
    return serve(engine, reporter)


@dataclass(eq=False)
class _Run:
    """One sequence in the batch, and the choices of a request that it answers."""

    uid: int
    choices: tuple[int, ...]
    handle: Any
    prompt: int
    whole: bool
    call: bool
    text: TextStream
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    answer: int = 0
    held: list[str] = field(default_factory=list)  # text that goes out with the last delta
    held_tokens: int = 0
    opener: str = ""  # what the prompt ends with and the answer goes on from: the tag of a thought


class OpenVinoEngine:
    """Implements wire_child.ChildEngine."""

    def __init__(self, asked: dict[str, Any]) -> None:
        source = Path(asked["model"])
        header = read_header(source)
        path = readable(source, header, Path(asked["cache"]))
        self._tokenizer, self._pipeline = _load(path, asked)
        self._vocabulary = _Vocabulary(self._tokenizer, source, header)
        self._template = self._vocabulary.template(header)
        self.context_length: int = asked["context_length"]
        self.capabilities = Capabilities(
            chat=self._template is not None,
            tools="forced",
            constraints=HELD,
            prefix_cache=asked["prefix_cache"],
            most_parallel=asked["parallel"],
            control=control_of(source, header, self._read_ids),
            thinks=writes_thoughts(header.text("tokenizer.chat_template")),
            template_tools=writes_tools(header.text("tokenizer.chat_template")),
        )
        self._runs: list[_Run] = []
        self._last_id = 0
        self._process = psutil.Process()

    def warm_up(self) -> None:
        """Run once, so that no request pays for what the library compiles with its first step (0.25 s)."""
        ids = [self._vocabulary.end] * 8
        self._add(ids, self._config(Sampling(max_tokens=2, ignore_end=True), 2, 0, None))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def submit(self, uid: int, ask: Ask) -> None:
        """Take a request in: everything that can be wrong with it is found here, before it joins the batch."""
        _supported(ask, self.capabilities.template_tools)
        limit = _limit(ask)
        ids = self._prompt(ask)
        room = self.context_length - len(ids)
        if room < 1:
            raise EngineRefused("context", len(ids))
        sampling = ask.sampling
        greedy = sampling.temperature == 0
        # Greedy choices are all the same: one sequence answers them.
        groups = [tuple(range(sampling.n))] if greedy else [(index,) for index in range(sampling.n)]
        opener = opener_of(self, ask, ids) if limit is None else ""
        seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed % SEEDS
        runs = []
        for choices in groups:
            config = self._config(sampling, min(sampling.max_tokens, room), seed + choices[0], limit)
            handle = self._add(ids, config)
            text = TextStream(sampling.stop)
            runs.append(_Run(uid, choices, handle, len(ids), ask.whole, _forced(ask), text, opener=opener))
        self._runs += runs

    def cancel(self, uid: int) -> None:
        """Take a request out of the batch."""
        for run in self._runs:
            if run.uid == uid:
                run.handle.cancel()
        self._runs = [run for run in self._runs if run.uid != uid]

    def step(self, out: Outbox) -> bool:
        """One step of the whole batch, and what each sequence gained."""
        if not self._pipeline.has_non_finished_requests():
            return False
        self._pipeline.step()
        now = time.monotonic()
        for run in self._runs:
            self._read(run, out, now)
        self._runs = [run for run in self._runs if run.handle is not None]
        return True

    def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """Not with this engine."""
        raise EngineRefused("unsupported")

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids. Special tokens that a text spells out are always parsed."""
        return self._encode(text, special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens as they are written."""
        if not all(0 <= token < len(self._vocabulary.pieces) for token in tokens):
            raise EngineRefused("invalid")
        return b"".join(self._vocabulary.written[token] for token in tokens).decode("utf-8", "replace")

    def render(self, ask: Ask) -> str:
        """The conversation through the model's own template."""
        if self._template is None or ask.messages is None:
            raise EngineRefused("unsupported")
        tools = tuple(defined(tool) for tool in ask.tools) if ask.tool_choice != "none" else ()
        try:
            with time_limit(RENDER_S):
                return self._template.render(ask.messages, tools)
        except (TemplateFailed, TookTooLong):
            raise EngineRefused("invalid") from None

    def stats(self) -> Stats:
        """Load and memory."""
        metrics = self._pipeline.get_metrics()
        running = min(metrics.scheduled_requests, len(self._runs))
        return Stats(
            running=running,
            waiting=len(self._runs) - running,
            cache_used=metrics.cache_usage / 100 if self._runs else 0.0,  # the library's is that of its last step
            memory_bytes=self._process.memory_info().rss,
        )

    def _prompt(self, ask: Ask) -> list[int]:
        if ask.messages is not None:
            return self._encode(self._vocabulary.without_begin(self.render(ask)), special=True)
        if isinstance(ask.prompt, str):
            return self._encode(ask.prompt, special=True)
        ids = list(ask.prompt or ())
        if not ids or not all(0 <= token < len(self._vocabulary.pieces) for token in ids):
            raise EngineRefused("invalid")
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        if len(text) > MOST_CHARS_PER_TOKEN * self.context_length:
            raise EngineRefused("context")
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate
            raise EngineRefused("invalid") from None
        return self._read_ids(text, special)

    def _read_ids(self, text: str, special: bool = False) -> list[int]:
        found = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        ids: list[int] = found[0].tolist()
        return ids

    def _config(self, sampling: Sampling, most: int, seed: int, limit: Any) -> Any:
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = most
        config.ignore_eos = sampling.ignore_end
        if not sampling.ignore_end:
            config.set_eos_token_id(self._vocabulary.end)
            config.stop_token_ids = self._vocabulary.ends
        config.presence_penalty = sampling.presence_penalty
        config.frequency_penalty = sampling.frequency_penalty
        config.repetition_penalty = sampling.repetition_penalty
        config.do_sample = sampling.temperature > 0
        if sampling.temperature > 0:
            config.temperature = sampling.temperature
            config.rng_seed = seed
            config.top_p = 1.0 if sampling.top_p is None else sampling.top_p
            config.min_p = min(sampling.min_p or 0.0, MOST_MIN_P)
            if sampling.top_k:
                config.top_k = sampling.top_k
        if limit is not None:
            config.structured_output_config = limit
        return config

    def _add(self, ids: list[int], config: Any) -> Any:
        self._last_id += 1
        try:
            return self._pipeline.add_request(self._last_id, openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        except RuntimeError:  # its own check of the settings
            raise EngineRefused("invalid") from None

    def _read(self, run: _Run, out: Outbox, now: float) -> None:
        handle = run.handle
        if not handle.can_read():
            if handle.get_status() == genai.GenerationStatus.IGNORED:  # the KV cache cannot hold it
                run.handle = None
                out.refuse(run.uid, EngineRefused("busy"))
            return
        pieces, tokens, reason = [], 0, genai.GenerationFinishReason.NONE
        while handle.can_read():
            for output in handle.read().values():
                tokens += len(output.generated_ids)
                pieces += [self._vocabulary.pieces[token] for token in output.generated_ids]
                reason = output.finish_reason
        run.first = run.first or now
        run.answer += tokens
        text = run.opener + run.text.push(b"".join(pieces))
        run.opener = ""
        finish: Finish | None = None
        if run.text.stopped:
            finish = "stop"
            handle.cancel()
        elif reason != genai.GenerationFinishReason.NONE:
            text += run.text.end()
            finish = "length" if reason == genai.GenerationFinishReason.LENGTH else "stop"
        self._send(run, out, Delta(text, tokens=tokens, finish=finish, stop=run.text.stop), now)

    def _send(self, run: _Run, out: Outbox, delta: Delta, now: float) -> None:
        if run.whole or run.call:
            run.held.append(delta.text)
            run.held_tokens += delta.tokens
            if delta.finish is None:
                return
            delta.text, delta.tokens = "".join(run.held), run.held_tokens
        if delta.finish is not None:
            run.handle = None
            first = run.first or now
            delta.usage = Usage(run.prompt, run.answer, prefill_s=first - run.began, decode_s=now - first)
            if run.call:
                _as_call(delta)
        for index in run.choices:
            delta.index = index
            out.add(run.uid, delta)


def _as_call(delta: Delta) -> None:
    """Turn the text `{"name": …, "arguments": {…}}` into a call; one that was cut off stays text."""
    try:
        said = json.loads(delta.text)
        function = {"name": said["name"], "arguments": json.dumps(said["arguments"], ensure_ascii=False)}
    except (ValueError, KeyError, TypeError):
        return
    call = {"index": 0, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
    delta.text, delta.tool_calls, delta.finish = "", [call], "tool_calls"


def _forced(ask: Ask) -> bool:
    """Whether the answer must be a call of a tool."""
    return bool(ask.tools) and ask.tool_choice not in ("none", "auto")


def _supported(ask: Ask, template_tools: bool) -> None:
    sampling = ask.sampling
    free_tools = bool(ask.tools) and ask.tool_choice == "auto" and not template_tools
    if sampling.logprobs is not None or sampling.logit_bias or ask.adapter is not None or free_tools:
        raise EngineRefused("unsupported")


def _limit(ask: Ask) -> Any:
    """What the answer is held to, in the library's words; None for free text."""
    if not _forced(ask) and ask.constraint is None:
        return None
    limit = genai.StructuredOutputConfig()
    if _forced(ask):
        limit.json_schema = forced_call(ask)
    elif ask.constraint is not None and ask.constraint.kind == "choice":
        limit.grammar = grammar_of(ask.constraint.value)
    elif ask.constraint is not None:
        limit.json_schema = schema_of(ask.constraint)
    return limit


def _load(path: Path, asked: dict[str, Any]) -> tuple[Any, Any]:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = asked["blocks"]
    scheduler.max_num_batched_tokens = asked["batch_tokens"]
    scheduler.max_num_seqs = asked["parallel"]
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = asked["prefix_cache"]
    properties = {"INFERENCE_NUM_THREADS": asked["threads"], "KV_CACHE_PRECISION": asked["kv_precision"]}
    if asked["precision"] != "auto":
        properties["INFERENCE_PRECISION_HINT"] = asked["precision"]
    if asked["precision"] == "f32":
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # activations stay floats too
    properties |= asked["properties"]
    try:
        tokenizer = genai.Tokenizer(str(path))
        return tokenizer, genai.ContinuousBatchingPipeline(str(path), tokenizer, scheduler, "CPU", **properties)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip() and "failed at /" not in line]
        reason = lines[-1].strip()[:200] if lines else "-"
        raise UserError("openvino.not_loaded", path=Path(asked["model"]).name, reason=reason) from None


class _Vocabulary:
    """The bytes of each token: what it adds to an answer, and how it is written."""

    def __init__(self, tokenizer: Any, path: Path, header: GgufHeader) -> None:
        """Raises openvino.tokenizer where the library cuts the file's added tokens into letters."""
        found: dict[bytes, int] = tokenizer.get_vocab()
        self.written = [b""] * (1 + max(found.values()))
        for piece, token in found.items():
            self.written[token] = piece
        added, silent = added_tokens(path, header)
        _check_added(tokenizer, path, added)
        self.end = header.number("tokenizer.ggml.eos_token_id") or 0
        named = (header.number(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
        texts = (found.get(text.encode()) for text in ENDS)
        self.ends = {token for token in (*named, *texts) if token is not None}
        # The library leaves out all added tokens, also those that are text, such as Qwen3's <think>.
        self.pieces = [
            b"" if token in silent or token in self.ends else piece for token, piece in enumerate(self.written)
        ]
        self._begin = ""
        if header.metadata.get("tokenizer.ggml.add_bos_token") is True:
            self._begin = self._text(header.number("tokenizer.ggml.bos_token_id"))

    def without_begin(self, rendered: str) -> str:
        """A rendered conversation without the token that encoding puts before it anyway."""
        return rendered.removeprefix(self._begin) if self._begin else rendered

    def template(self, header: GgufHeader) -> ChatTemplate | None:
        """The file's own chat template; None where it has none."""
        if (source := header.text("tokenizer.chat_template")) is None:
            return None
        names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        tokens = {short: header.number(f"tokenizer.ggml.{name}_token_id") for name, short in names.items()}
        specials = {f"{short}_token": self._text(token) for short, token in tokens.items() if token is not None}
        return ChatTemplate(source, specials)

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.written[token].decode("utf-8", "replace")


def _check_added(tokenizer: Any, path: Path, added: Mapping[str, int]) -> None:
    """Where one control token is not ASCII, as DeepSeek-R1's, the library's reader cuts all of them into letters."""
    for text, token in added.items():
        if tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist() != [token]:
            raise UserError("openvino.tokenizer", path=path.name, token=text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
