"""What training leaves behind: adapter/, merged/ and a card, checked against the model in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import list_files
from inhouse.core.model import ModelFacts
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Row
from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

COMPARED = 2  # conversations on which adapter and merged model are compared, logit by logit
PROMPTED = 4  # training prompts that the tuned model answers, to see whether answers end
MOST_TOKENS = 64  # an answer longer than this is not waited for when checking that answers end
SAME, MERGED, MERGED_BF16 = 1e-5, 1e-3, 0.25  # largest difference of logits: adapter reloaded; merged, by save type


@dataclass(frozen=True)
class Origin:
    """What the tuned model was made from."""

    base: Input
    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    samples: Sequence[Sample]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Checked:
    """The tuned model's header, and the differences that were measured."""

    model: ModelFacts
    parity: dict[str, float | int]


def finish(model: PeftModel, origin: Origin, context: Context) -> Checked:
    """Save the adapter and the merged model below `context.out`, reload both, and compare.

    Raises train.parity_adapter, train.parity_merged, train.parity_template when they do not agree.
    """
    import torch
    from peft import PeftModel

    model.eval()
    with torch.inference_mode():
        memory = probe(model, origin.samples)
    adapter, merged = context.out / "adapter", context.out / "merged"
    save_adapter(model, adapter, origin.facts.name)
    context.events.check()
    reloaded = PeftModel.from_pretrained(model.unload(), adapter)
    with torch.inference_mode():
        again = probe(reloaded.eval(), origin.samples)
    apart = difference(memory, again)
    if not apart <= SAME:
        raise UserError("train.parity_adapter", difference=apart, most=SAME)
    save_merged(reloaded, origin, merged)
    (context.out / "README.md").write_text(card(origin), encoding="utf-8")
    header = _header(origin, context.out, reloaded)
    parity = check_merged(Input(_record(origin, header), context.out), again, origin, context)
    return Checked(header, {"adapter_reloaded": apart, **parity})


def probe(model: torch.nn.Module, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Logits (T, V) of the first few conversations, each read alone."""
    device = next(model.parameters()).device
    return [_logits(model, sample.ids, device) for sample in samples[:COMPARED]]


def _logits(model: torch.nn.Module, ids: Sequence[int], device: torch.device) -> torch.Tensor:
    import torch

    logits: torch.Tensor = model(torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
    return logits


def difference(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """The largest absolute difference; NaN anywhere gives NaN, which no bound accepts."""
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter in PEFT's format. Its settings name the base, never a local path, in a fixed order."""
    # save_embedding_layers off: PEFT would ask the hub whether the vocabulary changed.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"] = sorted(settings["target_modules"])  # a set inside PEFT: its order is random
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is a form to fill in; ours stands above


def save_merged(model: PeftModel, origin: Origin, folder: Path) -> None:
    """Write base and adapter as one Hugging Face folder: weights, settings, tokenizer and chat template."""
    merged: Any = model.merge_and_unload()
    merged.config.name_or_path = origin.facts.name
    merged.config.use_cache = True
    merged.save_pretrained(str(folder))
    origin.tokenizer.save_pretrained(str(folder))


def check_merged(
    merged: Input, expected: Sequence[torch.Tensor], origin: Origin, context: Context
) -> dict[str, float | int]:
    """Open the merged folder as every later stage does; compare tokens and logits, and see whether answers end."""
    import torch

    from inhouse.engines.transformers import TransformersEngine, load_model, load_tokenizer, torch_dtype

    model = load_model(merged, "fp32" if expected_dtype(merged) == "F32" else "bf16").eval()
    with torch.inference_mode():
        apart = difference(expected, probe(model, origin.samples))
    most = MERGED if model.dtype == torch_dtype("fp32") else MERGED_BF16
    if not apart <= most:
        raise UserError("train.parity_merged", difference=apart, most=most)
    engine = TransformersEngine(origin.facts.name, model, load_tokenizer(merged))
    prompts = [row.prompt for row in origin.rows[:PROMPTED]]
    before = TransformersEngine(origin.facts.name, model, origin.tokenizer)
    for prompt in prompts:
        if engine.token_ids(prompt) != before.token_ids(prompt):
            raise UserError("train.parity_template", name=origin.facts.name)
    longest = max(sum(sample.learned) for sample in origin.samples)
    ended = _count_ended(engine, prompts, min(MOST_TOKENS, longest + 8), context)
    if not ended and longest <= MOST_TOKENS:
        context.events.note("train.no_end_learned", prompts=len(prompts))
    return {"merged": apart, "answers_ended": ended, "answers_probed": len(prompts)}


def _count_ended(engine: Any, prompts: Sequence[Any], most: int, context: Context) -> int:
    answers = engine.generate(prompts, most, lambda _: context.events.check())
    return sum(answer.finish == "stop" for answer in answers)


def expected_dtype(merged: Input) -> str:
    """The type that most of the saved tensors have: 'F32' or 'BF16'."""
    types: dict[str, int] = merged.record.facts["model"]["tensor_types"]
    return max(types, key=lambda name: types[name])


def _header(origin: Origin, out: Path, model: PeftModel) -> ModelFacts:
    from safetensors import safe_open

    types: dict[str, int] = {}
    for path in sorted((out / "merged").glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                kind = tensors.get_slice(name).get_dtype()
                types[kind] = types.get(kind, 0) + 1
    size = sum(entry.bytes for entry in list_files(out / "merged"))
    return origin.facts.model_copy(
        update={
            "format": "safetensors",
            "main": "merged",
            "adapter": "adapter",
            "architecture": model.config.model_type,
            "tensor_types": types,
            "bytes": size,
            "chat_template": True,
        }
    )


def _record(origin: Origin, header: ModelFacts) -> Artifact:
    """A record good enough to open the model with; flow writes the real one."""
    return origin.base.record.model_copy(update={"facts": {"model": header.model_dump()}})


def card(origin: Origin) -> str:
    """The model card: what it is, what it was made from, and how to load it."""
    licences = (
        "\n".join(f"- {item.subject}: {item.spdx}" for item in origin.base.record.licences) or "- see record.json"
    )
    return (
        f"# {origin.facts.name}, fine-tuned\n\n"
        f"{len(origin.samples)} training conversations; base artifact `{origin.base.record.id}`.\n\n"
        "- `adapter/`: PEFT adapter. Load it with `PeftModel.from_pretrained(base, 'adapter')`.\n"
        "- `merged/`: base and adapter as one Hugging Face folder.\n\n"
        f"## Licences inherited from the base\n\n{licences}\n"
    )
