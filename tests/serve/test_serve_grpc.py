"""The endpoint over gRPC: the same answers as everywhere else, and refusals in gRPC's own words."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serve_endpoint import Endpoint, workspace_with_two_releases

from inhouse.api.chat import Endpoint as Asked
from inhouse.api.chat import stream_chat
from inhouse.core.messages import text
from inhouse.core.rows import Message
from inhouse.core.serving import Delta, Usage
from inhouse.release.keys import Key, Limits, create_key
from inhouse.release.registry import Registry
from inhouse.release.request_records import FILES, FOLDER
from inhouse.release.settings import ServeParams
from inhouse.serve.cache import Flight
from inhouse.serve.errors import ApiError, invalid, overloaded, unavailable
from inhouse.serve.grpc.compile import DESCRIPTION, compiled
from inhouse.serve.grpc.faces import StreamFace
from inhouse.serve.grpc.messages import chat_body, chat_choice, chat_delta, completion_body, embedding_body, message
from inhouse.serve.grpc.refusals import code_of, details_of
from inhouse.serve.grpc.server import while_wanted
from inhouse.serve.pipeline import Caller
from inhouse.serve.replies import Choice
from inhouse.serve.requests import Limits as RequestLimits
from inhouse.serve.requests import prepare, read_chat

real = pytest.mark.real
QUESTION = "Write one short sentence about the sea.<|im_end|>"  # its last characters are text, on every way
FRESH = ("cache-control", "no-store")
ANSWERS = {
    "Chat": "ChatCompletion", "ChatStream": "ChatChunk", "Complete": "Completion", "CompleteStream": "Completion",
    "Embed": "Embeddings", "ListModels": "ModelList",
}  # fmt: skip


class Client:
    """What a generated stub does."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {key}"), FRESH)

    def call(self, name: str, request: Any, timeout: float = 60) -> Any:
        make = self.channel.unary_stream if name.endswith("Stream") else self.channel.unary_unary
        method = make(
            f"/inhouse.v1.Inference/{name}",
            request_serializer=lambda asked: asked.SerializeToString(),
            response_deserializer=message(ANSWERS[name]).FromString,
        )
        return method(request, metadata=self.metadata, timeout=timeout)


@pytest.fixture(scope="module")
def channel(endpoint: Endpoint) -> Iterator[grpc.Channel]:
    assert endpoint.grpc is not None
    with grpc.insecure_channel(endpoint.grpc) as found:
        yield found


@pytest.fixture
def client(endpoint: Endpoint, channel: grpc.Channel) -> Client:
    return Client(channel, endpoint.key)


def chat(words: str = QUESTION, **more: Any) -> Any:
    asked = message("ChatRequest")(model="desk", messages=[message("ChatMessage")(role="user", content=words)])
    asked.sampling.max_tokens = more.pop("max_tokens", 8)
    asked.sampling.temperature = more.pop("temperature", 0.0)
    for name, value in more.items():
        setattr(asked, name, value)
    return asked


def running(endpoint: Endpoint) -> float:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    lines = httpx.get(f"{endpoint.url}/metrics", headers=headers, trust_env=False).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("inhouse_num_requests_running"))


@real
def test_python_command_line_rest_and_grpc_give_one_answer(endpoint: Endpoint, client: Client, tmp_path: Path) -> None:
    official = openai.OpenAI(
        base_url=f"{endpoint.url}/v1",
        api_key=endpoint.key,
        max_retries=0,
        default_headers={"Cache-Control": "no-store"},
    )
    asked: Any = {"model": "desk", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
    whole = official.chat.completions.create(**asked, temperature=0)
    pieces = official.chat.completions.create(**asked, temperature=0, stream=True)
    command = [
        str(Path(sys.executable).with_name("inhouse")),
        "chat",
        QUESTION,
        "--url",
        endpoint.url,
        "--key",
        endpoint.key,
    ]
    command += ["--workspace", str(tmp_path), "--deployment", "desk", "--max-tokens", "8", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    over_grpc = client.call("Chat", chat())
    chunks = list(client.call("ChatStream", chat()))
    answers = {
        "rest": whole.choices[0].message.content,
        "rest stream": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
        "python": "".join(
            stream_chat(Asked(endpoint.url, endpoint.key), "desk", [Message(role="user", content=QUESTION)], 8)
        ),
        "command line": json.loads(said)["answer"],
        "grpc": over_grpc.choices[0].message.content,
        "grpc stream": "".join(delta.content for chunk in chunks for delta in chunk.deltas),
    }
    assert len(set(answers.values())) == 1 and answers["grpc"], answers
    assert whole.usage is not None
    assert over_grpc.usage.prompt_tokens == chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert over_grpc.choices[0].finish_reason == whole.choices[0].finish_reason
    assert over_grpc.id.startswith("chatcmpl-") and over_grpc.model == "desk"


@real
def test_completions_and_embeddings_equal_those_over_http(endpoint: Endpoint, client: Client) -> None:
    official = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)
    told = official.completions.create(model="desk", prompt="The sea is", max_tokens=6, temperature=0)
    asked = message("CompleteRequest")(model="desk", text="The sea is", sampling={"max_tokens": 6, "temperature": 0})
    assert client.call("Complete", asked).choices[0].text == told.choices[0].text
    streamed = client.call("CompleteStream", asked)
    assert "".join(choice.text for each in streamed for choice in each.choices) == told.choices[0].text
    vector = official.embeddings.create(model="desk", input=["the sea"]).data[0].embedding
    found = client.call("Embed", message("EmbedRequest")(model="desk", texts=["the sea", "a boat"]))
    assert list(found.data[0].values) == pytest.approx(vector, abs=1e-5) and len(found.data) == 2
    assert (
        len(client.call("Embed", message("EmbedRequest")(model="desk", texts=["x"], dimensions=4)).data[0].values) == 4
    )


@real
def test_schema_tools_and_logprobs_come_through(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    held = chat(max_tokens=20)
    held.constraint.json_schema = json.dumps(schema)
    assert set(json.loads(client.call("Chat", held).choices[0].message.content)) == {"n"}
    forced = chat(max_tokens=40)
    forced.tools.add(name="count", parameters=json.dumps(schema))
    forced.tool_choice.function = "count"
    answer = client.call("Chat", forced).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.tool_calls[0].name == "count"
    assert set(json.loads(answer.message.tool_calls[0].arguments)) == {"n"}
    scored = client.call("Chat", chat(max_tokens=2, top_logprobs=1)).choices[0]
    assert len(scored.logprobs) == 2 and scored.logprobs[0].logprob <= 0 and len(scored.logprobs[0].top_logprobs) == 1


@real
def test_metadata_tells_request_and_release(endpoint: Endpoint, client: Client) -> None:
    method = client.channel.unary_unary(
        "/inhouse.v1.Inference/ListModels",
        request_serializer=lambda asked: asked.SerializeToString(),
        response_deserializer=message("ModelList").FromString,
    )
    listed, call = method.with_call(
        message("ListModelsRequest")(), metadata=(*client.metadata, ("x-request-id", "mine-1"))
    )
    assert [model.id for model in listed.data] == ["desk", "routing:v1"]
    assert dict(call.initial_metadata())["x-request-id"] == "mine-1"
    stream = client.call("ChatStream", chat(max_tokens=1))
    assert dict(stream.initial_metadata())["x-inhouse-release"] == "routing:v1"
    assert len(list(stream)) >= 1


@real
def test_refusals_have_grpcs_status_and_details(endpoint: Endpoint, client: Client) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        client.call("Chat", message("ChatRequest")(model="gpt-4", messages=[{"role": "user", "content": "x"}]))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    assert "ListModels" in unknown.value.details() and "GET" not in unknown.value.details()
    with pytest.raises(grpc.RpcError) as wrong:
        client.call("Chat", chat(temperature=9.0))
    assert wrong.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    trailing = {key: value for key, value in wrong.value.trailing_metadata() or ()}
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    request = error_details_pb2.BadRequest()
    assert any(each.Unpack(request) for each in status.details)
    assert request.field_violations[0].field == "temperature"
    with pytest.raises(grpc.RpcError) as long:
        list(client.call("ChatStream", chat("sea " * 900)))
    assert long.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    narrow, _ = create_key(endpoint.registry.engine, "narrow twin", limits=Limits(scopes=("embed",)))
    with pytest.raises(grpc.RpcError) as scope:
        Client(client.channel, narrow).call("Chat", chat())
    assert scope.value.code() == grpc.StatusCode.PERMISSION_DENIED


@real
def test_nothing_but_health_answers_without_a_key(channel: grpc.Channel, endpoint: Endpoint) -> None:
    for name in ("Chat", "ChatStream", "Embed"):
        with pytest.raises(grpc.RpcError) as refused:
            answer = Client(channel, "wrong").call(name, message("ChatRequest")())
            list(answer)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inhouse.v1.Inference"):
        found = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as hidden:
        list(reflection.ServerReflectionInfo(iter([asked]), timeout=10))
    assert hidden.value.code() == grpc.StatusCode.UNAUTHENTICATED
    metadata = (("authorization", f"Bearer {endpoint.key}"),)
    (told,) = reflection.ServerReflectionInfo(iter([asked]), metadata=metadata, timeout=10)
    names = {service.name for service in told.list_services_response.service}
    assert {"inhouse.v1.Inference", "grpc.health.v1.Health"} <= names


@real
@pytest.mark.parametrize("name", ["Chat", "ChatStream"])
def test_deadline_of_the_client_ends_the_engines_work(endpoint: Endpoint, client: Client, name: str) -> None:
    asked = chat(max_tokens=450, temperature=2.0)
    asked.sampling.ignore_eos = True
    with pytest.raises(grpc.RpcError) as late:
        list(client.call(name, asked, timeout=0.5))
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until = time.monotonic() + 2
    while running(endpoint) and time.monotonic() < until:
        pass
    assert running(endpoint) == 0


@real
def test_more_calls_than_the_queue_holds_are_resource_exhausted(client: Client) -> None:
    codes: list[grpc.StatusCode] = []

    def ask() -> None:
        try:
            client.call("Chat", chat(max_tokens=4), timeout=120)
            codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.append(error.code())

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) >= 10


@real
def test_server_that_stops_lets_a_stream_finish(
    tmp_path: Path, smollm2_gguf: Path, launch_on: Callable[[Registry, ServeParams], Endpoint]
) -> None:
    endpoint = launch_on(workspace_with_two_releases(tmp_path, smollm2_gguf), ServeParams(port=0, grpc_port=0))
    assert endpoint.grpc is not None
    asked = chat(max_tokens=60, temperature=0.0)
    asked.sampling.ignore_eos = True
    with grpc.insecure_channel(endpoint.grpc) as channel:
        stream = Client(channel, endpoint.key).call("ChatStream", asked)
        first = next(stream)
        endpoint.process.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
    assert chunks[-1].usage.completion_tokens == 60
    assert endpoint.process.wait(40) == 0


@real
@pytest.mark.parametrize("name", ["Chat", "ChatStream"])
def test_call_that_is_not_done_in_time_is_told_that_the_server_stops(
    tmp_path: Path, smollm2_gguf: Path, launch_on: Callable[[Registry, ServeParams], Endpoint], name: str
) -> None:
    registry = workspace_with_two_releases(tmp_path, smollm2_gguf)
    endpoint = launch_on(registry, ServeParams(port=0, grpc_port=0, drain_s=0.1))
    assert endpoint.grpc is not None
    asked = chat(max_tokens=450, temperature=0.0)
    asked.sampling.ignore_eos = True
    with grpc.insecure_channel(endpoint.grpc) as channel:
        timer = threading.Timer(0.7, endpoint.process.send_signal, [signal.SIGTERM])
        timer.start()
        with pytest.raises(grpc.RpcError) as over:
            list(Client(channel, endpoint.key).call(name, asked))
        timer.join()
    assert (over.value.code(), over.value.details()) == (grpc.StatusCode.UNAVAILABLE, text("serve.stopping"))
    assert endpoint.process.wait(40) == 0
    [file] = (registry.store.root / FOLDER).glob(FILES)
    record = json.loads(file.read_text().splitlines()[-1])
    assert (record["status"], record["error"]) == (503, "stopping")


def test_description_is_the_one_of_the_proto_file() -> None:
    kept, made = (descriptor_pb2.FileDescriptorSet.FromString(raw) for raw in (DESCRIPTION.read_bytes(), compiled()))
    assert kept == made


def test_chat_becomes_the_body_of_the_http_route() -> None:
    asked = message("ChatRequest")(model="desk", parallel_tool_calls=False, user="ann", top_logprobs=0)
    asked.messages.add(role="user", content="hi")
    asked.messages.add(role="assistant").tool_calls.add(id="c", name="f", arguments="{}")
    asked.messages.add(role="tool", tool_call_id="c", content="1")
    asked.sampling.stop.append("x")
    asked.sampling.logit_bias[3] = -1.5
    asked.sampling.seed = -(2**40)
    asked.tools.add(name="f", description="d", parameters='{"type": "object"}', strict=True)
    asked.tool_choice.mode = "required"
    assert json.loads(chat_body(asked, stream=True)) == {
        "model": "desk",
        "stream": True,
        "user": "ann",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ],
        "stop": ["x"],
        "logit_bias": {"3": -1.5},
        "seed": -(2**40),
        "tools": [{"type": "function", "function": {
            "name": "f", "description": "d", "strict": True, "parameters": {"type": "object"}}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ({"json_object": True}, {"response_format": {"type": "json_object"}}),
        ({"json_object": False}, {}),
        ({"json_schema": '{"b": 1, "a": 2}'}, {"guided_json": {"b": 1, "a": 2}}),
        ({"regex": "a+"}, {"guided_regex": "a+"}),
        ({"grammar": "root ::= x"}, {"guided_grammar": "root ::= x"}),
        ({"choice": {"texts": ["a", "b"]}}, {"guided_choice": ["a", "b"]}),
    ],
)
def test_constraints_become_vllms_fields(constraint: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = message("CompleteRequest")(model="desk", tokens={"ids": [1, 2]}, constraint=constraint)
    body = json.loads(completion_body(asked, stream=False))
    assert body == {"model": "desk", "stream": False, "prompt": [1, 2]} | expected


def test_broken_schemas_and_double_inputs_name_their_field() -> None:
    schema = message("ChatRequest")(model="desk", constraint={"json_schema": "{"})
    tool = message("ChatRequest")(model="desk", tools=[{"name": "f", "parameters": "["}])
    both = message("EmbedRequest")(model="desk", texts=["x"], tokens=[{"ids": [1]}])
    for make, param in (
        (lambda: chat_body(schema, False), "constraint.json_schema"),
        (lambda: chat_body(tool, False), "tools.0.parameters"),
        (lambda: embedding_body(both), "texts"),
    ):
        with pytest.raises(ApiError) as error:
            make()
        assert (error.value.status, error.value.param) == (400, param)
    tokens = message("EmbedRequest")(model="desk", tokens=[{"ids": [1, 2]}], user="ann")
    assert json.loads(embedding_body(tokens)) == {"model": "desk", "input": [[1, 2]], "user": "ann"}


def test_calls_thoughts_and_log_probabilities_are_carried() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    scored = {"token": "é", "logprob": -1.0, "bytes": [195, 169], "top_logprobs": [{"token": "a", "logprob": -2.0}]}
    delta = Delta("é", index=1, finish="tool_calls", tool_calls=[call], logprobs=[scored], reasoning="hm")
    piece = chat_delta(delta)
    assert (piece.index, piece.content, piece.reasoning_content, piece.finish_reason) == (1, "é", "hm", "tool_calls")
    assert (piece.tool_calls[0].id, piece.tool_calls[0].arguments) == ("c", "{}")
    assert list(piece.logprobs[0].bytes) == [195, 169] and piece.logprobs[0].top_logprobs[0].token == "a"
    choice = Choice()
    choice.add(delta)
    whole = chat_choice(0, choice)
    assert whole.message.tool_calls[0].name == "f" and whole.reasoning_content == "hm"


def test_statuses_are_grpcs() -> None:
    codes = [code_of(error).name for error in (overloaded(429), overloaded(503), unavailable(), invalid("x"))]
    assert codes == ["RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INVALID_ARGUMENT"]
    assert code_of(ApiError(418, None, "x")) == grpc.StatusCode.INTERNAL
    retry = error_details_pb2.RetryInfo()
    status = status_pb2.Status.FromString(details_of(overloaded(429)))
    assert any(each.Unpack(retry) for each in status.details) and retry.retry_delay.seconds == 1


def test_work_that_others_read_along_with_goes_on_when_the_call_is_cancelled() -> None:
    async def tried(followed: bool) -> bool:
        flight = Flight()
        caller = Caller(Key("k", "p", "2026", None, None), "r", flights=[flight])
        done = asyncio.Event()

        async def work() -> None:
            await asyncio.sleep(0.05)
            done.set()

        flight.followers = 1 if followed else 0
        call = asyncio.create_task(while_wanted(asyncio.create_task(work()), caller))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return done.is_set()

    assert asyncio.run(tried(followed=True)) and not asyncio.run(tried(followed=False))


@pytest.mark.parametrize("broken", ["write", "send_initial_metadata"])
@pytest.mark.parametrize("error", [grpc.aio.UsageError, grpc.aio.InternalError])
def test_client_that_leaves_while_a_piece_is_written_is_no_fault(broken: str, error: type[Exception]) -> None:
    written: list[Any] = []

    class Context:
        def done(self) -> bool:
            return False  # it is known a moment later

        async def write(self, made: Any) -> None:
            written.append(made)
            raise error("RPC already finished.")

        async def send_initial_metadata(self, _: Any) -> None:
            if broken == "send_initial_metadata":
                raise error("RPC already finished.")

    body = read_chat(b'{"model": "desk", "messages": [{"role": "user", "content": "hi"}], "stream": true}')
    asked = asyncio.run(prepare(body, RequestLimits(512, 2, 16, 0.0)))
    face = StreamFace(Context(), Caller(Key("k", "p", "2026", None, None), "r"))
    reply = face.begin(asked, "desk:v1")

    async def answer() -> None:
        for _ in range(3):
            await reply.add([Delta("a")])
        await reply.finish(Usage(1, 3))

    asyncio.run(answer())
    assert len(written) == (1 if broken == "write" else 0)
