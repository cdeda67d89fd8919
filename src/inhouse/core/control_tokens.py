"""Control tokens that a text spells out: broken, so that no document can end its turn or begin another one.

A tokenizer reads `<|im_end|>` as the token that ends a turn, whoever wrote it. In what users, tools and documents say,
a WORD JOINER (U+2060: no width, no break) is put behind its first character; then it is text like any other. Training,
evaluation and serving all break the same texts in the same way. Why so: docs/decisions/0007-control-tokens.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from inhouse.core.errors import UserError

JOINER = "\N{WORD JOINER}"
FOREIGN = ("user", "tool", "function")  # roles whose words are not the developer's or the model's own
# Those of the families that are served most.
FAMILIES = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_sep|>", "<|endofprompt|>"),  # ChatML, Phi-4
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),  # Llama 3
    *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"),
    *("<|begin_of_sentence|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>"),  # Llama 4
    *("<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),  # Mistral
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
    *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),  # Gemma
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|observation|>", "[gMASK]", "<sop>", "<eop>"),  # Phi, GLM
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),  # DeepSeek
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"),  # gpt-oss
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    *("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]", "[|endofturn|]", "<end_of_utterance>"),  # EXAONE, SmolVLM
    *("]~!b[", "]~b]", "[e~[", "<seed:bos>", "<seed:eos>", "<EOT>", "[EOT]", "[EOS]"),  # MiniMax, Seed, older ones
)
# Added tokens that are no control tokens by their file, but look like some; llama.cpp's converter takes them for such.
LOOKS = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|\[@BOS@\]", re.S)
ESCAPES = re.compile(  # of JSON
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^u])", re.S
)
LONGEST = 64  # characters of a control token that are looked at; those that are known have 40 at most
Turn = Mapping[str, Any]
Finders = tuple[tuple[str, re.Pattern[str]], ...]


def is_control(text: str, special: bool) -> bool:
    """Whether an added token is a control token: its file says so (`special`), a family has it, or it looks like one.

    One of a single character has no inside to be broken, and ends no turn in any tokenizer that is known: it is none.
    """
    return len(text) > 1 and (special or text in FAMILIES or LOOKS.fullmatch(text) is not None)


class ControlTokens:
    """The control tokens of one tokenizer.

    `refused` are those that stay control tokens even when broken: a text with one is not taken. `rewrites` is what the
    tokenizer does to a text before it looks for tokens, where it does anything, and `plain` whether it finds no control
    token in one: a text that turns into a control token only by being rewritten is not taken either. `forms` find
    what looks like a control token, where not all are known.
    """

    def __init__(
        self,
        texts: Iterable[str],
        refused: Iterable[str] = (),
        rewrites: Callable[[str], str] | None = None,
        plain: Callable[[str], bool] | None = None,
        forms: Finders = (),
    ) -> None:
        self.texts = tuple(sorted(set(texts)))
        self.refused = tuple(sorted(set(refused)))
        self._finders = finders_of(self.texts) + forms
        self._refused = finders_of(self.refused)
        self._quoted = finders_of(
            told for text in self.texts if (told := json.dumps(text, ensure_ascii=False)[1:-1]) != text
        )
        self._rewrites = rewrites
        self._plain = plain
        known = {*self.texts, *self.refused}
        self._rewritten = finders_of(known if rewrites is None else known.union(map(rewrites, known)))

    def broken(self, text: str) -> str:
        """The text with every control token in it broken; the very same object where there is none.

        Raises prompt.control_token for a text that cannot be made plain.
        """
        if self._refused and (at := first_of(self._refused, text)) is not None:
            raise UserError("prompt.control_token", at=at)
        text = _broken(self._finders, text)
        if self._rewrites is not None and self._plain is not None:
            seen = first_of(self._rewritten, self._rewrites(text))
            if seen is not None and not self._plain(text):
                raise UserError("prompt.control_token", at=seen)
        return text

    def in_turns(self, turns: Sequence[Turn]) -> list[Turn]:
        """Turns in OpenAI's shape with all that users and tools say broken; calls in the history too.

        What the system and the assistant say is left, for they write with the same pen as the template. Raises
        prompt.control_token and prompt.nested.
        """
        try:
            return [self._turn(turn) for turn in turns]
        except RecursionError:
            raise UserError("prompt.nested") from None

    def count(self, turns: Iterable[Turn]) -> int:
        """How many turns hold a control token that is broken. Raises as `in_turns` does."""
        turns = tuple(turns)
        return sum(told is not turn for told, turn in zip(self.in_turns(turns), turns, strict=True))

    def _turn(self, turn: Turn) -> Turn:
        role = turn["role"]
        if role == "user" and len(turn) == 2 and isinstance(turn.get("content"), str):  # nearly every turn
            content = self.broken(turn["content"])
            return turn if content is turn["content"] else {**turn, "content": content}
        if role in FOREIGN:
            told = {name: value if name == "role" else self._within(value) for name, value in turn.items()}
            if role != "user" and isinstance(told.get("content"), str):
                told["content"] = _broken(RESULT, told["content"])  # or a result could end itself
        elif turn.get("tool_calls"):
            told = {**turn, "tool_calls": [self._call(call) for call in turn["tool_calls"]]}
        else:
            return turn
        return turn if told == turn else told

    def _call(self, call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            arguments = self._arguments(function["arguments"])
            return {**self._within({**call, "function": None}), "function": {**function, "arguments": arguments}}
        return self._within(call)

    def _arguments(self, text: str) -> str:
        """A call's arguments, which are JSON: `\\u003c` in them is a `<` as soon as a template has parsed them.

        They are searched as text, their escapes undone, and not parsed: engines take more for JSON than Python does,
        and the first of two values with the same name would be hidden.
        """
        if "\\" not in text:
            return self.broken(text)
        if self._refused or self._rewrites is not None:
            self.broken(ESCAPES.sub(lambda found: _said(found[0]), text))  # for what it raises
        spelt = ESCAPES.sub(lambda found: _spelt(found[0]), text)
        told = _broken(self._quoted, self.broken(spelt))
        return text if told == spelt else told

    def _within(self, value: Any) -> Any:
        """All texts inside a JSON value, names of fields included."""
        if isinstance(value, str):
            return self.broken(value)
        if isinstance(value, Mapping):
            return {self.broken(name): self._within(part) for name, part in value.items()}
        return [self._within(part) for part in value] if isinstance(value, (list, tuple)) else value


def proven(texts: Iterable[str], plain: Callable[[Sequence[str]], Sequence[bool]]) -> tuple[list[str], list[str]]:
    """Control tokens whose broken form the tokenizer reads as text, and those for which it does not.

    `plain` tells of each text whether the tokenizer finds no control token in it.
    """
    known = sorted(set(texts))
    good = plain([_broken(finders_of(known), text) for text in known]) if known else []
    told = list(zip(known, good, strict=True))
    return [text for text, holds in told if holds], [text for text, holds in told if not holds]


def finders_of(texts: Iterable[str]) -> Finders:
    """For each first character that texts have: what finds it where one of them follows, overlapping ones too.

    One expression a character, for that character is then looked for as fast as memory is read (1 us for 1 kB, and 13
    us with two characters in one expression). The texts stand in it as a tree of their beginnings, so that thousands of
    them cost no more than a few. Of an absurdly long one its beginning counts, or a hostile file could nest too deep.
    """
    rests: dict[str, list[str]] = {}
    for text in set(texts):
        if len(text) > 1:
            rests.setdefault(text[0], []).append(text[1:LONGEST])
    return tuple((first, re.compile(f"{re.escape(first)}(?={_tree(rests[first])})")) for first in sorted(rests))


def first_of(finders: Finders, text: str) -> int | None:
    """Where a text holds one of the texts that are looked for; None where it holds none."""
    for first, finder in finders:
        if first in text and (found := finder.search(text)) is not None:
            return found.start()
    return None


@lru_cache(maxsize=1024)
def _said(escape: str) -> str:
    """What an escape in a JSON text stands for; itself where it is none, or half a character."""
    try:
        said = str(json.loads(f'"{escape}"'))
    except ValueError:
        return escape
    return escape if "\ud800" <= said <= "\udfff" else said


@lru_cache(maxsize=1024)
def _spelt(escape: str) -> str:
    """The character that an escape in a JSON text stands for, where it may stand there without one."""
    said = _said(escape)
    return escape if said == escape else json.dumps(said, ensure_ascii=False)[1:-1]


def _broken(finders: Finders, text: str) -> str:
    for first, finder in finders:
        if first in text and finder.search(text) is not None:
            text = finder.sub(rf"\g<0>{JOINER}", text)
    return text


def _tree(rests: Sequence[str]) -> str:
    """An expression for the beginnings of a text: one that goes on where another one ends need not be looked at."""
    if "" in rests:
        return ""
    branches: dict[str, list[str]] = {}
    for rest in rests:
        branches.setdefault(rest[0], []).append(rest)
    told = []
    for group in (branches[first] for first in sorted(branches)):
        shared = _beginning(group)
        told.append(re.escape(shared) + _tree([rest[len(shared) :] for rest in group]))
    return told[0] if len(told) == 1 else f"(?:{'|'.join(told)})"


def _beginning(texts: Sequence[str]) -> str:
    """What all of some texts begin with."""
    low, high = min(texts), max(texts)
    for place, character in enumerate(low):
        if character != high[place]:
            return low[:place]
    return low


RESULT = finders_of(("<tool_response>", "</tool_response>"))
NONE = ControlTokens(())
# Where the model is elsewhere, and its tokens are not known: all that looks like one too.
WELL_KNOWN = ControlTokens(FAMILIES, forms=(("<", re.compile(r"<(?=[|｜][^<>\s]{1,60}[|｜]>)")),))
