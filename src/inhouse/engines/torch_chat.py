"""Conversations as token ids, through the model's own chat template: the same at training and at evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError
from inhouse.core.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer_follows: bool) -> list[int]:
    """Token ids of a conversation; with `answer_follows` it ends where the assistant's answer begins.

    The template is rendered in transformers' immutable jinja sandbox. Raises torch.no_template when the model
    has none and torch.template_failed when it refuses these messages.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise UserError("torch.no_template")
    turns = [message.as_dict() for message in messages]
    try:
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=answer_follows, tokenize=True, return_dict=False
        )
    except (TemplateError, TypeError, KeyError) as error:
        roles = ", ".join(message.role for message in messages)
        raise UserError("torch.template_failed", roles=roles, problem=str(error)) from error
    return list(ids)


def answer_span(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], at: int, ends: frozenset[int]
) -> tuple[list[int], int]:
    """Token ids up to the end of the assistant turn `messages[at]`, and where that turn's answer begins.

    The answer includes its end-of-turn token; what a template writes after that token is cut off.
    Raises torch.template_shifts when the template renders the turns before differently once they are answered.
    """
    prompt = render(tokenizer, messages[:at], answer_follows=True)
    whole = render(tokenizer, messages[: at + 1], answer_follows=False)
    if whole[: len(prompt)] != prompt:
        raise UserError("torch.template_shifts", turn=at + 1)
    stop = next((i for i in range(len(prompt), len(whole)) if whole[i] in ends), len(whole) - 1)
    return whole[: stop + 1], len(prompt)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token and those of the model's generation settings."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [named] if isinstance(named, int) else list(named or ())
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return frozenset(ids)
