"""Operators of other packages."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from inhouse.core import plugins
from inhouse.core.errors import UserError


def test_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("odd", "no_such_module_anywhere", "inhouse.cleaner")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [broken] if group == "inhouse.cleaner" else [])
    plugins.operators.cache_clear()
    try:
        with pytest.raises(UserError) as error:
            plugins.operators("cleaner")
    finally:
        plugins.operators.cache_clear()
    assert error.value.code == "plugins.broken"
    assert "'odd'" in str(error.value) and "no_such_module_anywhere" in str(error.value)


def test_error_below_a_plugins_code_is_told_as_the_plugins_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fragile_terms").mkdir()
    (tmp_path / "fragile_terms" / "__init__.py").write_text("")
    (tmp_path / "fragile_terms" / "pull.py").write_text(
        "import json\n\n\ndef term(given):\n    return json.loads(given)\n"
    )
    info = tmp_path / "fragile-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[inhouse.penalty]\npull = fragile_terms.pull\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    term = importlib.import_module("fragile_terms.pull").term
    with pytest.raises(ValueError) as raised:
        term("{")
    told = plugins.unexpected(raised.value, "job.log")
    assert told.code == "plugins.failed" and told.exit_code == 1
    assert {"kind": "penalty", "name": "pull", "package": "fragile", "log": "job.log"}.items() <= told.facts.items()
    assert "JSONDecodeError: Expecting property name" in str(told)

    with pytest.raises(ValueError) as ours:
        json.loads("{")
    assert plugins.unexpected(ours.value, "job.log").code == "job.bug"


def test_plugin_of_no_package_is_blamed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("odd", "json", "inhouse.cleaner")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "inhouse.cleaner" else [])
    with pytest.raises(ValueError) as raised:
        json.loads("{")
    told = plugins.unexpected(raised.value, "job.log")
    assert (told.code, told.facts["package"]) == ("plugins.failed", "?")
