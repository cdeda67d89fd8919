"""The gateway as a program: its note for `inhouse chat`, its parent, and Ctrl-C."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inhouse.api.chat import Endpoint
from inhouse.api.serving import running_server
from inhouse.core.store import Store
from inhouse.serve import __main__ as program
from inhouse.serve.app import Started


def test_note_of_a_living_server_is_believed_and_a_stale_one_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain = Started("http://127.0.0.1:1", "desk", "r:v1", False)
    program._note_address(store, replace(plain, certificate="/c.pem"))
    assert running_server(store) == Endpoint("http://127.0.0.1:1", None, Path("/c.pem"))
    program._note_address(store, plain)
    assert running_server(store) == Endpoint("http://127.0.0.1:1", None)
    note = store.root / "serve.json"
    for stale in ({"mark": "other"}, {"mark": None}, {"pid": 2**22 + 1}):
        note.write_text(json.dumps(json.loads(note.read_text()) | stale))
        assert running_server(store) is None
    for broken in ("{}", "[]", "{", json.dumps({"url": "u", "pid": os.getpid(), "started": 1.0})):
        note.write_text(broken)
        assert running_server(store) is None


def test_ctrl_c_while_the_engine_loads_ends_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_params", interrupted)
    monkeypatch.setattr(program, "use_language", lambda _: None)
    assert program.main(["--workspace", str(tmp_path), "--deployment", "desk"]) == 130
