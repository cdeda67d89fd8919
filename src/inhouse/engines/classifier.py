"""Models that name a label instead of writing: encoders and decoders with a classification head."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.protocols import Generation, Input, Prompt, Scored, Tick, question_of
from inhouse.core.run import peak_memory
from inhouse.core.settings import usable_cores
from inhouse.engines.torch_files import unreadable
from inhouse.engines.transformers import (
    PACKAGES,
    Precision,
    check_vocabulary,
    facts_of,
    load_model,
    load_tokenizer,
    reading_errors,
    refuse_pickles,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST = -87.3  # natural log of the smallest probability that float32 holds in full
MOST_NAMELESS = 10_000  # labels without names; a file's figure is not trusted to fit the memory


def open_classifier(
    source: Input, *, dtype: Precision = "auto", threads: int | None = None, batch: int = 32
) -> ClassifierEngine:
    """Load a model artifact with a classification head. `auto` computes in bf16 where the machine does so natively."""
    require("train", *PACKAGES)
    import torch

    torch.set_num_threads(threads or usable_cores())
    facts = facts_of(source)
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    check_vocabulary(model, tokenizer, facts.name)
    return ClassifierEngine(facts.name, model, tokenizer, batch)


def load_headed(
    source: Input, labels: Sequence[str], dtype: Precision, seed: int
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model with a head for these labels, and the names of the modules that are not in its file.

    These begin as drawn with `seed`, in float32. A head that the model has for the same labels is kept.
    """
    require("train", *PACKAGES)
    import torch

    facts = facts_of(source)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if (source.path / facts.main).suffix == ".gguf":
            model, missing = _on_body(load_model(source, dtype), named)
        else:
            model, missing = _from_folder(source, dtype, named)
    if facts.labels and facts.labels != tuple(labels):
        missing |= {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}
    _draw(model, missing, seed)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(source).pad_token_id  # stock transformers finds the last token by it
    return model, tuple(sorted({name.rpartition(".")[0] for name in missing}))


def _on_body(writer: PreTrainedModel, named: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """A head on what a model that writes has below its output layer."""
    from transformers import AutoModelForSequenceClassification

    config = writer.config
    config.update(named)
    model: Any = AutoModelForSequenceClassification.from_config(config, dtype=writer.dtype)
    setattr(model, model.base_model_prefix, writer.base_model)
    body = {id(parameter) for parameter in writer.base_model.parameters()}
    return model, {name for name, parameter in model.named_parameters() if id(parameter) not in body}


def _from_folder(source: Input, dtype: Precision, named: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """Transformers' own class for classification; raise torch.no_classifier for a family that has none."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would tell of the head that is missing, as it should be
    facts = facts_of(source)
    path = source.path / facts.main
    trust = {"local_files_only": True, "trust_remote_code": facts.remote_code}
    try:
        refuse_pickles(path)
        config = AutoConfig.from_pretrained(path, **trust)
        if type(config) not in AutoModelForSequenceClassification._model_mapping and not facts.remote_code:
            raise UserError("torch.no_classifier", name=facts.name, architecture=config.model_type)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=torch_dtype(dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **trust,
            **named,
        )
    except reading_errors(facts) as error:
        raise unreadable(path, error) from error
    finally:
        logging.set_verbosity(verbosity)
    body = f"{model.base_model_prefix}."
    wrong = {str(name) for name, *_ in told["mismatched_keys"]}
    if any(name.startswith(body) for name in wrong):
        raise UserError("torch.unreadable", path=path.name, problem=f"shapes differ: {', '.join(sorted(wrong)[:3])}")
    return model, {str(name) for name in told["missing_keys"]} | wrong


def _draw(model: PreTrainedModel, names: set[str], seed: int) -> None:
    """Matrices as the family draws them, each by the seed and its name; biases 0, all in float32; norms as they are."""
    import torch

    spread = float(getattr(model.config.get_text_config(), "initializer_range", None) or 0.02)
    for name, parameter in sorted(model.named_parameters()):
        if name not in names:
            continue
        drawn = parameter.data.float()
        if parameter.ndim > 1:
            draws = torch.Generator().manual_seed(int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:7]))
            drawn = torch.randn(parameter.shape, generator=draws) * spread
        elif name.endswith("bias"):
            drawn = torch.zeros_like(drawn)
        parameter.data = drawn.to(parameter.device)


def reads_both_ways(model: PreTrainedModel) -> bool:
    """Whether this is an encoder of BERT's kind, where every token sees those after it too."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def head_of_decoder(model: PreTrainedModel) -> torch.nn.Module | None:
    """The head that a decoder's classification class applies to its last token; None for any other model."""
    head: torch.nn.Module | None = dict(model.named_children()).get("score")
    return None if reads_both_ways(model) else head


def reads_plainly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts are read as they are: encoders know no template, nor does a decoder that was not told one."""
    return reads_both_ways(model) or not tokenizer.chat_template


def most_tokens(model: PreTrainedModel) -> int | None:
    """How many tokens the model can read; None where nothing is said."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if most is None:
        return None
    # RoBERTa and its kin count positions from behind the padding's.
    embedding = next((m for n, m in model.named_modules() if n.endswith("embeddings.position_embeddings")), None)
    before = getattr(embedding, "padding_idx", None)
    return int(most) - (0 if before is None else before + 1)


def question_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], plain: bool, most: int | None = None
) -> list[list[int]]:
    """Ids of questions as a classifier reads them: the turns' texts in lines, or what the template writes.

    A plain text is cut to `most` tokens, its special tokens kept. Padding at the end is taken off: stock
    transformers would look for the last token before it.
    """
    from inhouse.engines.torch_chat import as_written, render_texts, token_ids

    if not prompts:
        return []
    asked = [question_of(prompt).turns for prompt in prompts]  # a classifier calls no tools
    if plain:
        texts = ["\n".join(turn["content"] for turn in as_written(tokenizer, turns, None)[0]) for turns in asked]
        cut = {"truncation": True, "max_length": most} if most else {}
        found: list[list[int]] = tokenizer(
            texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **cut
        )["input_ids"]
    else:
        found = token_ids(tokenizer, render_texts(tokenizer, asked, True))
    return [_before_padding(ids, tokenizer.pad_token_id) for ids in found]


def _before_padding(ids: list[int], pad: int | None) -> list[int]:
    stop = len(ids)
    while stop > 1 and ids[stop - 1] == pad:
        stop -= 1
    return ids[:stop]


class ClassifierEngine:
    """A model in torch that answers with the likeliest of its labels.

    Texts of like length are read together. A text that is longer than the model can read is cut where it is read as
    it is, and refused where a template surrounds it.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 32) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.batch = batch
        self.plain = reads_plainly(model, tokenizer)
        names: dict[int, str] = model.config.id2label or {}
        self.labels = tuple(names[at] for at in range(len(names)))

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the question."""
        return question_ids(self.tokenizer, [prompt], self.plain, most_tokens(self.model))[0]

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, tick: Tick, ignore_end: bool = False
    ) -> list[Generation]:
        """The likeliest label of each prompt, as an answer of one token."""
        answers: dict[int, Generation] = {}
        started = time.perf_counter()
        for place, logs in self._read(prompts):
            taken = time.perf_counter() - started
            answers[place] = Generation(self.labels[int(logs.argmax())], 1, "stop", taken, taken)
            tick(1)
        return [answers[place] for place in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], tick: Tick) -> list[list[Scored]]:
        """The log-probability of each choice; one that is no label of the model gets the least that float32 holds."""
        scores: dict[int, list[Scored]] = {}
        for place, logs in self._read(prompts):
            known = dict(zip(self.labels, logs.tolist(), strict=True))
            scores[place] = [Scored(known.get(choice, LEAST), 1) for choice in choices[place]]
            tick(1)
        return [scores[place] for place in range(len(prompts))]

    def next_logprobs(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        """Raise torch.classifier: it writes no tokens."""
        raise UserError("torch.classifier", name=self.name)

    def all_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits (labels) float32 of a text that is read alone."""
        import torch

        with torch.inference_mode():
            found: Any = self.model(torch.tensor([list(ids)], device=self.model.device))
        logits: torch.Tensor = found.logits[0].float().cpu()
        return logits

    def memory_bytes(self) -> int:
        """Peak resident memory of this process, which holds the model."""
        return peak_memory()

    def close(self) -> None:
        """Let go of the weights."""
        del self.model

    def _read(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, torch.Tensor]]:
        """Places of the prompts, shortest first, with the log-probabilities (labels) of each."""
        import torch

        most = most_tokens(self.model)
        ids = question_ids(self.tokenizer, prompts, self.plain, most)
        longest = max(map(len, ids), default=0)
        if most is not None and longest > most:
            raise UserError("torch.too_long", tokens=longest, reserved=0, most=most, name=self.name)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            with torch.inference_mode():
                logs = self._logits([ids[place] for place in places]).log_softmax(-1).cpu()
            yield from zip(places, logs, strict=True)

    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits (B, labels) float32 of rows that are read together, padded on the right."""
        import torch

        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.model.device)
        found: Any = self.model(input_ids=ids, attention_mask=mask)
        logits: torch.Tensor = found.logits.float()
        return logits


def labels_in(config: dict[str, Any]) -> tuple[str, ...]:
    """The labels that a model folder's settings name, in their order; empty where it has no classification head.

    Settings without names, as transformers writes them for two labels that have none, mean its LABEL_0, LABEL_1.
    """
    named = (config.get("architectures") or [""])[0]
    if not str(named).endswith("ForSequenceClassification"):
        return ()
    names = config.get("id2label")
    if not names:
        count = config.get("num_labels", 2)
        named_by_place = isinstance(count, int) and 0 < count <= MOST_NAMELESS
        return tuple(f"LABEL_{place}" for place in range(count)) if named_by_place else ()
    return tuple(str(names[key]) for key in sorted(names, key=int)) if isinstance(names, dict) else ()
