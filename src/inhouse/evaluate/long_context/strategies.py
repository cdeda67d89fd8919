"""Ways to read a long text: which engine, how positions are stretched, how keys and values are kept."""

from __future__ import annotations

from typing import Literal

from inhouse.core.artifact import Frozen

StrategyName = Literal[
    "full", "linear", "dynamic", "yarn", "sliding", "quantized",
    "llamacpp", "llamacpp_q8_0", "llamacpp_q4_0", "llamacpp_linear", "llamacpp_yarn", "llamacpp_yarn_q8_0",
    "llamacpp_yarn_q4_0",
]  # fmt: skip
CacheKind = Literal["full", "sliding", "quantized", "f16", "q8_0", "q4_0"]
RopeKind = Literal["linear", "dynamic", "yarn"]
# Bits that one number of a cache costs: GGML's blocks of 32 hold a 16-bit scale; quanto's groups of 64 hold two.
BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
QUANTIZED_BITS, QUANTIZED_GROUP, QUANTIZED_RECENT = 4, 64, 128


class Strategy(Frozen):
    """One way to read."""

    name: StrategyName
    engine: Literal["transformers", "llamacpp"] = "transformers"
    rope: RopeKind | None = None
    cache: CacheKind = "full"


def _known() -> dict[StrategyName, Strategy]:
    plain = [
        Strategy(name="full"),
        Strategy(name="linear", rope="linear"),
        Strategy(name="dynamic", rope="dynamic"),
        Strategy(name="yarn", rope="yarn"),
        Strategy(name="sliding", cache="sliding"),
        Strategy(name="quantized", cache="quantized"),
    ]
    native = [
        Strategy(name="llamacpp", engine="llamacpp", cache="f16"),
        Strategy(name="llamacpp_q8_0", engine="llamacpp", cache="q8_0"),
        Strategy(name="llamacpp_q4_0", engine="llamacpp", cache="q4_0"),
        Strategy(name="llamacpp_linear", engine="llamacpp", rope="linear", cache="f16"),
        Strategy(name="llamacpp_yarn", engine="llamacpp", rope="yarn", cache="f16"),
        Strategy(name="llamacpp_yarn_q8_0", engine="llamacpp", rope="yarn", cache="q8_0"),
        Strategy(name="llamacpp_yarn_q4_0", engine="llamacpp", rope="yarn", cache="q4_0"),
    ]
    return {one.name: one for one in [*plain, *native]}


STRATEGIES = _known()
TORCH: tuple[StrategyName, ...] = ("full", "linear", "dynamic", "yarn", "sliding")
GGUF: tuple[StrategyName, ...] = ("llamacpp", "llamacpp_q8_0", "llamacpp_q4_0", "llamacpp_yarn_q8_0")


class KeptShape(Frozen):
    """What of a model decides how much its cache takes."""

    layers: int
    kv_heads: int
    head_size: int
    bits: float  # of a number in the type that the model computes in

    def bytes_per_token(self, strategy: Strategy) -> float:
        """A key and a value for each layer and head (Pope et al. 2022, section 3.3; grouped: Ainslie et al. 2023)."""
        numbers = 2 * self.layers * self.kv_heads * self.head_size
        bits = BITS.get(strategy.cache, self.bits)
        if strategy.cache == "quantized":  # a scale and a shift, in the model's type, for each group
            bits = QUANTIZED_BITS + 2 * self.bits / QUANTIZED_GROUP
        return numbers * bits / 8
