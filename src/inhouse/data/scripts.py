"""Characters by their script, for the regular expressions of polars and RE2 and for those of Python."""

from __future__ import annotations

# Of Chinese words, wherever they stand.
HAN = r"\p{Han}"
# The same characters as a class of Python's `re`, which knows no scripts. Planes 2 and 3 hold nothing else.
HAN_CLASS = (
    "[\u2e80-\u2e99\u2e9b-\u2ef3\u2f00-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufa6d\ufa70-\ufad9\U00016fe2\U00016fe3\U00016ff0\U00016ff1\U00020000-\U0003fffd]"
)
# Scripts whose characters are words, or syllables, by themselves.
SYLLABIC = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}"
# Scripts of texts without spaces, or, as Korean, with words that run on in one. Marks such as ー are of no script.
MARKS = r"\x{3006}\x{3031}-\x{3035}\x{303C}\x{30FC}\x{FF70}\x{FF9E}\x{FF9F}"
UNSPACED = rf"{SYLLABIC}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}{MARKS}"
UNSPACED_CLASS = (
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fd5\u3005-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
    "\U00016fe2-\U00016ff1\U0001aff0-\U0001b16f\U0001f200\U00020000-\U0003fffd]"
)
