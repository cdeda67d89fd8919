"""Open a GGUF file in torch: its weights dequantised, its tokenizer rebuilt exactly."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How each `tokenizer.ggml.pre` cuts text before merging: (digits one by one first, pattern). llama.cpp keeps the same
# table in llama-vocab.cpp; transformers' own GGUF reader ignores this key and cuts "   12" differently for smollm.
PRE_TOKENIZERS: dict[str, tuple[bool, str]] = {
    "default": (False, GPT2),
    "gpt-2": (False, GPT2),
    "smollm": (True, GPT2),
    "starcoder": (True, GPT2),
    "refact": (True, GPT2),
    "command-r": (True, GPT2),
    "codeshell": (True, GPT2),
    "llama-bpe": (False, WORDS + r"\p{N}{1,3}" + LINES),
    "llama3": (False, WORDS + r"\p{N}{1,3}" + LINES),
    "qwen2": (False, WORDS + r"\p{N}" + LINES),
    "deepseek-r1-qwen": (False, WORDS + r"\p{N}" + LINES),
}
PLAIN = ("llama", "qwen2", "qwen3")  # architectures whose GGUF tensors differ from transformers' in name and order only
CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType
SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def open_reader(path: Path) -> GGUFReader:
    """A GGUF file, its header parsed; raise torch.unreadable when it is not a whole GGUF.

    Parsing takes seconds (the reader makes three arrays of every token), so tokenizer and weights share one parse.
    """
    stat = path.stat()
    return _parse(path, stat.st_size, stat.st_mtime_ns)


def close_reader() -> None:
    """Forget the file that was parsed last: 250 MB for a vocabulary of 49,152."""
    _parse.cache_clear()


@lru_cache(maxsize=1)
def _parse(path: Path, size: int, changed: int) -> GGUFReader:
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError) as error:
        raise UserError("torch.unreadable", path=path.name, problem=str(error) or type(error).__name__) from error


def read_header(path: Path) -> dict[str, Any]:
    """Every key of a GGUF header with its value."""
    return {name: field.contents() for name, field in open_reader(path).fields.items()}


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer and chat template inside a GGUF file, with the special tokens that its header names.

    transformers' own reader is used for sentencepiece vocabularies only: for byte-level ones it forgets the
    pre-tokenizer, and it takes `eos` from the wrong id (SmolLM2: `<|im_start|>`), so that no answer would end.
    """
    header = read_header(path)
    if header.get("tokenizer.ggml.model") == "gpt2":
        tokenizer = _byte_level(path, header)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    tokens = header["tokenizer.ggml.tokens"]
    for name, key in SPECIALS.items():
        at = header.get(f"tokenizer.ggml.{key}_token_id")
        if at is not None and at < len(tokens):
            setattr(tokenizer, name, tokens[at])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = header.get("tokenizer.chat_template")
    tokenizer.model_max_length = _context_length(header)
    return tokenizer


def _context_length(header: dict[str, Any]) -> int:
    return int(header.get(f"{header.get('general.architecture')}.context_length", 2048))


def _byte_level(path: Path, header: dict[str, Any]) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pre = header.get("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise UserError("torch.gguf_tokenizer", path=path.name, pre=pre, known=", ".join(PRE_TOKENIZERS))
    digits, pattern = PRE_TOKENIZERS[pre]
    tokens, types = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in header["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if header.get("tokenizer.ggml.add_bos_token"):
        at = header["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[at]} $A", special_tokens=[(tokens[at], at)]
        )
    kinds = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in kinds if k == CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in kinds if k == USER_DEFINED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def gguf_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The weights of a GGUF file, dequantised to `dtype`, as a plain model that may be trained and saved."""
    model = _plain_model(path, dtype)
    return model if model is not None else _any_model(path, dtype)


def _plain_model(path: Path, dtype: torch.dtype) -> PreTrainedModel | None:
    """Load an architecture whose tensors need no more than new names; None when this file needs more.

    transformers' own way is 3 times as slow: it parses the header twice and rebuilds its table of names for each
    submodule (SmolLM2-135M: 18 s against 6 s on a busy 2-core machine).
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, dequantize, get_tensor_name_map
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    header, reader = read_header(path), open_reader(path)
    architecture = str(header.get("general.architecture"))
    if architecture not in PLAIN or "mistral" in str(header.get("general.name", "")).lower():
        return None
    config = _config(header, architecture, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        shapes = kind(config).state_dict()
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    wanted = {f"{names.get_name(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": name for name in shapes}
    weights = {}
    for tensor in reader.tensors:
        name = wanted.get(tensor.name)
        if name is None:
            return None
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).to(dtype)  # a copy: the file is read-only
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = unpermute(values, heads)
        weights[name] = values
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(shapes) - set(weights) - tied:
        return None
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def unpermute(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the order of rotary pairs that llama.cpp's converter gives to llama's query and key rows."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).transpose(1, 2).reshape(values.shape).contiguous()


def _config(header: dict[str, Any], architecture: str, tied: bool) -> PreTrainedConfig:
    """The model's settings, by transformers' own table of GGUF keys."""
    from transformers import AutoConfig
    from transformers.integrations import GGUF_CONFIG_MAPPING

    table = GGUF_CONFIG_MAPPING[architecture]
    prefix = f"{architecture}."
    known = {table.get(key.removeprefix(prefix)): value for key, value in header.items() if key.startswith(prefix)}
    values = {name: value for name, value in known.items() if isinstance(name, str)}
    values.setdefault("vocab_size", len(header["tokenizer.ggml.tokens"]))
    for name, key in SPECIALS.items():
        if (at := header.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            values[f"{name}_id"] = at
    return AutoConfig.for_model(architecture, **values, tie_word_embeddings=tied)


def _any_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype, local_files_only=True)
    # transformers marks the model as quantised and then refuses to save it; the weights are plain floats by now.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.quantization_config = None
    del model.config.quantization_config
    return model
