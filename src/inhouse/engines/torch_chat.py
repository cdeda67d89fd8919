"""Conversations as token ids, through the model's own chat template: the same at training and at evaluation."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.control_tokens import ControlTokens, is_control, proven
from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.core.thoughts import continued, split_thought
from inhouse.core.tool_words import as_prompted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, Any]]
_known: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, ControlTokens]] = weakref.WeakKeyDictionary()


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer_follows: bool, tools: Tools | None = None
) -> list[int]:
    """Token ids of a conversation; with `answer_follows` it ends where the assistant's answer begins.

    Raises torch.no_template and torch.template_failed as `render_texts` does.
    """
    return token_ids(tokenizer, render_texts(tokenizer, [messages], answer_follows, tools))[0]


def render_texts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    answer_follows: bool,
    tools: Tools | None = None,
) -> list[str]:
    """What the model's template writes for each conversation; all of them may call the same `tools`.

    Control tokens in what users and tools say are broken; tools that the template does not know are told in words. The
    template is rendered in transformers' immutable jinja sandbox. Raises torch.no_template when the model
    has none and torch.template_failed when it refuses a conversation.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise UserError("torch.no_template")
    if not conversations:
        return []
    told = [as_written(tokenizer, messages, tools) for messages in conversations]
    offered = told[0][1]  # the same for all of them
    try:
        texts: list[str] = tokenizer.apply_chat_template(
            [turns for turns, _ in told], tools=offered, add_generation_prompt=answer_follows, tokenize=False
        )
    except (TemplateError, TypeError, KeyError, RecursionError) as error:
        if len(told) > 1:  # find the one that is refused
            return [render_texts(tokenizer, [messages], answer_follows, tools)[0] for messages in conversations]
        roles = ", ".join(message.role for message in conversations[0])
        raise UserError("torch.template_failed", roles=roles, problem=str(error)) from error
    return texts


def as_written(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """A conversation and its tools as the tokenizer's template gets them.

    Raises prompt.control_token for a text that cannot be made plain.
    """
    dicts = [{"content": message.content or "", **message.as_dict()} for message in messages]
    turns, offered = as_prompted(template_of(tokenizer), control_of(tokenizer).in_turns(dicts), tools)
    return [turn_of(turn) for turn in turns], offered


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that transformers takes; of several, the one for tools, which it takes where there are some."""
    found: Any = tokenizer.chat_template
    return (found.get("tool_use") or found.get("default")) if isinstance(found, dict) else found


def control_of(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The tokenizer's control tokens, proven to be text once they are broken."""
    added = tokenizer.added_tokens_decoder
    kept = _known.get(tokenizer)
    if kept is not None and kept[0] == len(added):
        return kept[1]
    texts = [token.content for token in added.values() if is_control(token.content, token.special)]
    ids = {id for id, token in added.items() if is_control(token.content, token.special)} - {tokenizer.unk_token_id}
    owner = weakref.ref(tokenizer)

    def plain(told: Sequence[str]) -> list[bool]:
        alive = owner()
        assert alive is not None
        return [ids.isdisjoint(found) for found in token_ids(alive, told)]

    good, refused = proven(texts, plain)
    steps: Any = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    rewrites = None if steps is None else steps.normalize_str
    control = ControlTokens(good, refused, rewrites, lambda text: plain([text])[0])
    _known[tokenizer] = (len(added), control)
    return control


def turn_of(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as templates expect it: the arguments of a call as an object, where OpenAI's API has them as JSON."""
    calls = turn.get("tool_calls")
    return {**turn, "tool_calls": [_with_object(call) for call in calls]} if calls else dict(turn)


def _with_object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    called = call.get("function")
    if not isinstance(called, dict) or not isinstance(called.get("arguments"), str):
        return call
    try:
        told = json.loads(called["arguments"])
    except (ValueError, RecursionError):
        return call  # not JSON, or nested too deep: the template writes the string
    return {**call, "function": {**called, "arguments": told}} if isinstance(told, dict) else call


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that hold their special tokens already."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return found


def answer_span(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    at: int,
    ends: frozenset[int],
    tools: Tools | None = None,
) -> tuple[list[int], int]:
    """Token ids up to the end of the assistant turn `messages[at]`, and where that turn's answer begins.

    The answer includes its end-of-turn token; what a template writes after that token is cut off. Where the template
    writes none (GLM-4: the next turn's role ends a turn), the tokenizer's end token is put there.
    Raises torch.template_shifts when the template renders the turns before differently once they are answered.
    """
    prompt = render_texts(tokenizer, [messages[:at]], True, tools)[0]
    whole = render_texts(tokenizer, [messages[: at + 1]], False, tools)[0]
    prompt_ids, whole_ids = token_ids(tokenizer, [prompt, whole])
    ids = joined(tokenizer, (prompt, prompt_ids), (whole, whole_ids), messages[: at + 1])
    stop = end_of(ids, len(prompt_ids), ends)
    return ended(tokenizer, ids if stop is None else ids[: stop + 1], ends), len(prompt_ids)


def joined(
    tokenizer: PreTrainedTokenizerBase,
    prompt: tuple[str, list[int]],
    whole: tuple[str, list[int]],
    turns: Sequence[Message],
) -> list[int]:
    """Ids of the whole that begin with the prompt's: as serving has them, where an answer follows its prompt.

    Each is given as text and ids; `turns` are those of the whole, and the last one is the answer. Raises
    torch.template_shifts when not even the texts begin alike.
    """
    if whole[1][: len(prompt[1])] == prompt[1]:
        return whole[1]
    thought, _ = split_thought(control_of(tokenizer).in_turns([turns[-1].as_dict()])[0].get("content") or "")
    told = continued(prompt[0], whole[0], thought)
    if told is None:
        raise UserError("torch.template_shifts", turn=len(turns))
    # A token of the whole reaches over the border. The answer is cut into tokens behind a special one, for alone
    # some tokenizers would put a space before it.
    anchor = tokenizer.eos_token or ""
    before, after = token_ids(tokenizer, [anchor, anchor + told[len(prompt[0]) :]])
    return [*prompt[1], *after[len(before) :]]


def end_of(ids: Sequence[int], start: int, ends: frozenset[int]) -> int | None:
    """The place of the first end-of-turn token from `start` on; None where there is none."""
    return next((place for place in range(start, len(ids)) if ids[place] in ends), None)


def ended(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: frozenset[int]) -> list[int]:
    """The ids with an end-of-turn token behind them: the tokenizer's, where they have none of their own."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1] in ends else [*ids, end]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token and those of the model's generation settings."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    return _all_ends(named, tokenizer)


def stored_end_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The same as `end_tokens`, from the settings beside the weights, which are not read."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            return _all_ends(settings.get("eos_token_id"), tokenizer)
    return _all_ends(None, tokenizer)


def _all_ends(named: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids = [named] if isinstance(named, int) else list(named or ())
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return frozenset(ids)
