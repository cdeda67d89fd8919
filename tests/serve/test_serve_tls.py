"""TLS for both faces: files that cannot work are named before anything loads, and plain clients are turned away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serve_endpoint import Endpoint as Running
from serve_endpoint import run_once, workspace_with_two_releases

from inhouse.api.bench_serve import BenchServeRequest, bench_serve
from inhouse.api.chat import Endpoint, stream_chat
from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.core.run import Events, process_mark
from inhouse.release.registry import Registry
from inhouse.release.settings import ServeParams, TlsParams
from inhouse.serve.tls import secure

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
CA = """
[ca]
default_ca = own
[own]
database = {folder}/index
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


def made(folder: Path, name: str = "own", *more: str) -> TlsParams:
    """A certificate that signs itself, for this machine's loopback."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl("req", "-x509", *CURVE, "-nodes", "-keyout", str(key), "-out", str(cert), "-days", "365", *names, *more)
    key.chmod(0o600)
    return TlsParams(cert=cert, key=key)


def between(folder: Path, first: str, last: str) -> TlsParams:
    """One that is valid between two dates."""
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")
    (folder / "ca.conf").write_text(CA.format(folder=folder))
    plain = made(folder)
    request, cert = folder / "request.pem", folder / "dated.pem"
    openssl("req", "-new", "-key", str(plain.key), "-subj", "/CN=localhost", "-out", str(request))
    words = ("-config", str(folder / "ca.conf"), "-selfsign", "-keyfile", str(plain.key), "-in", str(request))
    openssl("ca", "-batch", "-notext", *words, "-out", str(cert), "-startdate", first, "-enddate", last)
    return TlsParams(cert=cert, key=plain.key)


def refused(asked: TlsParams) -> UserError:
    with pytest.raises(UserError) as error:
        secure(asked)
    assert str(asked.cert) in str(error.value) or str(asked.key) in str(error.value)
    return error.value


def test_certificate_with_its_key_is_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = secure(made(tmp_path))
    assert found.certificate.startswith(b"-----BEGIN") and b"PRIVATE KEY" in found.key
    assert found.context.minimum_version >= ssl.TLSVersion.TLSv1_2 and caplog.text == ""


def test_files_that_are_missing_or_no_such_thing_are_named(tmp_path: Path) -> None:
    good = made(tmp_path)
    text, der = tmp_path / "text", tmp_path / "der"
    text.write_text("hello")
    openssl("x509", "-in", str(good.cert), "-outform", "DER", "-out", str(der))
    gone = tmp_path / "gone"
    assert refused(TlsParams(cert=gone, key=good.key)).code == "serve.tls_unreadable"
    assert refused(TlsParams(cert=good.cert, key=gone)).code == "serve.tls_unreadable"
    assert refused(TlsParams(cert=tmp_path, key=good.key)).code == "serve.tls_unreadable"
    assert refused(TlsParams(cert=text, key=good.key)).code == "serve.tls_no_certificate"
    assert refused(TlsParams(cert=der, key=good.key)).code == "serve.tls_no_certificate"
    assert refused(TlsParams(cert=good.cert, key=text)).code == "serve.tls_no_key"
    assert refused(TlsParams(cert=good.cert, key=good.cert)).code == "serve.tls_no_key"
    broken = tmp_path / "broken"
    broken.write_text(good.cert.read_text().replace("M", "#", 3))
    assert refused(TlsParams(cert=broken, key=good.key)).code == "serve.tls_unusable"


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    assert refused(TlsParams(cert=made(tmp_path).cert, key=made(tmp_path, "b").key)).code == "serve.tls_mismatch"


@pytest.mark.parametrize("form", [("pkcs8", "-topk8", "-v2", "aes-256-cbc"), ("ec", "-aes256")])
def test_encrypted_key_is_refused_and_nobody_is_asked_for_its_passphrase(tmp_path: Path, form: tuple[str, ...]) -> None:
    good, locked = made(tmp_path), tmp_path / "locked"
    openssl(*form, "-in", str(good.key), "-out", str(locked), "-passout", "pass:secret")
    assert refused(TlsParams(cert=good.cert, key=locked)).code == "serve.tls_locked"


def test_certificate_out_of_its_dates_is_refused_and_one_that_ends_soon_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert refused(between(tmp_path, "20200101000000Z", "20210101000000Z")).code == "serve.tls_expired"
    assert refused(between(tmp_path, "21200101000000Z", "21210101000000Z")).code == "serve.tls_not_yet_valid"
    soon = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + 5 * 86_400))
    secure(between(tmp_path, "20200101000000Z", soon))
    assert "5 more days" in caplog.text


def test_certificate_that_is_for_clients_only_is_refused(tmp_path: Path) -> None:
    assert refused(made(tmp_path, "client", "-addext", "extendedKeyUsage=clientAuth")).code == "serve.tls_unusable"


def test_key_that_others_may_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = made(tmp_path)
    asked.key.chmod(0o644)
    secure(asked)
    assert f"chmod 600 {asked.key}" in caplog.text


@pytest.mark.real
def test_both_faces_answer_over_tls_and_turn_plain_clients_away(
    tmp_path: Path, smollm2_gguf: Path, launch_on: Callable[[Registry, ServeParams], Running]
) -> None:
    registry = workspace_with_two_releases(tmp_path / "ws", smollm2_gguf)
    tls = made(tmp_path)
    lost = TlsParams(cert=tls.cert, key=tmp_path / "gone")
    assert run_once(registry, ServeParams(port=0, tls=lost))[1]["error"]["code"] == "serve.tls_unreadable"
    server = launch_on(registry, ServeParams(port=0, grpc_port=0, tls=tls))
    assert server.url.startswith("https://127.0.0.1:") and server.grpc is not None
    headers = {"Authorization": f"Bearer {server.key}"}
    trust = ssl.create_default_context(cafile=str(tls.cert))
    with httpx.Client(base_url=server.url, headers=headers, verify=trust, trust_env=False, timeout=60) as client:
        body = {"model": "desk", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
        whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        pinned = Endpoint(server.url, server.key, tls.cert)
        asked = [Message(role="user", content="Hi")]
        assert "".join(stream_chat(pinned, "desk", asked, 4)) == whole
        with pytest.raises(UserError) as unknown:
            list(stream_chat(Endpoint(server.url, server.key), "desk", asked, 4))
        assert unknown.value.code == "chat.unreachable"
        with pytest.raises(UserError):
            list(stream_chat(Endpoint(server.url, server.key, tls.key), "desk", asked, 4))
        assert measured_over_tls(registry, server, tls.cert) == (server.url, False, 0)
        host, port = server.url.removeprefix("https://").split(":")
        began = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP/1.1 200")
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as error:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() - began < 5
        credentials = grpc.ssl_channel_credentials(tls.cert.read_bytes())
        with grpc.secure_channel(server.grpc, credentials) as channel:
            told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        assert client.get("/health").status_code == 200
    assert server.stop() == 0


def measured_over_tls(registry: Registry, server: Running, certificate: Path) -> tuple[str, bool, int]:
    """What `bench serve` measures where this server is the workspace's: its address, if one was started, failures."""
    note = {"url": server.url, "pid": server.process.pid, "mark": process_mark(server.process.pid)}
    (registry.store.root / "serve.json").write_text(json.dumps(note | {"certificate": str(certificate)}))
    asked = {"workspace": registry.store.root, "deployment": "desk", "key": server.key, "clients": (2,), "requests": 1}
    found = bench_serve(BenchServeRequest.model_validate(asked | {"max_tokens": 4}), Events())
    by_address = BenchServeRequest.model_validate(asked | {"max_tokens": 4, "url": f"{server.url}/v1"})
    assert bench_serve(by_address, Events()).lines[0].failed == 0
    (registry.store.root / "serve.json").unlink()
    with pytest.raises(UserError, match="certificate verify failed"):
        bench_serve(by_address, Events())
    return found.url, found.started, sum(line.failed for line in found.lines)


def test_unreadable_key_is_said_as_such(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    asked = made(tmp_path)
    asked.key.chmod(0)
    assert refused(asked).code == "serve.tls_unreadable"
