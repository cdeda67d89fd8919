"""A Modelfile, by which Ollama serves a GGUF file as this program does: the same prompts, limits and sampling.

Ollama does not read a file's own chat template, but one in Go's notation, or one that it knows for a well-known model.
Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx and docs/template.mdx.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.engines.chat_template import ChatTemplate, TemplateFailed
from inhouse.engines.gguf_header import GgufHeader, items, read_header
from inhouse.engines.template_check import check_template

Turn = Mapping[str, Any]
Render = Callable[[Sequence[Turn]], str]
SYSTEM, FIRST, ANSWER, SECOND = ("SYSTEM7TEXT", "FIRST7QUESTION", "FIRST7ANSWER", "SECOND7QUESTION")
# What Ollama takes by itself would make the same request mean another distribution than here.
NEUTRAL = {"top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around the texts of a conversation."""

    default: str  # first, where there is no system message
    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    end: str  # behind the last question, for the answer to follow

    def written(self, turns: Sequence[Turn]) -> str:
        """A conversation as the template writes it."""
        around = {
            "system": (self.before_system, self.after_system),
            "user": (self.before_user, ""),
            "assistant": (self.before_answer, self.after_answer),
        }
        told = "" if turns[0]["role"] == "system" else self.default
        for turn in turns:
            before, after = around[turn["role"]]
            told += before + turn["content"] + after
        return told + self.end

    def in_go(self) -> str:
        """The template in Go's notation, every text of it quoted."""
        roles = {
            "system": f"{_go(self.before_system)}{{{{ .Content }}}}{_go(self.after_system)}",
            "user": f"{_go(self.before_user)}{{{{ .Content }}}}",
            "assistant": f"{_go(self.before_answer)}{{{{ .Content }}}}{_go(self.after_answer)}",
        }
        chosen = "{{ else }}".join(f'{{{{ if eq .Role "{role}" }}}}{told}' for role, told in roles.items())
        default = f"{{{{ if not .System }}}}{_go(self.default)}{{{{ end }}}}" if self.default else ""
        return f"{default}{{{{ range .Messages }}}}{chosen}{'{{ end }}' * (len(roles) + 1)}{_go(self.end)}"


def write_modelfile(path: Path, gguf: Path, label: str, limits: Mapping[str, Any]) -> bool:
    """Write `path` for the GGUF file beside it; False where its chat template cannot be told in Go's notation.

    `limits` are the release's context_length, max_tokens and temperature, as far as it has them.
    """
    header = read_header(gguf)
    tokens = items(gguf, header, "tokenizer.ggml.tokens")
    found = _pieces_of(gguf.name, header, tokens)
    name = label.partition(":")[0]
    lines = [f"# {label}: ollama create {name} -f {path.name}", f"FROM ./{gguf.name}"]
    if found is not None:
        lines.append(f'TEMPLATE """{found.in_go()}"""')
    named = {"num_ctx": "context_length", "num_predict": "max_tokens", "temperature": "temperature"}
    settings = {ours: limits[theirs] for ours, theirs in named.items() if limits.get(theirs) is not None}
    lines += [f"PARAMETER {name} {value}" for name, value in (settings | NEUTRAL).items()]
    if end := _token(header, tokens, "eos"):
        lines.append(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found is not None


def pieces(render: Render) -> Pieces | None:
    """What a template writes around the texts; None where that depends on more than their roles."""

    def turns(*texts: str) -> list[Turn]:
        roles = {SYSTEM: "system", ANSWER: "assistant"}
        return [{"role": roles.get(text, "user"), "content": text} for text in texts]

    try:
        talk, told = render(turns(FIRST, ANSWER, SECOND)), render(turns(SYSTEM, FIRST))
        head, before_answer, between, end = _cut(talk, FIRST, ANSWER, SECOND)
        before_system, middle, _ = _cut(told, SYSTEM, FIRST)
        before_user = _common_end(_common_end(head, between), middle)
        found = Pieces(
            head.removesuffix(before_user), before_system, middle.removesuffix(before_user), before_user,
            before_answer, between.removesuffix(before_user), end,
        )  # fmt: skip
        asked = (turns(FIRST), turns(SYSTEM, FIRST), turns(SYSTEM, FIRST, ANSWER, SECOND), turns(FIRST, ANSWER, SECOND))
        return found if all(found.written(each) == render(each) for each in asked) else None
    except (TemplateFailed, ValueError):
        return None


def _pieces_of(name: str, header: GgufHeader, tokens: Sequence[str]) -> Pieces | None:
    source = header.text("tokenizer.chat_template")
    if source is None:
        return None
    check_template(source, name)  # in a process of its own, with a bound in time
    specials = {f"{kind}_token": text for kind in ("bos", "eos") if (text := _token(header, tokens, kind))}
    puts = header.metadata.get("tokenizer.ggml.add_bos_token") is True  # Ollama, as llama.cpp does
    begin = specials.get("bos_token", "") if puts else ""

    def render(turns: Sequence[Turn]) -> str:
        return template.render(turns).removeprefix(begin)

    try:
        template = ChatTemplate(source, specials)
    except TemplateFailed:
        return None
    return pieces(render)


def _token(header: GgufHeader, tokens: Sequence[str], name: str) -> str | None:
    place = header.number(f"tokenizer.ggml.{name}_token_id")
    return tokens[place] if place is not None and 0 <= place < len(tokens) else None


def _cut(text: str, *marks: str) -> list[str]:
    """The texts around the marks. Raises ValueError where one is missing or stands twice."""
    parts = []
    for mark in marks:
        before, text = text.split(mark)
        parts.append(before)
    return [*parts, text]


def _common_end(one: str, other: str) -> str:
    most = min(len(one), len(other))
    differs = next((at for at in range(1, most + 1) if one[-at] != other[-at]), most + 1)
    return one[len(one) - differs + 1 :]


def _go(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
