"""Fine-tune the base on the dataset: an adapter, and the base with the adapter merged in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Kind
from inhouse.core.errors import UserError
from inhouse.core.plugins import operator_of, require
from inhouse.core.protocols import Context, Input, Made
from inhouse.core.rows import Row
from inhouse.core.run import release_memory
from inhouse.core.settings import usable_cores
from inhouse.dataset import read_rows
from inhouse.train.params import Precision
from inhouse.train.params import TrainParams as TrainParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inhouse.train.tokens import Samples

VERSION = "1"
KIND: Kind = "model"
SMALL = 1_000_000_000  # models below this many parameters are saved in fp32: nothing is lost before quantising


def external(params: TrainParams, project_dir: Path) -> dict[str, str]:
    """Training reads artifacts only, nothing from outside."""
    return {}


def run(params: TrainParams, context: Context) -> Made:
    """Train on `dataset` from `base`; write adapter/, merged/ and README.md, and check that they agree."""
    require("train", "torch", "transformers", "peft", "accelerate", "safetensors", "gguf")
    import torch

    from inhouse.engines.torch_chat import end_tokens
    from inhouse.engines.transformers import facts_of, load_tokenizer
    from inhouse.train.loop import Job, train
    from inhouse.train.result import Origin, finish

    base = context.inputs["base"]
    facts = facts_of(base)
    rows = _training_rows(context.inputs["dataset"])
    torch.set_num_threads(usable_cores())
    compute = compute_dtype(params.precision)
    tokenizer = load_tokenizer(base)
    model, originals = _load(base, params, compute)
    ends = end_tokens(model, tokenizer)
    if not ends:
        raise UserError("torch.no_end", name=facts.name)
    samples = _samples(rows, tokenizer, ends, params, context)
    torch.manual_seed(context.seed)
    adapted = operator_of("method", params.method).function("attach")(model, params.method)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    job = Job(samples.kept, tokenizer.pad_token_id or 0, context.seed, context.scratch, context.events)
    trained = train(adapted, params, job)
    _note_loss(context, trained.losses)
    restore(originals)
    release_memory()  # activations of training: the checks below hold a second copy of the model
    origin = Origin(base, facts, tokenizer, ends, samples.kept, rows)
    checked = finish(adapted, origin, context)
    return Made(
        facts={
            "model": checked.model.model_dump(),
            "rows": len(rows),
            "too_long": samples.too_long,
            "trainable": trainable,
            "trainable_share": trainable / total,
            "steps": trained.steps,
            "epochs": trained.epochs,
            "tokens": trained.tokens,
            "losses": trained.losses,
            "resumed_from": trained.resumed_from,
            "parity": checked.parity,
            "precision": str(compute).removeprefix("torch."),
        }
    )


def compute_dtype(precision: Precision) -> torch.dtype:
    """The type that training computes in on this machine; raise train.fp16_cpu where fp16 cannot work."""
    import torch

    from inhouse.engines.transformers import torch_dtype

    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.fp16_cpu")
    return torch_dtype(precision)


def _training_rows(dataset: Input) -> list[Row]:
    rows = list(read_rows(dataset.path, "train"))
    if not rows:
        raise UserError("train.no_rows")
    return rows


def _samples(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], params: TrainParams, context: Context
) -> Samples:
    from inhouse.train.tokens import encode_rows

    samples = encode_rows(rows, tokenizer, ends, (params.max_length, params.turns), context.events)
    if samples.too_long:
        context.events.note("train.too_long", dropped=samples.too_long, rows=len(rows), max_length=params.max_length)
    return samples


Originals = list[tuple[Any, Any]]


def _load(base: Input, params: TrainParams, compute: torch.dtype) -> tuple[PreTrainedModel, Originals]:
    """The base in the type to compute in, and its weights in the type to save, when that is another."""
    import torch

    from inhouse.engines.transformers import facts_of, load_model

    size = facts_of(base).parameters or 0
    save = params.save_dtype if params.save_dtype != "auto" else ("fp32" if size < SMALL else "bf16")
    model = load_model(base, save)
    model.requires_grad_(False)
    # PEFT asks the hub for the settings of whatever the model is named after, at every save: no name, no question.
    model.name_or_path = model.config.name_or_path = ""
    if compute == model.dtype or compute == torch.float16:
        return model, []  # fp16 keeps the weights as they are and computes under autocast
    originals = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter in model.parameters():  # not model.to(): it would round the rotary frequencies too
        parameter.data = parameter.data.to(compute)
    return model, originals


def restore(originals: Originals) -> None:
    """Give the frozen base its full-precision weights back, so that merging rounds nothing twice."""
    for parameter, data in originals:
        parameter.data = data.to(parameter.device)


def _note_loss(context: Context, losses: list[dict[str, float]]) -> None:
    if len(losses) > 1 and losses[-1]["loss"] >= losses[0]["loss"]:
        context.events.note("train.no_progress", first=round(losses[0]["loss"], 3), last=round(losses[-1]["loss"], 3))
