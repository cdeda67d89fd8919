"""The GGUF export itself: what the converter refuses, which types are chosen, a full disk, and the real model."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inhouse.compress.convert import convert
from inhouse.compress.convert_child import plain_pre_tokenizer
from inhouse.compress.methods.gguf import Gguf, export, file_stem, loose
from inhouse.compress.quantise import quantise
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Message
from inhouse.core.run import Events
from inhouse.engines.llamacpp import open_model


def write_tokenizer(folder: Path, pre_tokenizer: dict[str, object] | None) -> Path:
    text = json.dumps({"pre_tokenizer": pre_tokenizer, "normalizer": None})
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


def test_convert_of_an_unknown_architecture_says_what_to_do(trained: tuple[Input, Input], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[1].path / "merged", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["NobodyForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError) as error:
        convert(folder, tmp_path / "f16.gguf", "m", Events())
    assert error.value.code == "compress.architecture"
    assert error.value.facts["architecture"] == "NobodyForCausalLM"
    assert not (tmp_path / "f16.gguf").exists()


def test_convert_of_broken_weights_gives_the_converters_reason(trained: tuple[Input, Input], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[1].path / "merged", folder)
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not a header....")
    with pytest.raises(UserError) as error:
        convert(folder, tmp_path / "f16.gguf", "m", Events())
    assert error.value.code == "compress.conversion" and error.value.facts["reason"] != "-"


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                ],
            },
            "smollm",
        ),
    ],
)
def test_tokenizer_that_cuts_as_a_known_one_gets_its_name(
    tmp_path: Path, pre_tokenizer: dict[str, object], name: str
) -> None:
    assert plain_pre_tokenizer(write_tokenizer(tmp_path, pre_tokenizer)) == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
    ],
)
def test_tokenizer_that_cuts_in_its_own_way_is_refused(tmp_path: Path, pre_tokenizer: dict[str, object] | None) -> None:
    with pytest.raises(UserError) as error:
        plain_pre_tokenizer(write_tokenizer(tmp_path, pre_tokenizer))
    assert error.value.code == "compress.tokenizer"


SPOKEN = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"


def write_sentencepiece(source: Path, folder: Path, prefix: bool, bos: bool, template: str) -> Any:
    """A copy of a tiny model with a sentencepiece vocabulary that is there as tokenizer.json alone."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    marked = normalizers.Replace(" ", "▁")
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked])
    words = ["net profit rose", "the bank cut its rate", "the rates rose 12 percent", "银行利率 利率"] * 3
    learner.train_from_iterator(words, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocab = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked]) if prefix else marked
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    if bos:
        frame = {"single": "<s> $A", "special_tokens": [("<s>", 1)]}
        tokenizer.post_processor = processors.TemplateProcessing(**frame)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_tokens([AddedToken("<|user|>", normalized=False)])
    fast.chat_template = template
    config = AutoConfig.from_pretrained(source, vocab_size=len(fast), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize(
    ("prefix", "bos", "template"),
    [(True, True, SPOKEN), (True, True, "{{ bos_token }}" + SPOKEN), (False, False, SPOKEN)],
    ids=["bos that the template lacks", "bos of the template", "neither bos nor space"],
)
def test_exported_sentencepiece_vocabulary_without_its_own_file_cuts_texts_as_before(
    context: Context, as_input: Callable[..., Input], prefix: bool, bos: bool, template: str
) -> None:
    folder = context.project_dir / "spm"
    fast = write_sentencepiece(context.inputs["base"].path, folder, prefix, bos, template)
    (context.scratch / "f16.gguf").unlink()
    tuned = as_input(folder, ".", "safetensors", name="spm")
    given = replace(context, inputs={**context.inputs, "tuned": tuned})
    made = export(tuned, Gguf(type="f16"), given)
    record = tuned.record.model_copy(update={"facts": {"model": made.model.model_dump()}})
    with closing(open_model(Input(record, context.out))) as engine:
        for said in ("the bank", "net rates  rose\n12 é 利率", "利率profits"):
            assert engine.text_ids(said) == fast(said, add_special_tokens=False)["input_ids"]
            asked = [Message(role="user", content=said)]
            told = fast.apply_chat_template([turn.as_dict() for turn in asked], tokenize=False)
            assert engine.token_ids(asked) == fast(told, add_special_tokens=False)["input_ids"]


def test_quantised_weights_are_the_nearest_of_their_block(converted: Path, tmp_path: Path) -> None:
    """Q8_0 by its definition: 32 weights share a half-precision scale max|w| / 127."""
    import numpy as np
    from gguf import GGUFReader

    quantise(converted, tmp_path / "q.gguf", "q8_0", {"general.name": "n"}, lambda done, total: None)
    source = {t.name: t for t in GGUFReader(converted).tensors}
    written = GGUFReader(tmp_path / "q.gguf")
    assert written.fields["general.name"].contents() == "n"
    tensor = next(t for t in written.tensors if t.name == "blk.0.ffn_down.weight")
    weights = source[tensor.name].data.astype(np.float32).reshape(-1, 32)
    blocks = np.asarray(tensor.data).reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    back = blocks[:, 2:].copy().view(np.int8) * scale
    step = np.abs(weights).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(back - weights) <= 0.51 * step + np.abs(weights) * 1e-3)
    norm = next(t for t in written.tensors if t.name == "output_norm.weight")
    assert norm.tensor_type.name == "F32"


def test_quantise_on_a_full_disk_says_so(converted: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(UserError) as error:
            quantise(converted, tmp_path / "q.gguf", "q8_0", {}, lambda done, total: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.code == "store.no_space"


def test_file_stem_keeps_letters_of_any_language_and_no_separators() -> None:
    assert file_stem("org/my model: v1") == "org-my-model-v1"
    assert file_stem("../../etc") == "etc"
    assert file_stem("新闻 分类") == "新闻-分类"
    assert file_stem("///") == "model"


def test_loose_holds_for_the_coarse_types_only() -> None:
    assert [loose(Gguf(type=kind)) for kind in ("f16", "q8_0", "q6_k", "q4_k_m", "q4_0")] == [False] * 3 + [True] * 2


@pytest.mark.real
def test_real_model_exported_keeps_parity_and_a_zeroed_tensor_loses_it(
    smollm2_gguf: Path, context: Context, as_input: Callable[..., Input], tmp_path: Path
) -> None:
    """SmolLM2-135M: dequantised, exported as Q8_0; then one of 272 tensors is zeroed."""
    from gguf import GGUFReader

    from inhouse.compress.methods.gguf import export
    from inhouse.compress.parity import ParityParams, bounds_of, choose_rows, figures_of, judge, measure
    from inhouse.dataset import read_rows
    from inhouse.engines.transformers import load_model, load_tokenizer

    source = as_input(smollm2_gguf.parent, smollm2_gguf.name, "gguf")
    load_model(source, "fp32").save_pretrained(tmp_path / "tuned" / "merged")
    load_tokenizer(source).save_pretrained(tmp_path / "tuned" / "merged")
    tuned = as_input(tmp_path / "tuned", "merged", "safetensors", name="SmolLM2-135M-Instruct")
    (context.scratch / "f16.gguf").unlink()
    made = export(tuned, Gguf(), context)
    assert made.model.tensor_types == {"F32": 61, "Q8_0": 211}
    assert made.model.bytes == pytest.approx(145e6, rel=0.01)

    params = ParityParams(prompts=4, tokens=4)
    rows = choose_rows(list(read_rows(context.inputs["dataset"].path, "test")), params.prompts)
    models = (None, tuned, as_input(context.out, made.model.main, "gguf"))
    compared = measure(rows, models, params, context.events)
    judge(compared, params, bounds_of(params, False))
    assert figures_of(compared)["parity.kl"].value < 0.02

    reader = GGUFReader(context.out / made.model.main, "r+")
    next(t for t in reader.tensors if t.name == "blk.0.attn_output.weight").data[:] = 0
    reader.data.flush()
    with pytest.raises(UserError) as error:
        judge(measure(rows, models, params, context.events), params, bounds_of(params, False))
    assert error.value.code == "compress.parity_logits"
