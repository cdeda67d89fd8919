"""What enters the recipe of a dataset: everything that can change a byte of it, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from inhouse.core import plugins
from inhouse.core.errors import UserError
from inhouse.core.params import deciding
from inhouse.data import stage
from inhouse.data.settings import DataParams
from inhouse.data.source import SourceParams, readers_of
from inhouse.flow.plan import Node, recipe

ROWS = [{"text": "one"}, {"text": "two"}]


def key(folder: Any, **data: Any) -> str:
    params = DataParams.model_validate({"sources": "a.jsonl", "shape": "text", "steps": [], **data})
    return recipe(Node("dataset", stage, params), {}, folder.path)[0]


@pytest.fixture
def fresh_digests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Digests are remembered while a process lives; a test that changes code must forget them."""

    def change(module: str) -> None:
        """As if this module had other code."""
        plugins.source_digest.cache_clear()
        real = plugins._source

        def changed(path: Path, *stat: int) -> plugins._Source:
            source = real(path, *stat)
            if not path.as_posix().endswith(f"inhouse/data/{module}.py"):
                return source
            return plugins._Source(source.path, "other code", source.imported, source.packages)

        monkeypatch.setattr(plugins, "_source", changed)

    yield change
    plugins.source_digest.cache_clear()


@pytest.mark.parametrize("module", ["readers/jsonl", "readers/bytes", "split", "mix", "segments", "finish", "card"])
def test_recipe_changes_with_the_code_of_the_build(folder: Any, fresh_digests: Any, module: str) -> None:
    folder.jsonl("a.jsonl", ROWS)
    before = key(folder)
    fresh_digests(module)
    assert key(folder) != before


@pytest.mark.parametrize("module", ["readers/pdf", "operators/leaks", "label/vote", "why"])
def test_recipe_stays_when_code_changes_that_it_does_not_use(folder: Any, fresh_digests: Any, module: str) -> None:
    folder.jsonl("a.jsonl", ROWS)
    before = key(folder)
    fresh_digests(module)
    assert key(folder) == before


@pytest.mark.parametrize(
    ("place", "reader", "wanted"),
    [
        ("a.jsonl", None, {"jsonl"}),
        ("a.json", None, {"json", "jsonl"}),
        ("many", None, {"jsonl", "csv"}),
        ("many/*.csv", None, {"csv"}),
        ("a.jsonl", "csv", {"csv"}),
        ("packed.zip", "csv", {"csv", "zip"}),
    ],
)
def test_readers_of_a_source_are_those_of_its_files(folder: Any, place: str, reader: Any, wanted: set[str]) -> None:
    folder.jsonl("a.jsonl", ROWS)
    folder.write("a.json", "[]")
    folder.jsonl("many/a.jsonl", ROWS)
    folder.write("many/b.csv.gz", b"")
    folder.write("many/b.csv", "text\nx\n")
    with zipfile.ZipFile(folder.path / "packed.zip", "w") as archive:
        archive.writestr("a.csv", "text\nx\n")
    assert readers_of(SourceParams.model_validate({"from": place, "reader": reader}), folder.path) == wanted


@pytest.mark.parametrize("place", ["packed.zip", "hf:somebody/something"])
def test_readers_of_a_source_that_cannot_be_looked_into_are_all(folder: Any, place: str) -> None:
    with zipfile.ZipFile(folder.path / "packed.zip", "w") as archive:
        archive.writestr("a.csv", "text\nx\n")
    found = readers_of(SourceParams.model_validate(place), folder.path)
    assert found == set(plugins.operators("reader"))
    assert readers_of(SourceParams.model_validate({"from": place, "reader": "csv"}), folder.path) == {"csv", "zip"}


ENDPOINT = {"model": "house"}
PARAPHRASE = {"use": "paraphrase", "endpoint": ENDPOINT}


@pytest.mark.parametrize("use", ["paraphrase", "back_translation"])
def test_recipe_changes_with_the_endpoint_that_the_environment_names(
    folder: Any, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    folder.jsonl("a.jsonl", ROWS)
    step = {"use": use, "endpoint": ENDPOINT}
    keys = []
    for address in ("http://one/v1", "http://two/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        stated = {**ENDPOINT, "base_url": "http://three/v1"}
        keys.append((key(folder, steps=[step]), key(folder, steps=[{**step, "endpoint": stated}])))
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]


@pytest.mark.parametrize(
    "how",
    [{"timeout_s": 3}, {"attempts": 1}, {"wait_s": 0.5}, {"at_once": 9}, {"budget": {"requests": 5, "tokens": 9}}],
)
def test_recipe_leaves_out_how_an_endpoint_is_asked(folder: Any, how: dict[str, Any]) -> None:
    folder.jsonl("a.jsonl", ROWS)
    asked = {**PARAPHRASE, "endpoint": {**ENDPOINT, **how}}
    assert key(folder, steps=["fix_text", asked]) == key(folder, steps=["fix_text", PARAPHRASE])


def test_recipe_leaves_out_who_does_the_work_and_nothing_else(folder: Any) -> None:
    folder.jsonl("a.jsonl", ROWS)
    assert key(folder, engine="ray") == key(folder)
    assert key(folder, steps=[{**PARAPHRASE, "endpoint": {**ENDPOINT, "temperature": 1}}]) != key(
        folder, steps=[PARAPHRASE]
    )
    params = DataParams.model_validate({"sources": "a.jsonl", "steps": ["length", PARAPHRASE]})
    whole = params.model_dump(mode="json")
    del whole["engine"]
    for name in ("timeout_s", "attempts", "wait_s", "at_once", "budget"):
        del whole["steps"][1]["endpoint"][name]
    assert deciding(params) == whole


def test_recipe_changes_with_the_tokenizer_that_a_mix_counts_by(folder: Any) -> None:
    folder.jsonl("a.jsonl", ROWS)
    folder.write("words/tokenizer.json", "{}")
    mix = {"a": 1, "tokenizer": "words"}
    before = key(folder, mix=mix)
    folder.write("words/tokenizer.json", "{ }")
    assert key(folder, mix=mix) != before
    by_chars = key(folder, mix={**mix, "by": "chars"})
    folder.write("words/tokenizer.json", "{}")
    assert key(folder, mix=mix) == before and key(folder, mix={**mix, "by": "chars"}) == by_chars
    with pytest.raises(UserError, match="nowhere"):
        key(folder, mix={**mix, "tokenizer": "nowhere"})
