"""What training leaves behind: adapter/, merged/ and cards, checked against the model in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import list_files
from inhouse.core.model import ModelFacts
from inhouse.core.model_card import trained_name
from inhouse.core.protocols import Context, Engine, Input, Prompt, prompt_of
from inhouse.core.rows import Row
from inhouse.train.card import write_cards
from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPARED = 2  # conversations on which adapter and merged model are compared, logit by logit
PROMPTED = 4  # training prompts whose tokens are compared
SAME, MERGED, MERGED_BF16 = 1e-5, 1e-3, 0.25  # largest difference of logits: adapter reloaded; merged, by save type


@dataclass(frozen=True)
class Origin:
    """What the tuned model was made from, and the type that its weights are saved in."""

    base: Input
    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    samples: Sequence[Sample]
    rows: Sequence[Row]
    save: torch.dtype
    labels: tuple[str, ...] = ()  # of a classifier
    unit: int = 1  # samples that make one example; the first of them holds the answer to learn
    datasets: tuple[str, ...] = ()  # names of the sources that it learnt from
    languages: tuple[str, ...] = ()  # of what it learnt from, where they are known and may be told


@dataclass(frozen=True)
class Checked:
    """The tuned model's header, and the differences that were measured."""

    model: ModelFacts
    parity: dict[str, float | int | None]


@dataclass(frozen=True)
class Left:
    """What a method left: folders and how they are used, and the logits that the opened result must give."""

    adapter: bool
    unmerged: bool
    four_bit: bool
    expected: Sequence[torch.Tensor]
    parity: dict[str, float | int | None]


def finish(model: PeftModel | PreTrainedModel, origin: Origin, context: Context) -> Checked:
    """Save what was trained below `context.out`, open it again as every later stage does, and compare.

    Adapters: adapter/ and merged/. Every weight: merged/ only. Virtual tokens: adapter/ and, in merged/, the bare base.
    Raises train.parity_adapter, train.parity_merged, train.parity_template, train.never_ends when something is amiss.
    """
    from peft import PeftModel

    from inhouse.train.step import unwrapped
    from inhouse.train.virtual import virtual_ids

    model.eval()
    unwrapped(model).gradient_checkpointing_disable()  # PEFT opens no virtual tokens of a model that computes so
    virtual = virtual_ids(model)
    if virtual:
        origin = replace(origin, samples=[_without(sample, len(virtual)) for sample in origin.samples])
        left = _leave_virtual(model, virtual, origin, context)
    elif isinstance(model, PeftModel):
        left = _leave_adapters(model, origin, context)
    else:
        left = _leave_weights(model, origin, context)
    write_cards(context.out, origin, left)
    header = _header(origin, context.out, left)
    parity = check_merged(Input(_record(origin, header), context.out), left, origin, context)
    return Checked(header, {**left.parity, **parity})


def _leave_adapters(model: PeftModel, origin: Origin, context: Context) -> Left:
    """Write adapter/, reload it on the base that it was trained on, and write both as merged/."""
    from inhouse.engines.adapters import open_adapter
    from inhouse.train.methods.qlora import is_rounded, unround

    four_bit = is_rounded(model)
    if four_bit:
        widen(model, origin.save)
    memory = probe(model, origin.samples)
    folder = context.out / "adapter"
    save_adapter(model, folder, origin)
    context.events.check()
    base: Any = model.unload()
    reloaded = open_adapter(base, folder, base_name(origin)).eval()
    again = probe(reloaded, origin.samples)
    _require_same(memory, again)
    parity: dict[str, float | int | None] = {"adapter_reloaded": difference(memory, again)}
    if four_bit:
        base = reloaded.unload()
        unround(base)
        widen(base, origin.save)
        reloaded = open_adapter(base, folder, base_name(origin)).eval()
    merged: Any = reloaded.merge_and_unload()
    save_folder(merged, origin, context.out / "merged")
    return Left(True, False, four_bit, again, parity)


def _leave_weights(model: PreTrainedModel, origin: Origin, context: Context) -> Left:
    """Write merged/: all of the model, in the type to save."""
    expected = probe(model, origin.samples)
    widen(model, origin.save)
    save_folder(model, origin, context.out / "merged")
    return Left(False, False, False, expected, {})


def _leave_virtual(model: Any, virtual: Sequence[int], origin: Origin, context: Context) -> Left:
    """Write adapter/ with the virtual tokens, reload it in stock PEFT on the bare base, and write that as merged/."""
    from inhouse.engines.adapters import open_adapter
    from inhouse.train.virtual import remove_virtual, save_virtual

    marked = [replace(sample, ids=(*virtual, *sample.ids)) for sample in origin.samples[:COMPARED]]
    memory = [logits[len(virtual) :] for logits in probe(model, marked)]
    folder = context.out / "adapter"
    save_virtual(model, folder, origin.facts.name)
    _finish_adapter(folder, origin)
    remove_virtual(model)
    # PEFT returns logits at the virtual tokens too where it puts embeddings, and none where it puts keys and values.
    again = [
        logits[-len(sample.ids) :]
        for logits, sample in zip(
            probe(open_adapter(model, folder, base_name(origin)).eval(), origin.samples), origin.samples, strict=False
        )
    ]
    _require_same(memory, again)
    save_folder(model, origin, context.out / "merged")
    return Left(True, True, False, again, {"adapter_reloaded": difference(memory, again)})


def _without(sample: Sample, virtual: int) -> Sample:
    return replace(sample, ids=sample.ids[virtual:], learned=sample.learned[virtual:])


def _require_same(memory: Sequence[torch.Tensor], again: Sequence[torch.Tensor]) -> None:
    apart = difference(memory, again)
    if not apart <= SAME:
        raise UserError("train.parity_adapter", difference=apart, most=SAME)


def widen(model: torch.nn.Module, kind: torch.dtype) -> None:
    """Bring all weights that are not in 4 bits to `kind`; layers in 4 bits then compute in it too."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = module.weight.quant_state.dtype = kind
    for parameter in model.parameters():  # not model.to(): it would round the rotary frequencies too
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(kind)


def probe(model: torch.nn.Module, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Logits (T, V) of the first few conversations, each read alone."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        return [_logits(model, sample.ids, device) for sample in samples[:COMPARED]]


def _logits(model: torch.nn.Module, ids: Sequence[int], device: torch.device) -> torch.Tensor:
    import torch

    logits: torch.Tensor = model(torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
    return logits


def difference(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """The largest absolute difference; NaN anywhere gives NaN, which no bound accepts."""
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def save_adapter(model: PeftModel, folder: Path, origin: Origin) -> None:
    """Write the adapter in PEFT's format, with the tokenizer and the template that it was trained through."""
    # save_embedding_layers off: PEFT would ask the hub whether the vocabulary changed.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    _finish_adapter(folder, origin)


def _finish_adapter(folder: Path, origin: Origin) -> None:
    """An adapter's settings name the base, never a local path, in a fixed order."""
    path = folder / "adapter_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # In a chain the base is a training's own result: its name says so, as the adapter fits nothing else.
    settings["base_model_name_or_path"] = base_name(origin)
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])  # a set inside PEFT: its order is random
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is a form to fill in
    origin.tokenizer.save_pretrained(str(folder))


def base_name(origin: Origin) -> str:
    """What the adapter's base is called: the model's name, and for a base that was itself trained its artifact's id."""
    trained = origin.base.record.stage == "train"
    return trained_name(origin.base.record, origin.facts.name) if trained else origin.facts.name


def save_folder(model: Any, origin: Origin, folder: Path) -> None:
    """Write a model as one Hugging Face folder: weights, settings, tokenizer and chat template."""
    model.config.name_or_path = origin.facts.name
    model.config.use_cache = True
    model.save_pretrained(str(folder))
    origin.tokenizer.save_pretrained(str(folder))


def check_merged(merged: Input, left: Left, origin: Origin, context: Context) -> dict[str, float | int | None]:
    """Open the result as every later stage does; compare tokens and logits, and see whether answers end."""
    from inhouse.engines.transformers import TransformersEngine, open_model
    from inhouse.train.endings import judge_endings

    if origin.labels:
        return _check_classifier(merged, left, origin)
    engine = open_model(merged, dtype="fp32" if expected_dtype(merged) == "F32" else "bf16")
    apart = _require_alike(merged, left, [engine.all_logits(sample.ids) for sample in origin.samples[:COMPARED]])
    before = TransformersEngine(origin.facts.name, engine.model, origin.tokenizer)
    _require_same_tokens(engine, before, origin)
    endings = judge_endings(engine, wanted_answers(origin), _prompts(origin), context.events)
    return {"merged": apart, **endings.facts}


def wanted_answers(origin: Origin) -> Sequence[Sample]:
    """The samples whose answers the model is to give: not rejected or mismatched ones, nor any with a thumb down."""
    own = origin.samples[:: origin.unit]
    return [sample for sample in own if sample.mark] or own  # marked are those with a thumb up, if thumbs there are


def _check_classifier(merged: Input, left: Left, origin: Origin) -> dict[str, float | int | None]:
    """The same for a model that names labels: it reads the same tokens and knows the same labels."""
    from inhouse.engines.classifier import ClassifierEngine, open_classifier

    engine = open_classifier(merged, dtype="fp32" if expected_dtype(merged) == "F32" else "bf16")
    apart = _require_alike(merged, left, [engine.all_logits(sample.ids) for sample in origin.samples[:COMPARED]])
    before = ClassifierEngine(origin.facts.name, engine.model, origin.tokenizer)
    _require_same_tokens(engine, before, origin)
    if engine.labels != origin.labels:
        raise UserError("train.parity_labels", left=", ".join(engine.labels), wanted=", ".join(origin.labels))
    return {"merged": apart}


def _require_alike(merged: Input, left: Left, logits: Sequence[torch.Tensor]) -> float:
    apart = difference(left.expected, logits)
    most = MERGED if expected_dtype(merged) == "F32" else MERGED_BF16
    if not apart <= most:
        raise UserError("train.parity_merged", difference=apart, most=most)
    return apart


def _require_same_tokens(engine: Engine, before: Engine, origin: Origin) -> None:
    if any(engine.token_ids(prompt) != before.token_ids(prompt) for prompt in _prompts(origin)[:PROMPTED]):
        raise UserError("train.parity_template", name=origin.facts.name)


def _prompts(origin: Origin) -> list[Prompt]:
    """What the rows ask, their tools included; a plain text asks nothing."""
    return [prompt_of(row) for row in origin.rows if row.prompt]


def expected_dtype(merged: Input) -> str:
    """The type that most of the saved tensors have: 'F32' or 'BF16'."""
    types: dict[str, int] = merged.record.facts["model"]["tensor_types"]
    return max(types, key=lambda name: types[name])


def _header(origin: Origin, out: Path, left: Left) -> ModelFacts:
    from safetensors import safe_open

    types: dict[str, int] = {}
    for path in sorted((out / "merged").glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                kind = tensors.get_slice(name).get_dtype()
                types[kind] = types.get(kind, 0) + 1
    settings = json.loads((out / "merged" / "config.json").read_text(encoding="utf-8"))
    size = sum(entry.bytes for entry in list_files(out / "merged"))
    return origin.facts.model_copy(
        update={
            "format": "safetensors",
            "main": "merged",
            "adapter": "adapter" if left.adapter else None,
            "unmerged": left.unmerged,
            "four_bit": left.four_bit,
            "architecture": settings["model_type"],
            "context_length": settings.get("max_position_embeddings", origin.facts.context_length),
            "tensor_types": types,
            "bytes": size,
            "chat_template": bool(origin.tokenizer.chat_template),
            "labels": origin.labels,
        }
    )


def _record(origin: Origin, header: ModelFacts) -> Artifact:
    """A record good enough to open the model with; flow writes the real one."""
    return origin.base.record.model_copy(update={"facts": {"model": header.model_dump()}})
