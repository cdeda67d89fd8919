"""The door with TLS: connections count, and are timed, before their handshake is done."""

from __future__ import annotations

import select
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_serve_door import GET, OK, Served, closed, wait_for

from inhouse.serve import door

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
MOST = 16


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its certificate in one file."""
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost")
    words = ["openssl", "req", "-x509", *curve, "-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.fixture(scope="module")
def secured(certificate: Path) -> Iterator[Served]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (("KEEP_S", 1), ("HEAD_S", 0.5), ("LINGER_S", 0.3), ("SWEEP_S", 0.1)):
            patch.setattr(door, name, seconds)
        made = Served(MOST, context)
        yield made
        made.server.should_exit = True
        made.thread.join(10)
        made.listener.close()


def client(served: Served) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(served.connect())


def alive(raws: list[socket.socket]) -> int:
    """How many of these silent connections the server has not closed."""
    return len(raws) - len(select.select(raws, [], [], 0)[0])


def test_requests_over_tls_are_answered_and_told_apart(secured: Served) -> None:
    for _ in range(20):  # what comes right behind the handshake is not lost
        with client(secured) as raw:
            raw.sendall(GET[:-2] + b"Connection: close\r\n\r\n")
            assert closed(raw).startswith(OK)
    with client(secured) as raw:
        raw.sendall(GET * 3 + GET[:-2] + b"Connection: close\r\n\r\n")
        assert closed(raw).count(OK) == 4
    wait_for(lambda: secured.connections() == 0)


def test_clients_that_never_shake_hands_are_bounded_at_once(secured: Served) -> None:
    raws = [secured.connect() for _ in range(60)]
    wait_for(lambda: alive(raws) <= MOST, 0.4)
    with client(secured) as raw:
        raw.sendall(GET[:-2] + b"Connection: close\r\n\r\n")
        assert closed(raw).startswith(OK)
    for each in raws:
        each.close()
    wait_for(lambda: secured.connections() == 0)


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_handshake_may_take_no_longer_than_a_head(secured: Served, said: bytes) -> None:
    began = time.monotonic()
    with secured.connect() as raw:
        raw.sendall(said)
        assert closed(raw) == b""
    assert 0.4 < time.monotonic() - began < 2
    wait_for(lambda: secured.connections() == 0)


def test_clients_that_leave_or_speak_no_tls_leave_nothing_behind(secured: Served) -> None:
    for said in (b"", b"\x16\x03", GET, b"\x00" * 5000):
        with secured.connect() as raw:
            raw.sendall(said)
            if said == GET:
                assert not closed(raw).startswith(b"HTTP")
    raw = client(secured)
    raw.detach()
    wait_for(lambda: secured.connections() == 0)


def test_a_server_that_stops_does_not_wait_for_handshakes(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made = Served(MOST, context)
    with made.connect() as silent:
        wait_for(lambda: made.connections() == 1)
        made.server.should_exit = True
        began = time.monotonic()
        made.thread.join(10)
        assert not made.thread.is_alive() and time.monotonic() - began < 0.9
        assert closed(silent) == b""
    made.listener.close()
