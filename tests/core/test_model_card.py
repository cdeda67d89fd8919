"""The front matter of model cards, read back by huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from inhouse.core.artifact import Artifact, Licence
from inhouse.core.model_card import base_model, front_matter, licence_facts, read_front_matter

ODD = ["a: b", 'it\'s "quoted"', "no", "1.0", "[x]", "# hash", "第一: 数据", "a\n---\nb", "tab\tend", "-", "x" * 300]


def licence(spdx: str, url: str | None = None) -> Licence:
    return Licence(subject="base", spdx=spdx, source="test", url=url)


def record(stage: str = "select", uri: str = "base", *licences: Licence) -> Artifact:
    return Artifact(
        id="0123456789abcdef", kind="model", stage=stage, node="n", stage_version="1", recipe="r", params={},
        created="", facts={"source": {"uri": uri}}, licences=licences,
    )  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names_survive_the_tools_of_the_hub(name: str, tmp_path: Path) -> None:
    facts = {"license": "mit", "base_model": name, "datasets": (name, "plain"), "language": (), "tags": None}
    path = tmp_path / "README.md"
    path.write_text(front_matter(facts) + "# Title\n", encoding="utf-8")
    card = ModelCard.load(path)
    assert card.data.to_dict() == {"license": "mit", "base_model": name, "datasets": [name, "plain"]}
    assert card.text.strip() == "# Title"
    assert read_front_matter(path.read_text(encoding="utf-8")) == card.data.to_dict()


def test_no_facts_give_no_block_and_no_yaml_gives_no_facts() -> None:
    assert front_matter({"license": None, "tags": ()}) == ""
    for readme in ("# Title\n", "---\n[1\n---\n", "---\n- a\n---\n", ""):
        assert read_front_matter(readme) == {}


@pytest.mark.parametrize(
    ("spdx", "facts"),
    [
        (["Apache-2.0"], {"license": "apache-2.0"}),
        (["Apache-2.0", "Apache-2.0"], {"license": "apache-2.0"}),
        (["GPL-3.0-or-later"], {"license": "gpl-3.0"}),
        (["LicenseRef-Gemma"], {"license": "gemma"}),
        (["LicenseRef-llama3.1"], {"license": "llama3.1"}),
        (["LicenseRef-Qwen-Research"], {"license": "other", "license_name": "LicenseRef-Qwen-Research"}),
        (["Apache-2.0 OR MIT"], {"license": "other", "license_name": "Apache-2.0 OR MIT"}),
        (["MIT", "A OR B"], {"license": "other", "license_name": "MIT AND (A OR B)"}),
        (["MIT", "NOASSERTION"], {"license": "mit"}),
        (["LicenseRef-unknown"], {}),
        ([], {}),
    ],
)
def test_licence_is_named_as_the_hub_spells_it_and_only_where_it_is_known(spdx: list[str], facts: Any) -> None:
    assert licence_facts(map(licence, spdx)) == facts


def test_base_is_told_by_its_id_on_the_hub_where_it_has_one() -> None:
    assert base_model(record(uri="hf:org/name@main#a.gguf"), "header") == "org/name"
    page = licence("MIT", "https://huggingface.co/HuggingFaceTB/SmolLM2-135M")
    assert base_model(record("select", "pypi:smol", page), "smollm2") == "HuggingFaceTB/SmolLM2-135M"
    assert base_model(record("select", "/models/a", licence("MIT", "https://a.example/x")), "a: b") == "a: b"
    assert base_model(record("train", "hf:org/name", page), "smollm2") == "smollm2-0123456789ab"
