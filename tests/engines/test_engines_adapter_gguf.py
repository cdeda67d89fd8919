"""LoRA adapters for llama.cpp: what PEFT computes, the merged model and the GGUF adapter agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.store import Store
from inhouse.engines.gguf_adapter import RENAMED, adapter_for, check_adapter, gguf_adapter, write_gguf_adapter
from inhouse.engines.gguf_header import read_header
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server

if TYPE_CHECKING:
    import torch

IDS = [5, 9, 40, 77, 200, 31, 8, 60]
END = 2  # forced as the sampled token: llama.cpp lists nothing for one that is half a character
Logprobs = "torch.Tensor"


def train_adapter(base: Path, out: Path, seed: int, **settings: Any) -> None:
    """A PEFT adapter with random B on the tiny base, saved as a user's would be."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    adapted = get_peft_model(model, LoraConfig(**wanted))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(out)


def expected(base: Path, adapter: Path | None) -> torch.Tensor:
    """Log-probabilities of the next token by transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "uneven": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 90, "down_proj": 30},
    },
}


@pytest.fixture(scope="module")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inhouse.compress.convert import convert
    from inhouse.core.run import Events

    target = tmp_path_factory.mktemp("base") / "tiny.gguf"
    convert(tiny_llama, target, "tiny", Events())
    return target


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one PEFT folder for each of KINDS."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, settings) in enumerate(KINDS.items()):
        train_adapter(tiny_llama, folder / name, seed, **settings)
    return folder


@pytest.fixture(scope="module")
def server(base: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    cache = tmp_path_factory.mktemp("cache")
    files = {name: gguf_adapter(adapters / name, base, cache) for name in KINDS}
    started = start_server(base, LlamaCppSettings(threads=1, context_length=256, parallel=2, adapters=files))
    yield started
    started.stop()


def asked(server: RunningEngine, **body: Any) -> dict[int, float]:
    """Log-probabilities of every next token by llama.cpp."""
    import httpx

    wanted = {"prompt": IDS, "n_predict": 1, "n_probs": 400, "temperature": 0, "logit_bias": [[END, 1e6]], **body}
    reply = httpx.post(f"{server.url}/completion", json=wanted, headers=server.headers, timeout=60, trust_env=False)
    return {each["id"]: each["logprob"] for each in reply.json()["completion_probabilities"][0]["top_logprobs"]}


def differ(found: dict[int, float], wanted: torch.Tensor) -> float:
    return max(abs(value - float(wanted[token])) for token, value in found.items())


def test_adapters_in_one_server_answer_as_peft_does_and_leave_the_base_alone(
    server: RunningEngine, tiny_llama: Path, adapters: Path
) -> None:
    wanted = {None: expected(tiny_llama, None)} | {name: expected(tiny_llama, adapters / name) for name in KINDS}
    assert server.adapters == tuple(KINDS)
    # Each after each other, with the prompt cache on: none may see the keys and values of another.
    order = [None, "plain", "rslora", None, "uneven", "uneven", "plain", None, None, "rslora", "uneven", None]
    for name in order:
        found = asked(server, lora=server.lora(name))
        assert len(found) == 400
        assert differ(found, wanted[name]) < 0.005, name  # the base is F16, and answers differ by a tenth and more
        assert all(differ(found, wanted[other]) > 0.1 for other in wanted if other != name)


def test_chat_takes_the_adapter_too(server: RunningEngine) -> None:
    import httpx

    def chat(name: str | None) -> str:
        body = {"messages": [{"role": "user", "content": "oil"}], "max_tokens": 12, "temperature": 0}
        url = f"{server.url}/v1/chat/completions"
        reply = httpx.post(url, json=body | {"lora": server.lora(name)}, headers=server.headers, timeout=60)
        return str(reply.json()["choices"][0]["message"]["content"])

    texts = {name: chat(name) for name in (None, "plain", "rslora")}
    assert len(set(texts.values())) == 3
    assert texts == {name: chat(name) for name in ("rslora", None, "plain")}


def test_adapter_that_the_engine_has_not_is_refused(server: RunningEngine) -> None:
    with pytest.raises(UserError, match="plain, rslora, uneven") as caught:
        server.lora("other")
    assert caught.value.code == "engines.adapter_unknown"


def test_merged_model_exported_to_gguf_answers_as_the_adapter_does(
    server: RunningEngine, tiny_llama: Path, adapters: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inhouse.compress.convert import convert
    from inhouse.core.run import Events

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(adapters / "plain"))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "merged")
    convert(tmp_path / "merged", tmp_path / "merged.gguf", "merged", Events())
    merged = start_server(tmp_path / "merged.gguf", LlamaCppSettings(threads=1, context_length=256))
    try:
        wanted = asked(merged)
    finally:
        merged.stop()
    assert merged.lora(None) == []
    found = asked(server, lora=server.lora("plain"))
    assert max(abs(found[token] - wanted[token]) for token in found) < 0.01
    assert max(found, key=found.__getitem__) == max(wanted, key=wanted.__getitem__)


def test_adapter_in_bfloat16_keeps_its_values(base: Path, adapters: Path, tmp_path: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters / "plain", tmp_path / "half")
    weights = {name: value.bfloat16() for name, value in load_file(adapters / "plain" / WEIGHTS).items()}
    save_file(weights, tmp_path / "half" / WEIGHTS)
    write_gguf_adapter(tmp_path / "half", base, tmp_path / "half.gguf")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "half.gguf").tensors}
    wanted = weights["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].to(torch.float32).numpy()
    assert np.array_equal(stored["blk.1.ffn_up.weight.lora_a"], wanted)


def test_adapter_is_written_once_for_each_content(base: Path, adapters: Path, tmp_path: Path) -> None:
    first = gguf_adapter(adapters / "plain", base, tmp_path)
    written = first.stat().st_mtime_ns
    assert gguf_adapter(adapters / "plain", base, tmp_path) == first and first.stat().st_mtime_ns == written
    assert gguf_adapter(adapters / "rslora", base, tmp_path) != first
    assert not list(tmp_path.glob("*.part"))


def test_adapter_of_a_trained_model_is_found_by_its_id(base: Path, adapters: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    for name, facts in (("abc1", {"adapter": "adapter"}), ("def2", {})):
        shutil.copytree(adapters / "plain", store.path(name) / "adapter")
        model = {"format": "safetensors", "main": "merged", "name": "desk", **facts}
        record = Artifact(
            id=name, kind="model", stage="train", node="n", stage_version="1", recipe="r", params={}, created="-",
            facts={"model": model},
        )  # fmt: skip
        (store.path(name) / "record.json").write_text(record.model_dump_json())
    assert adapter_for(store, "abc", base) == adapter_for(store, str(adapters / "plain"), base)
    with pytest.raises(UserError) as caught:
        adapter_for(store, "def2", base)
    assert caught.value.code == "engines.adapter_none"


WEIGHTS = "adapter_model.safetensors"


def setting(**changed: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return spoil


def weights_with(**changed: tuple[int, ...] | None) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        held = load_file(folder / WEIGHTS)
        for name, shape in changed.items():
            key = f"base_model.model.model.layers.0.self_attn.{name}".replace("__", ".")
            held.pop(key, None)
            if shape is not None:
                held[key] = np.full(shape, np.nan if shape == (1,) else 1, np.float32)
        save_file(held, folder / WEIGHTS)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (setting(use_dora=True), "engines.adapter_kind"),
        (setting(modules_to_save=["lm_head"]), "engines.adapter_kind"),
        (setting(bias="all"), "engines.adapter_kind"),
        (setting(peft_type="IA3"), "engines.adapter_kind"),
        (setting(init_lora_weights="pissa_niter_4"), "engines.adapter_kind"),
        (setting(lora_alpha=0), "select.config"),
        (setting(lora_alpha="many"), "select.config"),
        (weights_with(q_proj__lora_B__weight=None), "engines.adapter_base"),
        (weights_with(q_proj__lora_B__weight=(64, 4)), "engines.adapter_base"),
        (weights_with(x_proj__lora_A__weight=(4, 32), x_proj__lora_B__weight=(32, 4)), "engines.adapter_base"),
        (weights_with(q_proj__lora_magnitude_vector=(32,)), "engines.adapter_kind"),
        (weights_with(q_proj__lora_magnitude_vector=(1,)), "select.safetensors"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "select.config"),
        (lambda f: (f / "adapter_config.json").unlink(), "engines.adapter_missing"),
        (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "select.pickle"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 100), "select.safetensors"),
        (lambda f: (f / "x").symlink_to("/etc/passwd"), "select.symlink"),
    ],
)
def test_adapter_that_the_format_cannot_hold_or_that_does_not_fit_is_refused(
    base: Path, adapters: Path, tmp_path: Path, spoil: Callable[[Path], object], code: str
) -> None:
    folder = tmp_path / "spoiled"
    shutil.copytree(adapters / "plain", folder)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        write_gguf_adapter(folder, base, tmp_path / "out.gguf")
    assert caught.value.code == code and str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def write_base(path: Path, architecture: str) -> Path:
    """The header of a base of another family, with one query weight."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def one_query(adapters: Path, folder: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(adapters / "plain", folder)
    held = load_file(folder / WEIGHTS)
    save_file({name: value for name, value in held.items() if "layers.0.self_attn.q_proj" in name}, folder / WEIGHTS)
    return folder


def test_rows_are_reordered_only_for_families_whose_base_is(adapters: Path, tmp_path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    folder = one_query(adapters, tmp_path / "one")
    given = load_file(folder / WEIGHTS)["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    for architecture in ("qwen2", "llama"):
        assert (architecture in RENAMED) == (architecture == "qwen2")
        base = write_base(tmp_path / f"{architecture}.gguf", architecture)
        write_gguf_adapter(folder, base, tmp_path / "out.gguf")
        stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}["blk.0.attn_q.weight.lora_b"]
        assert np.array_equal(stored, given) == (architecture == "qwen2")
        # Head 0 has rows 0..7: rotary pairs are (0, 4), (1, 5), … in transformers, (0, 1), (2, 3), … in llama.cpp.
        pairs = [0, 4, 1, 5, 2, 6, 3, 7]
        assert np.array_equal(stored[:8], given[pairs]) == (architecture == "llama")


def test_family_whose_rows_are_not_known_is_refused(adapters: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "odd.gguf", "falcon")
    with pytest.raises(UserError, match="falcon") as caught:
        write_gguf_adapter(one_query(adapters, tmp_path / "one"), base, tmp_path / "out.gguf")
    assert caught.value.code == "engines.adapter_family"


def test_model_given_as_an_adapter_is_refused_before_the_engine_starts(base: Path) -> None:
    with pytest.raises(UserError) as caught:
        start_server(base, LlamaCppSettings(threads=1, adapters={"x": base}))
    assert caught.value.code == "engines.adapter_file"


def test_written_adapter_has_the_header_that_llamacpp_asks_for(base: Path, adapters: Path, tmp_path: Path) -> None:
    path = gguf_adapter(adapters / "plain", base, tmp_path)
    header = check_adapter(path)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["adapter.lora.alpha"] == 8.0
    names = {tensor.name for tensor in read_header(path).tensors}
    assert len(names) == 2 * 2 * 7 and "blk.0.attn_q.weight.lora_a" in names
