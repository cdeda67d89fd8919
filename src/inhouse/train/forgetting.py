"""Measure what training forgets: the loss on rows of a general set, before and after, and how far they are apart.

A step of its own: it reads the two models and the rows, so that asking for it trains nothing again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from inhouse.core.artifact import Kind
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.gate import Figure
from inhouse.core.params import Needs, Params
from inhouse.core.plugins import require
from inhouse.core.protocols import Context, Made
from inhouse.core.rows import Part, Row
from inhouse.core.run import Events, release_memory
from inhouse.dataset import read_rows

if TYPE_CHECKING:
    import torch

    from inhouse.engines.transformers import TransformersEngine
    from inhouse.train.spans import Sample

VERSION = "1"
KIND: Kind = "predictions"
FIGURES = "figures.json"
LOSSES = "losses.json"
HELD_OUT: tuple[Part, ...] = ("test", "valid")
NO_TEXT = ("ForSequenceClassification", "ForMaskedLM")  # what transformers calls models that write no text
RESAMPLES = 2000
BATCH_TOKENS = 1024  # read together: the logits of 1024 tokens of a 150k vocabulary take 300 MB in bf16
DIGITS = 6


class ForgettingParams(Params):
    """A general set on which the model is measured before and after training."""

    dataset: Annotated[str, Needs("dataset", "dataset")] = Field(
        description="a name of extra_data: its test rows, then its valid rows, are measured, and never its train rows"
    )
    rows: int = Field(200, ge=2, le=1_000_000, description="how many rows; all of them where there are fewer")
    max_length: int = Field(1024, ge=8, description="only so many tokens of a row are read")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; auto: bf16 where the machine has it, else fp32"
    )


def external(params: ForgettingParams, project_dir: Path) -> dict[str, str]:
    """Nothing outside its inputs."""
    return {}


def run(params: ForgettingParams, context: Context) -> Made:
    """Write figures.json and losses.json: each row's loss under the models `before` and `after`.

    Inputs: `before` and `after` (models), `dataset`, and `trained_1`, `trained_2`, … (datasets whose training rows
    are left out). Raises train.forgetting_rows, train.forgetting_no_text, train.forgetting_not_finite.
    """
    require("train", "torch", "transformers", "numpy")
    from inhouse.train.tokens import encode

    rows, left_out = held_out_rows(params, context)
    engine = _open(context, "before", params)  # its tokenizer serves both: training keeps it
    samples = {row.id: cut(encode(row, engine.tokenizer, engine.ends), params.max_length) for row in rows}
    texts = {name: sample for name, sample in samples.items() if any(sample.learned[1:])}
    if len(texts) < 2:
        raise UserError("train.forgetting_rows", dataset=params.dataset, rows=len(texts), trained=left_out)
    before = text_losses(engine, [*texts.values()], context.events, "before")
    del engine
    release_memory()
    after = text_losses(_open(context, "after", params), [*texts.values()], context.events, "after")
    tokens = [sum(text.learned[1:]) for text in texts.values()]
    figures = figures_of(before, after, tokens)
    lines = [
        {"id": name, "tokens": count, "before": round(one, DIGITS), "after": round(two, DIGITS)}
        for name, count, one, two in zip(texts, tokens, before, after, strict=True)
    ]
    _write(context.out / LOSSES, lines)
    _write(context.out / FIGURES, {"figures": {name: figure.model_dump() for name, figure in figures.items()}})
    return Made(facts={"forgetting": _facts(figures, context) | {"tokens": sum(tokens), "left_out": left_out}})


def _facts(figures: Mapping[str, Figure], context: Context) -> dict[str, Any]:
    """The change in short; a change for the worse that is more than chance is told."""
    name = "training.forgetting"
    change, before, after = figures[name], figures[f"{name}.before"].value, figures[f"{name}.after"].value
    if change.low is not None and change.low > 0:
        context.events.note("train.forgotten", before=round(before, 3), after=round(after, 3), rows=change.n)
    return {
        "before": before, "after": after, "change": change.value, "low": change.low, "high": change.high,
        "rows": change.n,
    }  # fmt: skip


def _open(context: Context, which: str, params: ForgettingParams) -> TransformersEngine:
    from inhouse.engines.transformers import facts_of, open_model

    source = context.inputs[which]
    facts = facts_of(source)
    config = source.path / facts.main / "config.json"
    if config.is_file():
        named = (json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""])[0]
        if named.endswith(NO_TEXT):
            raise UserError("train.forgetting_no_text", name=facts.name)
    return open_model(source, dtype=params.precision)


def held_out_rows(params: ForgettingParams, context: Context) -> tuple[list[Row], int]:
    """The first rows by id (a hash, which prefers no row) that were not trained on, and how many were left out."""
    trained = {
        _content(row)
        for role, source in context.inputs.items()
        if role.startswith("trained_")
        for row in read_rows(source.path, "train")
    }
    kept: list[Row] = []
    left_out = 0
    for part in HELD_OUT:
        unseen = []
        for row in read_rows(context.inputs["dataset"].path, part):
            if _content(row) in trained:
                left_out += 1
            else:
                unseen.append(row)
        kept += islice(unseen, params.rows - len(kept))
    if len(kept) < 2:
        raise UserError("train.forgetting_rows", dataset=params.dataset, rows=len(kept), trained=left_out)
    return kept, left_out


def _content(row: Row) -> str:
    return hash_json([message.as_dict() for message in row.messages])


def cut(sample: Sample, longest: int) -> Sample:
    """The first tokens of a sample: a conversation's last answer counts, and every token of a plain document."""
    return replace(sample, ids=sample.ids[:longest], learned=sample.learned[:longest])


def text_losses(engine: TransformersEngine, texts: Sequence[Sample], events: Events, step: str) -> list[float]:
    """Summed cross entropy (nats) of the tokens that count, of each text in the order of the texts."""
    import torch

    found = [0.0] * len(texts)
    done = 0
    with torch.inference_mode():
        for places in _batches(texts):
            logits = _logits(engine, [texts[at] for at in places])
            for row, at in enumerate(places):
                found[at] = _summed(logits[row], texts[at])
            done += len(places)
            events.progress(done, len(texts), "rows", step=step)
    if not all(map(math.isfinite, found)):
        raise UserError("train.forgetting_not_finite", which=step)
    return found


def _logits(engine: TransformersEngine, texts: Sequence[Sample]) -> torch.Tensor:
    """Logits (texts, width, V) of texts padded on the right, after the virtual tokens that the model may begin with."""
    import torch
    from transformers.cache_utils import DynamicCache

    device, width = engine.model.device, max(len(text.ids) for text in texts)
    ids = torch.tensor([[*text.ids, *[0] * (width - len(text.ids))] for text in texts], device=device)
    held = engine.before.get_seq_length() if engine.before is not None else 0
    lengths = torch.tensor([held + len(text.ids) for text in texts], device=device)
    read = [(k.expand(len(texts), -1, -1, -1), v.expand(len(texts), -1, -1, -1)) for k, v, *_ in engine.before or ()]
    places = torch.arange(held + width, device=device)
    out = engine.model(
        input_ids=ids,
        attention_mask=(places < lengths[:, None]).long(),
        past_key_values=DynamicCache(read) if held else None,
        use_cache=held > 0,
    )
    logits: torch.Tensor = out.logits
    return logits


def _summed(logits: torch.Tensor, text: Sample) -> float:
    """The loss of one text, of its logits (width, V); the token at p is predicted at p - 1."""
    import torch

    places = [place for place, counts in enumerate(text.learned) if counts and place]
    wanted = torch.tensor([text.ids[place] for place in places], device=logits.device)
    guessed = logits[[place - 1 for place in places]].float()
    return float(torch.nn.functional.cross_entropy(guessed, wanted, reduction="sum"))


def _batches(texts: Sequence[Sample]) -> Iterator[list[int]]:
    """Texts of like length together, as many as BATCH_TOKENS hold; a longer one stands alone."""
    batch: list[int] = []
    for at in sorted(range(len(texts)), key=lambda i: (len(texts[i].ids), i)):
        if batch and len(texts[at].ids) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    yield batch


def figures_of(before: Sequence[float], after: Sequence[float], tokens: Sequence[int]) -> dict[str, Figure]:
    """Mean loss per token and perplexity of both models, and the change with a paired bootstrap's 95 % interval.

    `before` and `after` are summed losses of the same rows of `tokens` tokens. Each resample draws rows once and
    scores both models on them (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 16).
    """
    import numpy as np

    counts = np.array(tokens, dtype=np.float64)
    sums = np.array([before, after], dtype=np.float64)
    rows = len(counts)
    means = sums.sum(1) / counts.sum()
    generator = np.random.default_rng(0)
    drawn = (generator.integers(0, rows, rows) for _ in range(RESAMPLES))
    apart = sums[1] - sums[0]
    low, high = np.percentile([apart[d].sum() / counts[d].sum() for d in drawn], [2.5, 97.5])
    name, unit = "training.forgetting", "nats"
    made = {
        name: Figure(value=_short(means[1] - means[0]), low=_short(low), high=_short(high), n=rows, unit=unit),
        f"{name}.before": Figure(value=_short(means[0]), n=rows, unit=unit),
        f"{name}.after": Figure(value=_short(means[1]), n=rows, unit=unit),
    }
    for place, which in enumerate(("before", "after")):
        made[f"{name}.perplexity_{which}"] = Figure(value=_short(math.exp(min(700.0, means[place]))), n=rows)
    return made


def _short(value: Any) -> float:
    return round(float(value), DIGITS)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
