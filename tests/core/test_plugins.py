"""Operators of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint

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
