"""Run a model in torch: a Hugging Face folder of safetensors, or a .gguf dequantised."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.plugins import require
from inhouse.core.protocols import Generation, Input, Prompt, Scored, Tick, question_of
from inhouse.core.rows import Message
from inhouse.core.run import peak_memory
from inhouse.core.settings import usable_cores
from inhouse.engines.quick_imports import import_quickly
from inhouse.engines.rope import longest_text
from inhouse.engines.torch_files import unreadable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import DynamicCache

    from inhouse.engines.torch_cache import Prefilled

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PACKAGES = ("torch", "transformers", "safetensors", "gguf", "accelerate")
TOKENIZERS = (  # files that a tokenizer is read from, of the families that are known
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "spm.model", "tekken.json",
    "sentencepiece.bpe.model", "tiktoken.model", "qwen.tiktoken",
)  # fmt: skip
KEEP_BYTES = 768 << 20  # prompts read by generate() are kept for score(), up to this much


def open_model(
    source: Input, *, dtype: Precision = "auto", threads: int | None = None, batch: int = 32
) -> TransformersEngine:
    """Load a model artifact for greedy answers. `auto` computes in bf16 where the machine does so natively.

    An adapter that cannot be merged is read before every prompt. Raises torch.classifier for a model that names labels:
    `classifier.open_classifier` opens it.
    """
    require("train", *PACKAGES)
    import torch

    torch.set_num_threads(threads or usable_cores())
    facts = facts_of(source)
    if facts.labels:
        raise UserError("torch.classifier", name=facts.name)
    tokenizer = load_tokenizer(source)
    model = _load_weights(source, dtype).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    check_vocabulary(model, tokenizer, facts.name)
    engine = TransformersEngine(facts.name, model, tokenizer, batch)
    if facts.unmerged and facts.adapter is not None:
        from inhouse.engines.adapters import read_before

        require("train", "peft")
        engine.before = read_before(model, source.path / facts.adapter)
    return engine


def facts_of(source: Input) -> ModelFacts:
    """The header of a model artifact; raise torch.remote for an endpoint, which has no weights here."""
    facts = ModelFacts.model_validate(source.record.facts["model"])
    if facts.format == "remote":
        raise UserError("torch.remote", name=facts.name)
    return facts


def load_tokenizer(source: Input) -> PreTrainedTokenizerBase:
    """The model's tokenizer with its own chat template. Code that a folder brings along is never run."""
    require("train", *PACKAGES)
    import_quickly()
    from transformers import AutoTokenizer

    facts = facts_of(source)
    path = source.path / facts.main
    gguf = path.suffix == ".gguf"
    if not gguf and not any((path / name).is_file() for name in TOKENIZERS) and not facts.remote_code:
        raise UserError("torch.no_tokenizer", name=facts.name)
    try:
        if gguf:
            from inhouse.engines.torch_gguf import gguf_tokenizer

            return gguf_tokenizer(path)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=facts.remote_code)
    except reading_errors(facts) as error:
        raise unreadable(path, error, facts.name) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: Input, dtype: Precision = "auto") -> PreTrainedModel:
    """The model's weights on the CPU in `dtype`. Only safetensors and GGUF are read, never pickle.

    Raises torch.unmerged for a model that is nothing without its adapter: only `open_model` can open it.
    """
    facts = facts_of(source)
    if facts.unmerged:
        raise UserError("torch.unmerged", name=facts.name)
    return _load_weights(source, dtype)


def _load_weights(source: Input, dtype: Precision) -> PreTrainedModel:
    require("train", *PACKAGES)
    import_quickly()
    from transformers import logging

    logging.disable_progress_bar()
    # PEFT imports bitsandbytes where it is installed, and that complains of an optional kernel it looks for on the hub.
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)
    facts = facts_of(source)
    path = source.path / facts.main
    try:
        if path.suffix == ".gguf":
            from inhouse.engines.torch_gguf import gguf_model

            return gguf_model(path, torch_dtype(dtype))
        refuse_pickles(path)
        model: PreTrainedModel
        model, told = _model_class(path).from_pretrained(
            path,
            dtype=torch_dtype(dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=facts.remote_code,
            ignore_mismatched_sizes=True,  # told of below, in our words
            output_loading_info=True,
        )
    except reading_errors(facts) as error:
        raise unreadable(path, error, facts.name) from error
    _check_whole(model, told, facts.name)
    return model


def _check_whole(model: PreTrainedModel, told: Mapping[str, Any], name: str) -> None:
    """Raise where the files lack weights, or hold them in other shapes: the library fills both up with random ones."""
    if wrong := sorted(told["mismatched_keys"]):
        tensor, stored, wanted = wrong[0]
        shapes = {"stored": list(stored), "wanted": list(wanted)}
        raise UserError("torch.other_shape", name=name, tensor=tensor, count=len(wrong), **shapes)
    body = f"{model.base_model_prefix}."
    lacking = sorted(key for key in told["missing_keys"] if key.startswith((body, "lm_head.")))
    if lacking:
        raise UserError("torch.missing_weights", name=name, tensor=lacking[0], count=len(lacking))


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Raise torch.not_finite for weights that hold NaN or infinities: nothing that is computed with them is a number.

    Takes 0.03 CPU-seconds for 135M parameters in bf16.
    """
    for tensor, weights in model.named_parameters():
        if weights.is_floating_point() and weights.numel() and weights.device.type != "meta":
            low, high = weights.detach().aminmax()
            if not (bool(low.isfinite()) and bool(high.isfinite())):
                raise UserError("torch.not_finite", name=name, tensor=tensor)


def reading_errors(facts: ModelFacts) -> tuple[type[Exception], ...]:
    """What is raised for files that no model can be made of; code that a folder brings may fail in more ways."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    contradictory = (StrictDataclassError, AssertionError)  # settings that go with no model
    known = (SafetensorError, OSError, ValueError, KeyError, IndexError, RuntimeError, *contradictory)
    return (*known, ImportError, AttributeError, TypeError) if facts.remote_code else known


def _model_class(path: Path) -> Any:
    """Transformers' class for what the folder's settings say the model is; one that writes text when they do not."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    named = (config.get("architectures") or [""])[0]
    if named.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification
    return AutoModelForMaskedLM if named.endswith("ForMaskedLM") else AutoModelForCausalLM


def refuse_pickles(folder: Path) -> None:
    """Raise torch.pickle when the only weights are pickled: opening those runs whatever code they hold."""
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise UserError("torch.pickle", path=folder.name, file=pickled[0])


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise torch.vocabulary when the tokenizer can write ids for which the model has no embedding."""
    embedding: Any = model.get_input_embeddings()
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= embedding.num_embeddings:
        raise UserError("torch.vocabulary", name=name, tokenizer=largest + 1, model=embedding.num_embeddings)


def torch_dtype(dtype: Precision) -> torch.dtype:
    """The torch type that a precision setting means on this machine."""
    import torch

    if dtype == "auto":
        dtype = "bf16" if native_bf16() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def native_bf16() -> bool:
    """Whether this machine multiplies bf16 natively (2-3 times the speed of fp32 on a CPU with avx512_bf16)."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@dataclass(frozen=True)
class Batch:
    """Prompts that are read together: their places in the caller's list, and their ids after the shared prefix."""

    places: tuple[int, ...]
    prefix: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]


class TransformersEngine:
    """A model in torch that answers greedily.

    What all prompts of a call begin with (system turn, instruction) is computed once; prompts of like length
    are read together; and what generate() has read, score() on the same prompts does not read again. Batches
    depend on the prompts alone, so the same call gives the same bytes on the same machine. `before` holds keys and
    values that are read before every prompt: the virtual tokens of an adapter that cannot be merged.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 32) -> None:
        from inhouse.engines.torch_chat import end_tokens

        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.batch = batch
        self.ends = end_tokens(model, tokenizer)
        if not self.ends:
            raise UserError("torch.no_end", name=name)
        self.before: DynamicCache | None = None
        self._kept: dict[Batch, Prefilled] = {}
        self._answers: dict[str, tuple[int, ...]] = {}

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the conversation through the model's own template, ready for the answer to follow."""
        from inhouse.engines.torch_chat import render

        asked = question_of(prompt)
        return render(self.tokenizer, asked.turns, answer_follows=True, tools=asked.tools)

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, tick: Tick, ignore_end: bool = False
    ) -> list[Generation]:
        """Greedy answers in the order of the prompts; `tokens` counts the end-of-turn token too."""
        import torch

        from inhouse.engines.torch_cache import extend

        answers: dict[int, Generation] = {}
        with torch.inference_mode():
            for batch in self._batches(prompts, max_tokens):
                started = time.perf_counter()
                state = self._read(batch)
                first = time.perf_counter() - started
                ends = frozenset() if ignore_end else self.ends
                found = extend(self.model, state, max_tokens, ends)
                total = time.perf_counter() - started
                self._keep(batch, state)
                for place, ids in zip(batch.places, found, strict=True):
                    answers[place] = self._answer(ids, first, total)
                    tick(1)
        return [answers[place] for place in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], tick: Tick) -> list[list[Scored]]:
        """How likely each of a prompt's choices is as its whole answer, end of turn included."""
        import torch

        from inhouse.engines.torch_cache import score_choices

        scores: dict[int, list[Scored]] = {}
        longest = max((len(self._choice_ids(prompts[i], c)) for i, own in enumerate(choices) for c in own), default=1)
        with torch.inference_mode():
            for batch in self._batches(prompts, longest):
                state = self._kept.pop(batch, None) or self._read(batch)
                wanted = [[self._choice_ids(prompts[i], c) for c in choices[i]] for i in batch.places]
                for place, found in zip(batch.places, score_choices(self.model, state, wanted), strict=True):
                    scores[place] = found
                    tick(1)
                self._keep(batch, state)
        return [scores[place] for place in range(len(prompts))]

    def next_logprobs(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        """Natural-log probabilities of the `top` likeliest next token ids after each prompt."""
        import torch

        found: dict[int, dict[int, float]] = {}
        with torch.inference_mode():
            for batch in self._batches(prompts, 1):
                best = self._read(batch).logits.log_softmax(-1).topk(top)
                for row, place in enumerate(batch.places):
                    found[place] = dict(zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True))
        return [found[place] for place in range(len(prompts))]

    def all_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits (T, V) float32 after every token of a text that is read alone, from its beginning."""
        import torch

        from inhouse.engines.adapters import again

        cache = again(self.before)
        with torch.inference_mode():
            read = torch.tensor([list(ids)], device=self.model.device)
            found: Any = self.model(read, past_key_values=cache, use_cache=cache is not None)
        logits: torch.Tensor = found.logits[0].float().cpu()
        return logits

    def memory_bytes(self) -> int:
        """Peak resident memory of this process, which holds the model."""
        return peak_memory()

    def close(self) -> None:
        """Let go of the weights and of everything kept between calls."""
        self._kept.clear()
        del self.model

    def _batches(self, prompts: Sequence[Prompt], reserved: int) -> Iterator[Batch]:
        """Prompts grouped by length, shortest first; in each batch only the last tokens differ from the prefix."""
        ids = [self.token_ids(prompt) for prompt in prompts]
        self._check_length(max(map(len, ids), default=0), reserved)
        prefix = shared_prefix(ids) if len(ids) > 1 else ()
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        for start in range(0, len(order), self.batch):
            places = tuple(order[start : start + self.batch])
            yield Batch(places, prefix, tuple(tuple(ids[i][len(prefix) :]) for i in places))

    def _check_length(self, tokens: int, reserved: int) -> None:
        most = longest_text(self.model.config)
        tokens += self.before.get_seq_length() if self.before is not None else 0
        if most is not None and tokens + reserved > most:
            raise UserError("torch.too_long", tokens=tokens + reserved, reserved=reserved, most=most, name=self.name)

    def _read(self, batch: Batch) -> Prefilled:
        from inhouse.engines.torch_cache import prefill, read_prefix

        if batch in self._kept:
            return self._kept[batch]
        return prefill(self.model, read_prefix(self.model, batch.prefix, self.before), batch.rests)

    def _keep(self, batch: Batch, state: Prefilled) -> None:
        held = sum(kept.bytes for kept in self._kept.values())
        if batch not in self._kept and held + state.bytes <= KEEP_BYTES:
            self._kept[batch] = state

    def _choice_ids(self, prompt: Prompt, choice: str) -> tuple[int, ...]:
        """A choice as the answer's ids, end of turn included. The template separates turns: any prompt will do."""
        from inhouse.engines.torch_chat import answer_span

        if choice not in self._answers:
            asked = question_of(prompt)
            turns = [*asked.turns, Message(role="assistant", content=choice)]
            ids, start = answer_span(self.tokenizer, turns, len(asked.turns), self.ends, asked.tools)
            self._answers[choice] = tuple(ids[start:])
        return self._answers[choice]

    def _answer(self, ids: list[int], first_s: float, total_s: float) -> Generation:
        ended = bool(ids) and ids[-1] in self.ends
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Generation(text, len(ids), "stop" if ended else "length", first_s, total_s)


def shared_prefix(ids: Sequence[list[int]]) -> tuple[int, ...]:
    """What all of these begin with, leaving at least one token of each."""
    low, high = min(ids), max(ids)  # in lexicographic order, what the ends share, all share
    most = min(map(len, ids)) - 1
    length = next((i for i in range(most) if low[i] != high[i]), most)
    return tuple(low[:length])
