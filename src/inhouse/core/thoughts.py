"""Thoughts of a model before its answer, between <think> and </think>: as Qwen3, GLM-4.5 and DeepSeek-R1 write them."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def writes_thoughts(template: str | None) -> bool:
    """Whether a model of this chat template writes thoughts before its answers."""
    return template is not None and (CLOSE in template or OPEN in template)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside of a thought: the answer begins with the thought's words, without the tag."""
    return prompt.rstrip().endswith(OPEN)


def split_thought(text: str) -> tuple[str, str]:
    """The thought before an answer, and the answer, both without spaces around them.

    The opening tag may be missing, for the prompt may have had it. A thought that does not end is the answer.
    """
    before, end, after = text.partition(CLOSE)
    lead, begin, inside = before.partition(OPEN)
    if not end or (begin and lead.strip()):
        return "", text.strip()
    return (inside if begin else lead).strip(), after.strip()


def continued(prompt: str, whole: str, thought: str = "") -> str | None:
    """What a template writes up to the end of an answer, as it follows its prompt; None where it begins otherwise.

    Some templates open a thought in the prompt and leave the thoughts of answers out (DeepSeek-R1's). There `thought`
    is written, an empty one too, and the answer behind it: what a model that is asked has to write.
    """
    if whole.startswith(prompt):
        return whole
    before = prompt.rstrip().removesuffix(OPEN)
    if not opens_thought(prompt) or not whole.startswith(before):
        return None
    told = whole[len(before) :].lstrip("\n")
    if told.startswith(OPEN):
        thought, _, told = (part.strip("\n") for part in told.removeprefix(OPEN).partition(CLOSE))
    line = "" if prompt.endswith("\n") else "\n"
    return f"{prompt}{line}{thought}\n{CLOSE}\n\n{told}"
