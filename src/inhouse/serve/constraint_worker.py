"""Compile constraints in a process of its own, which may be ended when it takes too long or too much memory.

Run as `python -m inhouse.serve.constraint_worker <parent pid>`: a line of JSON in, a line of JSON out. Compiled with
llguidance, the library that llama.cpp itself is built with, under limits a fraction of those that llama.cpp runs
under: what passes here cannot run out of them there, where the constraint would then be dropped without a word.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from inhouse.core.run import die_with_parent
from inhouse.engines.process import heed_only_parent

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance.gbnf_to_lark import ASTNode

HEAD = "%llguidance {}\n"
MEMORY_BYTES = 2 * 2**30
STEPS = 24  # tokens of each trial answer
TRIALS = 2
SLOW_S = 0.15  # for one token of a trial; llama.cpp's vocabulary is 10 to 30 times as large


class _Vocabulary:
    """A small made-up vocabulary with what makes real ones slow: long words, digits, spaces, other scripts."""

    eos_token_id = 0
    bos_token_id = None
    special_token_ids = (0,)

    def __init__(self) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        pieces = [a + b for a in letters for b in letters] + [str(n) for n in range(10, 1000)]
        pieces += [" " + p for p in pieces[:676]] + [c * n for c in "ae0 -\n\t=" for n in (3, 4, 8, 16)]
        pieces += [
            '{"',
            '"}',
            '":',
            '": ',
            '", "',
            '",',
            "[]",
            "{}",
            "},",
            "],",
            "the",
            " the",
            "tion",
            "ation",
            "http",
        ]
        pieces += [chr(code) for code in range(0x4E00, 0x4F00)]
        self.tokens = [b"<end>", *(bytes([b]) for b in range(256)), *(p.encode() for p in dict.fromkeys(pieces))]

    def __call__(self, words: str) -> list[int]:
        return [byte + 1 for byte in words.encode()]


def main(parent: int) -> int:
    """Answer requests until the parent closes the pipe."""
    die_with_parent(parent)
    heed_only_parent(sys.exit)
    _limit_memory()
    from llguidance import LLTokenizer, TokenizerWrapper

    tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary()))
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201  (the pipe to the parent)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(judge(asked["kind"], asked["source"], tokenizer)), flush=True)  # noqa: T201
    return 0


def judge(kind: str, source: str, tokenizer: LLTokenizer) -> dict[str, str]:
    """`{"lark": …}` for what can be used; else `{"refused": "invalid" | "unmatched" | "complex"}`."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        lark = HEAD + (gbnf_to_lark(source) if kind == "grammar" else source)
    except RecursionError:
        return {"refused": "complex"}
    except Exception:  # noqa: BLE001  (the converter raises bare Exception for a rule that is not there)
        return {"refused": "invalid"}
    # A quarter each of llguidance's own limits (1M, 200k, 50k, 2000, 250k, 500k), under which llama.cpp runs it.
    limits = LLParserLimits(
        initial_lexer_fuel=250_000,
        step_lexer_fuel=50_000,
        step_max_items=12_500,
        max_items_in_row=500,
        max_lexer_states=60_000,
        max_grammar_size=125_000,
        verbose_errors=False,
    )
    if error := LLMatcher.validate_grammar(lark, tokenizer, limits=limits):
        return {"refused": "complex" if _is_limit(error) else "invalid"}
    matcher = LLMatcher(tokenizer, lark, log_level=0, limits=limits)
    for seed in range(TRIALS):
        if refused := _try_out(matcher.deep_copy(), random.Random(seed), tokenizer.vocab_size):
            return {"refused": refused}
    return {"lark": lark}


def _try_out(matcher: Any, chance: random.Random, vocabulary: int) -> str | None:
    """Write an answer of random tokens that the constraint allows; None when nothing went wrong."""
    for _ in range(STEPS):
        began = time.process_time()
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return "complex" if _is_limit(matcher.stop_reason()) else "unmatched"
        if time.process_time() - began > SLOW_S:
            return "complex"
        allowed = [token for token in range(1, vocabulary) if mask[token >> 3] >> (token & 7) & 1]
        if not allowed or matcher.is_stopped():
            return None if matcher.is_accepting() else "unmatched"
        if not matcher.consume_token(chance.choice(allowed)):
            return "complex"
    return None


def _is_limit(reason: str) -> bool:
    return any(
        word in reason.lower() for word in ("fuel", "limit", "too large", "too many", "toocomplex", "too complex")
    )


def gbnf_to_lark(source: str) -> str:
    """A GBNF grammar in llguidance's notation, by llguidance's own reader; `root` that never recurses is one lexeme.

    Raises Exception for a grammar that is not one.
    """
    from llguidance.gbnf_to_lark import GrammarParser, RuleNode, RuleRefNode, SequenceNode, resolve

    rules = GrammarParser().parse(_hide_escapes(source))
    if "root" in rules and "inhouse-top" not in rules:
        # As a rule beside others the top would be read lexeme by lexeme, each as long as it can be: [a-z]* "x" would
        # never match. A rule below the top that does not recurse becomes one regular expression, which is exact.
        top = rules.pop("root")
        top.name = "inhouse-top"
        _rename(top, rules)
        rules["inhouse-top"] = top
        rules["root"] = RuleNode("root", SequenceNode([RuleRefNode("inhouse-top")]), "")
    resolve(rules)
    for rule in rules.values():
        rule.alternatives = _bracketed(rule.alternatives)
        rule.comment = ""
    return _show_escapes("\n".join(str(rule) for rule in sorted(rules.values(), key=lambda rule: rule.order)))


def _rename(top: ASTNode, rules: dict[str, Any]) -> None:
    from llguidance.gbnf_to_lark import RuleRefNode

    todo: list[ASTNode] = [top, *rules.values()]
    while todo:
        node = todo.pop()
        if isinstance(node, RuleRefNode) and node.name == "root":
            node.name = "inhouse-top"
        todo += node.children()


def _bracketed(node: ASTNode) -> ASTNode:
    """Keep ("a"+)? from being written "a"+?, which means something else."""
    from llguidance.gbnf_to_lark import AlternativeNode, RepetitionNode, SequenceNode

    if isinstance(node, RepetitionNode):
        inner = _bracketed(node.node)
        node.node = SequenceNode([inner]) if isinstance(inner, RepetitionNode) else inner
    elif isinstance(node, SequenceNode):
        node.nodes = [_bracketed(child) for child in node.nodes]
    elif isinstance(node, AlternativeNode):
        node.alternatives = [_bracketed(child) for child in node.alternatives]
    return node


ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([\[\]])|.)|[&~]", re.S)
HIDDEN = 0xF0000  # characters of private use stand for those that the reader would spoil, until it has read them


def _hide_escapes(source: str) -> str:
    """Numbered characters as themselves where that is safe: the reader loses the zeros of \\u00e9."""

    def hide(found: re.Match[str]) -> str:
        number = found[1] or found[2] or found[3]
        if not number and not found[4]:
            # && and ~~ in a class mean something in regular expressions, and nothing in GBNF.
            return found[0] if found[0][0] == "\\" else chr(HIDDEN + ord(found[0]))
        character = chr(int(number, 16)) if number else found[4]
        if "\ud800" <= character <= "\udfff":
            raise ValueError("half a character")
        return character if character.isalnum() or ord(character) > 0x7F else chr(HIDDEN + ord(character))

    return ESCAPE.sub(hide, source)


def _show_escapes(lark: str) -> str:
    """The hidden ones in a notation that stands in texts and in classes alike."""
    return re.sub("[\U000f0000-\U000f007f]", lambda found: f"\\u{ord(found[0]) - HIDDEN:04x}", lark)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
