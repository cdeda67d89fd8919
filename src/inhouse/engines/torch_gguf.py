"""Open a GGUF file in torch: its weights dequantised, its tokenizer rebuilt exactly."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.engines.gguf_header import ArrayValue, GgufHeader, Tensor, items, read_header
from inhouse.engines.gguf_rope import FREQUENCIES, refuse_scaled, rope_of
from inhouse.engines.gguf_tokens import TOKENS
from inhouse.engines.gguf_tokens import TYPES as TOKEN_TYPES

if TYPE_CHECKING:
    import torch
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
JOINED = 8 * 2**10  # bytes of a row
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # gguf.TokenType
# Of these, a piece that is a token is not cut, and texts begin with bos where the header is silent.
WHOLE = ("llama-bpe", "llama3")
BEGINS = "tokenizer.ggml.add_bos_token"
SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer and chat template inside a GGUF file, with the special tokens that its header names.

    transformers' own reader is used for sentencepiece vocabularies only: for byte-level ones it forgets the
    pre-tokenizer, and it takes `eos` from the wrong id (SmolLM2: `<|im_start|>`), so that no answer would end.
    """
    from tokenizers import AddedToken

    header = read_header(path)
    tokens = items(path, header, TOKENS)
    if header.text("tokenizer.ggml.model") == "gpt2":
        tokenizer = _byte_level(path, header, tokens)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        _frame(tokenizer.backend_tokenizer, header, tokens)
    types = items(path, header, TOKEN_TYPES) or [NORMAL] * len(tokens)
    end = header.number("tokenizer.ggml.eos_token_id")
    # As llama.cpp has it, these are one token wherever they stand; transformers reads none in sentencepiece's files.
    kinds = [
        (token, CONTROL if at == end else kind) for at, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    special = [AddedToken(token, normalized=False, special=True) for token, kind in kinds if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED])
    for name, key in SPECIALS.items():
        at = header.number(f"tokenizer.ggml.{key}_token_id")
        if at is not None and 0 <= at < len(tokens):
            setattr(tokenizer, name, tokens[at])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = _template(header, tokenizer.bos_token)
    tokenizer.model_max_length = header.number(f"{header.text('general.architecture')}.context_length") or 2048
    return tokenizer


def _byte_level(path: Path, header: GgufHeader, tokens: list[str]) -> PreTrainedTokenizerBase:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pre = header.text("tokenizer.ggml.pre") or "default"
    if pre not in PRE_TOKENIZERS:
        raise UserError("torch.gguf_tokenizer", path=path.name, pre=pre, known=", ".join(PRE_TOKENIZERS))
    digits, pattern = PRE_TOKENIZERS[pre]
    merges = [tuple(merge.split(" ", 1)) for merge in items(path, header, "tokenizer.ggml.merges")]
    whole = pre in WHOLE
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges, ignore_merges=whole))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _frame(tokenizer, header, tokens)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def begins_texts(header: GgufHeader) -> bool:
    """Whether texts get a BOS: as the header says, else as llama.cpp has it for this kind of vocabulary."""
    silent = header.text("tokenizer.ggml.model") != "gpt2" or header.text("tokenizer.ggml.pre") in WHOLE
    return bool(header.metadata.get(BEGINS, silent))


def template_begins(template: str, begin: str) -> bool:
    """Whether a chat template writes the token that texts begin with."""
    return "bos_token" in template or begin in template


def _template(header: GgufHeader, begin: str | None) -> str | None:
    """The file's chat template; llama.cpp puts the BOS before a conversation whose template writes none."""
    template = header.text("tokenizer.chat_template")
    if not template or begin is None or not begins_texts(header) or template_begins(template, begin):
        return template
    return "{{ bos_token }}" + template


def _frame(tokenizer: Any, header: GgufHeader, tokens: list[str]) -> None:
    """Put the tokens at a text's beginning and end that the header asks for."""
    from tokenizers import processors

    wanted = {"bos": begins_texts(header), "eos": header.metadata.get("tokenizer.ggml.add_eos_token", False)}
    ids = {name: header.number(f"tokenizer.ggml.{name}_token_id") for name in wanted}
    placed = [(f"<{name}>", at) for name, at in ids.items() if wanted[name] and at is not None and at < len(tokens)]
    if not placed:
        return
    names = dict(placed)
    template = " ".join(["<bos>"] * ("<bos>" in names) + ["$A"] + ["<eos>"] * ("<eos>" in names))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[{"id": name, "ids": [at], "tokens": [tokens[at]]} for name, at in placed]
    )


def gguf_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The weights of a GGUF file, dequantised to `dtype`, as a plain model that may be trained and saved."""
    model = _plain_model(path, dtype)
    return model if model is not None else _any_model(path, dtype)


def _plain_model(path: Path, dtype: torch.dtype) -> PreTrainedModel | None:
    """Load an architecture whose tensors need no more than new names; None when this file needs more.

    transformers' own way is 3 times as slow: it parses the header twice and rebuilds its table of names for each
    submodule (SmolLM2-135M: 18 s against 6 s on a busy 2-core machine).
    """
    import numpy
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    header = read_header(path)
    architecture = str(header.text("general.architecture"))
    if architecture not in PLAIN or "mistral" in (header.text("general.name") or "").lower():
        return None
    rope = rope_of(path, header)
    config = _config(path, header, rope, tied=all(tensor.name != "output.weight" for tensor in header.tensors))
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        shapes = kind(config).state_dict()
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    wanted = {f"{names.get_name(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": name for name in shapes}
    weights = {}
    file = numpy.asarray(numpy.memmap(path, dtype=numpy.uint8, mode="c"))
    for tensor in header.tensors:
        if tensor.name == FREQUENCIES:
            continue  # told by the config
        name = wanted.get(tensor.name)
        if name is None:
            return None
        values = _values(tensor, file).to(dtype)
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = unpermute(values, heads)
        weights[name] = values
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(shapes) - set(weights) - tied:
        return None
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def _values(tensor: Tensor, file: Any) -> torch.Tensor:
    """A tensor of a GGUF file's bytes as floats, apart from the file.

    The package works on 16 rows at a time: rows are joined, so that numpy gets tens of kilobytes a call.
    """
    import torch
    from gguf import GGMLQuantizationType, dequantize

    rows, width = prod(tensor.shape[1:]), tensor.bytes // prod(tensor.shape[1:])
    while rows % 2 == 0 and width < JOINED:
        rows, width = rows // 2, width * 2
    data = file[tensor.offset : tensor.offset + tensor.bytes].reshape(rows, width)
    floats = dequantize(data, GGMLQuantizationType[tensor.type]).reshape(tensor.shape[::-1])
    return torch.from_numpy(floats.copy() if tensor.type == "F32" else floats)


def unpermute(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the order of rotary pairs that llama.cpp's converter gives to llama's query and key rows."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).transpose(1, 2).reshape(values.shape).contiguous()


def _config(path: Path, header: GgufHeader, rope: dict[str, Any], tied: bool) -> PreTrainedConfig:
    """The model's settings, by transformers' own table of GGUF keys."""
    from transformers import AutoConfig
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture = str(header.text("general.architecture"))
    table = GGUF_CONFIG_MAPPING[architecture]
    prefix = f"{architecture}."
    known = {
        table.get(key.removeprefix(prefix)): items(path, header, key) if isinstance(value, ArrayValue) else value
        for key, value in header.metadata.items()
        if key.startswith(prefix)
    }
    values: dict[str, Any] = {name: value for name, value in known.items() if isinstance(name, str)}
    if isinstance(tokens := header.metadata.get(TOKENS), ArrayValue):
        values.setdefault("vocab_size", tokens.length)
    for name, key in SPECIALS.items():
        if (at := header.number(f"tokenizer.ggml.{key}_token_id")) is not None:
            values[f"{name}_id"] = at
    if (size := header.number(f"{prefix}attention.key_length")) is not None:
        values.setdefault("head_dim", size)
    if rope:
        values["rope_parameters"] = {"rope_theta": values.pop("rope_theta", 10_000.0), **rope}
    return AutoConfig.for_model(architecture, **values, tie_word_embeddings=tied)


def _any_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Whatever transformers' own reader takes; it knows nothing of scaled positions. Raises torch.gguf_rope."""
    from transformers import AutoModelForCausalLM

    refuse_scaled(path, read_header(path))
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype, local_files_only=True)
    # transformers marks the model as quantised and then refuses to save it; the weights are plain floats by now.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.quantization_config = None
    del model.config.quantization_config
    return model
