"""Speed of an engine as one user feels it: requests one at a time, on prompts of the test part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inhouse.core.gate import Figure
from inhouse.core.protocols import Engine, Generation, Prompt
from inhouse.evaluate.settings import EvaluateParams

Check = Callable[[], None]


def measure_speed(
    engine: Engine, prompts: Sequence[Prompt], settings: EvaluateParams, fixed_length: bool, check: Check
) -> dict[str, Figure]:
    """Latency, time to first token and decoding rate; `n` of each figure is the number of requests behind it.

    The first request warms the engine and is not counted. The two series use different prompts where there are
    enough, so that an answer never profits from a prompt that the engine has just read. With `fixed_length` the
    decoding series writes exactly `decode_tokens` tokens (engines that can ignore the end of turn).
    """
    speed = settings.speed
    if not speed.requests and not speed.decode_prompts:
        return {}
    chosen = spread(prompts, 1 + speed.requests + speed.decode_prompts)
    _ask(engine, chosen[0], settings.max_tokens, False)
    latency, decoding = [], []
    for prompt in chosen[1 : 1 + speed.requests]:
        check()
        latency.append(_ask(engine, prompt, settings.max_tokens, False))
    for prompt in chosen[1 + speed.requests :]:
        check()
        decoding.append(_ask(engine, prompt, speed.decode_tokens, fixed_length))
    return latency_figures(latency) | decoding_figures(decoding)


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts spread evenly over the rows, from the first; rows repeat only when there are too few."""
    step = max(1.0, len(prompts) / count)
    return [prompts[int(index * step) % len(prompts)] for index in range(count)]


def latency_figures(answers: Sequence[Generation]) -> dict[str, Figure]:
    """Median and 95th percentile of whole answers, and the median time to the first token, in milliseconds."""
    import numpy as np

    if not answers:
        return {}
    total = [1000 * answer.total_s for answer in answers]
    first = [1000 * answer.first_token_s for answer in answers]
    count = len(answers)
    return {
        "latency_p50_ms": Figure(value=round(float(np.percentile(total, 50)), 1), n=count, unit="ms"),
        "latency_p95_ms": Figure(value=round(float(np.percentile(total, 95)), 1), n=count, unit="ms"),
        "ttft_p50_ms": Figure(value=round(float(np.percentile(first, 50)), 1), n=count, unit="ms"),
    }


def decoding_figures(answers: Sequence[Generation]) -> dict[str, Figure]:
    """Tokens per second after the first token: the median over prompts, with the slowest and fastest as its ends."""
    import numpy as np

    timed = [a for a in answers if a.tokens > 1 and a.total_s > a.first_token_s]
    if not timed:
        return {}
    rates = [(a.tokens - 1) / (a.total_s - a.first_token_s) for a in timed]
    ends = round(min(rates), 1), round(max(rates), 1)
    value = round(float(np.median(rates)), 1)
    return {"tokens_per_s": Figure(value=value, low=ends[0], high=ends[1], n=len(rates), unit="tokens/s")}


def _ask(engine: Engine, prompt: Prompt, max_tokens: int, ignore_end: bool) -> Generation:
    return engine.generate([prompt], max_tokens, lambda done: None, ignore_end=ignore_end)[0]
