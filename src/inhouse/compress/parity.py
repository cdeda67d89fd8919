"""Parity: adapter, merged model and exported file must be the same model, within stated bounds.

Measured on the same prompts of the test part: the template's token ids, the probabilities of the next token, and
greedy answers. A wrong template, a lost tensor or a merge that did not happen shows here, before anything is served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.gate import Figure
from inhouse.core.params import Params
from inhouse.core.protocols import Generation, Input, prompt_of
from inhouse.core.rows import Row
from inhouse.core.run import Events

if TYPE_CHECKING:
    import torch

    from inhouse.engines.llamacpp import LlamaCppEngine

# llama.cpp and torch repeat themselves bit for bit at one thread count; another count moves the fifth digit.
DIGITS = 4
# Every logit of the vocabulary is compared, so that a few prompts show a merge that went wrong.
ADAPTER_PROMPTS = 4


class ParityParams(Params):
    """How parity is measured, and how far apart the models may be; bounds left out follow the export's precision."""

    prompts: int = Field(16, ge=1, description="prompts of the test part, the ones with the smallest row ids")
    tokens: int = Field(16, ge=1, description="length of the greedy answers that are compared")
    top: int = Field(20, ge=1, le=100, description="likeliest next tokens of the merged model that are compared")
    adapter_vs_merged: float = Field(1e-3, gt=0, description="largest difference of a logit, adapter against merged")
    max_logit_difference: float | None = Field(None, gt=0, description="largest difference of a log-probability (nats)")
    kl: float | None = Field(None, gt=0, description="mean Kullback-Leibler divergence, merged to exported (nats)")
    greedy_agreement: float | None = Field(None, ge=0, le=1, description="least share of identical greedy answers")


@dataclass(frozen=True)
class Bounds:
    """What the exported file may differ from the merged model by."""

    max_logit_difference: float
    kl: float
    greedy_agreement: float


# Measured on SmolLM2-135M: Q8_0 differs by 0.3 nats at most among the top 20 and by a KL of 0.002; Q4_0 by a KL of
# 0.5. A template or tensor that is wrong gives whole nats, so these tell damage from rounding, not good from bad:
# what a precision costs in quality is measured by the evaluation and judged by the gates.
TIGHT = Bounds(max_logit_difference=1.5, kl=0.05, greedy_agreement=0.25)
WIDE = Bounds(max_logit_difference=8.0, kl=1.5, greedy_agreement=0.0)


@dataclass(frozen=True)
class Reference:
    """What the merged model says to one prompt."""

    row: Row
    ids: list[int]
    top: dict[int, float]  # token id -> log-probability
    adapter_difference: float | None
    answer: Generation
    answer_ids: list[int]


@dataclass(frozen=True)
class Comparison:
    """The exported model beside the merged one, on one prompt."""

    row: str
    ids_equal: bool
    max_difference: float
    mean_difference: float
    kl: float
    answer_equal: bool
    equal_tokens: float
    adapter_difference: float | None


def bounds_of(params: ParityParams, loose: bool) -> Bounds:
    """The bounds in force: those the project sets, else those of the export's precision."""
    default = WIDE if loose else TIGHT
    own = params.model_dump(include=set(Bounds.__dataclass_fields__), exclude_none=True)
    return Bounds(**{**default.__dict__, **own})


def choose_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows with the smallest ids: ids are hashes, so this is a fixed sample that no order of files changes."""
    return sorted(rows, key=lambda row: row.id)[:count]


def measure(
    rows: Sequence[Row], models: tuple[Input | None, Input, Input], params: ParityParams, events: Events
) -> list[Comparison]:
    """Compare (base or None, tuned, exported) on the rows' prompts. Without the base the adapter is not compared.

    One model is in memory at a time. Raises compress.parity_template at the first prompt with other token ids:
    nothing after that would compare like with like.
    """
    base, tuned, exported = models
    adapted = adapter_logits(base, tuned, rows[:ADAPTER_PROMPTS]) if base is not None else None
    references = _references(tuned, rows, adapted, params)
    from inhouse.engines.llamacpp import open_model

    engine = open_model(exported)
    try:
        compared = []
        for reference in events.track(references, len(references), "prompts"):
            compared.append(_compare(engine, reference, params))
    finally:
        engine.close()
    return compared


def adapter_logits(base: Input, tuned: Input, rows: Sequence[Row]) -> list[torch.Tensor] | None:
    """Logits after each prompt with the adapter on the base's weights (fp32).

    None when there is no adapter, or one that belongs to the base in 4 bits.
    """
    from inhouse.engines.adapters import open_adapter
    from inhouse.engines.rope import shaped_like
    from inhouse.engines.torch_chat import render
    from inhouse.engines.transformers import facts_of, load_model, load_tokenizer

    folder = facts_of(tuned).adapter
    if folder is None or facts_of(tuned).four_bit:
        return None
    shaped = shaped_like(load_model(base, "fp32"), tuned.path / facts_of(tuned).main)
    model = open_adapter(shaped, tuned.path / folder, None).eval()
    tokenizer = load_tokenizer(tuned)
    return [_last_logits(model, render(tokenizer, row.prompt, answer_follows=True, tools=row.tools)) for row in rows]


def _last_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), use_cache=False, logits_to_keep=1).logits
    return logits[0, -1].float()


def _references(
    tuned: Input, rows: Sequence[Row], adapted: list[torch.Tensor] | None, params: ParityParams
) -> list[Reference]:
    from inhouse.engines.transformers import open_model

    engine = open_model(tuned, dtype="fp32")
    try:
        answers = engine.generate([prompt_of(row) for row in rows], params.tokens, lambda _: None)
        references = []
        for at, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            ids = engine.token_ids(prompt_of(row))
            logits = _last_logits(engine.model.cpu(), ids)
            best = logits.log_softmax(-1).topk(min(params.top, len(logits)))
            top = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            apart = None if adapted is None or at >= len(adapted) else float((logits - adapted[at]).abs().max())
            answer_ids = list(engine.tokenizer.encode(answer.text, add_special_tokens=False))
            references.append(Reference(row, ids, top, apart, answer, answer_ids))
        return references
    finally:
        engine.close()


def _compare(engine: LlamaCppEngine, reference: Reference, params: ParityParams) -> Comparison:
    row = reference.row
    ids = engine.token_ids(prompt_of(row))
    if ids != reference.ids:
        raise template_error(row.id, reference.ids, ids)
    found = engine.logprobs_of(prompt_of(row), list(reference.top))
    differences = [_apart(found[token], logprob) for token, logprob in reference.top.items()]
    answer = engine.generate([prompt_of(row)], params.tokens, lambda _: None)[0]
    said = engine.text_ids(answer.text)
    same = sum(a == b for a, b in zip(said, reference.answer_ids, strict=False))
    return Comparison(
        row=row.id,
        ids_equal=True,
        max_difference=max(differences),
        mean_difference=fmean(differences),
        kl=kl_of_top(reference.top, found),
        answer_equal=answer.text == reference.answer.text,
        equal_tokens=same / max(len(said), len(reference.answer_ids), 1),
        adapter_difference=reference.adapter_difference,
    )


def _apart(a: float | None, b: float) -> float:
    """|a - b|; infinite when the engine gave no finite number, so that NaN can never pass a bound."""
    return abs(a - b) if a is not None and math.isfinite(a) and math.isfinite(b) else math.inf


def kl_of_top(reference: dict[int, float], found: dict[int, float]) -> float:
    """KL divergence (nats) over the reference's top tokens, all others taken as one.

    Merging outcomes can only lower the divergence (data-processing inequality): this is a lower bound of it.
    """
    if not all(value is not None and math.isfinite(value) for value in found.values()):
        return math.inf
    kept = [(math.exp(logprob), logprob - found[token]) for token, logprob in reference.items()]
    total = math.fsum(p * ratio for p, ratio in kept)
    rest = 1 - math.fsum(p for p, _ in kept)
    rest_found = 1 - math.fsum(math.exp(found[token]) for token in reference)
    if rest > 1e-9:
        total += rest * math.log(rest / max(rest_found, 1e-12))
    return max(total, 0.0)


def template_error(row: str, reference: Sequence[int], exported: Sequence[int]) -> UserError:
    """The error that shows where two engines' token ids part."""
    shorter = min(len(reference), len(exported))
    at = next((i for i in range(shorter) if reference[i] != exported[i]), shorter)
    return UserError(
        "compress.parity_template",
        row=row,
        position=at,
        reference=str(list(reference[at : at + 5])),
        exported=str(list(exported[at : at + 5])),
    )


def _badness(value: float | None) -> float:
    """A difference for ranking: none at all is 0, and what is no number is worse than any number."""
    return 0.0 if value is None else value if math.isfinite(value) else math.inf


def _largest(values: Sequence[float]) -> float:
    return max(map(_badness, values))


def figures_of(compared: Sequence[Comparison]) -> dict[str, Figure]:
    """The named figures that gates and reports use, over all prompts."""
    n = len(compared)

    def figure(value: float, unit: str = "") -> Figure:
        return Figure(value=round(value, DIGITS), n=n, unit=unit)

    figures = {
        "parity.template_ids_equal": figure(fmean(c.ids_equal for c in compared)),
        "parity.max_logit_difference": figure(_largest([c.max_difference for c in compared]), "nats"),
        "parity.mean_logit_difference": figure(fmean(c.mean_difference for c in compared), "nats"),
        "parity.kl": figure(fmean(c.kl for c in compared), "nats"),
        "parity.greedy_agreement": figure(fmean(c.answer_equal for c in compared)),
        "parity.equal_tokens": figure(fmean(c.equal_tokens for c in compared)),
    }
    adapter = [c.adapter_difference for c in compared if c.adapter_difference is not None]
    if adapter:
        value = round(_largest(adapter), DIGITS)
        figures["parity.adapter_vs_merged"] = Figure(value=value, n=len(adapter), unit="logits")
    return figures


def judge(compared: Sequence[Comparison], params: ParityParams, bounds: Bounds) -> None:
    """Raise compress.parity_* when a bound is broken, naming the worst prompt. `not <=` so that NaN fails too."""
    figures = {name: figure.value for name, figure in figures_of(compared).items()}
    worst = max(compared, key=lambda c: _badness(c.adapter_difference))
    measured = figures.get("parity.adapter_vs_merged", 0.0)
    if not measured <= params.adapter_vs_merged:
        raise UserError(
            "compress.parity_adapter", row=worst.row, measured=f"{measured:g}", bound=f"{params.adapter_vs_merged:g}"
        )
    worst = max(compared, key=lambda c: _badness(c.max_difference))
    _hold("max_logit_difference", figures, bounds.max_logit_difference, worst)
    _hold("kl", figures, bounds.kl, max(compared, key=lambda c: _badness(c.kl)))
    agreement = figures["parity.greedy_agreement"]
    if not agreement >= bounds.greedy_agreement:
        first = next(c for c in compared if not c.answer_equal)
        raise UserError(
            "compress.parity_greedy", row=first.row, measured=f"{agreement:g}", bound=f"{bounds.greedy_agreement:g}"
        )


def _hold(name: str, figures: dict[str, float], bound: float, worst: Comparison) -> None:
    measured = figures[f"parity.{name}"]
    if not measured <= bound:
        raise UserError(
            "compress.parity_logits", row=worst.row, figure=name, measured=f"{measured:g}", bound=f"{bound:g}"
        )


def report(compared: Sequence[Comparison], params: ParityParams, bounds: Bounds) -> dict[str, Any]:
    """parity.json: the figures, the bounds they kept, and every prompt's numbers."""
    figures = {name: figure.model_dump(exclude_none=True) for name, figure in figures_of(compared).items()}
    rows = [
        {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in c.__dict__.items()}
        for c in compared
    ]
    settings = {"prompts": len(compared), "tokens": params.tokens, "top": params.top}
    limits = {**bounds.__dict__, "adapter_vs_merged": params.adapter_vs_merged}
    return {"figures": figures, "settings": settings, "bounds": limits, "rows": rows}
