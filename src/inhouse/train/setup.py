"""Everything that stands before the first step: the base with what is trained on it, and the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.plugins import operator_of, require
from inhouse.core.protocols import Input
from inhouse.core.rows import Row
from inhouse.core.run import Events, release_memory
from inhouse.core.settings import usable_cores
from inhouse.dataset import read_rows
from inhouse.engines.quick_imports import import_adapters_quickly, import_quickly
from inhouse.engines.rope import longest_text, scale_rope, window_attention
from inhouse.train.batches import Reading
from inhouse.train.changes.applied import apply_changes
from inhouse.train.checkpoint import Recipe
from inhouse.train.held_out import hold_out
from inhouse.train.learning import Coding, Learning, Start
from inhouse.train.params import Precision, TrainParams
from inhouse.train.penalties.terms import prepare_penalties, samples_from, total
from inhouse.train.replay import mix_in
from inhouse.train.tokens import Limit
from inhouse.train.virtual import virtual_ids

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from inhouse.train.loop import Job, Penalty
    from inhouse.train.tokens import Sample, Samples

SMALL = 1_000_000_000  # models below this many parameters are saved in fp32: nothing is lost before quantising
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "gguf")
NAMES: dict[str, Precision] = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
Originals = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Loaded:
    """The model as it is trained. `originals` are the frozen weights that were rounded, and their names in the base."""

    model: PeftModel | PreTrainedModel
    originals: Originals
    trainable: int
    total: int
    compute: torch.dtype
    save: torch.dtype  # of the weights that are left behind


@dataclass(frozen=True)
class Texts:
    """What is learned from: rows, their tokens, and the tokenizer that made them."""

    rows: list[Row]
    samples: Samples
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    valid: Sequence[Sample] = ()  # measured on while training, never learned
    valid_origins: Sequence[int] = ()  # of each of these: the place of its row among those held back
    replay: dict[str, float | int] | None = None  # counts of rows of another dataset that are among the samples

    @property
    def pad(self) -> int:
        """The id that fills batches up."""
        return self.tokenizer.pad_token_id or 0


@dataclass(frozen=True)
class Prepared:
    """All that the loop needs, and what the result is checked against."""

    base: Input
    facts: ModelFacts
    loaded: Loaded
    texts: Texts
    learning: Learning
    reading: Reading
    penalties: Sequence[Penalty] = ()
    changes: Sequence[dict[str, Any]] = ()  # what altered the model, for the record


@dataclass(frozen=True)
class Place:
    """Where a run writes, whom it tells, and what its checkpoints belong to."""

    scratch: Path
    events: Events
    recipe: Recipe = field(default_factory=dict)
    offline: bool = False


def prepare(params: TrainParams, inputs: Mapping[str, Input], seed: int, events: Events) -> Prepared:
    """Load `base` and `dataset` up to the trainer: nothing is trained or written yet.

    Raises train.no_rows, train.all_dropped, train.fp16_cpu, train.writes_no_text, torch.no_end and what the method and
    the objective refuse.
    """
    require("train", *PACKAGES)
    import_quickly()
    import_adapters_quickly()
    import torch

    from inhouse.engines.transformers import check_finite, check_vocabulary, facts_of, load_tokenizer
    from inhouse.train.step import checked_reading

    base = inputs["base"]
    facts = facts_of(base)
    rows, held = hold_out(_training_rows(inputs["dataset"]), inputs["dataset"], params, seed)
    torch.set_num_threads(usable_cores())
    compute = compute_dtype(params.precision)
    tokenizer = load_tokenizer(base)
    learning = Learning(params.objective).completed(rows)
    params = params.model_copy(update={"objective": learning.params})
    model, originals = _load(base, params, compute, seed)
    coding = coding_of(model, tokenizer, params, (facts.name, events, inputs))
    check_vocabulary(model, tokenizer, facts.name)
    check_finite(model, facts.name)
    texts = Texts(rows, learning.encode(rows, coding), tokenizer, coding.ends)
    if held:
        measured = learning.encode(held, coding)
        texts = replace(texts, valid=measured.kept, valid_origins=measured.origins)
    if params.replay is not None:
        mixed = mix_in(texts.samples, inputs["replay"], (learning, coding), params.replay, seed)
        texts = replace(texts, samples=mixed.samples, replay=mixed.facts)
    model, changes = apply_changes(model, params.changes, events)
    loaded = _adapt(model, (originals, save_dtype(base, params)), params, seed)
    release_memory()  # what reading the model took, before anything is measured or trained
    texts = _with_virtual(loaded.model, texts)
    known = [*texts.samples.kept, *texts.valid]
    reading = checked_reading(loaded.model, _wanted(params), texts.pad, events)
    longest = coding.limit.longest + len(virtual_ids(loaded.model))
    start = Start(loaded.model, loaded.compute, known, reading, texts.pad, inputs, events, longest, len(texts.valid))
    penalties = penalties_of(loaded.model, texts, params)
    return Prepared(base, facts, loaded, texts, learning.prepared(start), reading, penalties, changes)


def coding_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: TrainParams,
    known: tuple[str, Events, Mapping[str, Input]],
) -> Coding:
    """How this model's rows become samples. `known`: its name, whom to tell, and further inputs."""
    from inhouse.engines.classifier import most_tokens, reads_plainly
    from inhouse.engines.torch_chat import end_tokens

    name, events, inputs = known
    limit = Limit(longest(model.config, params, events), params.turns, params.over_length)
    if Learning(params.objective).labels:
        if any(one.model_dump().get("use") == "ewc" for one in params.penalties):
            raise UserError("train.classify_ewc")
        most = most_tokens(model)
        limit = limit._replace(longest=min(limit.longest, most or limit.longest))
        return Coding(tokenizer, frozenset(), limit, events, inputs, plain=reads_plainly(model, tokenizer))
    if not model.can_generate():
        raise UserError("train.writes_no_text", name=name, architecture=model.config.model_type)
    ends = end_tokens(model, tokenizer)
    if not ends:
        raise UserError("torch.no_end", name=name)
    return Coding(tokenizer, ends, limit, events, inputs)


def longest(config: PretrainedConfig, params: TrainParams, events: Events) -> int:
    """`max_length`, but no more than the model has positions for, with the virtual tokens before a text."""
    most = longest_text(config)
    virtual: int = params.method.model_dump().get("num_virtual_tokens", 0)
    if most is None or params.max_length <= most - virtual:
        return params.max_length
    events.note("train.length_cut", asked=params.max_length, most=most - virtual)
    return most - virtual


def job_for(ready: Prepared, params: TrainParams, seed: int, place: Place) -> Job:
    """What the loop works on."""
    from inhouse.train.loop import Job

    return Job(
        samples=ready.texts.samples.kept,
        pad=ready.texts.pad,
        seed=seed,
        scratch=place.scratch,
        events=place.events,
        valid=ready.texts.valid,
        recipe=place.recipe,
        offline=place.offline,
        learning=ready.learning,
        reading=ready.reading,
        penalties=ready.penalties,
    )


def _wanted(params: TrainParams) -> Reading:
    import torch

    # The head of a decoder reads a packed row past the wrapper in which several processes share gradients.
    packs = params.packing and (params.parallel is None or not Learning(params.objective).labels)
    return Reading(packs, params.share_prefix, compute_dtype(params.precision) == torch.bfloat16)


def penalties_of(model: PeftModel | PreTrainedModel, texts: Texts, params: TrainParams) -> list[Penalty]:
    """The terms that join the loss, with what they keep of the model as it is now. Raises train.no_source."""
    kept = texts.samples.kept
    places = [texts.rows[origin].source for origin in texts.samples.origins]
    if params.replay is not None:
        places += [params.replay.dataset] * (len(kept) - len(places))  # rows of the replayed dataset stand behind
    prepared = prepare_penalties(model, params.penalties, lambda sources: samples_from(kept, places, sources))
    return [lambda trained: total(trained, prepared)] if prepared else []


def load_again(base: Input, params: TrainParams, seed: int) -> Loaded:
    """The base anew with fresh weights to train, for another trial on the same samples.

    Of a classifier the objective must name its labels, as `Prepared.learning` does.
    """
    from inhouse.engines.transformers import load_tokenizer
    from inhouse.train.virtual import with_virtual

    model, originals = _load(base, params, compute_dtype(params.precision), seed)
    model, _ = apply_changes(model, params.changes, Events())
    loaded = _adapt(model, (originals, save_dtype(base, params)), params, seed)
    with_virtual(loaded.model, [], load_tokenizer(base))
    return loaded


def compute_dtype(precision: Precision) -> torch.dtype:
    """The type that training computes in on this machine; raise train.fp16_cpu where fp16 cannot work."""
    import torch

    from inhouse.engines.transformers import torch_dtype

    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.fp16_cpu")
    return torch_dtype(precision)


def restore(ready: Prepared) -> None:
    """Give the frozen base its full-precision weights back, so that merging rounds nothing twice.

    They are read again: keeping them while training would take as much memory as all else together.
    """
    import torch

    from inhouse.engines.transformers import load_model

    if not ready.loaded.originals:
        return
    exact = dict(load_model(ready.base, NAMES[str(ready.loaded.save)]).named_parameters())
    for parameter, name in ready.loaded.originals:
        if name not in exact:  # a head may have another name in a base that writes
            continue
        precise = exact[name].data.to(parameter.device)
        same = torch.equal(parameter.data, precise.to(parameter.dtype))
        # What a change altered before training stays altered; it is only as precise as it was while training.
        parameter.data = precise if same else parameter.data.to(precise.dtype)


def _adapt(model: PreTrainedModel, kept: tuple[Originals, torch.dtype], params: TrainParams, seed: int) -> Loaded:
    import torch

    method = operator_of("method", params.method)
    total = sum(p.numel() for p in model.parameters())  # counted now: 4 bits would count as half a parameter
    torch.manual_seed(seed)
    adapted = method.function("attach")(model, params.method)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    total += trainable if method.function("BASE") != "trained" else 0
    return Loaded(adapted, kept[0], trainable, total, compute_dtype(params.precision), kept[1])


def _with_virtual(model: PeftModel | PreTrainedModel, texts: Texts) -> Texts:
    """The texts with the virtual tokens before them that a method may have added."""
    from inhouse.train.virtual import with_virtual

    kept = with_virtual(model, texts.samples.kept, texts.tokenizer)
    valid = with_virtual(model, texts.valid, texts.tokenizer)
    return replace(texts, samples=replace(texts.samples, kept=kept), valid=valid)


def _training_rows(dataset: Input) -> list[Row]:
    rows = list(read_rows(dataset.path, "train"))
    if not rows:
        raise UserError("train.no_rows")
    return rows


def save_dtype(base: Input, params: TrainParams) -> torch.dtype:
    """The type of the weights that are left behind."""
    from inhouse.engines.transformers import facts_of, torch_dtype

    if params.save_dtype != "auto":
        return torch_dtype(params.save_dtype)
    return torch_dtype("fp32" if (facts_of(base).parameters or 0) < SMALL else "bf16")


def _load(base: Input, params: TrainParams, compute: torch.dtype, seed: int) -> tuple[PreTrainedModel, Originals]:
    """The base in the type that its method trains it in, and its weights in the type to save, if that is another.

    With a head where the objective names labels; what is fresh of it stays in float32.
    """
    import torch

    from inhouse.engines.classifier import load_headed
    from inhouse.engines.transformers import load_model

    role = operator_of("method", params.method).function("BASE")
    kept = {"frozen": save_dtype(base, params), "trained": torch.float32, "rounded": compute}[role]
    labels = Learning(params.objective).labels
    if labels:
        model, fresh = load_headed(base, labels, NAMES[str(kept)], seed)
        model = shaped(model, params)
        model.fresh_modules = fresh  # so that adapters are saved with them: no base has them
    else:
        model, fresh = shaped(load_model(base, NAMES[str(kept)]), params), ()
    model.requires_grad_(False)
    # PEFT asks the hub for the settings of whatever the model is named after, at every save: no name, no question.
    model.name_or_path = model.config.name_or_path = ""
    if role != "frozen" or compute in (model.dtype, torch.float16):
        return model, []  # fp16 keeps the weights as they are and computes under autocast
    originals = [(p, name) for name, p in model.named_parameters() if name.rpartition(".")[0] not in fresh]
    for parameter, _ in originals:  # not model.to(): it would round the rotary frequencies too
        parameter.data = parameter.data.to(compute)
    return model, originals


def shaped(model: PreTrainedModel, params: TrainParams) -> PreTrainedModel:
    """The base with its positions stretched, or its attention cut to a window, where that is asked for."""
    if params.rope_scaling is not None:
        model = scale_rope(model, params.rope_scaling)
    return model if params.attention_window is None else window_attention(model, params.attention_window)
