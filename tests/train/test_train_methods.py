"""What each method trains, what it leaves behind, and what is refused."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import as_input, make_family, make_lively
from huggingface_hub import ModelCard
from tiny_training import context, rows, train_params, write_dataset

from inhouse.core.artifact import Artifact
from inhouse.core.errors import MissingExtra, UserError
from inhouse.core.protocols import Input, Made
from inhouse.core.rows import Message
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.engines.adapters import open_adapter
from inhouse.engines.transformers import load_model, load_tokenizer, open_model
from inhouse.train.endings import judge_endings
from inhouse.train.methods import full, lora, prompt, qlora
from inhouse.train.methods.full import Full
from inhouse.train.methods.lora import Lora
from inhouse.train.methods.prompt import Prompt
from inhouse.train.methods.qlora import Qlora
from inhouse.train.stage import run
from inhouse.train.tokens import encode
from inhouse.train.virtual import save_virtual, virtual_ids, virtual_rows, with_virtual

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"use": "lora", "lora_dropout": 0.1},
    "full": {"use": "full"},
    "qlora": {"use": "qlora", "r": 8, "lora_dropout": 0.1},
    "prompt": {"use": "prompt", "num_virtual_tokens": 6},
    "prefix": {"use": "prompt", "kind": "prefix", "num_virtual_tokens": 6},
    "p_tuning": {"use": "prompt", "kind": "p_tuning", "num_virtual_tokens": 6, "encoder_hidden_size": 24},
}
RATES = {"full": 0.005, "prompt": 0.5, "prefix": 0.3, "p_tuning": 0.05}
VIRTUAL = ("prompt", "prefix", "p_tuning")


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Training collects garbage twice; with all of torch on the heap that takes longer than the training here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def lively(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively(tiny_llama, tmp_path_factory.mktemp("lively"))


def trained(name: str, model: Path, dataset: Path, work: Path, **settings: Any) -> Made:
    plain = {"method": METHODS[name], "learning_rate": RATES.get(name, 0.02), "max_steps": 6, "save_steps": 3}
    return run(train_params(**plain | settings), context(model, dataset, work))


@pytest.fixture(scope="module")
def made(lively: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Made, Path]]:
    """Every method's result on the same data."""
    found = {}
    for name in METHODS:
        work = tmp_path_factory.mktemp(name)
        steps = 60 if name == "full" else 12
        found[name] = (trained(name, lively, dataset, work, max_steps=steps, save_steps=100), work / "out")
    return found


def opened(made: Made, folder: Path) -> Any:
    record = Artifact(
        id="t", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="",
        facts=made.facts,
    )  # fmt: skip
    return open_model(Input(record, folder), dtype="fp32", threads=1)


def prompt_ids(model: Path) -> list[int]:
    tokenizer = load_tokenizer(as_input(model))
    return list(encode(rows()[0], tokenizer, frozenset({tokenizer.eos_token_id})).ids[:-2])


@pytest.mark.parametrize("name", ["lora", "full", "qlora"])
def test_method_lowers_the_loss(name: str, made: dict[str, tuple[Made, Path]]) -> None:
    losses = made[name][0].facts["losses"]
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]


@pytest.mark.parametrize("name", METHODS)
def test_method_leaves_folders_that_its_facts_name(name: str, made: dict[str, tuple[Made, Path]]) -> None:
    facts, out = made[name][0].facts["model"], made[name][1]
    assert (out / "merged" / "model.safetensors").is_file()
    assert facts["adapter"] == (None if name == "full" else "adapter")
    assert (out / "adapter").exists() is (name != "full")
    assert facts["unmerged"] is (name in VIRTUAL)
    assert facts["four_bit"] is (name == "qlora")
    merged = ModelCard.load(out / "merged" / "README.md").data.to_dict()
    assert ("base_model" in merged, merged["library_name"]) == (name not in VIRTUAL, "transformers")  # or the bare base
    relation = ModelCard.load(out / "README.md").data["base_model_relation"]
    assert relation == ("adapter" if name in VIRTUAL else "finetune")
    if name != "full":
        assert (out / "adapter" / "chat_template.jinja").read_text() == (out / "merged/chat_template.jinja").read_text()
        assert made[name][0].facts["parity"]["adapter_reloaded"] <= 1e-5
    assert made[name][0].facts["parity"]["merged"] <= 1e-3


@pytest.mark.parametrize("name", VIRTUAL)
def test_adapter_of_virtual_tokens_in_stock_peft_equals_the_opened_model(
    name: str, made: dict[str, tuple[Made, Path]], lively: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = prompt_ids(lively)
    engine = opened(*made[name])
    base = AutoModelForCausalLM.from_pretrained(lively)
    with torch.no_grad():
        untuned = base(torch.tensor([ids])).logits[0]
        stock = PeftModel.from_pretrained(base, str(made[name][1] / "adapter")).eval()
        expected = stock(torch.tensor([ids])).logits[0, -len(ids) :]
        torch.testing.assert_close(engine.all_logits(ids), expected, atol=1e-5, rtol=0)
        assert float((expected - untuned).abs().max()) > 0.1
    found = engine.generate([rows()[0].prompt, rows()[4].prompt], 4, lambda _: None, ignore_end=True)
    asked = engine.token_ids(rows()[0].prompt)
    assert asked == ids[: len(asked)]
    begun = list(asked)
    with torch.no_grad():
        for _ in range(4):
            begun.append(int(stock(torch.tensor([begun])).logits[0, -1].argmax()))
    assert found[0].text == engine.tokenizer.decode(begun[len(asked) :], skip_special_tokens=True)


@pytest.mark.parametrize("name", VIRTUAL)
def test_scores_of_a_model_with_virtual_tokens_equal_stock_peft(
    name: str, made: dict[str, tuple[Made, Path]], lively: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    engine = opened(*made[name])
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lively), str(made[name][1] / "adapter"))
    asked = [rows()[0].prompt, rows()[3].prompt]
    scores = engine.score(asked, [["crude", "grain"]] * 2, lambda _: None)
    for prompt_, own in zip(asked, scores, strict=True):
        start = engine.token_ids(prompt_)
        for choice, scored in zip(["crude", "grain"], own, strict=True):
            answer = engine.tokenizer.encode(choice + "<|im_end|>", add_special_tokens=False)
            with torch.no_grad():
                whole = stock.eval()(torch.tensor([start + answer])).logits[0].log_softmax(-1)[-len(answer) - 1 :]
            assert scored.logprob == pytest.approx(sum(float(whole[k, t]) for k, t in enumerate(answer)), abs=1e-3)


@pytest.mark.parametrize("name", VIRTUAL)
def test_merged_folder_of_virtual_tokens_is_the_base(
    name: str, made: dict[str, tuple[Made, Path]], lively: Path
) -> None:
    from safetensors.torch import load_file

    base = load_file(lively / "model.safetensors")
    left = load_file(made[name][1] / "merged" / "model.safetensors")
    assert base.keys() == left.keys()
    assert all(base[key].equal(left[key]) for key in base)


def test_full_merged_folder_answers_as_trained(made: dict[str, tuple[Made, Path]], lively: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([prompt_ids(lively)])
    model = AutoModelForCausalLM.from_pretrained(made["full"][1] / "merged")
    with torch.no_grad():
        assert torch.equal(opened(*made["full"]).all_logits(ids[0].tolist()), model(ids).logits[0])
    assert made["full"][0].facts["trainable_share"] == 1.0


def test_qlora_merged_folder_is_the_rounded_base_plus_the_adapter(
    made: dict[str, tuple[Made, Path]], lively: Path
) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from safetensors.torch import load_file

    base = load_file(lively / "model.safetensors")
    adapter = load_file(made["qlora"][1] / "adapter" / "adapter_model.safetensors")
    merged = load_file(made["qlora"][1] / "merged" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    packed, state = quantize_4bit(base[f"{name}.weight"], quant_type="nf4", compress_statistics=True)
    update = adapter[f"base_model.model.{name}.lora_B.weight"] @ adapter[f"base_model.model.{name}.lora_A.weight"]
    expected = dequantize_4bit(packed, state) + update * 32 / 8
    torch.testing.assert_close(merged[f"{name}.weight"], expected, atol=1e-6, rtol=0)
    assert not torch.equal(dequantize_4bit(packed, state), base[f"{name}.weight"])


@pytest.mark.parametrize("name", ["qlora", "prompt", "prefix", "p_tuning"])
def test_activations_computed_again_give_the_same_adapter(
    name: str, lively: Path, dataset: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    found = []
    for again in (False, True):
        settings = {"learning_rate": RATES.get(name, 0.02), "max_steps": 3, "gradient_checkpointing": again}
        params = train_params(method=METHODS[name], **settings)
        run(params, context(lively, dataset, tmp_path / str(again)))
        found.append(load_file(tmp_path / str(again) / "out" / "adapter" / "adapter_model.safetensors"))
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["full", "qlora", "prefix", "p_tuning"])
def test_interrupted_run_resumes_and_ends_in_the_same_bytes(
    name: str, lively: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Events.progress

    class Cut(Exception):
        """The machine went away."""

    def progress(self: Events, done: float, total: float | None = None, unit: str = "", **facts: Any) -> None:
        plain(self, done, total, unit, **facts)
        if unit == "steps" and done == 4:
            raise Cut

    whole = trained(name, lively, dataset, tmp_path / "whole")
    with monkeypatch.context() as cut:
        cut.setattr(Events, "progress", progress)
        with pytest.raises(Cut):
            trained(name, lively, dataset, tmp_path / "cut")
    resumed = trained(name, lively, dataset, tmp_path / "cut")
    assert (whole.facts["resumed_from"], resumed.facts["resumed_from"]) == (0, 3)
    for folder in ("adapter", "merged"):
        for path in sorted((tmp_path / "whole" / "out" / folder).glob("*.safetensors")):
            twin = tmp_path / "cut" / "out" / folder / path.name
            assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(twin.read_bytes()).digest()


def test_checkpoints_of_virtual_tokens_hold_nothing_else(lively: Path, dataset: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    trained("prompt", lively, dataset, tmp_path)
    [*_, newest] = sorted((tmp_path / "scratch" / "checkpoints").glob("checkpoint-*"))
    with safe_open(str(newest / "model.safetensors"), framework="pt") as tensors:
        assert set(tensors.keys()) == {"virtual_tokens.encoder.embedding.weight"}


def test_full_saved_in_bf16_when_asked_and_trained_in_fp32(lively: Path, dataset: Path, tmp_path: Path) -> None:
    made = trained("full", lively, dataset, tmp_path, save_dtype="bf16", precision="bf16", max_steps=2)
    assert set(made.facts["model"]["tensor_types"]) == {"BF16"}


def base_of(folder: Path) -> Any:
    return load_model(as_input(folder), "fp32").requires_grad_(False)


def trainable(model: Any) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def test_full_can_leave_the_embeddings_frozen(tiny_llama: Path) -> None:
    whole, part = (
        full.attach(base_of(tiny_llama), Full()),
        full.attach(base_of(tiny_llama), Full(freeze_embeddings=True)),
    )
    assert trainable(whole) - trainable(part) == part.get_input_embeddings().weight.numel()


def test_lora_counts_rank_times_both_sides_of_every_target(tiny_llama: Path) -> None:
    adapted = lora.attach(base_of(tiny_llama), Lora(r=4, target_modules=("q_proj", "v_proj")))
    assert trainable(adapted) == 2 * (4 * (32 + 32) + 4 * (32 + 16))  # two layers; v has half of q's heads


def test_lora_variants_reach_peft(tiny_llama: Path) -> None:
    settings = Lora(r=8, lora_alpha=4, lora_dropout=0.3, use_rslora=True, use_dora=True)
    adapted = lora.attach(base_of(tiny_llama), settings)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(4 / 8**0.5)
    assert layer.lora_dropout["default"].p == 0.3
    assert "default" in layer.lora_magnitude_vector
    assert not any("lm_head" in name for name, value in adapted.named_parameters() if value.requires_grad)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p_tuning"])
def test_virtual_tokens_of_a_135m_model_are_less_than_a_thousandth_of_it(kind: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).requires_grad_(False)
        total = sum(value.numel() for value in model.parameters())
        params = Prompt.model_validate({"kind": kind})
        if kind == "prefix":  # what they begin with is read from weights that are there
            rows = prompt._layers(model, params.num_virtual_tokens).values()
            count = sum(value.numel() for row in rows for value in row.parameters())
        else:
            count = trainable(prompt.attach(model, params))
    assert count < 0.001 * total


def test_virtual_tokens_that_begin_as_a_text_read_like_that_text(lively: Path) -> None:
    import torch

    tokenizer = load_tokenizer(as_input(lively))
    text, base = "oil prices rose", base_of(lively)
    ids = tokenizer.encode(text, add_special_tokens=False)
    after = tokenizer.encode(" wheat exports fell", add_special_tokens=False)
    with torch.no_grad():
        expected = base(torch.tensor([ids + after])).logits[0, len(ids) :]
    for kind in ("prompt", "prefix"):
        settings = Prompt.model_validate(
            {"kind": kind, "num_virtual_tokens": len(ids), "prompt_tuning_init_text": text}
        )
        model = prompt.attach(base_of(lively), settings)
        [sample] = with_virtual(model, [encode(rows()[0], tokenizer, frozenset({2}))], tokenizer)
        assert sample.ids[: len(ids)] == virtual_ids(model)
        assert not any(sample.learned[: len(ids)])
        with torch.no_grad():
            found = model(torch.tensor([[*virtual_ids(model), *after]])).logits[0, len(ids) :]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def answer_loss_of(logits: Any, ids: list[int]) -> Any:
    """Cross entropy of the last three tokens of a text, from the logits of all of it."""
    import torch

    return torch.nn.functional.cross_entropy(logits[-4:-1], torch.tensor(ids[-3:]))


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_gradient_of_virtual_tokens_equals_that_of_stock_peft(kind: str, lively: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    ids = prompt_ids(lively)
    torch.manual_seed(0)
    ours = prompt.attach(base_of(lively), Prompt.model_validate({"kind": kind, "num_virtual_tokens": 5}))
    save_virtual(ours, tmp_path, "tiny")
    logits = ours(torch.tensor([[*virtual_ids(ours), *ids]])).logits[0]
    answer_loss_of(logits, ids).backward()
    stock = PeftModel.from_pretrained(base_of(lively), str(tmp_path))
    stock.peft_config["default"].inference_mode = False
    theirs = stock.prompt_encoder["default"].embedding.weight.requires_grad_(True)
    answer_loss_of(stock(torch.tensor([ids])).logits[0], ids).backward()
    if kind == "prompt":
        found = ours.virtual_tokens["encoder"].embedding.weight.grad
        torch.testing.assert_close(found, theirs.grad, atol=1e-6, rtol=1e-4)
        assert float(found.abs().max()) > 1e-4
        return
    grads = {name.rpartition("/")[2] + name[13]: module.weight.grad for name, module in ours.virtual_tokens.items()}
    both = theirs.grad.view(5, 2, 2, 2, 8)  # tokens, layers, keys and values, heads, width
    for layer in (0, 1):
        keys, values = (grads[f"{part}_proj{layer}"].view(5, 2, 8) for part in "kv")
        torch.testing.assert_close(values, both[:, layer, 1], atol=1e-7, rtol=1e-3)
        # PEFT's keys stand rotated to their places: the same gradient, turned, so of the same length.
        torch.testing.assert_close(keys.norm(dim=-1), both[:, layer, 0].norm(dim=-1), atol=1e-7, rtol=1e-3)
        assert float(values.abs().max()) > 1e-6


def test_shorter_text_is_repeated_to_fill_the_virtual_tokens(lively: Path) -> None:
    import torch

    tokenizer = load_tokenizer(as_input(lively))
    ids = tokenizer.encode("wheat", add_special_tokens=False)
    model = prompt.attach(base_of(lively), Prompt(num_virtual_tokens=5, prompt_tuning_init_text="wheat"))
    with_virtual(model, [], tokenizer)
    with torch.no_grad():
        expected = model.get_input_embeddings()(torch.tensor((ids * 5)[:5]))
        assert torch.equal(virtual_rows(model), expected)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_four_bit_layers_give_the_same_gradients_and_keep_less_of_bfloat16(lively: Path, kind: str) -> None:
    import torch

    from inhouse.train.fused import fused_lora

    adapted = qlora.attach(base_of(lively).to(getattr(torch, kind)), Qlora(r=4, lora_dropout=0.0))
    torch.manual_seed(2)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)  # PEFT begins with zeros
    ids = torch.arange(640).remainder(60).add(3).view(8, 80)

    def gradient() -> tuple[list[Any], int]:
        kept: dict[int, int] = {}

        def keep(tensor: Any) -> Any:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        adapted.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = adapted(ids, labels=ids).loss
        loss.backward()
        return [value.grad.clone() for value in adapted.parameters() if value.requires_grad], sum(kept.values())

    plain, most = gradient()
    with fused_lora(adapted) as layers:
        found, kept = gradient()
    assert layers == sum(type(module).__name__ == "Linear4bit" for module in adapted.modules()) // 2 > 0
    if kind == "bfloat16":
        assert kept < 0.8 * most  # PEFT keeps every layer's input in float32
    for one, other in zip(plain, found, strict=True):
        assert (one - other).norm() < {"float32": 1e-4, "bfloat16": 0.1}[kind] * one.norm()
    for one, other in zip(plain, gradient()[0], strict=True):
        assert torch.equal(one, other)


def test_four_bit_layers_keep_their_gradient_after_an_evaluation(lively: Path) -> None:
    import torch

    adapted = qlora.attach(base_of(lively), Qlora(r=4, lora_dropout=0.0))
    ids = torch.arange(3, 43).view(1, 40)

    def gradient() -> Any:
        adapted.zero_grad()
        adapted(ids, labels=ids).loss.backward()
        return [value.grad.clone() for value in adapted.parameters() if value.requires_grad]

    before = gradient()
    adapted.eval()
    with torch.no_grad():
        adapted(ids)
    adapted.train()
    for left, right in zip(before, gradient(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("family", "method", "settings", "code"),
    [
        ("gpt2", qlora, Qlora(), "train.nothing_to_round"),
        ("gpt2", prompt, Prompt(kind="prefix"), "train.prefix_family"),
        ("falcon", prompt, Prompt(kind="prefix"), "train.prefix_family"),
        ("bert", prompt, Prompt(), "train.prompt_task"),
        ("llama", lora, Lora(experts=True, lora_dropout=0.0), "train.no_experts"),
        ("llama", lora, Lora(target_modules=("q_proj", "Wqkv")), "train.no_target"),
        ("llama", qlora, Qlora(target_modules=()), "train.no_target"),
        ("gpt2", lora, Lora(target_modules=("lm_head",)), "train.tied_target"),
    ],
)
def test_method_that_a_model_cannot_take_is_refused(
    family: str, method: Any, settings: Any, code: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = load_model(as_input(make_family(family, tiny_llama, tmp_path)), "fp32")
    with pytest.raises(UserError) as error:
        method.attach(model, settings)
    assert error.value.code == code
    assert str(error.value)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ({"use": "prompt", "kind": "p_tuning", "prompt_tuning_init_text": "sort this"}, "p_tuning begins"),
        ({"use": "lora", "experts": True, "lora_dropout": 0.1}, "lora_dropout: 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(method: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        train_params(method=method)


def test_qlora_without_its_package_names_the_extra(lively: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else plain(name, *a)
    )
    with pytest.raises(MissingExtra) as error:
        qlora.attach(base_of(lively), Qlora())
    assert (error.value.exit_code, error.value.facts["extra"]) == (4, "qlora")


def test_model_with_virtual_tokens_is_not_trained_further(
    made: dict[str, tuple[Made, Path]], dataset: Path, tmp_path: Path
) -> None:
    tuned, out = made["prompt"]
    with pytest.raises(UserError) as error:
        run(train_params(max_steps=1), context(out, dataset, tmp_path, tuned.facts["model"]))
    assert error.value.code == "torch.unmerged"


def test_model_with_virtual_tokens_is_not_exported(made: dict[str, tuple[Made, Path]], tmp_path: Path) -> None:
    from inhouse.compress.stage import CompressParams
    from inhouse.compress.stage import run as compress

    here = context(made["prefix"][1], tmp_path, tmp_path, made["prefix"][0].facts["model"])
    with pytest.raises(UserError) as error:
        compress(CompressParams(), replace(here, inputs={"tuned": here.inputs["base"]}))
    assert error.value.code == "compress.unmerged"


def test_prompt_longer_than_the_context_with_its_virtual_tokens_is_refused(
    made: dict[str, tuple[Made, Path]], lively: Path
) -> None:
    engine = opened(*made["prompt"])
    asked = [rows()[0].prompt]
    fits = 512 - 6 - len(engine.token_ids(asked[0]))
    assert len(engine.generate(asked, fits, lambda _: None)) == 1
    with pytest.raises(UserError) as error:
        engine.generate(asked, fits + 1, lambda _: None)
    assert error.value.code == "torch.too_long"


def test_names_that_are_offered_leave_a_tied_output_layer_out(tiny_llama: Path) -> None:
    with pytest.raises(UserError) as error:
        lora.attach(base_of(tiny_llama), Lora(target_modules=("Wqkv",)))
    offered = error.value.facts["known"]
    assert offered == "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(UserError) as error:
        lora.attach(base_of(tiny_llama), Lora(target_modules=("q_proj", "lm_head")))
    assert (error.value.code, error.value.facts) == ("train.tied_target", {"asked": "lm_head", "known": offered})


def test_output_layer_of_its_own_can_be_adapted_and_merged(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    untied = tmp_path / "untied"
    shutil.copytree(tiny_llama, untied)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    model.save_pretrained(untied)
    method = {"use": "lora", "r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "lm_head"]}
    made = run(train_params(method=method, max_steps=2), context(untied, dataset, tmp_path / "work"))
    assert made.facts["parity"]["merged"] <= 1e-3


@pytest.mark.parametrize("use", ["dpo", "kto"])
def test_endings_and_card_of_preferences_count_the_wanted_answers_only(
    use: str, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inhouse.train import endings

    bad = [Message(role="assistant", content="no such desk")]
    given = [
        row.model_copy(update={"rejected": bad, "desirable": bool(number % 2)}) for number, row in enumerate(rows(6))
    ]
    judged: list[Any] = []
    plain = endings.judge_endings

    def noted(engine: Any, samples: Any, *more: Any) -> Any:
        judged.extend(engine.tokenizer.decode(sample.ids) for sample in samples)
        return plain(engine, samples, *more)

    monkeypatch.setattr(endings, "judge_endings", noted)
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows", "train", given)
    trained("lora", lively, tmp_path / "rows", tmp_path, objective={"use": use}, max_steps=1)
    wanted = [row for row in given if use == "dpo" or row.desirable]
    assert len(judged) == len(wanted)
    for text, row in zip(judged, wanted, strict=True):
        assert (row.messages[0].content or "") in text and (row.label or "") in text.split("assistant")[-1]
    assert "6 training conversations" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


class Told(Events):
    """Events that remember which notes were made."""

    codes: tuple[str, ...] = ()

    def note(self, code: str, /, **facts: Any) -> None:
        Told.codes += (code,)


def test_answers_that_do_not_end_though_all_else_is_learned_fail(
    made: dict[str, tuple[Made, Path]], tmp_path: Path
) -> None:
    engine = opened(*made["full"])
    right = [encode(row, engine.tokenizer, engine.ends) for row in rows()]
    found = judge_endings(engine, right, [row.prompt for row in rows()], Told(tmp_path / "events"))
    assert found.answers_probed == 4
    assert found.words_right is not None and found.words_right > 0.5
    unseen = max(set(range(engine.model.config.vocab_size)) - {token for s in right for token in s.ids})
    engine.ends = frozenset({unseen})  # as if the template ended turns with a token that answers never had
    with pytest.raises(UserError) as error:
        judge_endings(engine, right, [row.prompt for row in rows()], Told(tmp_path / "events"))
    assert error.value.code == "train.never_ends"


def test_answers_that_do_not_end_after_a_short_training_are_only_noted(lively: Path, tmp_path: Path) -> None:
    engine = open_model(as_input(lively), dtype="fp32", threads=1)
    samples = [encode(row, engine.tokenizer, engine.ends) for row in rows()]
    Told.codes = ()
    found = judge_endings(engine, samples, [row.prompt for row in rows()], Told(tmp_path / "events"))
    assert found.answers_ended == 0
    assert Told.codes == ("train.no_end_learned",)


def test_plain_texts_have_no_answers_to_end(lively: Path, tmp_path: Path) -> None:
    engine = open_model(as_input(lively), dtype="fp32", threads=1)
    samples = [encode(row, engine.tokenizer, engine.ends) for row in rows(4)]
    found = judge_endings(engine, samples, [[] for _ in samples], Told(tmp_path / "events"))
    assert (found.answers_probed, found.answers_ended) == (0, 0)


def adapter_of(folder: Path, target: Path) -> Path:
    adapted = lora.attach(base_of(folder), Lora(r=4))
    adapted.peft_config["default"].base_model_name_or_path = "org/tiny"
    adapted.save_pretrained(str(target), save_embedding_layers=False)
    return target


def spoil(folder: Path, how: str) -> None:
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif how == "pickled":
        weights.rename(folder / "adapter_model.bin")
    elif how == "gone":
        weights.unlink()
    elif how == "no settings":
        settings.write_text("{")
    else:
        changed = json.loads(settings.read_text())
        changed |= {"named": {"base_model_name_or_path": "org/other"}, "modules": {"target_modules": ["Wqkv"]}}[how]
        settings.write_text(json.dumps(changed))


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("cut", "torch.unreadable"),
        ("gone", "torch.unreadable"),
        ("no settings", "torch.unreadable"),
        ("pickled", "torch.pickle"),
        ("named", "torch.adapter_base"),
        ("modules", "torch.adapter_base"),
    ],
)
def test_adapter_that_cannot_be_opened_is_refused(how: str, code: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = adapter_of(tiny_llama, tmp_path / "adapter")
    spoil(folder, how)
    with pytest.raises(UserError) as error:
        open_adapter(base_of(tiny_llama), folder, "tiny")
    assert error.value.code == code
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("family", ["qwen3", "glm", "gpt2"])
def test_adapter_of_another_base_is_refused(family: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = adapter_of(tiny_llama, tmp_path / "adapter")
    other = base_of(make_family(family, tiny_llama, tmp_path / "other"))
    with pytest.raises(UserError) as error:
        open_adapter(other, folder, "other")
    assert error.value.code == "torch.adapter_base"


def test_tokenizer_larger_than_the_embeddings_is_refused(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    shutil.copytree(tiny_llama, folder)
    tokenizer = load_tokenizer(as_input(folder))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError) as error:
        run(train_params(), context(folder, dataset, tmp_path))
    assert error.value.code == "torch.vocabulary"
    with pytest.raises(UserError) as error:
        open_model(as_input(folder), dtype="fp32")
    assert (error.value.facts["tokenizer"], error.value.facts["model"]) == (401, 400)


def edited(tiny: Path, folder: Path, **settings: Any) -> Path:
    """The tiny model with other settings of its tokenizer; None takes one out."""
    shutil.copytree(tiny, folder)
    path = folder / "tokenizer_config.json"
    changed = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    return folder


def test_tokenizer_without_pad_token_is_padded_with_its_end(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "unpadded", pad_token=None)
    assert load_tokenizer(as_input(folder)).pad_token == "<|im_end|>"
    assert run(train_params(max_steps=1), context(folder, dataset, tmp_path)).facts["steps"] == 1


def test_tokenizer_without_end_token_is_refused(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "endless", pad_token=None, eos_token=None)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    with pytest.raises(UserError) as error:
        run(train_params(), context(folder, dataset, tmp_path))
    assert error.value.code == "torch.no_end"


def test_tokenizer_without_template_is_refused(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError) as error:
        run(train_params(), context(folder, dataset, tmp_path))
    assert error.value.code == "torch.no_template"


@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_base_that_cannot_be_read_is_refused(damage: str, tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        run(train_params(), context(folder, dataset, tmp_path))
    assert error.value.code == {"cut": "torch.unreadable", "pickle": "torch.pickle"}[damage]
