"""The torch engine against plain transformers: same tokens, same answers, same likelihoods."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.rows import Message
from inhouse.engines.transformers import TransformersEngine, facts_of, load_model, load_tokenizer, open_model

PROMPTS = [
    [Message(role="user", content=f"Which desk? {text}")]
    for text in ("oil prices rose", "wheat", "the bank cut its prime rate by one quarter point", "net profit", "公司")
]
CHOICES = ["oil", "oil and grain", "grain", "银行", "net profit rose"]


def quiet(_: int) -> None:
    return None


def source(folder: Path, main: str = ".", fmt: str = "safetensors") -> Input:
    facts = {"model": {"format": fmt, "main": main, "name": "tiny"}}
    record = Artifact(
        id="m", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="", facts=facts
    )
    return Input(record, folder)


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TransformersEngine:
    return open_model(source(tiny_llama), dtype="fp32", threads=1, batch=3)


def plain_answer(engine: TransformersEngine, prompt: list[Message], max_tokens: int) -> list[int]:
    import torch

    ids = torch.tensor([engine.token_ids(prompt)])
    out = engine.model.generate(ids, do_sample=False, max_new_tokens=max_tokens, attention_mask=torch.ones_like(ids))
    return out[0, ids.shape[1] :].tolist()


def test_token_ids_of_a_conversation_equal_the_template_written_out(engine: TransformersEngine) -> None:
    written = "<|im_start|>user\nWhich desk? wheat<|im_end|>\n<|im_start|>assistant\n"
    assert engine.token_ids(PROMPTS[1]) == engine.tokenizer.encode(written, add_special_tokens=False)


def test_generate_in_padded_batches_equals_plain_generate_of_each(engine: TransformersEngine) -> None:
    found = engine.generate(PROMPTS, 6, quiet, ignore_end=False)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = plain_answer(engine, prompt, 6)
        assert answer.text == engine.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.tokens == len(expected)
        assert 0 < answer.first_token_s <= answer.total_s


def test_generate_ignoring_the_end_gives_exactly_max_tokens(engine: TransformersEngine) -> None:
    assert [g.tokens for g in engine.generate(PROMPTS[:2], 9, quiet, ignore_end=True)] == [9, 9]


def test_generate_stops_with_the_end_token_and_says_so(engine: TransformersEngine) -> None:
    first = plain_answer(engine, PROMPTS[0], 1)[0]
    kept, engine.ends = engine.ends, frozenset({first})
    answer = engine.generate(PROMPTS[:1], 5, quiet)[0]
    engine.ends = kept
    assert (answer.finish, answer.tokens) == ("stop", 1)


def test_score_equals_the_sum_of_plain_forward_log_probabilities(engine: TransformersEngine) -> None:
    import torch

    found = engine.score(PROMPTS, [CHOICES] * len(PROMPTS), quiet)
    for prompt, scores in zip(PROMPTS, found, strict=True):
        start = engine.token_ids(prompt)
        for choice, scored in zip(CHOICES, scores, strict=True):
            answer = engine.tokenizer.encode(choice + "<|im_end|>", add_special_tokens=False)
            with torch.no_grad():
                logits = engine.model(torch.tensor([start + answer])).logits[0].log_softmax(-1)
            expected = sum(float(logits[len(start) - 1 + k, token]) for k, token in enumerate(answer))
            assert scored.tokens == len(answer)
            assert scored.logprob == pytest.approx(expected, abs=1e-4)


def test_score_after_generate_equals_score_alone(engine: TransformersEngine, tiny_llama: Path) -> None:
    alone = open_model(source(tiny_llama), dtype="fp32", threads=1, batch=3)
    expected = alone.score(PROMPTS, [CHOICES] * len(PROMPTS), quiet)
    engine.generate(PROMPTS, 4, quiet)
    assert engine.score(PROMPTS, [CHOICES] * len(PROMPTS), quiet) == expected
    alone.close()


def test_next_logprobs_equal_plain_forward_and_are_sorted(engine: TransformersEngine) -> None:
    import torch

    found = engine.next_logprobs(PROMPTS, 3)
    for prompt, top in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            plain = engine.model(torch.tensor([engine.token_ids(prompt)])).logits[0, -1].log_softmax(-1)
        assert list(top) == plain.topk(3).indices.tolist()
        assert list(top.values()) == pytest.approx(plain.topk(3).values.tolist(), abs=1e-5)


def test_calls_repeated_give_the_same_values(engine: TransformersEngine) -> None:
    assert engine.next_logprobs(PROMPTS, 5) == engine.next_logprobs(PROMPTS, 5)


def test_tick_is_called_once_for_every_prompt(engine: TransformersEngine) -> None:
    ticks: list[int] = []
    engine.generate(PROMPTS, 2, ticks.append)
    engine.score(PROMPTS, [["oil"]] * len(PROMPTS), ticks.append)
    assert sum(ticks) == 2 * len(PROMPTS)


def test_generate_of_no_prompts_is_empty(engine: TransformersEngine) -> None:
    assert engine.generate([], 4, quiet) == []
    assert engine.score([], [], quiet) == []


def test_prompt_longer_than_the_context_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(UserError) as error:
        engine.generate([[Message(role="user", content="oil " * 600)]], 8, quiet)
    assert error.value.code == "torch.too_long"


def test_memory_is_that_of_this_process(engine: TransformersEngine) -> None:
    assert engine.memory_bytes() > 50 << 20


def test_remote_model_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_model(source(tmp_path, "http://127.0.0.1:1/v1", "remote"))
    assert error.value.code == "torch.remote"


def test_pickle_weights_are_never_read(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        load_model(source(folder))
    assert error.value.code == "torch.pickle"


@pytest.mark.parametrize("damage", ["cut", "config"])
def test_damaged_folder_is_an_error_without_its_path(tiny_llama: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_llama, folder)
    broken = folder / ("model.safetensors" if damage == "cut" else "config.json")
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError) as error:
        load_model(source(folder))
    assert error.value.code == "torch.unreadable"
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("change", [{"num_attention_heads": 3}, {"vocab_size": "400"}, {"pad_token_id": 99999}])
def test_settings_that_go_with_no_model_are_an_error_that_names_it(
    tiny_llama: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = tmp_path / "contrary"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_model(source(folder))
    assert error.value.code == "torch.unreadable"
    assert error.value.facts["path"] == facts_of(source(folder)).name and "config.json" in str(error.value)


def test_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer(source(tmp_path))
    assert error.value.code == "torch.no_tokenizer"


def test_model_without_a_template_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("chat_template*"))
    bare = open_model(source(folder), dtype="fp32", threads=1)
    with pytest.raises(UserError) as error:
        bare.token_ids(PROMPTS[0])
    assert error.value.code == "torch.no_template"


def test_template_that_refuses_the_roles_is_an_error_naming_them(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError) as error:
        open_model(source(folder), dtype="fp32", threads=1).token_ids(PROMPTS[0])
    assert error.value.code == "torch.template_failed"
    assert "roles must alternate" in str(error.value)


def test_model_without_an_end_token_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(tiny_llama, folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("eos_token_id", None)
        settings.pop("eos_token", None)
        (folder / name).write_text(json.dumps(settings))
    with pytest.raises(UserError) as error:
        open_model(source(folder), dtype="fp32", threads=1)
    assert error.value.code == "torch.no_end"


def gguf_source(path: Path) -> Input:
    return source(path.parent, path.name, "gguf")


@pytest.mark.real
def test_gguf_weights_equal_those_of_transformers_own_reader(smollm2_gguf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours = load_model(gguf_source(smollm2_gguf), "fp32")
    plain = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32)
    theirs = plain.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    left, right = ours.config.to_dict(), plain.config.to_dict()
    for key in ("rms_norm_eps", "rope_parameters", "num_key_value_heads", "head_dim", "eos_token_id", "vocab_size"):
        assert left[key] == right[key], key
    assert "quantization_config" not in left


@pytest.mark.real
def test_gguf_tokenizer_is_the_one_that_converters_recognise_as_smollm(smollm2_gguf: Path) -> None:
    from conversion.base import TextModel

    tokenizer = load_tokenizer(gguf_source(smollm2_gguf))
    assert TextModel.get_vocab_base_pre(TextModel.__new__(TextModel), tokenizer) == "smollm"
    assert tokenizer.eos_token == "<|im_end|>"


def test_gguf_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 16)
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError) as error:
            load(gguf_source(path))
        assert error.value.code == "gguf.damaged"


def write_tokens_only(path: Path, pre: str, bos: bool | None = False, whole: str = "Ġa", types: bool = True) -> Path:
    """A GGUF of a byte-level vocabulary without weights; no merge makes the token `whole`."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<s>", "</s>", "<u>", "a", "b", "ab", "Ġ", "1", "ĠĠ", whole])
    if types:
        writer.add_token_types([3, 3, 4, 1, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if bos is not None:
        writer.add_add_bos_token(bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_tokenizer_cuts_digits_apart_before_spaces_for_smollm_only(tmp_path: Path) -> None:
    smollm = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "smollm.gguf", "smollm")))
    plain = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "gpt2.gguf", "gpt-2")))
    assert smollm.convert_ids_to_tokens(smollm.encode("ab  1<u>")) == ["ab", "ĠĠ", "1", "<u>"]
    assert plain.convert_ids_to_tokens(plain.encode("ab  1")) == ["ab", "Ġ", "Ġ", "1"]


def test_gguf_tokenizer_puts_the_first_token_where_the_header_says(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "bos.gguf", "gpt-2", bos=True)))
    assert tokenizer.encode("ab") == [0, 5]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("</s>", "</s>", 64)


def test_gguf_tokenizer_of_llama_3_takes_whole_tokens_before_merges_and_begins_texts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "l3.gguf", "llama-bpe", whole="ba")))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ba ab")) == ["ba", "Ġ", "ab"]  # the header says no bos
    silent = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "l3s.gguf", "llama-bpe", whole="ba", bos=None)))
    assert silent.convert_ids_to_tokens(silent.encode("ba")) == ["<s>", "ba"]
    merged = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "g.gguf", "gpt-2", whole="ba", bos=None)))
    assert merged.convert_ids_to_tokens(merged.encode("ba")) == ["b", "a"]


def test_gguf_vocabulary_without_types_is_read(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gguf_source(write_tokens_only(tmp_path / "t.gguf", "gpt-2", types=False)))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab</s>")) == ["ab", "</s>"]


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", "a", "b", "▁a", "ab", "▁ab", "▁abab", "<|im_start|>"]


def write_sentencepiece(path: Path, template: str | None = None, **flags: bool) -> Path:
    """A GGUF of a sentencepiece vocabulary whose last token is user defined, without weights."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>", *BYTES, *PIECES])
    writer.add_token_scores([0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, 0.0])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 7, 4])
    for name, at in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{name}_token_id")(at)
    for name, value in flags.items():
        getattr(writer, f"add_add_{name}_token")(value)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("flags", "begin", "end"),
    [({}, [1], []), ({"bos": True}, [1], []), ({"bos": False, "eos": True}, [], [2])],
)
def test_gguf_sentencepiece_vocabulary_cuts_texts_as_llama_cpp_does(
    tmp_path: Path, flags: dict[str, bool], begin: list[int], end: list[int]
) -> None:
    tokenizer = load_tokenizer(gguf_source(write_sentencepiece(tmp_path / "spm.gguf", **flags)))
    # what llama-server's /tokenize answers for a file with this vocabulary
    told = {
        "ab": [264],
        "<|im_start|>ab": [266, 264],
        "a<|im_start|>abab</s>": [262, 266, 265, 2],
        "é<unk>b": [259, 198, 172, 0, 259, 261],
    }
    for text, ids in told.items():
        assert tokenizer(text)["input_ids"] == [*begin, *ids, *end]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids


@pytest.mark.parametrize(
    ("bos", "template", "wanted"),
    [
        (True, "{{ messages }}", "{{ bos_token }}{{ messages }}"),
        (True, "{{ bos_token }}{{ messages }}", "{{ bos_token }}{{ messages }}"),
        (True, "<s>{{ messages }}", "<s>{{ messages }}"),
        (False, "{{ messages }}", "{{ messages }}"),
    ],
)
def test_gguf_template_that_writes_no_bos_gets_the_one_that_llama_cpp_puts_there(
    tmp_path: Path, bos: bool, template: str, wanted: str
) -> None:
    path = write_sentencepiece(tmp_path / "spm.gguf", template=template, bos=bos)
    assert load_tokenizer(gguf_source(path)).chat_template == wanted


def test_gguf_with_an_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="newest") as error:
        load_tokenizer(gguf_source(write_tokens_only(tmp_path / "new.gguf", "newest")))
    assert error.value.code == "torch.gguf_tokenizer"
