"""Continued pre-training: learn every token of plain texts, and of conversations as the template writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from inhouse.core.params import Params
from inhouse.core.rows import Row
from inhouse.train.learning import Coding
from inhouse.train.objectives import sft
from inhouse.train.objectives.sft import ahead, complete, counted, labels, loss, prepare
from inhouse.train.tokens import Samples

__all__ = ["UNIT", "Pretrain", "ahead", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 1


class Pretrain(Params):
    """Learn all that the texts say: documents of a field, before its conversations."""

    use: Literal["pretrain"] = "pretrain"


def encode(rows: Sequence[Row], coding: Coding, params: Pretrain) -> Samples:
    """Documents in windows of at most `max_length` tokens; every token is learned but a sample's first."""
    samples = sft.encode(rows, coding, sft.Sft())
    kept = [replace(sample, learned=(False, *[True] * (len(sample.ids) - 1))) for sample in samples.kept]
    return replace(samples, kept=kept)
