"""perplexity: against the definition written out, under a tiny random model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inhouse.core import plugins
from inhouse.core.errors import MissingExtra, UserError
from inhouse.core.messages import known
from inhouse.data.operators import perplexity
from inhouse.data.operators.around import Around
from inhouse.data.operators.perplexity import Perplexity, drop_reason, external, measure

TEXTS = ["The bank lowered its rates today.", "银行下调了利率。", "x", "", "word " * 400]


def around(folder: Path) -> Around:
    return Around(0, folder.parent, folder.parent, True)


def figures(folder: Path, texts: list[str], **params: Any) -> pl.DataFrame:
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    return measure(frame, Perplexity(model=Path(folder.name), **params), around(folder))


def by_hand(folder: Path, text: str, limit: int) -> tuple[float | None, int]:
    """exp of the mean over tokens of -ln p(token | tokens before), one prediction at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:limit]
    if len(ids) < 2:
        return None, len(ids)
    with torch.no_grad():
        chances = [
            torch.softmax(model(torch.tensor([ids[:place]])).logits[0, -1].double(), -1)[ids[place]].item()
            for place in range(1, len(ids))
        ]
    return math.exp(-sum(map(math.log, chances)) / len(chances)), len(ids)


def test_perplexity_agrees_with_its_definition(tiny_llama: Path) -> None:
    found = figures(tiny_llama, TEXTS, max_tokens=40)
    for text, row in zip(TEXTS, found.iter_rows(), strict=True):
        wanted = by_hand(tiny_llama, text, 40)
        assert row[1] == wanted[1]
        assert row[0] == (None if wanted[0] is None else pytest.approx(wanted[0], rel=1e-4))


def test_perplexity_does_not_depend_on_neighbours(tiny_llama: Path) -> None:
    whole = figures(tiny_llama, TEXTS)
    assert whole.equals(pl.concat([figures(tiny_llama, [text]) for text in TEXTS]))
    assert figures(tiny_llama, []).schema == whole.schema


def test_perplexity_out_of_range_is_dropped_and_unknown_is_kept() -> None:
    frame = pl.DataFrame({"perplexity": [2.0, 50.0, 900.0, None], "tokens": [9, 9, 9, 0]})
    found = [
        drop_reason(frame, Perplexity(model=Path("m"), **limits)).to_list()
        for limits in ({}, {"min_perplexity": 5, "max_perplexity": 99})
    ]
    assert found == [[None] * 4, ["low_perplexity", None, "high_perplexity", None]]
    assert all(known(f"data.reason.{code}_perplexity") for code in ("low", "high"))
    with pytest.raises(ValueError, match="nothing is at least"):
        Perplexity(model=Path("m"), min_perplexity=9, max_perplexity=2)


def test_perplexity_model_is_part_of_the_recipe(tiny_llama: Path, tmp_path: Path) -> None:
    params = Perplexity(model=Path("m"))
    copy = tmp_path / "m"
    copy.mkdir()
    for path in tiny_llama.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = external(params, tmp_path)
    assert before == external(params, tmp_path)
    (copy / "extra.txt").write_text("more")
    assert external(params, tmp_path) != before


def test_perplexity_without_a_usable_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model"):
        external(Perplexity(model=Path("nowhere")), tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        figures(tmp_path / "broken", ["text"])
    assert error.value.code == "data.perplexity_model"


def test_perplexity_without_torch_names_the_extra(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="train"):
        perplexity.measure(pl.DataFrame({"text": ["a"]}), Perplexity(model=tiny_llama), around(tiny_llama))
