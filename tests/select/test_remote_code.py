"""Code that a model's repository brings: refused, unless a pinned commit of it is trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context, Input
from inhouse.core.run import Events
from inhouse.select.inspect import inspect
from inhouse.select.place import place
from inhouse.select.stage import ModelParams, choose
from inhouse.sources import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OddConfig(LlamaConfig):
    model_type = "odd"

class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""
WANTS = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}


@pytest.fixture
def odd(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model as a family of its own, with the code for it."""
    folder = tmp_path / "odd"
    shutil.copytree(tiny_llama, folder)
    (folder / "odd.py").write_text(CODE)
    wanting(folder, auto_map=WANTS, model_type="odd", architectures=["OddForCausalLM"])
    return folder


def wanting(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def code_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert str(error.value)
    return error.value.code


@pytest.mark.parametrize("settings", [{"auto_map": WANTS}, {"model_type": "chatglm"}])
def test_code_is_refused_and_the_way_out_named(settings: dict[str, Any], odd: Path) -> None:
    wanting(odd, **settings)
    with pytest.raises(UserError, match="trust_remote_code") as error:
        inspect(odd)
    assert code_of(error) == "select.remote_code"


def test_old_chatglm_is_sent_to_glm_and_glm4(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "old")
    wanting(tmp_path / "old", model_type="chatglm")
    with pytest.raises(UserError, match="glm or glm4"):
        inspect(tmp_path / "old")


@pytest.mark.parametrize(
    ("base", "revision"),
    [
        ("hf:THUDM/chatglm3-6b", None),
        ("hf:THUDM/chatglm3-6b", "main"),
        ("hf:THUDM/chatglm3-6b", COMMIT[:12]),
        ("hf:THUDM/chatglm3-6b#model.safetensors", COMMIT),
        ("./folder", None),
        ("https://host/v1", None),
    ],
)
def test_trust_without_a_pinned_commit_is_refused(base: str, revision: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        choose(ModelParams(base=base, revision=revision, trust_remote_code=True), tmp_path)
    assert code_of(error) == "select.unpinned_code"


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_trust_with_a_pinned_commit_fetches_the_code_too(scheme: str, tmp_path: Path) -> None:
    params = ModelParams(base=f"{scheme}:org/odd", revision=COMMIT, trust_remote_code=True)
    uri = choose(params, tmp_path).uri
    files = {"odd.py": 1, "setup/evil.py": 1, "model.safetensors": 9, "config.json": 1, "pytorch_model.bin": 9}
    assert hub.choose(uri, hub.parse(uri), files) == ["config.json", "model.safetensors", "odd.py"]
    plain = choose(ModelParams(base=params.base, revision=COMMIT), tmp_path).uri
    assert hub.choose(plain, hub.parse(plain), files) == ["config.json", "model.safetensors"]


def test_code_of_a_branch_is_never_fetched() -> None:
    with pytest.raises(UserError) as error:
        hub.parse("hf:org/odd@main#+code")
    assert code_of(error) == "sources.unpinned_code"


def test_code_of_another_repository_is_refused_even_when_trusted(odd: Path) -> None:
    wanting(odd, auto_map={"AutoModelForCausalLM": "org/other--odd.OddForCausalLM"})
    with pytest.raises(UserError) as error:
        inspect(odd, trusted=True)
    assert code_of(error) == "select.foreign_code"


def test_trusted_code_stays_with_the_model_and_is_run(
    odd: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers.dynamic_module_utils
    from transformers import AutoModelForCausalLM

    from inhouse.engines.transformers import load_model

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    facts = inspect(odd, trusted=True)
    assert facts.remote_code
    out = tmp_path / "out"
    here = Context({}, out, tmp_path, tmp_path / "sources", tmp_path, Events(tmp_path / "events"), 7, True)
    out.mkdir()
    place(odd, facts, here)
    assert (out / "odd.py").read_text() == CODE
    record = Artifact(
        id="m", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="",
        facts={"model": facts.model_dump()},
    )  # fmt: skip
    model = load_model(Input(record, out), "fp32")
    assert type(model).__name__ == "OddForCausalLM"
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, AutoModelForCausalLM.from_pretrained(tiny_llama)(ids).logits)
    untrusted = record.model_copy(update={"facts": {"model": {**facts.model_dump(), "remote_code": False}}})
    with pytest.raises(UserError) as error:
        load_model(Input(untrusted, out), "fp32")
    assert code_of(error) == "torch.unreadable"


def test_trusted_code_that_fails_is_reported_as_unreadable(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.dynamic_module_utils

    from inhouse.engines.transformers import load_model

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (odd / "odd.py").write_text(CODE.replace("LlamaForCausalLM\n", "LlamaForCausalLM, NoSuchThing\n"))
    record = Artifact(
        id="m", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="",
        facts={"model": inspect(odd, trusted=True).model_dump()},
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        load_model(Input(record, odd), "fp32")
    assert code_of(error) == "torch.unreadable"
