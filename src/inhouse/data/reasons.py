"""Why a row is not in a dataset, in words."""

from __future__ import annotations

from inhouse.core.messages import known, text


def reason_text(code: str) -> str:
    """A reason in words; the code itself where nobody gave words."""
    return text(f"data.reason.{code}") if known(f"data.reason.{code}") else code
