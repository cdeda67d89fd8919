"""The OpenAPI document: whole, and true of the server as schemathesis meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_narrowed import CHECKS, narrowed
from serve_endpoint import Endpoint

from inhouse.api.project import SchemaRequest, project_schema
from inhouse.serve.openapi import document
from inhouse.serve.openapi_operations import OPERATIONS
from inhouse.serve.routes import Routes


def test_every_route_is_described_and_nothing_else() -> None:
    assert {(route.verb, route.path) for route in Routes().all()} == set(OPERATIONS)


def test_document_names_bodies_refusals_and_the_key() -> None:
    told = document()
    chat = told["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatBody"}
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "401", "404", "413", "429", "503", "504"} <= set(chat["responses"])
    assert told["paths"]["/health"]["get"]["security"] == [] and told["security"] == [{"key": []}]
    ollama = told["paths"]["/api/chat"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert ollama == {"$ref": "#/components/schemas/PlainError"}
    names = [each["operationId"] for verbs in told["paths"].values() for each in verbs.values()]
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    told = document()
    schemas = told["components"]["schemas"]
    wanted = {piece.split('"')[0] for piece in json.dumps(told).split("#/components/schemas/")[1:]}
    assert wanted and wanted <= set(schemas)


def test_schemas_are_valid_json_schema() -> None:
    for schema in document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_schema_command_prints_the_document(tmp_path: Path) -> None:
    found = project_schema(SchemaRequest(openapi=True, output=tmp_path / "openapi.json"))
    assert found.document == document()
    assert json.loads((tmp_path / "openapi.json").read_text()) == document()


@pytest.mark.real
def test_schemathesis_finds_no_server_error_and_nothing_undocumented(endpoint: Endpoint, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    told = httpx.get(f"{endpoint.url}/openapi.json", headers=headers, trust_env=False).json()
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(narrowed(told)))
    command = [str(Path(sys.executable).with_name("st")), "run", str(path), "--url", endpoint.url]
    command += ["--header", f"Authorization: Bearer {endpoint.key}", "--workers", "1", "--request-retries", "1"]
    command += ["--phases", "fuzzing,stateful", "--max-examples", "3", "--checks", CHECKS, "--seed", "1"]
    command += ["--no-shrink"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert f"{len(OPERATIONS)} selected" in ran.stdout
