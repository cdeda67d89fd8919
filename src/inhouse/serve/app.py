"""Serve deployments: take the port, start the engine, answer until told to stop."""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from inhouse.core.addresses import is_loopback
from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.run import collect_seldom
from inhouse.release.keys import create_numbered_key, is_local, list_keys
from inhouse.release.registry import Registry
from inhouse.release.settings import ServeParams
from inhouse.serve.errors import END_S
from inhouse.serve.tls import Secured, secure

if TYPE_CHECKING:
    from uvicorn import Config

    from inhouse.serve.gateway import Gateway

BACKLOG = 2048
FIRST_KEY = "first"
WEB = ("uvicorn", "uvloop", "httptools", "sqlalchemy", "inhouse.serve.gateway", "inhouse.serve.door")
log = logging.getLogger("inhouse.serve")


@dataclass(frozen=True)
class Entrance:
    """The port that is taken, and what secures it."""

    listener: socket.socket
    tls: Secured | None

    def url(self, host: str) -> str:
        """The address that clients get."""
        return f"{'http' if self.tls is None else 'https'}://{host}:{self.listener.getsockname()[1]}"


@dataclass(frozen=True)
class Started:
    """What a face tells when the endpoint answers."""

    url: str
    deployment: str
    release: str
    public: bool
    grpc: str | None = None  # host and port
    certificate: str | None = None  # its path, where the endpoint speaks TLS


def serve(registry: Registry, names: Sequence[str], settings: ServeParams, on_ready: Callable[[Started], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then finish those that are running, and return.

    Raises serve.tls_*, serve.port_in_use, serve.port_refused, serve.bad_host, release.deployment_unknown, and what
    keeps the engine from loading.
    """
    require("serve", "uvicorn", "httptools", "prometheus_client", "cachetools", "limits", "python_multipart")
    tls = None if settings.tls is None else secure(settings.tls)
    settings = with_grpc_port(settings)
    listener = bind(settings.host, settings.port)
    try:
        _serve_on(Entrance(listener, tls), registry, names, settings, on_ready)
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded. Clients that come early wait in its backlog."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError("serve.bad_host", host=host, problem=error.strerror or str(error)) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError("serve.port_in_use", host=host, port=port) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError("serve.port_refused", host=host, port=port) from None
        raise UserError("serve.bad_host", host=host, problem=error.strerror or str(error)) from None
    return listener


def with_grpc_port(settings: ServeParams) -> ServeParams:
    """Settings with a port that is free, before anything is loaded; gRPC takes no socket of ours.

    Raises MissingExtra, serve.port_in_use, serve.port_refused, serve.bad_host.
    """
    if settings.grpc_port is None:
        return settings
    require("grpc", "grpc", "grpc_health", "grpc_reflection", "google.rpc")
    with bind(settings.host, settings.grpc_port) as found:
        return settings.model_copy(update={"grpc_port": found.getsockname()[1]})


def first_key(registry: Registry) -> str | None:
    """Make a key when no one holds a valid one; the token is shown once and kept nowhere.

    The key of a conversation on this machine does not count: it is revoked when that conversation ends.
    """
    now = datetime.now(UTC)
    if any(not is_local(key) and key.valid(now) for key in list_keys(registry.engine)):
        return None
    token, _ = create_numbered_key(registry.engine, FIRST_KEY)
    return token


def _serve_on(
    entrance: Entrance,
    registry: Registry,
    names: Sequence[str],
    settings: ServeParams,
    on_ready: Callable[[Started], None],
) -> None:
    # The engine takes most of a second to load in its own process: these imports need not wait for it.
    preloading = threading.Thread(target=lambda: [importlib.import_module(name) for name in WEB], daemon=True)
    preloading.start()
    from inhouse.serve.deployments import Deployments

    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    public = not is_loopback(settings.host)
    if public:
        log.warning("listening on %s: everybody who reaches this machine can reach this endpoint", settings.host)
    deployments = Deployments(registry, names, settings)
    try:
        label = deployments.serving[names[0]].main.release.label
        twin = None if settings.grpc_port is None else f"{shown}:{settings.grpc_port}"
        certificate = None if entrance.tls is None else str(entrance.tls.path)
        started = Started(entrance.url(shown), names[0], label, public, twin, certificate)
        preloading.join()
        import uvicorn

        from inhouse.serve.door import bound_unread
        from inhouse.serve.gateway import Gateway

        bound_unread(entrance.listener)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a line for each bad request would fill the disk
        gateway = Gateway(deployments, lambda: on_ready(started), entrance.tls)
        config = _config(gateway, settings, entrance.tls)
        # uvicorn raises the signal again once it has stopped; a handler that does nothing makes the exit code 0.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        # What is loaded stays: looking through it for garbage took a fifth of the time that requests took.
        collect_seldom()
        gc.collect()
        gc.freeze()
        try:
            server = uvicorn.Server(config)
            gateway.stopping = lambda: server.should_exit
            server.run(sockets=[entrance.listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        deployments.close(drain_s=0.0)


def _config(gateway: Gateway, settings: ServeParams, tls: Secured | None) -> Config:
    import uvicorn

    from inhouse.serve.door import KEEP_S, grpc_connections, guarded, most_connections

    most = most_connections()
    if settings.grpc_port is not None:
        most -= grpc_connections(most)
    return uvicorn.Config(
        gateway,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        http=guarded(most, None if tls is None else tls.context, settings.drain_s),
        ws="none",
        timeout_keep_alive=KEEP_S,
        proxy_headers=False,  # nothing here asks where a request came from
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + END_S,
    )
