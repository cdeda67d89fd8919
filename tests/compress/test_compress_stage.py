"""The compress stage on a tiny model: the exported file, its parity, and what damage does."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from inhouse.compress.convert import convert
from inhouse.compress.stage import CompressParams, external, run
from inhouse.core.errors import UserError
from inhouse.core.model_card import front_matter
from inhouse.core.protocols import Context, Input
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.engines.gguf_header import read_header
from inhouse.select.stage import _in_gguf

PARITY = {"prompts": 4, "tokens": 4}


def asked(kind: str = "q8_0", **parity: float) -> CompressParams:
    return CompressParams.model_validate({"method": {"use": "gguf", "type": kind}, "parity": {**PARITY, **parity}})


def test_stage_on_a_tuned_model_writes_one_file_card_and_parity(context: Context) -> None:
    made = run(asked(), context)
    assert sorted(path.name for path in context.out.iterdir()) == ["README.md", "parity.json", "tiny-desk-Q8_0.gguf"]
    assert list(context.scratch.iterdir()) == []
    model = made.facts["model"]
    assert model["format"] == "gguf" and model["main"] == "tiny-desk-Q8_0.gguf" and model["adapter"] is None
    figures = json.loads((context.out / "parity.json").read_text(encoding="utf-8"))["figures"]
    assert figures["parity.template_ids_equal"]["value"] == 1.0
    assert figures["parity.adapter_vs_merged"]["value"] <= 1e-3
    assert figures["parity.max_logit_difference"]["value"] < 0.5
    assert figures["parity.greedy_agreement"]["n"] == 4
    card = (context.out / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in card and "许可条款" in card


def test_card_of_an_export_tells_what_the_tuned_models_card_knows(context: Context, tmp_path: Path) -> None:
    run(asked(), context)
    told = {
        "license": "apache-2.0", "base_model": "tiny desk", "base_model_relation": "quantized", "library_name": "gguf",
        "pipeline_tag": "text-generation", "tags": ["inhouse", "gguf"],
    }  # fmt: skip
    assert ModelCard.load(context.out / "README.md").data.to_dict() == told
    tuned = context.inputs["tuned"]
    shutil.copytree(tuned.path, tmp_path / "tuned")
    known = {"license": "other", "license_name": "LicenseRef-a: b", "datasets": ["c: d"], "language": ["zh"]}
    (tmp_path / "tuned" / "README.md").write_text(front_matter({**known, "tags": ["x"]}) + "# x\n", encoding="utf-8")
    inputs = {**context.inputs, "tuned": Input(tuned.record.model_copy(update={"stage": "train"}), tmp_path / "tuned")}
    run(asked(), dataclasses.replace(context, inputs=inputs))
    card = ModelCard.load(context.out / "README.md").data.to_dict()
    assert card == {**told, **known, "base_model": f"tiny desk-{tuned.record.id[:12]}"}


def test_converter_takes_the_front_matter_of_odd_names_and_terms_are_read_from_its_file(
    trained: tuple[Input, Input], tmp_path: Path
) -> None:
    shutil.copytree(trained[1].path / "merged", tmp_path / "merged")
    facts = {"license": "other", "license_name": "LicenseRef-desk", "base_model": "a: 'b'", "datasets": ["", 'x: "y"']}
    (tmp_path / "merged" / "README.md").write_text(front_matter(facts) + "# x\n", encoding="utf-8")
    convert(tmp_path / "merged", tmp_path / "a.gguf", "tiny desk", Events())
    assert read_header(tmp_path / "a.gguf").text("general.name") == "tiny desk"
    assert _in_gguf(tmp_path / "a.gguf") == "LicenseRef-desk"


def test_stage_from_scratch_gives_the_same_bytes_as_a_continued_one_and_no_paths(
    context: Context, tmp_path: Path
) -> None:
    run(asked(), context)
    other = dataclasses.replace(context, out=tmp_path / "again", scratch=tmp_path / "scratch2")
    other.out.mkdir()
    run(asked(), other)
    for first in context.out.iterdir():
        content = first.read_bytes()
        assert content == (other.out / first.name).read_bytes()
        assert str(tmp_path).encode() not in content


def test_stage_without_the_base_says_that_the_adapter_was_not_compared(context: Context) -> None:
    inputs = {role: given for role, given in context.inputs.items() if role != "base"}
    made = run(asked(), dataclasses.replace(context, inputs=inputs))
    assert "parity.adapter_vs_merged" not in made.facts["parity"]
    assert "compress.no_base" in (context.events.path or Path()).read_text(encoding="utf-8")


def test_stage_with_a_base_that_was_not_the_adapters_stops(context: Context) -> None:
    inputs = {**context.inputs, "base": dataclasses.replace(context.inputs["tuned"])}
    with pytest.raises(UserError) as error:
        run(asked(), dataclasses.replace(context, inputs=inputs))
    assert error.value.code == "compress.parity_adapter"
    assert float(error.value.facts["measured"]) > 1e-3


def test_stage_with_a_k_quant_on_narrow_rows_reports_the_real_types(context: Context) -> None:
    made = run(asked("q4_k_m"), context)
    assert made.facts["fallbacks"] > 0
    assert "Q4_K" not in made.facts["model"]["tensor_types"]
    assert made.facts["model"]["tensor_types"]["Q5_0"] > 0
    assert "compress.fallbacks" in (context.events.path or Path()).read_text(encoding="utf-8")


def test_stage_with_a_strict_bound_names_the_figure_and_the_row(context: Context) -> None:
    with pytest.raises(UserError) as error:
        run(asked("q4_0", max_logit_difference=1e-6), context)
    assert error.value.code == "compress.parity_logits"
    assert error.value.facts["figure"] == "max_logit_difference"
    assert len(error.value.facts["row"]) == 16


def test_stage_with_a_gguf_model_says_that_it_cannot_be_exported(
    context: Context, as_input: Callable[..., Input]
) -> None:
    inputs = {**context.inputs, "tuned": as_input(context.out, "x.gguf", "gguf")}
    with pytest.raises(UserError) as error:
        run(asked(), dataclasses.replace(context, inputs=inputs))
    assert error.value.code == "compress.not_safetensors"


def test_stage_with_an_empty_test_part_says_so(context: Context) -> None:
    write_rows(context.inputs["dataset"].path, "test", [])
    with pytest.raises(UserError) as error:
        run(asked(), context)
    assert error.value.code == "compress.no_test_rows"


def test_params_in_short_form_take_the_defaults() -> None:
    params = CompressParams.model_validate({"method": "gguf"})
    assert params == CompressParams()
    assert external(params, Path()) == {}
