"""Drop documents that a small language model finds too surprising, or not surprising at all."""

from __future__ import annotations

from functools import lru_cache
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json, list_files
from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

RESULT_DEPENDS_ON = ("torch", "transformers")
SHAPE = "keep"
CHARS_PER_TOKEN = 16  # no more characters are read for each token wanted


class Perplexity(Params):
    """Keep documents whose perplexity under a causal language model is in a range.

    Perplexities compare only under one model. Build once without limits, look at the figures, then set them.
    """

    use: Literal["perplexity"] = "perplexity"
    model: Path = Field(description="folder of a causal model in Hugging Face format, relative to the project file")
    min_perplexity: float | None = Field(None, ge=1, description="lower ones are dropped: repetition, boilerplate")
    max_perplexity: float | None = Field(None, ge=1, description="higher ones are dropped: noise, broken text")
    max_tokens: int = Field(512, ge=8, description="tokens read of each document, from its beginning")

    @model_validator(mode="after")
    def _range_is_open(self) -> Perplexity:
        if (
            self.min_perplexity is not None
            and self.max_perplexity is not None
            and self.min_perplexity > self.max_perplexity
        ):
            raise ValueError(say("problem.empty_range", least=self.min_perplexity, most=self.max_perplexity))
        return self


def measure(docs: pl.DataFrame, params: Perplexity, around: Around) -> pl.DataFrame:
    """perplexity (null without two tokens) and tokens read, one document at a time on one core of the CPU.

    Batches and threads would change the last digits with the neighbours of a document and with the machine.
    """
    folder = _folder(params, around.project_dir)
    require("train", "torch", "transformers", "safetensors")
    import polars as pl
    import torch

    tokenizer, model = _loaded(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [_score(text, tokenizer, model, params.max_tokens) for text in docs["text"].to_list()]
    finally:
        torch.set_num_threads(threads)
    return pl.DataFrame(found, schema={"perplexity": pl.Float64, "tokens": pl.Int64}, orient="row")


def drop_reason(figures: pl.DataFrame, params: Perplexity) -> pl.Series:
    """low_perplexity, high_perplexity, or null = keep."""
    import polars as pl

    value = pl.col("perplexity")
    low = pl.lit(False) if params.min_perplexity is None else value < params.min_perplexity
    high = pl.lit(False) if params.max_perplexity is None else value > params.max_perplexity
    reason = pl.when(low).then(pl.lit("low_perplexity")).when(high).then(pl.lit("high_perplexity"))
    return figures.with_columns(reason.alias("reason"))["reason"]


def external(params: Perplexity, project_dir: Path) -> dict[str, str]:
    """The fingerprint of the model's files."""
    files = list_files(_folder(params, project_dir))
    return {"model": hash_json([(file.path, file.sha256) for file in files])}


def _folder(params: Perplexity, project_dir: Path) -> Path:
    folder = project_dir / params.model
    if not (folder / "config.json").is_file():
        raise UserError("data.no_perplexity_model", path=folder)
    return folder


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model in fp32. Only safetensors are read, and code that a folder brings along is never run."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError("data.perplexity_model", path=folder, problem=problem) from error
    return tokenizer, model.eval()


def _score(text: str, tokenizer: Any, model: Any, limit: int) -> tuple[float | None, int]:
    """The exponential of the mean negative log-likelihood (natural logarithm) of the tokens after the first."""
    import torch

    ids = tokenizer(text[: limit * CHARS_PER_TOKEN], add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or limit
    ids = (start + ids)[: min(limit, longest)]
    if len(ids) < 2:
        return None, len(ids)
    with torch.inference_mode():
        row = torch.tensor([ids])
        loss = float(model(input_ids=row, labels=row).loss)
    return round(exp(min(loss, 50.0)), 4), len(ids)
