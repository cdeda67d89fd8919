"""What was measured of long texts."""

from __future__ import annotations

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.gate import Figure
from inhouse.evaluate.long_context.strategies import StrategyName


class Trial(Frozen):
    """One hidden number: where it stood, and whether it was found."""

    depth: float | None = Field(description="percent of the text before it; None: nowhere, the control")
    exact: bool = Field(description="the model wrote the number")
    likeliest: bool = Field(description="the number was likelier than others of its kind")
    logprob: float = Field(description="natural-log probability of the whole number")
    margin: float = Field(description="that, less that of the likeliest other number")


class Point(Frozen):
    """Perplexity of one part of the text."""

    start: int
    stop: int
    perplexity: Figure


class Group(Frozen):
    """One strategy at one length: a control, a curve, and needles."""

    strategy: StrategyName
    length: int
    refused: str | None = Field(None, description="why nothing was measured")
    curve: tuple[Point, ...] = ()
    perplexity: Figure | None = None
    versus_full: Figure | None = Field(None, description="log perplexity minus that of `full` on the same tokens, nats")
    control: Trial | None = None
    needles: tuple[Trial, ...] = ()
    skipped: int = Field(0, description="needles that time was too short for")
    seconds: float | None = Field(None, description="to read the text of the control once, its scores included")

    @property
    def found(self) -> int:
        """Numbers that were written exactly."""
        return sum(one.exact for one in self.needles)


class KeptMemory(Frozen):
    """Bytes of keys and values for each token of the text."""

    strategy: StrategyName
    predicted: float = Field(description="layers x 2 x KV heads x head size x bytes of a number")
    measured: float | None = Field(description="of the longest text that was read; None: not to be seen")
    length: int | None = None


class LongContext(Frozen):
    """How well a model reads long texts, strategy by strategy."""

    name: str
    native: int = Field(description="tokens that the model names as its longest text")
    longest: int
    factor: float
    window: int
    choices: int
    device: str
    dtype: str
    text: str = Field(description="where the text comes from")
    groups: tuple[Group, ...] = ()
    memory: tuple[KeptMemory, ...] = ()
    folder: str = Field(description="where figures and pictures are; written after every group")

    @property
    def leaked(self) -> bool:
        """Whether a control found a number that stood nowhere: then no needle says anything."""
        return any(group.control.exact for group in self.groups if group.control)
