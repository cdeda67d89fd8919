"""Chat templates of the shapes that families use, and for each a plain account of what is written and learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inhouse.core.rows import Message

Told = list[tuple[str, bool]]  # text, and whether the model is to learn it
Tools = Sequence[dict[str, Any]] | None

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are Qwen.' }}{%- endif %}
    {{- '\n\n# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}{{- call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
THINKING = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- set said = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\n') %}
        {%- set before = m.content.split('</think>')[0] if '</think>' in m.content else '' %}
        {%- set thought = before.split('<think>')[-1].strip('\n') %}
        {%- if loop.index0 > ns.last %}{%- set said = '<think>\n' + thought + '\n</think>\n\n' + said %}{%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """A template, the texts of its end tokens, and its account."""

    template: str
    ends: tuple[str, ...]
    tell: Callable[[Sequence[Message], Tools], Told]


def chatml(messages: Sequence[Message], tools: Tools) -> Told:
    told: Told = []
    for m in messages:
        told += [(f"<|im_start|>{m.role}\n", False), (f"{m.content}<|im_end|>", m.role == "assistant"), ("\n", False)]
    return told


def llama3(messages: Sequence[Message], tools: Tools) -> Told:
    told: Told = [("<|begin_of_text|>", False)]
    for m in messages:
        told.append((f"<|start_header_id|>{m.role}<|end_header_id|>\n\n", False))
        told.append((f"{(m.content or '').strip()}<|eot_id|>", m.role == "assistant"))
    return told


def mistral(messages: Sequence[Message], tools: Tools) -> Told:
    told: Told = [("<|begin_of_text|>", False)]
    for m in messages:
        learned = m.role == "assistant"
        told.append((f" {m.content}</s>" if learned else f"[INST] {m.content} [/INST]", learned))
    return told


def glm4(messages: Sequence[Message], tools: Tools) -> Told:
    told: Told = [("[gMASK]<sop>", False)]
    for before, m in zip([None, *messages], messages, strict=False):
        told.append((f"<|{m.role}|>", before is not None and before.role == "assistant"))
        told.append((f"\n{m.content}", m.role == "assistant"))
    return [*told, ("<|im_end|>", True)]


def qwen25(messages: Sequence[Message], tools: Tools) -> Told:
    told: Told = []
    first = messages[0].content if messages[0].role == "system" else "You are Qwen."
    if tools:
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        told.append((f"<|im_start|>system\n{first}\n\n# Tools\n<tools>{lines}\n</tools><|im_end|>\n", False))
    elif messages[0].role == "system":
        told.append((f"<|im_start|>system\n{first}<|im_end|>\n", False))
    for place, m in enumerate(messages):
        if m.role == "user":
            told.append((f"<|im_start|>user\n{m.content}<|im_end|>\n", False))
        elif m.role == "assistant":
            calls = ""
            for call in m.tool_calls or ():
                arguments = json.dumps(json.loads(call["function"]["arguments"]), ensure_ascii=False)
                calls += (
                    f'\n<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments": {arguments}}}\n</tool_call>'
                )
            said = ("\n" + m.content if m.content else "") + calls
            told += [("<|im_start|>assistant\n", False), (f"{said[1:]}<|im_end|>", True), ("\n", False)]
        elif m.role == "tool":
            opens = "" if messages[place - 1].role == "tool" else "<|im_start|>user"
            last = place + 1 == len(messages) or messages[place + 1].role != "tool"
            said = (m.content or "").replace("<|im_end|>", "<\N{WORD JOINER}|im_end|>")
            told.append((f"{opens}\n<tool_response>\n{said}\n</tool_response>" + "<|im_end|>\n" * last, False))
    return told


FAMILIES = {
    "chatml": Family(CHATML, ("<|im_end|>",), chatml),
    "marked": Family(MARKED, ("<|im_end|>",), chatml),
    "llama3": Family(LLAMA3, ("<|eot_id|>", "<|im_end|>"), llama3),
    "qwen25": Family(QWEN25, ("<|im_end|>",), qwen25),
    "mistral": Family(MISTRAL, ("</s>",), mistral),
    "glm4": Family(GLM4, ("<|im_end|>", "<|user|>", "<|observation|>"), glm4),
}
SPECIALS = (
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "</s>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>",
)  # fmt: skip
