"""The client of engines: against a server that sends exactly what each case needs."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import weakref
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from http_fake import HEAD, Answer, Asked, Fake, chunk, events, listening, whole

from inhouse.core.serving import EngineLost, EngineSilent
from inhouse.engines.http_connection import DONE, EVENT_BYTES, UNREAD_EVENTS, Connection
from inhouse.engines.http_stream import Origin, Patience, Refused
from inhouse.engines.remote_discovery import authorities

QUICK = Patience(2.0, 5.0)


def says(data: bytes, keep: bool = True) -> Answer:
    """An engine that always sends these bytes."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        writer.write(data)
        return keep

    return answer


def run(answer: Answer, use: Callable[[Origin, Fake], Coroutine[Any, Any, Any]], patience: Patience = QUICK) -> Any:
    async def go() -> Any:
        async with asyncio.timeout(10), listening(answer) as fake:
            origin = Origin(fake.url, {"Authorization": "Bearer k"}, patience)
            try:
                return await use(origin, fake)
            finally:
                await origin.close()

    return asyncio.run(go())


async def collected(origin: Origin, fake: Fake) -> list[str]:
    return [data async for together in origin.stream("/go", b"{}") for data in together]


async def called(origin: Origin, fake: Fake) -> tuple[int, bytes]:
    return await origin.call("/go", b"{}")


def test_stream_gives_data_until_the_end_mark_and_leaves_comments_out() -> None:
    body = chunk(b": ping\n\ndata: null\n\nevent: x\ndata: {1}\nid: 7\n\ndata: [DONE]\n\ndata: never\n\n")
    assert run(says(HEAD + body + chunk(b"")), collected) == ["null", "{1}"]


def test_stream_whose_events_are_cut_anywhere_is_the_same() -> None:
    stream = "data: é\n\ndata: 你好 🙂\r\n\r\ndata: [DONE]\n\n".encode()

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for byte in stream:
            writer.write(chunk(bytes([byte])))
            await writer.drain()
        writer.write(chunk(b""))

    assert run(answer, collected) == ["é", "你好 🙂"]


EVENTS = (
    "data: {1}\n\n", "data: 你好\n\n", "data:x\n\n", "data: \n\n", "data\n\n", ": ping\n\n", "event: e\ndata: y\n\n",
    "data: a\ndata: b\n\n", "data: z\r\n\r\n", "id: 7\n\n", "retry: 5\ndata: r\n\n", "\n", "data: [DONE]\n\n",
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=8), st.lists(st.integers(0, 120), max_size=6))
def test_events_are_those_that_a_parser_of_events_reads_however_they_are_cut(told: list[str], cuts: list[int]) -> None:
    raw = "".join(told).encode()
    lines, decoder, wanted = SSELineDecoder(), SSEDecoder(), list[str]()
    for line in lines.decode(raw.decode()):
        if (event := decoder.decode(line)) is not None and event.data:
            wanted.append(event.data)
    wanted = wanted[: wanted.index(DONE)] if DONE in wanted else wanted

    async def go() -> list[str]:
        connection = Connection(60.0)
        connection.begin(events=True)
        connection.busy = True
        connection.data_received(HEAD)
        bounds = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
        for begin, end in pairwise(bounds):
            if begin < end:
                connection.data_received(chunk(raw[begin:end]))
        assert connection.done == (DONE in "".join(told))
        return connection._events or []

    assert asyncio.run(go()) == wanted


@pytest.mark.parametrize("takes", [lambda data: True, lambda data: False, lambda data: int(data) % 3 > 0], ids=range(3))
def test_what_is_pushed_is_not_given_and_what_is_not_taken_keeps_its_place(takes: Callable[[str], bool]) -> None:
    told = [str(number) for number in range(30)]

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for data in told:
            writer.write(chunk(f"data: {data}\n\n".encode()))
            await writer.drain()
            if int(data) % 4:
                await asyncio.sleep(0.001)
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))

    async def use(origin: Origin, fake: Fake) -> tuple[list[str], list[str], bool]:
        got: list[str] = []
        given: list[str] = []

        def push(together: list[str]) -> bool:
            if taken := all(map(takes, together)):
                got.extend(together)
            return taken

        async for together in origin.stream("/go", b"{}", push):
            got += together
            given += together
        return got, given, all(connection.push is None for connection in (*origin._idle, *origin._busy))

    got, given, forgotten = run(answer, use)
    assert got == told
    assert forgotten
    assert any(map(takes, told)) == (len(given) < len(told))


def test_events_that_arrive_together_are_given_together() -> None:
    async def use(origin: Origin, fake: Fake) -> list[int]:
        return [len(together) async for together in origin.stream("/go", b"{}")]

    assert run(says(events(*"abcdef")), use) == [6]


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"])
def test_stream_without_a_length_ends_with_its_connection(head: bytes) -> None:
    assert run(says(head + b"data: a\n\ndata: [DONE]\n", keep=False), collected) == ["a"]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(events("a", done=False), id="ends without the end mark"),
        pytest.param(HEAD + chunk(b"data: a\n\n"), id="connection closed on the way"),
        pytest.param(HEAD + chunk(b"data: a\n\n") + b"zz\r\n", id="no HTTP any more"),
        pytest.param(HEAD + chunk(b"data: a\n\n") + chunk(b"data: \xff\n\n"), id="not UTF-8"),
        pytest.param(HEAD + chunk(b"data: a\n\n") + chunk(b"x" * (EVENT_BYTES + 1)), id="a line without an end"),
        pytest.param(HEAD + chunk(b"data: a\n\n") + chunk(b"data: y\n" * (EVENT_BYTES // 8 + 1)), id="endless event"),
    ],
)
def test_broken_stream_gives_what_came_and_then_means_that_the_engine_is_lost(sent: bytes) -> None:
    async def use(origin: Origin, fake: Fake) -> list[str]:
        got: list[str] = []
        with pytest.raises(EngineLost):
            async for together in origin.stream("/go", b"{}"):
                got += together
        return got

    assert run(says(sent, keep=False), use) == ["a"]


@pytest.mark.parametrize(
    "sent", [b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, whole(b"ab")[:-1]], ids=range(4)
)
def test_broken_reply_means_that_the_engine_is_lost(sent: bytes) -> None:
    with pytest.raises(EngineLost):
        run(says(sent, keep=False), called)


def test_engine_that_is_not_there_is_lost() -> None:
    async def go() -> None:
        await Origin("http://127.0.0.1:9", patience=Patience(1.0)).call("/", b"")

    with pytest.raises(EngineLost):
        asyncio.run(go())


@pytest.mark.parametrize("begin", [b"", HEAD, HEAD + chunk(b"data: a\n\n")], ids=["nothing", "headers", "an event"])
def test_engine_that_says_nothing_more_is_silent(begin: bytes) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        await writer.drain()
        await asyncio.Event().wait()

    with pytest.raises(EngineSilent):
        run(answer, collected, Patience(2.0, 0.15))


def test_engine_that_keeps_sending_is_not_silent() -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _ in range(6):
            writer.write(chunk(b": ping\n\n"))
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(events("a")[len(HEAD) :])

    assert run(answer, collected, Patience(2.0, 0.2)) == ["a"]


def test_refusal_carries_status_and_body() -> None:
    with pytest.raises(Refused) as error:
        run(says(whole(b'{"error": 1}', 400)), collected)
    assert (error.value.status, error.value.body) == (400, b'{"error": 1}')


def test_redirect_is_not_followed() -> None:
    async def use(origin: Origin, fake: Fake) -> tuple[int, int]:
        status, _ = await origin.call("/go")
        return status, len(fake.asked)

    assert run(says(whole(b"", 302, "Location: /elsewhere\r\n")), use) == (302, 1)


def test_refusal_without_an_end_is_not_read_for_ever() -> None:
    with pytest.raises(EngineLost):
        run(says(b"HTTP/1.1 500 X\r\n\r\n" + b"x" * 70_000), collected)


def test_request_is_what_was_asked() -> None:
    async def use(origin: Origin, fake: Fake) -> None:
        await origin.call("/a?b=c", b'{"x": 1}', {"traceparent": "00-1"})
        await origin.call("/list")

    async def go() -> Fake:
        async with listening(says(whole(b"{}"))) as fake:
            origin = Origin(fake.url + "/base/", {"Authorization": "Bearer k"})
            await use(origin, fake)
            await origin.close()
            return fake

    fake = asyncio.run(go())
    first, second = fake.asked
    assert (first.verb, first.path, first.json) == ("POST", "/base/a?b=c", {"x": 1})
    assert (first.headers["authorization"], first.headers["traceparent"]) == ("Bearer k", "00-1")
    assert first.headers["host"] == fake.url.removeprefix("http://")
    assert (second.verb, second.path, second.body) == ("GET", "/base/list", b"")


def test_connection_is_used_again_after_streams_and_plain_requests() -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(events("a") if asked.path == "/go" else whole(b"{}"))

    async def use(origin: Origin, fake: Fake) -> int:
        for _ in range(3):
            assert await collected(origin, fake) == ["a"]
            assert await origin.call("/plain") == (200, b"{}")
        return fake.connections

    assert run(answer, use) == 1


def test_connection_whose_response_ends_late_is_used_again() -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(events("a")[: -len(chunk(b""))])
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(chunk(b""))

    async def use(origin: Origin, fake: Fake) -> int:
        assert await collected(origin, fake) == ["a"]
        while origin._busy:
            await asyncio.sleep(0.01)
        assert await collected(origin, fake) == ["a"]
        return fake.connections

    assert run(answer, use) == 1


@pytest.mark.parametrize("extra", ["Connection: close\r\n", ""])
def test_request_on_a_connection_that_the_engine_closed_is_sent_again(extra: str) -> None:
    """llama.cpp closes after a stream without saying so: the request on it gets no byte of an answer."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(b"{}", 200, extra))
        return False

    async def use(origin: Origin, fake: Fake) -> tuple[int, int]:
        for _ in range(5):
            assert await origin.call("/go", b"{}") == (200, b"{}")
        return len(fake.asked), fake.connections

    assert run(answer, use) == (5, 5)


def test_request_that_was_begun_to_be_answered_is_not_sent_again() -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        if asked.path == "/ok":
            writer.write(whole(b"{}"))
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-")
        return False

    async def use(origin: Origin, fake: Fake) -> int:
        await origin.call("/ok")
        with pytest.raises(EngineLost):
            await origin.call("/go", b"{}")
        return len(fake.asked)

    assert run(answer, use) == 2


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async def use(origin: Origin, fake: Fake) -> list[str]:
        await origin.call("/go")
        first = await collected(origin, fake)
        return first

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"{}") + whole(b"more") if asked.verb == "GET" else events("a"))

    assert run(answer, use) == ["a"]


def held(begin: bytes) -> Answer:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
        writer.write(begin)
        await writer.drain()
        while not asked.client_gone():
            await asyncio.sleep(0.005)
        return False

    return answer


def test_closed_stream_closes_the_connection_at_once() -> None:
    async def use(origin: Origin, fake: Fake) -> float:
        stream = origin.stream("/go", b"{}")
        await anext(stream)
        began = asyncio.get_running_loop().time()
        await stream.aclose()
        await fake.gone.wait()
        assert not origin._busy and not origin._idle
        return asyncio.get_running_loop().time() - began

    assert run(held(HEAD + chunk(b"data: a\n\n")), use) < 0.05


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], ids=["no head", "a part"])
def test_cancelled_request_closes_the_connection_at_once(begin: bytes) -> None:
    async def use(origin: Origin, fake: Fake) -> float:
        asking = asyncio.create_task(origin.call("/go", b"{}"))
        while not fake.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        began = asyncio.get_running_loop().time()
        asking.cancel()
        await asyncio.wait([asking])
        await fake.gone.wait()
        return asyncio.get_running_loop().time() - began

    assert run(held(begin), use) < 0.05


def test_slow_reader_holds_the_engine_back_and_loses_nothing() -> None:
    count = 20 * UNREAD_EVENTS

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for number in range(count):
            writer.write(chunk(f"data: {number}{'.' * 500}\n\n".encode()))
            if number % 100 == 0:
                await writer.drain()
        writer.write(events()[len(HEAD) :])

    async def use(origin: Origin, fake: Fake) -> tuple[int, list[int]]:
        most, seen = 0, []
        async for together in origin.stream("/go", b"{}"):
            most = max(most, len(together))
            seen += [int(data.rstrip(".")) for data in together]
            await asyncio.sleep(0.001)
        return most, seen

    most, seen = run(answer, use, Patience(2.0, 1.0))
    assert seen == list(range(count))
    assert most < 2 * UNREAD_EVENTS + 1000  # one read of the socket at most beyond the bound


def test_informational_response_is_not_the_answer() -> None:
    assert run(says(b"HTTP/1.1 103 Early Hints\r\n\r\n" + whole(b"{}")), called) == (200, b"{}")


def test_idle_connections_are_bounded() -> None:
    async def use(origin: Origin, fake: Fake) -> int:
        await asyncio.gather(*(origin.call("/go") for _ in range(6)))
        return len(origin._idle)

    assert run(says(whole(b"{}")), use, Patience(2.0, 5.0, most_idle=2)) == 2


@pytest.mark.parametrize("url", ["ftp://a", "http://", "nonsense", "http://bücher.example"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an http address"):
        Origin(url)


def test_header_with_a_line_break_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        Origin("http://127.0.0.1:1", {"X": "a\r\nY: b"})


def test_https_is_verified_against_the_given_authorities(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)

    async def serve() -> tuple[int, bytes]:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(whole(b"{}"))
            await writer.drain()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            with pytest.raises(EngineLost):
                await Origin(url).call("/")
            trusted = Origin(url, tls=authorities(certificate))
            try:
                return await trusted.call("/")
            finally:
                await trusted.close()

    assert asyncio.run(serve()) == (200, b"{}")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1."""
    import subprocess

    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=inhouse-test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_connection_that_is_over_is_gone_at_once_and_not_when_garbage_is_looked_for() -> None:
    async def use(origin: Origin, fake: Fake) -> None:
        stream = origin.stream("/go", b"{}")
        assert await anext(stream) == ["{1}"]
        (left,) = [weakref.ref(connection) for connection in origin._busy]
        gc.disable()
        try:
            await stream.aclose()  # as when a client leaves in the middle
            del stream
            async with asyncio.timeout(2):
                while left() is not None:
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()

    run(says(HEAD + chunk(b"data: {1}\n\n")), use)
