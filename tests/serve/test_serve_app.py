from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from inhouse.core.addresses import is_loopback, stays_here
from inhouse.core.errors import UserError
from inhouse.serve.app import bind


def test_taken_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            bind("127.0.0.1", port)
    assert error.value.code == "serve.port_in_use" and error.value.exit_code == 2
    assert str(port) in str(error.value) and "--port" in str(error.value)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "::ffff:0:0:0:0:1:2:3:4"])
def test_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(UserError) as error:
        bind(host, 0)
    assert error.value.code == "serve.bad_host"


def test_loopback_is_told_from_other_addresses() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(h) for h in ("0.0.0.0", "192.168.1.5", "example.org")] == [False] * 3
    assert stays_here("http://[::1]:8080/v1") and not stays_here("http://localhost.example.org") and not stays_here("x")


def test_importing_the_app_loads_no_web_library() -> None:
    code = (
        "import sys, inhouse.serve.app;"
        "print([m for m in ('uvicorn', 'httptools', 'httpx', 'sqlalchemy', 'prometheus_client') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
