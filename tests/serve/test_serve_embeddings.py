"""Vectors, tokens, orders and scores, as the official client and plain HTTP clients meet them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serve_endpoint import Endpoint

pytestmark = pytest.mark.real
SEA, OCEAN, TAX = "The sea is blue and deep.", "The ocean is deep and blue.", "Value added tax is due in March."


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=120)


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(x * y for x, y in zip(one, other, strict=True))
    return float(dot / (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5)


def embed(http: httpx.Client, **body: Any) -> dict[str, Any]:
    reply = http.post("/v1/embeddings", json={"model": "desk", **body})
    assert reply.status_code == 200, reply.text
    whole: dict[str, Any] = reply.json()
    return whole


def test_embeddings_of_the_official_client_are_unit_vectors_in_the_order_of_the_inputs(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="desk", input=[SEA, OCEAN, TAX])  # asks for base64 by itself
    sea, ocean, tax = (entry.embedding for entry in found.data)
    assert [entry.index for entry in found.data] == [0, 1, 2] and len(sea) == 576  # SmolLM2-135M's hidden size
    assert sum(x * x for x in sea) == pytest.approx(1, abs=1e-5)
    assert cosine(sea, ocean) > cosine(sea, tax)
    assert found.usage.prompt_tokens == found.usage.total_tokens > 0


def test_embedding_as_base64_holds_the_same_numbers_as_floats(http: httpx.Client) -> None:
    floats = embed(http, input=SEA)["data"][0]["embedding"]
    encoded = embed(http, input=SEA, encoding_format="base64")["data"][0]["embedding"]
    assert list(struct.unpack("<576f", base64.b64decode(encoded))) == pytest.approx(floats, abs=1e-6)


def test_embedding_of_token_ids_equals_the_one_of_their_text(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"model": "desk", "prompt": SEA}).json()["tokens"]
    of_text = embed(http, input=SEA)
    of_ids = embed(http, input=ids)
    of_both = embed(http, input=[ids, ids[:3]])
    assert cosine(of_text["data"][0]["embedding"], of_ids["data"][0]["embedding"]) == pytest.approx(1, abs=1e-4)
    assert of_text["usage"]["prompt_tokens"] == of_ids["usage"]["prompt_tokens"] == len(ids)
    assert len(of_both["data"]) == 2 and of_both["usage"]["prompt_tokens"] == len(ids) + 3


def test_fewer_dimensions_are_the_first_ones_at_unit_length(http: httpx.Client) -> None:
    whole = embed(http, input=SEA)["data"][0]["embedding"]
    short = embed(http, input=SEA, dimensions=64)["data"][0]["embedding"]
    assert len(short) == 64 and cosine(short, whole[:64]) == pytest.approx(1, abs=1e-4)
    assert sum(x * x for x in short) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [SEA, ""]}, "input"),
        ({"input": [SEA, 3]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": SEA, "dimensions": 577}, "dimensions"),
        ({"input": SEA, "dimensions": 0}, "dimensions"),
        ({"input": SEA, "encoding_format": "hex"}, "encoding_format"),
        ({}, "input"),
    ],
)
def test_embedding_request_out_of_bounds_is_refused_with_its_field(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/embeddings", json={"model": "desk", **body})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].split(".")[0] == param


def test_input_longer_than_the_context_is_refused_and_a_wrong_token_too(http: httpx.Client) -> None:
    long = http.post("/v1/embeddings", json={"model": "desk", "input": "word " * 700})
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"
    assert long.json()["error"]["param"] == "input"
    wrong = http.post("/v1/embeddings", json={"model": "desk", "input": [10**9]})
    assert wrong.status_code == 400
    unknown = http.post("/v1/embeddings", json={"model": "nobody", "input": SEA})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"


def test_unknown_field_is_named_in_the_header(http: httpx.Client) -> None:
    reply = http.post("/v1/embeddings", json={"model": "desk", "input": SEA, "colour": "red"})
    assert reply.headers["x-inhouse-ignored-fields"] == "colour"
    assert reply.headers["x-inhouse-release"].startswith("routing:")


def test_documents_come_back_in_the_order_of_their_likeness_and_the_method_is_told(http: httpx.Client) -> None:
    body = {"model": "desk", "query": SEA, "documents": [TAX, {"text": OCEAN}, TAX], "top_n": 2}
    found = http.post("/v1/rerank", json=body).json()
    assert found["results"][0]["index"] == 1 and len(found["results"]) == 2
    assert found["results"][0]["document"]["text"] == OCEAN
    assert found["results"][0]["relevance_score"] > found["results"][1]["relevance_score"]
    assert found["inhouse"]["method"] == "embedding_cosine"
    vectors = [entry["embedding"] for entry in embed(http, input=[SEA, OCEAN])["data"]]
    assert found["results"][0]["relevance_score"] == pytest.approx(cosine(*vectors), abs=1e-3)


def test_scores_pair_one_text_with_several_or_as_many_with_as_many(http: httpx.Client) -> None:
    one = http.post("/v1/score", json={"model": "desk", "text_1": SEA, "text_2": [SEA, TAX]}).json()
    assert [entry["index"] for entry in one["data"]] == [0, 1]
    assert one["data"][0]["score"] == pytest.approx(1, abs=1e-3) and one["data"][1]["score"] < 0.99
    pairs = http.post("/v1/score", json={"model": "desk", "text_1": [SEA, TAX], "text_2": [TAX, SEA]}).json()
    assert pairs["data"][0]["score"] == pytest.approx(pairs["data"][1]["score"], abs=1e-3)
    assert http.post("/v1/score", json={"model": "desk", "text_1": [SEA, TAX], "text_2": SEA}).status_code == 400
