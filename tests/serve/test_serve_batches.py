"""Files and batches: what the official client gets, what is refused, and what a kill leaves."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serve_endpoint import Endpoint, workspace_with_two_releases

from inhouse.core.store import Store
from inhouse.release.batches import Batch, Line, add_batch, add_lines, get_batch
from inhouse.release.keys import create_key, list_keys, revoke_key
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import BatchParams, FileParams, ServeParams
from inhouse.release.stored import StoredFile, add_file, new_id
from inhouse.serve.background import Background
from inhouse.serve.batch_lines import Bounds, body_of, check_input
from inhouse.serve.errors import ApiError
from inhouse.serve.file_store import FileStore, no_space
from inhouse.serve.http import Call, Connection
from inhouse.serve.uploads import receive_upload
from inhouse.serve.webhooks import allowed, announce

real = pytest.mark.real
CHAT = "/v1/chat/completions"
BOUNDS = Bounds(CHAT, most_lines=5, most_bytes=2000)


def request(custom_id: Any, **changes: Any) -> dict[str, Any]:
    body = {"model": "desk", "messages": [{"role": "user", "content": f"Say {custom_id}."}], "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(requests: Sequence[Any]) -> bytes:
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in requests]
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_lines_of_an_input_are_found_at_their_places(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "input"
    path.write_bytes(mark + jsonl([request("a"), b"", request("银行")]) + json.dumps(request("last")).encode())
    lines, errors = check_input(path, BOUNDS)
    assert errors == [] and [(line.line, line.custom_id) for line in lines] == [(1, "a"), (3, "银行"), (4, "last")]
    assert json.loads(body_of(path, lines[0])) == request("a")["body"]
    assert json.loads(body_of(path, lines[1])) == request("银行")["body"]
    assert json.loads(body_of(path, lines[2])) == request("last")["body"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"\xff\xfe", "invalid_json_line"),
        (b"[1]", "invalid_json_line"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "line_too_long"),
        (b"[" * 1900, "invalid_json_line"),
        (request(""), "missing_custom_id"),
        (request(3), "missing_custom_id"),
        (request("x" * 513), "missing_custom_id"),
        (request("a"), "duplicate_custom_id"),
        (request("b", method="GET"), "invalid_method"),
        (request("b", url="/v1/files"), "mismatched_url"),
        (request("b", body=[]), "invalid_body"),
        (request("b", body={"stream": True}), "invalid_body"),
        (b"x" * 5000, "line_too_long"),
    ],
)
def test_bad_line_is_told_with_its_number_and_the_others_are_still_read(tmp_path: Path, line: Any, code: str) -> None:
    path = tmp_path / "input"
    path.write_bytes(jsonl([request("a"), line, request("c")]))
    lines, errors = check_input(path, BOUNDS)
    assert [(error["code"], error["line"]) for error in errors] == [(code, 2)]
    assert [each.custom_id for each in lines] == ["a", "c"]
    assert json.loads(body_of(path, lines[1])) == request("c")["body"]


def test_empty_and_too_long_inputs_are_told(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\n\n")
    assert [error["code"] for error in check_input(path, BOUNDS)[1]] == ["empty_file"]
    path.write_bytes(jsonl([request(str(number)) for number in range(9)]))
    assert [(error["code"], error["line"]) for error in check_input(path, BOUNDS)[1]] == [("too_many_requests", 6)]
    path.write_bytes(b"{\n" * 500)
    assert len(check_input(path, BOUNDS)[1]) == 100


@pytest.mark.parametrize(
    ("url", "hosts", "may"),
    [
        ("https://hooks.example.org/x", ("hooks.example.org",), True),
        ("http://127.0.0.1:81/x", ("127.0.0.1:81",), True),
        ("http://127.0.0.1:82/x", ("127.0.0.1:81",), False),
        ("https://hooks.example.org:444/", ("hooks.example.org",), False),
        ("https://hooks.example.org.evil.net/", ("hooks.example.org",), False),
        ("https://hooks.example.org@evil.net/", ("hooks.example.org",), False),
        ("https://user@hooks.example.org/", ("hooks.example.org",), False),
        ("file:///etc/passwd", ("",), False),
        ("http://[::1", ("::1",), False),
        ("https://x:99999/", ("x",), False),
        ("https://hooks.example.org/x", (), False),
    ],
)
def test_only_named_hosts_are_told(url: str, hosts: tuple[str, ...], may: bool) -> None:
    assert allowed(url, hosts) is may


def upload(
    body: bytes, most: int = 1000, kind: str = "multipart/form-data; boundary=B", pieces: int = 7, **headers: str
) -> tuple[Any, bytes]:
    """A form as it comes in pieces: what was read of it, and what was written."""
    messages = [
        {"type": "http.request", "body": body[at : at + pieces], "more_body": at + pieces < len(body)}
        for at in range(0, max(1, len(body)), pieces)
    ]
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(message: dict[str, Any]) -> None: ...

    told = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    told[b"content-type"] = kind.encode()
    out = io.BytesIO()
    call = Call({}, receive, Connection(send, "x"), told, 1000)
    return asyncio.run(receive_upload(call, out, most)), out.getvalue()


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def test_form_is_read_in_whatever_pieces_it_comes() -> None:
    content = b"one\r\n--Bogus\r\ntwo" * 20
    body = part("purpose", b"batch") + part("file", content, '; filename="../../etc/passwd"') + b"--B--\r\n"
    for pieces in (1, 7, 10_000):
        found, written = upload(body, pieces=pieces)
        assert written == content and found.bytes == len(content)
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert found.fields == {"purpose": "batch"} and "passwd" in found.filename


@pytest.mark.parametrize(
    ("body", "told", "status"),
    [
        (part("file", b"x" * 1001) + b"--B--\r\n", {}, 413),
        (b"", {"content_length": "9999999"}, 413),
        (b"", {"content_length": "-1"}, 413),
        (b"", {"content_encoding": "gzip"}, 415),
        (b"", {"kind": "application/json"}, 415),
        (b"", {"kind": "multipart/form-data"}, 415),
        (b"", {"kind": "multipart/form-data; boundary=" + "b" * 500}, 400),
        (b"nonsense", {}, 400),
        (part("file", b"x"), {}, 400),
        (part("purpose", b"batch") + b"--B--\r\n", {}, 400),
        (part("purpose", b"x" * 2000) + b"--B--\r\n", {}, 400),
        (part("x", b"") * 17 + b"--B--\r\n", {}, 400),
        (b"--B\r\n" + b"H" * 100_000, {"pieces": 50_000}, 400),
        (part("file", b"y" * 500) + b"z" * 70_000, {"most": 600, "pieces": 50_000}, 413),
    ],
)
def test_form_that_is_broken_or_too_large_is_refused(body: bytes, told: dict[str, Any], status: int) -> None:
    with pytest.raises(ApiError) as error:
        upload(body, **told)
    assert error.value.status == status


@pytest.fixture
def store(tmp_path: Path) -> tuple[FileStore, int]:
    """A store of files of 40 bytes a key, and a key."""
    registry = open_registry(Store(tmp_path))
    _, key = create_key(registry.engine, "mine")
    return FileStore(registry.engine, tmp_path / "files", FileParams().model_copy(update={"quota_bytes": 40})), key.id


def received(store: FileStore, key: int, content: bytes) -> str:
    body = part("purpose", b"batch") + part("file", content, '; filename="a"') + b"--B--\r\n"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None: ...

    headers = {b"content-type": b"multipart/form-data; boundary=B"}
    made, _ = asyncio.run(store.receive(Call({}, receive, Connection(send, "x"), headers, 1000), key))
    return made.id


def test_quota_counts_all_files_of_a_key_and_leaves_nothing_of_a_refused_one(store: tuple[FileStore, int]) -> None:
    files, key = store
    first = received(files, key, b"x" * 30)
    with pytest.raises(ApiError) as error:
        received(files, key, b"x" * 11)
    assert error.value.status == 413 and error.value.code == "file_quota_exceeded"
    assert [path.name for path in files.root.iterdir()] == [first]
    asyncio.run(files.delete(key, first))
    received(files, key, b"x" * 11)


def test_results_written_twice_are_one_file_and_empty_ones_are_none(store: tuple[FileStore, int]) -> None:
    files, key = store
    result = StoredFile("file-" + "a" * 32, key, "batch_output", "out", 0, "", 1)
    assert files.write(result, iter([b""])) is None and list(files.root.iterdir()) == []
    first = files.write(result, iter([b"one\n", b"two\n"]))
    assert first is not None and first.bytes == 8 and first == files.write(result, iter([b"one\n", b"two\n"]))
    assert files.path(result.id).read_bytes() == b"one\ntwo\n"
    with pytest.raises(ApiError):
        files.path("../registry.db")


def test_expired_files_and_abandoned_uploads_are_deleted(store: tuple[FileStore, int]) -> None:
    files, key = store
    kept = received(files, key, b"kept")
    gone = StoredFile("file-" + "b" * 32, key, "batch", "a", 1, "", 1, expires=2)
    files.path(gone.id).write_bytes(b"x")
    add_file(files.engine, gone)
    (files.root / ".upload-new").touch()
    (files.root / ".upload-old").touch()
    os.utime(files.root / ".upload-old", (1, 1))
    files.tidy()
    assert {path.name for path in files.root.iterdir()} == {kept, ".upload-new"}


def test_full_disk_is_told_without_its_path() -> None:
    with pytest.raises(ApiError) as error, no_space():
        raise OSError(errno.ENOSPC, "No space left on device", "/srv/secret")
    assert error.value.status == 507 and "secret" not in error.value.message
    with pytest.raises(FileNotFoundError), no_space():
        raise FileNotFoundError


def test_refused_webhook_is_tried_again_and_a_redirect_is_not_followed(
    hook: HTTPServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("inhouse.serve.webhooks.PAUSES_S", (0.0, 0.0))
    url = f"http://127.0.0.1:{hook.server_address[1]}"
    hook.codes = [302, 500]  # type: ignore[attr-defined]
    asyncio.run(announce(f"{url}/done", "batch.completed", "batch_1"))
    assert [told["data"]["id"] for told in hook.told] == ["batch_1"] * 3  # type: ignore[attr-defined]
    assert "not accepted" not in caplog.text
    asyncio.run(announce("http://127.0.0.1:1/", "batch.completed", "batch_2"))
    assert "batch_2" in caplog.text


def test_background_work_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        background, came, times = Background(), asyncio.Event(), 0

        def fails_once() -> None:
            nonlocal times
            times += 1
            if times == 1:
                raise ZeroDivisionError("busy")
            loop.call_soon_threadsafe(came.set)

        async def breaks() -> None:
            raise ValueError("a bug")

        loop = asyncio.get_running_loop()
        background.every("again", 0.0, fails_once)
        await asyncio.wait_for(came.wait(), 10)
        background.start("bug", breaks())
        await asyncio.sleep(0)
        await background.stop()

    asyncio.run(play())
    assert "busy" in caplog.text and "a bug" in caplog.text


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60)


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def ended(client: openai.OpenAI, batch: str, seconds: float = 90) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = client.batches.retrieve(batch)
        if found.status in ("completed", "failed", "cancelled", "expired"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {found.status}, {found.request_counts}")


def send(client: openai.OpenAI, requests: Sequence[Any]) -> str:
    return client.files.create(file=("in.jsonl", jsonl(requests)), purpose="batch").id


def results(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    assert file is not None
    lines = [json.loads(line) for line in client.files.content(file).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)  # none twice
    return {line["custom_id"]: line for line in lines}


@real
def test_file_comes_back_as_it_was_sent_and_only_to_its_key(client: openai.OpenAI, endpoint: Endpoint) -> None:
    content = jsonl([request("a")])
    made = client.files.create(file=("../../etc/passwd", content), purpose="batch")
    assert made.bytes == len(content) and made.purpose == "batch" and made.id.startswith("file-")
    assert client.files.content(made.id).content == content
    again = client.files.create(file=("b.jsonl", content), purpose="batch")
    listed = [file.id for file in client.files.list(limit=1)]  # page by page
    assert {made.id, again.id} <= set(listed)
    folder = endpoint.registry.store.root / "files"
    assert {path.name for path in folder.iterdir()} >= {made.id, again.id}  # ids of ours, nobody's names
    other, _ = create_key(endpoint.registry.engine, "other")
    stranger = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=other, max_retries=0)
    for refused in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError):
            refused(made.id)
    with pytest.raises(openai.NotFoundError):
        stranger.batches.create(input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert not (folder / made.id).exists()


@real
@pytest.mark.parametrize("name", ["..%2f..%2fregistry.db", "%2e%2e", "file-x", "file-" + "0" * 32, "a" * 4000])
def test_name_that_is_no_id_reaches_no_file(http: httpx.Client, name: str) -> None:
    for verb, path in (("GET", f"{name}/content"), ("GET", name), ("DELETE", name)):
        reply = http.request(verb, f"/v1/files/{path}")
        assert reply.status_code == 404 and "error" in reply.json()


@real
def test_upload_and_batch_out_of_bounds_are_refused(http: httpx.Client, client: openai.OpenAI) -> None:
    form = {"file": ("a", b"x")}
    assert http.post("/v1/files", files=form, data={"purpose": "vision"}).json()["error"]["param"] == "purpose"
    assert http.post("/v1/files", files=form).status_code == 400
    bad = http.post("/v1/files", files=form, data={"purpose": "batch", "expires_after[seconds]": "3"})
    assert bad.json()["error"]["param"] == "expires_after.seconds"
    good = http.post("/v1/files", files=form, data={"purpose": "batch", "expires_after[seconds]": "3600"}).json()
    assert good["expires_at"] - good["created_at"] == 3600
    assert http.get("/v1/files?limit=0").status_code == http.get("/v1/files?order=up").status_code == 400
    asked = {"input_file_id": good["id"], "endpoint": CHAT, "completion_window": "24h"}
    for change, param in (
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": 3}, "input_file_id"),
        ({"metadata": {"a": 3}}, "metadata.a"),
        ({"webhook": {"url": "http://169.254.169.254/"}}, "webhook.url"),
        ({"metadata": {"inhouse:webhook": "http://169.254.169.254/"}}, "metadata"),
    ):
        reply = http.post("/v1/batches", json={**asked, **change})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == param, reply.text
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_none")


@real
def test_batch_answers_every_line_and_tells_which_failed(client: openai.OpenAI) -> None:
    bad = request("bad")
    bad["body"]["temperature"] = 9
    file = send(client, [request("a"), bad, request("b")])
    made = client.batches.create(
        input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "test"}
    )
    assert made.status == "validating" and made.expires_at == made.created_at + 86400
    done = ended(client, made.id)
    assert done.status == "completed" and done.metadata == {"for": "test"}
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    assert done.in_progress_at and done.finalizing_at and done.completed_at
    good = results(client, done.output_file_id)
    assert list(good) == ["a", "b"] and good["a"]["error"] is None
    live = client.chat.completions.create(**request("a")["body"])
    assert good["a"]["response"]["status_code"] == 200
    assert good["a"]["response"]["body"]["choices"][0]["message"]["content"] == live.choices[0].message.content
    failed = results(client, done.error_file_id)
    assert failed["bad"]["response"]["status_code"] == 400
    assert failed["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert made.id in [batch.id for batch in client.batches.list(limit=1)]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)


@real
def test_batch_of_embeddings_and_responses_uses_their_routes(client: openai.OpenAI) -> None:
    embedding = request("e", url="/v1/embeddings", body={"model": "desk", "input": "sea"})
    response = request("r", url="/v1/responses", body={"model": "desk", "input": "Hello", "max_output_tokens": 2})
    made = [
        client.batches.create(input_file_id=send(client, [line]), endpoint=line["url"], completion_window="24h")
        for line in (embedding, response)
    ]
    vectors = results(client, ended(client, made[0].id).output_file_id)
    assert len(vectors["e"]["response"]["body"]["data"][0]["embedding"]) == 576
    answers = results(client, ended(client, made[1].id).output_file_id)
    assert answers["r"]["response"]["body"]["object"] == "response"


@real
def test_batch_with_a_bad_line_fails_before_the_first_answer(client: openai.OpenAI) -> None:
    made = client.batches.create(
        input_file_id=send(client, [request("a"), request("a"), b"{"]), endpoint="/v1/chat/completions",
        completion_window="24h",
    )  # fmt: skip
    done = ended(client, made.id)
    assert done.status == "failed" and done.output_file_id is None
    assert [(error.code, error.line) for error in done.errors.data] == [
        ("duplicate_custom_id", 2), ("invalid_json_line", 3),
    ]  # fmt: skip


@real
def test_cancelled_batch_keeps_what_is_answered_and_names_the_rest(client: openai.OpenAI, endpoint: Endpoint) -> None:
    many = [request(str(number)) for number in range(300)]
    for each in many:
        each["body"]["ignore_eos"] = True
    made = client.batches.create(
        input_file_id=send(client, many), endpoint="/v1/chat/completions", completion_window="24h"
    )
    own = next(key.id for key in list_keys(endpoint.registry.engine) if endpoint.key.startswith(key.prefix))
    wait_for_answers(endpoint.registry, own, made.id, 1)
    assert client.batches.cancel(made.id).status == "cancelling"
    done = ended(client, made.id)
    assert done.status == "cancelled" and done.cancelled_at and done.request_counts.total == 300
    good, rest = results(client, done.output_file_id), results(client, done.error_file_id)
    assert all(line["error"]["code"] == "batch_cancelled" for line in rest.values())
    assert good and not good.keys() & rest.keys() and len(good) + len(rest) == 300


def interrupted(registry: Registry, key: int, file: str, lines: Sequence[Line] = (), **changes: Any) -> Batch:
    """A batch as a server that was stopped while it looked at the input left it."""
    now = int(time.time())
    batch = Batch(new_id("batch_"), key, CHAT, file, "validating", now, now + 86400)
    made = add_batch(registry.engine, replace(batch, **changes))
    add_lines(registry.engine, made.id, lines)
    return made


@real
def test_batch_that_others_left_is_taken_up_expired_or_failed_with_the_reason(
    client: openai.OpenAI, endpoint: Endpoint, tmp_path: Path
) -> None:
    registry = endpoint.registry
    own = next(key.id for key in list_keys(registry.engine) if endpoint.key.startswith(key.prefix))
    _, gone = create_key(registry.engine, "gone")
    revoke_key(registry.engine, gone.prefix)
    file = send(client, [request("a"), request("b")])
    lines, _ = check_input(registry.store.root / "files" / file, BOUNDS)
    kept = interrupted(registry, own, file, lines)  # stopped after its lines were kept
    late = interrupted(registry, own, file, lines, status="in_progress", expires=int(time.time()) - 1)
    lost = interrupted(registry, own, "file-" + "0" * 32)
    revoked = interrupted(registry, gone.id, file, lines, status="in_progress")
    done = ended(client, kept.id)
    assert done.status == "completed" and set(results(client, done.output_file_id)) == {"a", "b"}
    expired = ended(client, late.id)
    assert expired.status == "expired" and expired.output_file_id is None
    assert {line["error"]["code"] for line in results(client, expired.error_file_id).values()} == {"batch_expired"}
    assert [error.code for error in ended(client, lost.id).errors.data] == ["input_file_gone"]
    until = time.monotonic() + 30
    while (found := get_batch(registry.engine, gone.id, revoked.id)) and found.status != "failed":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert found is not None and found.errors[0]["code"] == "invalid_api_key"


class Hook(BaseHTTPRequestHandler):
    """Keeps what it is told."""

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))  # type: ignore[attr-defined]
        self.send_response(self.server.codes.pop(0) if self.server.codes else 204)  # type: ignore[attr-defined]
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.server.came.set()  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hook() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.told, server.came, server.codes = [], threading.Event(), []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@real
def test_batch_killed_twice_has_every_answer_once(
    tmp_path: Path,
    smollm2_gguf: Path,
    launch_on: Callable[[Registry, ServeParams], Endpoint],
    hook: HTTPServer,
) -> None:
    registry = workspace_with_two_releases(tmp_path, smollm2_gguf)
    address = f"127.0.0.1:{hook.server_address[1]}"
    settings = ServeParams(port=0, queue=8, batches=BatchParams(parallel=2, webhooks=(address,)))
    server = launch_on(registry, settings)
    wanted = [str(number) for number in range(12)]
    token = server.key
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, max_retries=0)
    made = client.batches.create(
        input_file_id=send(client, [request(number) for number in wanted]),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"webhook": {"url": f"http://{address}/done"}},
    )
    (own,) = list_keys(registry.engine)
    for at_least in (2, 5):
        before = wait_for_answers(registry, own.id, made.id, at_least)
        assert at_least <= before < len(wanted)  # it is killed in the middle
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        server = launch_on(registry, settings)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, max_retries=0)
    done = ended(client, made.id)
    assert done.status == "completed" and done.request_counts.completed == len(wanted)
    assert list(results(client, done.output_file_id)) == wanted  # none lost, none twice, in their order
    assert hook.came.wait(20)  # type: ignore[attr-defined]
    told = hook.told[0]  # type: ignore[attr-defined]
    assert told["type"] == "batch.completed" and told["data"] == {"id": made.id}
    assert server.stop() == 0


def wait_for_answers(registry: Registry, key: int, batch: str, least: int) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = get_batch(registry.engine, key, batch)
        assert found is not None
        if found.completed + found.failed >= least:
            return found.completed + found.failed
        time.sleep(0.01)
    raise AssertionError(f"fewer than {least} answers")
