"""Models that are damaged or put together wrongly, each named in words before anything is computed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))

from tiny_training import context, train_params, write_dataset

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.select.inspect import inspect

Tensors = dict[str, Any]


def with_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def not_a_number(found: Tensors) -> None:
    found["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")


def other_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "torch.no_tokenizer", "tokenizer.json"),
    "a weight is missing": (
        lambda f: with_tensors(f, lambda found: found.pop("model.layers.0.mlp.up_proj.weight")),
        "torch.missing_weights", "model.layers.0.mlp.up_proj.weight",
    ),
    "other config": (other_config, "torch.other_shape", "[32, 48]"),
    "not a number": (
        lambda f: with_tensors(f, not_a_number), "torch.not_finite", "model.layers.1.mlp.up_proj.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_base_is_told_before_training(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    from inhouse.train.setup import prepare

    damage, code, named = BROKEN[name]
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    damage(base)
    inputs = context(base, write_dataset(tmp_path / "data", 8), tmp_path).inputs
    with pytest.raises(UserError) as error:
        prepare(train_params(), inputs, 7, Events())
    assert error.value.code == code
    assert named in str(error.value) and str(tmp_path) not in str(error.value)


def test_adapter_given_as_a_base_names_the_base_it_needs(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match="org/base") as error:
        inspect(tmp_path)
    assert error.value.code == "select.adapter"
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError) as error:
        inspect(tmp_path)
    assert error.value.code == "select.adapter"
