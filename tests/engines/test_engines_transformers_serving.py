"""The reference engine: what it answers is what transformers' own generate answers, whoever else is in the batch."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.serving import Ask, Constraint, Delta, EngineRefused, Sampling
from inhouse.engines.backend import EngineSettings
from inhouse.engines.torch_sampling import told_logprobs
from inhouse.engines.torch_serving import TorchServing
from inhouse.engines.transformers_child import load
from inhouse.engines.transformers_serving import start
from inhouse.engines.wire_child import ChildEngine

TEXTS = ("oil prices rose as opec", "the bank", "wheat and corn exports fell after a poor grain harvest", "银行把")


class Out:
    """Keeps what the engine tells, by request."""

    def __init__(self) -> None:
        self.told: dict[int, list[Delta]] = {}

    def add(self, uid: int, delta: Delta) -> None:
        self.told.setdefault(uid, []).append(delta)

    def text(self, uid: int, index: int = 0) -> str:
        return "".join(d.text for d in self.told[uid] if d.index == index)

    def last(self, uid: int) -> Delta:
        return self.told[uid][-1]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    asked = EngineSettings(context_length=256, parallel=8, threads=1, **more).model_dump(mode="json")
    return asked | {"model": str(folder), "dtype": "fp32"}


def ran(engine: ChildEngine, *asks: Ask, between: Callable[[], object] = lambda: None) -> Out:
    out = Out()
    for uid, ask in enumerate(asks):
        engine.submit(uid, ask)
        between()
    while engine.step(out):  # type: ignore[arg-type]
        pass
    return out


def prompt(text: str, **sampling: Any) -> Ask:
    return Ask(Sampling(**({"max_tokens": 12} | sampling)), prompt=text)


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TorchServing:
    made = load(settings(tiny_llama))
    assert isinstance(made, TorchServing)
    return made


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), AutoTokenizer.from_pretrained(tiny_llama)


def generated(reference: tuple[Any, Any], text: str, tokens: int = 12) -> str:
    return str(reference[1].decode(generated_ids(reference, text, tokens), skip_special_tokens=True))


def generated_ids(reference: tuple[Any, Any], text: str, tokens: int = 12) -> list[int]:
    model, tokenizer = reference
    ids = tokenizer(text, return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=tokens, do_sample=False, attention_mask=torch.ones_like(ids))
    found: list[int] = made[0, ids.shape[1] :].tolist()
    return found


def how_likely(reference: tuple[Any, Any], text: str, tokens: int) -> list[float]:
    model, tokenizer = reference
    ids = tokenizer(text, return_tensors="pt")
    made = model.generate(
        **ids, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return [float(logits.log_softmax(-1).max()) for logits in made.logits]


def test_greedy_answers_that_join_one_after_another_equal_generate(
    engine: TorchServing, reference: tuple[Any, Any]
) -> None:
    out = Out()

    def step() -> None:
        engine.step(out)  # type: ignore[arg-type]

    for uid, text in enumerate(TEXTS):
        engine.submit(uid, prompt(text, logprobs=0))
        step()
        step()
    while engine.step(out):  # type: ignore[arg-type]
        pass
    for uid, text in enumerate(TEXTS):
        wanted = [reference[1].decode([token]) for token in generated_ids(reference, text)]
        found = [entry["token"] for delta in out.told[uid] for entry in delta.logprobs or ()]
        assert found == wanted[: len(found)] and len(found) >= len(wanted) - 1  # the end token is not told
        assert out.last(uid).usage is not None and out.last(uid).finish in ("stop", "length")
    assert engine.stats().running == engine.stats().waiting == 0


def test_choices_of_one_request_share_its_prompt_and_a_seed_makes_them_again(engine: TorchServing) -> None:
    asked = prompt(TEXTS[0], n=3, temperature=1.5, seed=7, top_p=0.95, top_k=50, min_p=0.001)
    one, other = ran(engine, asked), ran(engine, prompt(TEXTS[1]), asked)
    told = [one.text(0, index) for index in range(3)]
    assert told == [other.text(1, index) for index in range(3)]
    assert len(set(told)) > 1
    assert {d.index for d in one.told[0] if d.finish} == {0, 1, 2}


def test_stop_string_is_not_shown_and_ends_the_answer(engine: TorchServing, reference: tuple[Any, Any]) -> None:
    whole = generated(reference, TEXTS[0])
    stop = whole[4:7]
    out = ran(engine, prompt(TEXTS[0], stop=(stop,)))
    assert out.text(0) == whole[: whole.index(stop)] and (out.last(0).finish, out.last(0).stop) == ("stop", stop)


def test_bytes_of_tokens_that_are_parts_of_characters_join_to_the_text(reference: tuple[Any, Any]) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    said = " 🙂 银行 \ufffd é"
    pieces = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    fallback = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    fallback.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    for tokenizer in (reference[1], PreTrainedTokenizerFast(tokenizer_object=fallback)):
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        entries = [told_logprobs(torch.zeros(len(tokenizer)), token, 0, tokenizer) for token in ids]
        assert len(ids) > 8 and bytes(value for entry in entries for value in entry["bytes"]) == said.encode()


def test_logprobs_are_those_of_the_model(engine: TorchServing, reference: tuple[Any, Any]) -> None:
    model, tokenizer = reference
    out = ran(engine, prompt(TEXTS[0], max_tokens=1, logprobs=3))
    assert out.told[0][0].logprobs is not None
    entry = out.told[0][0].logprobs[0]
    with torch.inference_mode():
        logits = model(tokenizer(TEXTS[0], return_tensors="pt").input_ids).logits[0, -1].float()
    best = logits.log_softmax(-1).topk(3)
    assert entry["logprob"] == pytest.approx(float(best.values[0]), abs=1e-4)
    assert [e["logprob"] for e in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert entry["token"] == tokenizer.decode([int(best.indices[0])])


def test_bias_and_penalties_change_what_is_chosen(engine: TorchServing, reference: tuple[Any, Any]) -> None:
    _, tokenizer = reference
    wanted = tokenizer("corn", add_special_tokens=False)["input_ids"][0]
    out = ran(engine, prompt(TEXTS[0], max_tokens=3, logit_bias={wanted: 100.0}))
    assert out.text(0) == tokenizer.decode([wanted] * 3)
    out = ran(
        engine, prompt(TEXTS[0], max_tokens=3, logit_bias={wanted: 100.0}, frequency_penalty=2.0, presence_penalty=2.0)
    )
    assert out.text(0) == tokenizer.decode([wanted] * 3)  # 100 outweighs a penalty of 6
    plain = ran(engine, prompt(TEXTS[0], max_tokens=40, ignore_end=True)).text(0)
    less = ran(
        engine, prompt(TEXTS[0], max_tokens=40, ignore_end=True, frequency_penalty=2.0, presence_penalty=2.0)
    ).text(0)
    assert len(set(less)) > len(set(plain))


def test_penalty_of_repetition_counts_the_prompt_as_transformers_does(
    engine: TorchServing, reference: tuple[Any, Any]
) -> None:
    model, tokenizer = reference
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.5)[0, ids.shape[1] :]
    out = ran(engine, prompt(TEXTS[0], max_tokens=12, repetition_penalty=1.5))
    assert len(out.text(0)) > 4 and tokenizer.decode(wanted).startswith(out.text(0))  # half a character at the end
    assert out.text(0) != ran(engine, prompt(TEXTS[0], max_tokens=12)).text(0)


def test_length_ends_at_the_limit_and_at_the_context(engine: TorchServing) -> None:
    out = ran(
        engine, prompt(TEXTS[0], max_tokens=5, ignore_end=True), prompt(TEXTS[1], max_tokens=250, ignore_end=True)
    )
    assert out.last(0).finish == out.last(1).finish == "length"
    first, second = out.last(0).usage, out.last(1).usage
    assert first is not None and first.answer == 5 and (first.prefill_s or 0) > 0
    assert second is not None and second.prompt + second.answer <= 256


def test_cancelled_requests_leave_the_batch_and_the_others_go_on(
    engine: TorchServing, reference: tuple[Any, Any]
) -> None:
    out = Out()
    for uid, text in enumerate(TEXTS[:3]):
        engine.submit(uid, prompt(text))
    for _ in range(4):
        engine.step(out)  # type: ignore[arg-type]
    engine.cancel(2)
    engine.cancel(0)
    engine.cancel(99)
    assert engine.stats().running == 1
    assert 0 < (engine.stats().cache_used or 0) < 1
    while engine.step(out):  # type: ignore[arg-type]
        pass
    assert engine.stats().cache_used == 0
    assert out.text(1) == generated(reference, TEXTS[1])
    assert out.told[0][-1].finish is None


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (prompt("oil " * 300), "context"),
        (Ask(Sampling(1), prompt=[999_999]), "invalid"),
        (Ask(Sampling(1), prompt=[]), "invalid"),
        (Ask(Sampling(1, logit_bias={-1: 1.0}), prompt="x"), "invalid"),
        (Ask(Sampling(1, logit_bias={0: 1.0, 99_999_999: 1.0}), prompt="x"), "invalid"),
        (Ask(Sampling(1), messages=[{"role": "root", "content": "x"}]), "invalid"),
        (Ask(Sampling(1), prompt="x", adapter="law"), "unsupported"),
        (Ask(Sampling(1), prompt="x", constraint=Constraint("regex", "a")), "unsupported"),
    ],
)
def test_impossible_request_is_refused_with_its_reason(engine: TorchServing, ask: Ask, reason: str) -> None:
    with pytest.raises(EngineRefused) as refused:
        engine.submit(1, ask)
    assert refused.value.reason == reason


def test_embedding_is_the_mean_of_the_last_states_at_unit_length(
    engine: TorchServing, reference: tuple[Any, Any]
) -> None:
    model, tokenizer = reference
    vectors, tokens = engine.embed([TEXTS[2], TEXTS[1], tokenizer(TEXTS[1])["input_ids"]])
    with torch.inference_mode():
        ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids
        mean = model.model(ids).last_hidden_state[0].mean(0)
    assert vectors[1] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
    assert vectors[2] == pytest.approx(vectors[1], abs=1e-6)
    assert math.isclose(sum(x * x for x in vectors[0]), 1.0, abs_tol=1e-4)
    assert tokens == sum(len(tokenizer(text)["input_ids"]) for text in (TEXTS[2], TEXTS[1], TEXTS[1]))
    for wrong, reason in ((["oil " * 300], "context"), ([[]], "invalid")):
        with pytest.raises(EngineRefused) as refused:
            engine.embed(wrong)  # type: ignore[arg-type]
        assert refused.value.reason == reason


def test_vectors_leave_alone_how_chats_are_read_at_the_same_time(engine: TorchServing) -> None:
    chats: Any = engine.loaded.tokenizer
    engine.tokenize(TEXTS[0], False)
    assert chats.backend_tokenizer.encode_special_tokens
    engine.embed([TEXTS[0]])  # on a thread of its own, where control tokens are read as such
    assert chats.backend_tokenizer.encode_special_tokens


def lora(base: Path, out: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    model.save_pretrained(out)
    return out


def test_adapters_over_one_base_answer_as_each_of_them_alone(
    tiny_llama: Path, reference: tuple[Any, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    folders = {name: lora(tiny_llama, tmp_path / name, seed) for name, seed in (("law", 1), ("med", 2))}
    engine = load(settings(tiny_llama, adapters=folders))
    assert isinstance(engine, TorchServing) and engine.capabilities.adapters == ("law", "med")
    asks = [Ask(Sampling(8), prompt=TEXTS[0], adapter=name) for name in ("law", None, "med")]
    out = ran(engine, *asks)
    base, tokenizer = reference
    alone = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(folders["law"])).eval(),
        base,
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(folders["med"])).eval(),
    ]
    wanted = [generated((model, tokenizer), TEXTS[0], 8) for model in alone]
    assert [out.text(uid) for uid in range(3)] == wanted and len(set(wanted)) == 3
    before, _ = engine.embed([TEXTS[0]])
    ran(engine, asks[0])
    assert engine.embed([TEXTS[0]])[0] == before  # always without an adapter


def soft(base: Path, out: Path, config: Any, seed: int) -> Path:
    from peft import get_peft_model

    torch.manual_seed(seed)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    model.save_pretrained(out)
    return out


def test_virtual_tokens_are_chosen_by_request_beside_adapters_of_weights(
    tiny_llama: Path, reference: tuple[Any, Any], tmp_path: Path
) -> None:
    from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType

    how: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": 4}
    kinds = {
        "prompt": PromptTuningConfig(**how),
        "p_tuning": PromptEncoderConfig(**how, encoder_hidden_size=16),
        "prefix": PrefixTuningConfig(**how),
    }
    folders = {name: soft(tiny_llama, tmp_path / name, config, 7) for name, config in kinds.items()}
    alone = {
        name: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(folder)).eval()
        for name, folder in folders.items()
    } | {None: reference[0]}
    wanted = {name: how_likely((model, reference[1]), TEXTS[0], 8) for name, model in alone.items()}
    assert len({tuple(likely) for likely in wanted.values()}) == 4
    for adapters in (folders, {"law": lora(tiny_llama, tmp_path / "law", 1)} | folders):
        engine = load(settings(tiny_llama, adapters=adapters))
        assert isinstance(engine, TorchServing)
        out = ran(engine, *(Ask(Sampling(8, logprobs=0), prompt=TEXTS[0], adapter=name) for name in wanted))
        for uid, likely in enumerate(wanted.values()):
            found = [entry["logprob"] for delta in out.told[uid] for entry in delta.logprobs or ()]
            assert found == pytest.approx(likely, abs=1e-4)
    full = engine.context_length
    with pytest.raises(EngineRefused):  # their place is taken from the prompt's, and only from theirs
        engine.submit(9, Ask(Sampling(1), prompt=[5] * (full - 2), adapter="prompt"))
    engine.submit(9, Ask(Sampling(1), prompt=[5] * (full - 2), adapter="law"))


def test_adapter_whose_files_are_missing_or_of_no_kind_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for config in ("{}", "[1]", "{"):
        (tmp_path / "none" / "adapter_config.json").write_text(config)
        with pytest.raises(UserError) as error:
            load(settings(tiny_llama, adapters={"none": tmp_path / "none"}))
        assert error.value.code == "torch.unreadable"


def test_virtual_tokens_of_a_release_are_read_before_every_prompt(
    tiny_llama: Path, reference: tuple[Any, Any], tmp_path: Path
) -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    base = shutil.copytree(tiny_llama, tmp_path / "model" / "base")
    torch.manual_seed(5)
    tuned: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4),
    )
    tuned.save_pretrained(tmp_path / "model" / "adapter")
    facts = ModelFacts(format="safetensors", main="base", name="soft", adapter="adapter", unmerged=True)
    record = Artifact(
        id="a", kind="model", stage="train", node="train", stage_version="1", recipe="r", params={}, created="now",
        facts={"model": facts.model_dump(mode="json")},
    )  # fmt: skip
    (tmp_path / "model" / "record.json").write_text(record.model_dump_json())
    engine = load(settings(base))
    out = ran(engine, prompt(TEXTS[0], max_tokens=8), prompt(TEXTS[1], max_tokens=8, n=2))
    tokenizer = reference[1]
    for uid, text in enumerate(TEXTS[:2]):
        ids = tokenizer(text, return_tensors="pt").input_ids
        made = tuned.eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        wanted = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert wanted.startswith(out.text(uid)) and len(out.text(uid)) >= len(wanted) - 3
    assert out.text(1, 0) == out.text(1, 1)
    with pytest.raises(EngineRefused):
        engine.submit(9, Ask(Sampling(1), prompt=[5] * 252))  # 4 of 256 places are taken


def test_adapter_of_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = lora(tiny_llama, tmp_path / "wide", 1)
    settled = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settled | {"target_modules": ["nothing_here"]}))
    with pytest.raises(UserError) as error:
        load(settings(tiny_llama, adapters={"wide": folder}))
    assert error.value.code == "torch.adapter_base"
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense" * 20)
    (folder / "adapter_config.json").write_text(json.dumps(settled))
    with pytest.raises(UserError) as error:
        load(settings(tiny_llama, adapters={"wide": folder}))
    assert error.value.code == "torch.unreadable"


def test_encoder_without_a_head_embeds_and_writes_nothing(encoder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    BertForMaskedLM(BertConfig.from_pretrained(encoder)).save_pretrained(tmp_path)
    engine = load(settings(tmp_path))
    assert engine.capabilities.embeddings and not engine.capabilities.chat
    assert len(engine.embed([TEXTS[0]])[0][0]) == 32
    with pytest.raises(EngineRefused):
        engine.submit(1, prompt("x"))


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of the same tokenizer with a head of two labels."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, id2label={0: "grain", 1: "money"}, label2id={"grain": 0, "money": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_classifier_answers_with_its_likeliest_label_and_tells_the_others(encoder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    engine = load(settings(encoder))
    asks = [
        Ask(Sampling(4, logprobs=2), messages=[{"role": "user", "content": TEXTS[0]}]),
        Ask(Sampling(4), prompt=TEXTS[1]),
    ]
    out = ran(engine, *asks)
    model = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    with torch.inference_mode():
        logs = model(tokenizer(TEXTS[0], return_tensors="pt").input_ids).logits[0].log_softmax(-1)
    label = ("grain", "money")[int(logs.argmax())]
    told = out.told[0][0]
    assert (told.text, told.finish) == (label, "stop") and told.logprobs is not None
    assert told.logprobs[0]["top_logprobs"][0]["logprob"] == pytest.approx(float(logs.max()), abs=0.02)
    assert {e["token"] for e in told.logprobs[0]["top_logprobs"]} == {"grain", "money"}
    assert out.told[1][0].text in ("grain", "money")
    vectors, _ = engine.embed([TEXTS[0]])
    assert math.isclose(sum(x * x for x in vectors[0]), 1.0, abs_tol=1e-2)
    assert engine.render(asks[0]) == TEXTS[0]
    assert engine.detokenize(engine.tokenize("the bank", False)) == "the bank"
    for wrong, reason in (
        (Ask(Sampling(1, n=2), prompt="x"), "unsupported"),
        (Ask(Sampling(1), prompt=[1]), "invalid"),
    ):
        with pytest.raises(EngineRefused) as refused:
            engine.submit(9, wrong)
        assert refused.value.reason == reason
    engine.submit(3, asks[0])
    engine.cancel(3)
    assert engine.stats().waiting == 0


def test_damaged_or_pickled_folder_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError):
        load(settings(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError):
        load(settings(tmp_path))


@pytest.fixture(scope="module")
def child(tiny_llama: Path) -> Iterator[Any]:
    running = start(tiny_llama, EngineSettings(context_length=128, parallel=4, threads=1), "tiny")
    yield running
    running.stop()


def test_child_answers_over_the_wire_streamed_and_renders_the_template(child: Any, reference: tuple[Any, Any]) -> None:
    _, tokenizer = reference
    chat = Ask(Sampling(6), messages=[{"role": "user", "content": "the bank"}])

    async def scene() -> tuple[str, str, list[int], Any]:
        engine = child.open()
        text = "".join([d.text async for deltas in engine.submit(chat) for d in deltas])
        found = text, await engine.render(chat), await engine.tokenize("the bank", False), await engine.stats()
        await engine.close()
        return found

    text, rendered, ids, stats = asyncio.run(scene())
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the bank"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == wanted and child.context_length == 128 and child.healthy()
    assert tokenizer.decode(ids) == "the bank" and stats.memory_bytes > 0
    assert isinstance(text, str)


def test_child_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        start(tmp_path, EngineSettings(), "nothing")
    assert error.value.code == "torch.unreadable"
