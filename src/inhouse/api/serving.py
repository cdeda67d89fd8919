"""Serve deployments, and talk to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.chat import Endpoint, stream_chat
from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import InhouseError, UserError, from_dict
from inhouse.core.messages import language
from inhouse.core.rows import Message
from inhouse.core.settings import child_environment, settings
from inhouse.core.store import Store
from inhouse.release.keys import LOCAL_KEY, create_numbered_key
from inhouse.release.keys import revoke_key as end_key
from inhouse.release.registry import Registry, open_registry

CHAT_KEY_HOURS = 12


class ServeRequest(Request):
    """What to serve, and where. What is left out comes from the project file that made the release."""

    deployment: str | None = Field(None, description="deployment to serve; may be left out when there is only one")
    all: bool = Field(False, description="serve every deployment of the workspace")
    host: str | None = Field(None, description="address to listen on")
    port: int | None = Field(None, ge=0, le=65535, description="port to listen on; 0 takes a free one")


class ServeCommand(Frozen):
    """The program that serves; a face runs it in its own place."""

    argv: tuple[str, ...]


class ChatRequest(Request):
    """A conversation with a deployment."""

    message: str | None = Field(None, description="one question; without it, a conversation at the terminal")
    deployment: str | None = Field(None, description="model to talk to")
    url: str | None = Field(None, description="endpoint; the server of this workspace when left out")
    key: str | None = Field(None, description="API key")
    system: str | None = Field(None, description="system message")
    max_tokens: int | None = Field(None, ge=1, description="longest answer, in tokens; absent: as the release says")


def serve(request: ServeRequest) -> ServeCommand:
    """The command line of the gateway, after checking that there is something to serve."""
    if request.all and request.deployment is not None:
        raise UserError("serve.all_and_one", deployment=request.deployment)
    registry = open_registry(request.store)
    names = [d.name for d in registry.deployments()] if request.all else []
    names = names or [choose_deployment(registry, request.deployment)]
    argv = server_command(request.store, *names)
    if request.host is not None:
        argv += ["--host", request.host]
    if request.port is not None:
        argv += ["--port", str(request.port)]
    return ServeCommand(argv=tuple(argv))


def server_command(store: Store, *deployments: str) -> list[str]:
    """How a process of the gateway begins, for some deployments of a workspace."""
    command = [sys.executable, "-m", "inhouse.serve", "--workspace", str(store.root), "--lang", language()]
    for name in deployments:
        command += ["--deployment", name]
    return command


def choose_deployment(registry: Registry, name: str | None) -> str:
    """The deployment asked for, or the only one; raises serve.no_deployment, serve.which_deployment."""
    names = [d.name for d in registry.deployments()]
    if name is not None:
        return registry.deployment(name).name
    if not names:
        raise UserError("serve.no_deployment")
    if len(names) > 1:
        raise UserError("serve.which_deployment", names=", ".join(names))
    return names[0]


class Chat:
    """A conversation: keeps the turns, streams the answers. Starts a server for itself when none is running."""

    def __init__(self, request: ChatRequest, endpoint: Endpoint, model: str) -> None:
        self.request = request
        self.endpoint = endpoint
        self.model = model
        self.turns = [Message(role="system", content=request.system)] if request.system else []

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece; the turn is kept when it is complete."""
        asked = [*self.turns, Message(role="user", content=question)]
        answer = ""
        for piece in stream_chat(self.endpoint, self.model, asked, self.request.max_tokens):
            answer += piece
            yield piece
        self.turns = [*asked, Message(role="assistant", content=answer)]


@contextmanager
def open_chat(request: ChatRequest) -> Iterator[Chat]:
    """A conversation with the endpoint named, else with this workspace's server, else with one started for it."""
    key = request.key or settings().api_key
    if request.url is not None:
        if request.deployment is None:
            raise UserError("chat.which_model", url=request.url)
        yield Chat(request, Endpoint(request.url, key, certificate_at(request.store, request.url)), request.deployment)
        return
    registry = open_registry(request.store)
    name = choose_deployment(registry, request.deployment)
    with local_key(registry, key) as token:
        if found := running_server(request.store):
            yield Chat(request, Endpoint(found.url, token, found.certificate), name)
        else:
            with temporary_server(request.store, name, request.offline) as url:
                yield Chat(request, Endpoint(url, token), name)


@contextmanager
def local_key(registry: Registry, given: str | None) -> Iterator[str]:
    """The key given, or one made for this conversation: who can write the workspace may talk to its models."""
    if given is not None:
        yield given
        return
    token, made = create_numbered_key(registry.engine, LOCAL_KEY, timedelta(hours=CHAT_KEY_HOURS))
    try:
        yield token
    finally:
        end_key(registry.engine, made.prefix)


def running_server(store: Store) -> Endpoint | None:
    """The server that serves this workspace now, without a key."""
    from inhouse.core.run import process_mark

    try:
        found = json.loads((store.root / "serve.json").read_text(encoding="utf-8"))
        url, pid, mark = str(found["url"]), int(found["pid"]), str(found["mark"])
        certificate = None if found.get("certificate") is None else Path(found["certificate"])
    except (OSError, ValueError, KeyError, TypeError):  # no note, or one of another version
        return None
    return Endpoint(url, None, certificate) if process_mark(pid) == mark else None


def certificate_at(store: Store, url: str) -> Path | None:
    """The certificate to trust at an address: that of this workspace's server, where it answers there."""
    found = running_server(store)
    return found.certificate if found is not None and found.url == url.rstrip("/").removesuffix("/v1") else None


@contextmanager
def temporary_server(store: Store, deployment: str, offline: bool) -> Iterator[str]:
    """Serve a deployment on a free loopback port for as long as the block runs; yields its address."""
    argv = [*server_command(store, deployment), "--host", "127.0.0.1", "--port", "0", "--parent", str(os.getpid())]
    log_path = store.root / "serve.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=child_environment(offline)
        )
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        yield str(told_by(line, log_path)["url"])
    finally:
        child.terminate()  # it ends by itself, and with this process at the latest: nobody has to wait for it


def told_by(line: bytes, log: Path) -> dict[str, Any]:
    """What such a process printed. Raises what kept it from starting, and serve.no_start where it said nothing."""
    if not line:
        raise InhouseError("serve.no_start", log=log)
    told: dict[str, Any] = json.loads(line)
    if "error" in told:
        raise from_dict(told["error"])
    return told
