"""Plain documents, as continued pre-training takes them: a text and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.shapes.draft import Draft, text_of

COLUMNS = "text, without label"


class TextShape(Params):
    """One column of text; every row is a document."""

    use: Literal["text"] = "text"
    column: str = Field("text", description="column that holds the document")


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns is a document: with a label it is more likely meant for classification."""
    return "text" in columns and "label" not in columns


def draft(fields: Mapping[str, Any], params: TextShape) -> Draft:
    """The document."""
    return Draft(("text",), (text_of(fields, params.column),))
