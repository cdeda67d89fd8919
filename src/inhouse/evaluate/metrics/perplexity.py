"""How surprised the model is by the wanted answers."""

from __future__ import annotations

from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.evaluate.predictions import Predictions
from inhouse.evaluate.stats import Measure


class PerplexityParams(Params):
    """exp(mean negative log probability) over all tokens of the wanted answers, end of turn included."""

    use: Literal["perplexity"] = "perplexity"


def measure(predictions: Predictions, params: PerplexityParams) -> dict[str, Measure]:
    """`perplexity` of the wanted answers, where the engine could score them."""
    import numpy as np

    pairs = [(row.gold_logprob, row.gold_tokens) for row in predictions.rows]
    if any(logprob is None or not tokens for logprob, tokens in pairs):
        return {}
    columns = np.array(pairs, dtype=np.float64)
    return {"perplexity": Measure(float(_perplexity(columns)), columns, _perplexity)}


def _perplexity(columns: Any) -> Any:
    """exp(-sum of log probabilities / sum of tokens); infinite beyond what a float holds."""
    import numpy as np

    total = columns.sum(axis=-2)
    with np.errstate(over="ignore"):
        return np.exp(-total[..., 0] / total[..., 1])
