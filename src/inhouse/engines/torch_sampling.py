"""How the next token of one answer is chosen in torch: by transformers' own logits processors, and a seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.serving import Sampling

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase


REPLACED = "\ufffd"  # what stands for bytes that are no character
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Chooser:
    """Chooses the tokens of one answer. Choices of one request draw from seeds that follow each other."""

    def __init__(self, asked: Sampling, index: int, device: torch.device) -> None:
        import torch

        self._asked = asked
        self._seen: Counter[int] = Counter()
        self._processors = processors(asked, device)
        self._draws: torch.Generator | None = None
        if asked.seed is not None:
            self._draws = torch.Generator(device).manual_seed((asked.seed + index) % 2**63)

    def choose(self, logits: torch.Tensor, ids: Sequence[int]) -> int:
        """The next token after `ids`, from logits (V) float32, which stay as they are."""
        import torch

        so_far = ids if self._asked.repetition_penalty != 1 else ids[-1:]  # all that the processors look at
        scores = self._processors(torch.tensor([so_far], device=logits.device), self._penalised(logits)[None])
        if self._asked.temperature == 0:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(scores[0].softmax(-1), 1, generator=self._draws))
        self._seen[token] += 1
        return token

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        """OpenAI's penalties, over the tokens of the answer; transformers has none of this kind."""
        asked = self._asked
        if not self._seen or not (asked.presence_penalty or asked.frequency_penalty):
            return logits
        tokens = list(self._seen)
        less = [asked.presence_penalty + asked.frequency_penalty * self._seen[token] for token in tokens]
        found = logits.clone()
        found[tokens] -= found.new_tensor(less)
        return found


def processors(asked: Sampling, device: torch.device) -> LogitsProcessorList:
    """Transformers' processors for these settings, in the order in which `generate` applies them."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    found = LogitsProcessorList()
    if asked.logit_bias:
        found.append(SequenceBiasLogitsProcessor({(token,): float(bias) for token, bias in asked.logit_bias.items()}))
    if asked.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
    if asked.temperature == 0:
        return found
    if asked.temperature != 1:
        found.append(TemperatureLogitsWarper(asked.temperature))
    if asked.top_k:
        found.append(TopKLogitsWarper(asked.top_k))
    if asked.top_p is not None and asked.top_p < 1:
        found.append(TopPLogitsWarper(asked.top_p))
    if asked.min_p:
        found.append(MinPLogitsWarper(asked.min_p))
    return found


def told_logprobs(logits: torch.Tensor, token: int, top: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One entry in OpenAI's shape, from the logits (V) before any sampling."""
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(top) if top else None
    likely = [] if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return _entry(tokenizer, token, float(logprobs[token])) | {
        "top_logprobs": [_entry(tokenizer, other, value) for other, value in likely]
    }


def _entry(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float) -> dict[str, Any]:
    text = str(tokenizer.decode([token]))
    return {"token": text, "logprob": logprob, "bytes": list(_bytes(tokenizer, token, text))}


def _bytes(tokenizer: PreTrainedTokenizerBase, token: int, text: str) -> bytes:
    """The bytes of a token; one that is part of a character has no text of its own, only its piece tells them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    piece = str(tokenizer.convert_ids_to_tokens(token))
    if REPLACED not in text or REPLACED in piece:
        return text.encode("utf-8", "replace")
    if found := BYTE.fullmatch(piece):  # sentencepiece
        return bytes([int(found[1], 16)])
    values = {character: value for value, character in bytes_to_unicode().items()}
    return bytes(values[c] for c in piece) if values.keys() >= set(piece) else text.encode("utf-8", "replace")
