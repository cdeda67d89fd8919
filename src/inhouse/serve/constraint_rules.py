"""What may be asked of a regular expression, a grammar or a choice before it is compiled: sizes and repeats.

One pass over the text: counts that multiply, and repeats of repeats, are refused before any library reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import invalid

GRAMMAR_BYTES = 32 * 1024
REGEX_BYTES = 8 * 1024
CHOICES = 1000
ALTERNATIVES = 2000
MOST_GROUPS = 64  # brackets inside brackets
MOST_REPEATS = 1000  # a{1000}; nested counts are multiplied
MOST_WEIGHT = 20_000  # atoms, each as often as its counts demand


def check_regex(pattern: Any, param: str) -> str:
    """A regular expression within its bounds: its notation is judged when it is compiled."""
    if not isinstance(pattern, str) or not pattern:
        raise invalid(text("serve.regex_empty"), param)
    if len(pattern.encode("utf-8", "surrogatepass")) > REGEX_BYTES:
        raise invalid(text("serve.regex_size", most=REGEX_BYTES), param)
    _check_repeats(REGEX_TOKEN, pattern, param)
    return pattern


def check_grammar(grammar: Any, param: str) -> str:
    """A GBNF grammar within its bounds."""
    if not isinstance(grammar, str) or not grammar.strip():
        raise invalid(text("serve.grammar_empty"), param)
    if len(grammar.encode("utf-8", "surrogatepass")) > GRAMMAR_BYTES:
        raise invalid(text("serve.grammar_size", most=GRAMMAR_BYTES), param)
    _check_repeats(GRAMMAR_TOKEN, grammar, param)
    return grammar


def check_choices(choices: Any, param: str) -> tuple[str, ...]:
    """Texts to choose from, each once."""
    if not isinstance(choices, list | tuple) or not 1 <= len(choices) <= CHOICES:
        raise invalid(text("serve.choices", most=CHOICES), param)
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise invalid(text("serve.choices", most=CHOICES), param)
    if sum(len(choice.encode("utf-8", "surrogatepass")) for choice in choices) > GRAMMAR_BYTES:
        raise invalid(text("serve.grammar_size", most=GRAMMAR_BYTES), param)
    return tuple(dict.fromkeys(choices))


# What both notations share: atoms, groups, alternatives and repeats. Everything else counts as an atom.
CLASS = r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\\\]])*\]?"
ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)"
REPEAT = r"[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\}"
REGEX_TOKEN = re.compile(
    rf"(?P<repeat>{REPEAT})|(?P<open>\((?:\?(?:P?<[^>]*>|[a-z-]*:?))?)|[)|]|{ESCAPE}|{CLASS}|.", re.S
)
GRAMMAR_TOKEN = re.compile(
    rf"(?P<repeat>{REPEAT})|(?P<open>\()|[)|]|#[^\n]*|\"(?:\\.|[^\\\"])*\"?|\[(?:\\.|[^\\\]])*\]?|::=|[\w-]+|\s+|.",
    re.S,
)


# What JSON writes with a backslash, as an atom of its own: " \\ and control characters.
QUOTED = re.compile(r'\[?(?:"|\\["\\nrtfva0]|\\x(?:[01].|22|5[cC])|\\u00(?:[01].|22|5[cC])|[\x00-\x1f])\]?', re.S)


def has_quoted(pattern: str) -> bool:
    """Whether a pattern of a JSON text has an atom that JSON must escape: llama.cpp loses what follows such a one."""
    return any(QUOTED.fullmatch(found[0]) for found in REGEX_TOKEN.finditer(pattern))


@dataclass
class _Group:
    """What stands between a pair of brackets so far."""

    weight: int = 0
    atoms: int = 0
    count: int = 1  # the greatest product of nested counts inside
    last: int = 0  # the weight of the last atom
    last_count: int = 1
    only_endless: bool = False  # it is one atom that may be repeated for ever: (a+)
    last_endless: bool = False


def _check_repeats(token: re.Pattern[str], source: str, param: str) -> None:
    """Refuse counts that multiply to more than an engine can hold, and a repeat of nothing but a repeat."""
    open_groups = [_Group()]
    alternatives = 1
    for found in token.finditer(source):
        group = open_groups[-1]
        symbol = found[0]
        if found["repeat"]:
            _repeat(group, symbol, param)
        elif found["open"]:
            open_groups.append(_Group())
        elif symbol == ")":
            if len(open_groups) > 1:
                inner = open_groups.pop()
                _add(open_groups[-1], inner.weight, inner.count)
                group = open_groups[-1]
                group.last_endless = group.only_endless = inner.atoms == 1 and inner.only_endless
        elif symbol == "|":
            alternatives += 1
            group.atoms += 1  # two branches are more than one atom
        elif not symbol.isspace() and symbol[0] != "#":
            _add(group, 1, 1)
        if open_groups[-1].weight > MOST_WEIGHT or alternatives > ALTERNATIVES or len(open_groups) > MOST_GROUPS:
            raise invalid(text("serve.too_complex", seconds="0.8"), param)


def _add(group: _Group, weight: int, count: int) -> None:
    group.atoms += 1
    group.weight += weight
    group.last, group.last_count, group.last_endless, group.only_endless = weight, count, False, False
    group.count = max(group.count, count)


def _repeat(group: _Group, symbol: str, param: str) -> None:
    counts = [int(number[:9]) for number in re.findall(r"\d+", symbol)]
    endless = symbol in "*+" or (bool(counts) and symbol.rstrip("} \t\r\n").endswith(","))
    times = max([1, *counts])
    group.last_count *= times
    if group.last_count > MOST_REPEATS or (group.last_endless and (endless or times > 1)):
        raise invalid(text("serve.nested_repeat", most=MOST_REPEATS), param)
    group.count = max(group.count, group.last_count)
    group.weight += group.last * (times - 1)
    group.last *= times
    group.last_endless = group.only_endless = group.last_endless or endless
