"""The official client's script against the real server; every other client's: `python tests/serve/clients/run.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from serve_endpoint import Endpoint

sys.path.insert(0, str(Path(__file__).resolve().parent / "clients"))

from run import ask, environment, limited_key, use_up


@pytest.mark.real
def test_official_client_gets_what_its_users_expect(endpoint: Endpoint) -> None:
    limited = limited_key(endpoint.registry)
    use_up(endpoint.url, limited)
    found = ask(sys.executable, "openai_client.py", environment(endpoint.url, endpoint.key, limited))
    assert [check for check in found if not check["ok"]] == [] and len(found) > 10
