"""Recognisers of others beside our rules: one file each, or a third party's entry point `inhouse.recogniser`.

`recognise(texts, params, around) -> list[list[Span]]` gives the spans of every text, in characters. What it finds in
a text must depend on the text and the settings alone: a build that is repeated must end in the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Around(Protocol):
    """What a recogniser may know besides texts and settings."""

    @property
    def project_dir(self) -> Path:
        """The folder that relative paths start from."""

    @property
    def cache(self) -> Path:
        """A folder that survives runs."""

    @property
    def offline(self) -> bool:
        """Whether no socket may be opened to another machine."""
