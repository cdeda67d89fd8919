"""Microsoft Presidio's pattern recognisers, which need no language model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.guard.recognisers import Around
from inhouse.guard.spans import PiiType, Span

RESULT_DEPENDS_ON = ("presidio-analyzer", "spacy")


class Presidio(Params):
    """Recognisers of presidio-analyzer by class name, run without its NLP pipeline: patterns, checksums."""

    use: Literal["presidio"] = "presidio"
    recognizers: tuple[str, ...] = Field(
        ("CreditCardRecognizer", "IbanRecognizer", "IpRecognizer"),
        min_length=1,
        description="classes of presidio_analyzer.predefined_recognizers that work on patterns; EmailRecognizer asks "
        "the network for a list of domains",
    )
    entities: dict[str, PiiType] = Field(
        {"CREDIT_CARD": "bank_card", "IBAN_CODE": "bank_card", "IP_ADDRESS": "ipv4"},
        description="which type a presidio entity counts as; entities not named are left out",
    )
    language: str = Field("en", description="language code that the recognisers are made for")


def recognise(texts: Sequence[str], params: Presidio, around: Around) -> list[list[Span]]:
    """The spans that the recognisers find, with presidio's scores."""
    recognizers = [_recognizer(name, params) for name in params.recognizers]
    return [[span for one in recognizers for span in _spans(one, text, params)] for text in texts]


def external(params: Presidio, project_dir: Path) -> dict[str, str]:
    """The version of presidio."""
    require("guard", "presidio_analyzer")
    from importlib.metadata import version

    return {"presidio": version("presidio-analyzer")}


def _recognizer(name: str, params: Presidio) -> Any:
    require("guard", "presidio_analyzer")
    kind = getattr(import_module("presidio_analyzer.predefined_recognizers"), name, None)
    if kind is None:
        raise UserError("guard.recogniser_name", use="presidio", name=name)
    return kind(supported_language=params.language)


def _spans(recognizer: Any, text: str, params: Presidio) -> list[Span]:
    found = recognizer.analyze(text=text, entities=recognizer.supported_entities, nlp_artifacts=None) or []
    return [
        Span(one.start, one.end, params.entities[one.entity_type], float(one.score))
        for one in found
        if one.entity_type in params.entities
    ]
