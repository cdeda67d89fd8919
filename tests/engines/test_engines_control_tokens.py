"""Whatever a user says, a rendered prompt holds the control tokens that the template wrote and no other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inhouse.core.control_tokens import JOINER
from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.engines.chat_template import ChatTemplate
from inhouse.engines.gguf_header import read_header
from inhouse.engines.gguf_tokens import control_of, control_tokens
from inhouse.engines.torch_chat import as_written, render
from inhouse.engines.torch_chat import control_of as control_of_tokenizer

CORPUS = ["the bank cut its key rate", "oil prices rose < 3 > 2", "[news] 银行降息 user system assistant"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% endfor %}"
BERT = "[CLS]{% for m in messages %}{{ m['content'] + '[SEP]' }}{% endfor %}"


def byte_level() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # One that looks like a control token and is not marked as one, as Qwen has them; one that is ordinary text.
    tokenizer.add_tokens([AddedToken("<|fim_prefix|>", normalized=False), AddedToken("<table>", normalized=False)])
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|im_end|>>"])
    return tokenizer, CHATML, {"eos_token": "<|im_end|>"}


def sentencepiece_bpe() -> Any:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    whole = Tokenizer(
        models.BPE(tokenizer.get_vocab(), merges_of(tokenizer), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    whole.normalizer = tokenizer.normalizer
    whole.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return whole, LLAMA2, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


def merges_of(tokenizer: Any) -> list[tuple[str, str]]:
    import json

    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def unigram_nfkc() -> Any:
    """With everything that can go wrong: NFKC before control tokens are looked for, and invisible characters gone."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    pieces = ["<unk>", "<s>", "</s>", "<mask>", *sorted({*"".join(CORPUS), *"<>/|_▁", "▁the"})]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(at)) for at, piece in enumerate(pieces)], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex("[\u200b\ufeff]"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken(text, normalized=True) for text in ("<unk>", "<s>", "</s>", "<mask>")])
    return tokenizer, LLAMA2, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


def word_piece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer, BERT, {"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]", "pad_token": "[PAD]"}


def joiners_vanish() -> Any:
    """A normaliser that takes the joiner out before tokens are looked for: nothing can be broken."""
    from tokenizers import normalizers

    tokenizer, template, named = unigram_nfkc()
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.Replace(JOINER, "")])
    return tokenizer, template, named


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram_nfkc": unigram_nfkc,
    "word_piece": word_piece,
}
SPELT = [
    *("<|im_start|>", "<|im_end|>", "<|im_end|>>", "<|fim_prefix|>", "<s>", "</s>", "<unk>", "<mask>", "<MASK>"),
    *("[SEP]", "[CLS]", "[MASK]", "[sep]", "＜s＞", "<\u200bs>", "<\ufeff/s>", f"<{JOINER}s>", "ﬀ", "<", ">", "|"),
    *("im_end", "s", "[", "SEP", "]", " ", "\n", "the bank", "银行", "<table>", "\u200b", "assistant"),
]


def opened(kind: Callable[[], Any]) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer, template, named = kind()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: opened(kind) for name, kind in KINDS.items()}


def commands(tokenizer: Any, ids: list[int]) -> list[str]:
    """The control tokens of a prompt by their texts; an unknown character is none."""
    added = tokenizer.added_tokens_decoder
    return [added[token].content for token in ids if token in added and token != tokenizer.unk_token_id
            and added[token].content != "<table>"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(SPELT), max_size=8).map("".join))
def test_prompt_holds_only_the_control_tokens_of_its_template(tokenizers: dict[str, Any], kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    wanted = commands(tokenizer, render(tokenizer, [Message(role="user", content="x")], answer_follows=True))
    assert wanted
    try:
        found = render(tokenizer, [Message(role="user", content=text)], answer_follows=True)
    except UserError as error:
        assert error.code == "prompt.control_token" and kind == "unigram_nfkc"
        assert "＜" in text or "\u200b" in text or "\ufeff" in text or "MASK" in text
        return
    assert commands(tokenizer, found) == wanted


def test_texts_of_each_tokenizer_are_broken_and_not_refused(tokenizers: dict[str, Any]) -> None:
    for kind, tokenizer in tokenizers.items():
        control = control_of_tokenizer(tokenizer)
        assert not control.refused and control.texts, kind
        assert control_of_tokenizer(tokenizer) is control
        tokenizer.add_tokens(["<|more|>"], special_tokens=True)
        assert "<|more|>" in control_of_tokenizer(tokenizer).texts
    byte_level = control_of_tokenizer(tokenizers["byte_level"])
    assert "<|fim_prefix|>" in byte_level.texts and "<table>" not in byte_level.texts


def test_tokenizer_that_undoes_the_break_gets_no_such_text_at_all() -> None:
    tokenizer = opened(joiners_vanish)
    assert "</s>" in control_of_tokenizer(tokenizer).refused
    assert render(tokenizer, [Message(role="user", content="plain < s")], answer_follows=True)
    with pytest.raises(UserError) as error:
        render(tokenizer, [Message(role="user", content="an </s> end")], answer_follows=True)
    assert error.value.code == "prompt.control_token" and error.value.facts["at"] == 3


def test_token_that_stays_one_is_refused_behind_invisible_characters_too() -> None:
    tokenizer = opened(joiners_vanish)
    for text in ("an <\u200b/s> end", "<\ufeff/S>"):
        with pytest.raises(UserError) as error:
            render(tokenizer, [Message(role="user", content=text)], answer_follows=True)
        assert error.value.code == "prompt.control_token"


def test_token_in_capitals_is_found_where_the_tokenizer_writes_small_ones() -> None:
    from tokenizers import AddedToken

    tokenizer, template, named = unigram_nfkc()
    tokenizer.add_special_tokens([AddedToken("<|EOT|>", normalized=True)])
    fast = opened(lambda: (tokenizer, template, named))
    assert fast.convert_tokens_to_ids("<|EOT|>") in fast("an <|eot|> end")["input_ids"]
    for text in ("an <|eot|> end", "an <|EOT|> end", "<|E\u200bOT|>"):
        with contextlib.suppress(UserError):
            found = render(fast, [Message(role="user", content=text)], answer_follows=True)
            assert "<|EOT|>" not in commands(fast, found), text


def test_conversation_nested_too_deep_for_a_template_is_told(tokenizers: dict[str, Any]) -> None:
    tokenizer = opened(byte_level)
    calls = "{% for m in messages %}{{ m['tool_calls'] | tojson }}{% endfor %}"
    tokenizer.chat_template = calls + """{% if tools %}{{ tools }}{{ '<tool_call>\n{"name": "' }}{% endif %}"""
    codes = []
    for depth in (0, 600, 100_000):
        arguments = '{"a":' + "[" * depth + "1" + "]" * depth + "}"
        call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
        try:
            assert render(tokenizer, [Message(role="assistant", content=None, tool_calls=[call])], answer_follows=True)
        except UserError as error:
            codes.append(error.code)
    assert codes in ([], ["torch.template_failed"])  # Python's own limit, less what stands on the stack already
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments is string }}", {})
    assert template.render([{"role": "assistant", "tool_calls": [call]}]) == "True"


def test_template_of_several_is_the_one_for_tools(tokenizers: dict[str, Any]) -> None:
    tokenizer = opened(byte_level)
    hermes = CHATML + """{% if tools %}{{ tools }}{{ '<tool_call>\n{"name": "' }}{% endif %}"""
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}
    turns = [Message(role="user", content="Look")]
    assert as_written(tokenizer, turns, [tool])[1] is None
    tokenizer.chat_template = {"default": CHATML, "tool_use": hermes}
    assert as_written(tokenizer, turns, [tool]) == ([{"role": "user", "content": "Look"}], [tool])


def test_control_tokens_of_a_gguf_file_are_those_that_its_types_name(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "tiny.gguf"
    plain = [f"piece{place}" for place in range(100)]
    # Types: 1 normal, 2 unknown, 3 control, 4 user defined. The last tokens stand behind those that a header shows.
    # llama.cpp takes <|eot_id|> for a control token by its text, and parses [INST] as it is user defined.
    named = {"<unk>": 2, "</s>": 3, "<|fim_prefix|>": 4, "<table>": 4, "!": 3, "<|im_end|>": 3, "odd": 3}
    named |= {"<|eot_id|>": 1, "[INST]": 4, "]~b]": 1, "<unused1>": 5}
    writer = GGUFWriter(path, "llama")
    writer.add_token_list([*plain, *named])
    writer.add_token_types([1] * len(plain) + list(named.values()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    found = control_tokens(path, header)
    looking = {"<unk>": 100, "</s>": 101, "<|fim_prefix|>": 102, "<|im_end|>": 105, "<|eot_id|>": 107, "[INST]": 108}
    looking |= {"]~b]": 109, "<unused1>": 110}
    assert found == {**looking, "odd": 106}
    for undone in ((), (found["<|im_end|>"],)):
        control = control_of(path, header, lambda text, undone=undone: [5, *(undone if "im_end" in text else ())])
        assert control.refused == (("<|im_end|>",) if undone else ())
    header.metadata.pop("tokenizer.ggml.token_type")
    assert control_tokens(path, header) == looking
    header.metadata.pop("tokenizer.ggml.tokens")
    assert control_tokens(path, header) == {}
