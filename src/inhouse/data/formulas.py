"""Texts in CSV files that a spreadsheet would run as formulas: an apostrophe before them, and off again."""

from __future__ import annotations

import re

# What OWASP lists: signs, also in full width, and the white space that spreadsheets skip before them.
# Apostrophes that stand before such a sign already get one more, so that taking one off gives the text as it was.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def guarded(text: str) -> str:
    """The text as a spreadsheet shows it and does not run it."""
    return f"'{text}" if FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """The text that `guarded` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
