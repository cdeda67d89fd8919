"""Settings of a release and of the endpoint that serves it: the `release:` and `serve:` sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from inhouse.core.gate import Gate
from inhouse.core.params import SAYS_OFF, Params

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class ReleaseParams(Params):
    """What must hold before a model is served, and under which name."""

    deployment: str | None = Field(
        None, pattern=NAME, description="name that clients ask for; absent: the release is registered, not promoted"
    )
    gates: tuple[Gate, ...] = Field((), description="rules over the report's figures; every one must pass")
    promote: bool = Field(True, description="point the deployment at the release as soon as every gate passes")


class CacheParams(Params):
    """Answers that are kept in memory."""

    exact: bool = Field(True, description="answer equal greedy requests of one key from memory")
    ttl_s: float = Field(300.0, gt=0, description="seconds an answer is kept")
    most_mb: float = Field(64.0, gt=0, description="memory for kept answers")
    semantic: float | None = Field(
        None,
        gt=0,
        le=1,
        description="answer like the kept request whose last message is at least so similar (cosine); needs embeddings",
    )


class FileParams(Params):
    """Files that clients upload for batches."""

    most_bytes: int = Field(100 * 2**20, ge=1024, description="larger files are refused with 413")
    quota_bytes: int = Field(2**30, ge=1024, description="all files of one key together, results of batches too")


class BatchParams(Params):
    """Batches of requests, answered when nobody else waits."""

    parallel: int = Field(1, ge=1, le=64, description="requests of batches that run at the same time")
    most_requests: int = Field(50_000, ge=1, le=1_000_000, description="requests of one batch")
    webhooks: tuple[str, ...] = Field(
        (), description="hosts (or host:port) that may be told when a batch ends; empty: none"
    )


class ReplicaParams(Params):
    """How many engines of this machine answer for a release. They share its threads."""

    least: int = Field(1, ge=1, le=64, description="engines that always run")
    most: int = Field(1, ge=1, le=64, description="engines under load; no more than least: the number stays")
    scale_up_waiting: int = Field(4, ge=1, description="requests that wait for a second before another engine starts")
    scale_down_idle_s: float = Field(60.0, gt=0, description="seconds that one fewer would have done before it stops")


class RemoteParams(Params):
    """An OpenAI-compatible endpoint that answers beside, or instead of, the engines of this machine."""

    url: str = Field(pattern=r"^https?://", description="address of the API, usually up to /v1")
    model: str = Field(min_length=1, description="name of the model there")
    api_key_env: str | None = Field(
        None, pattern=r"^INHOUSE_UPSTREAM_[A-Z0-9_]+$", description="environment variable that holds its key"
    )
    weight: float = Field(1.0, gt=0, description="requests it gets for each one that an engine here gets")
    parallel: int = Field(64, ge=1, le=4096, description="requests sent there at the same time")
    context_length: int | None = Field(None, ge=64, description="tokens of a request; absent: what the endpoint says")


class LogParams(Params):
    """The request log below the workspace: JSON lines without what was said."""

    enabled: bool = Field(True, description="write a line for each request")
    content: Literal["none", "redacted"] = Field(
        "none", description="redacted: prompts and answers too, personal data masked; needs the extra `data`"
    )
    sample: float = Field(1.0, ge=0, le=1, description="share of the successful requests; failed ones always are")
    keep_days: float = Field(30.0, gt=0, description="older files are removed")
    keep_mb: float = Field(1024.0, gt=0, description="the oldest files are removed beyond this")
    file_mb: float = Field(64.0, gt=0, description="a file of this size is closed and another begun")


class TlsParams(Params):
    """A certificate and its key, for both faces."""

    cert: Path = Field(description="PEM file: the certificate, then those of its issuers")
    key: Path = Field(description="PEM file: the certificate's private key, without a passphrase")


OWN = {"adapters", "kv_cache", "embeddings"}  # of ServeParams: a release that does not record them has the usual ones


class ServeParams(Params):
    """The endpoint: engine settings that a release bundles, and the limits of the gateway."""

    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback is open to the network")
    port: int = Field(8080, ge=0, le=65535, description="0 lets the system choose a free port")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="also answer over gRPC on this port; needs the extra `grpc`"
    )
    tls: TlsParams | None = Field(
        None, description="`cert` and `key`, paths of PEM files: HTTPS, and gRPC over TLS; absent: plain"
    )
    context_length: int = Field(2048, ge=64, le=1_048_576, description="tokens of prompt and answer per request")
    parallel: int = Field(8, ge=1, le=256, description="requests that an engine answers at the same time")
    threads: int | None = Field(None, ge=1, le=1024, description="engine threads; absent: all usable cores")
    engine: Literal["auto", "llamacpp", "openvino", "transformers"] = Field(
        "auto",
        description="auto: llama.cpp at once, OpenVINO where measuring shows it faster; transformers for folders",
    )
    calibrate: Annotated[Literal["background", "off", "before"], SAYS_OFF] = Field(
        "background", description="when engine: auto measures: while nobody asks, never, or before the first request"
    )
    adapters: dict[Annotated[str, StringConstraints(pattern=NAME)], str] = Field(
        {},
        max_length=64,
        description="adapters by name (an artifact or a PEFT folder); asked for as deployment:name",
    )
    speculation: Annotated[Literal["off", "ngram", "auto"], SAYS_OFF] = Field(
        "auto", description="guess tokens from a request's own text; auto: only with parallel: 1"
    )
    kv_cache: Literal["f16", "q8_0", "q4_0"] = Field("f16", description="precision of kept keys and values (llama.cpp)")
    replicas: ReplicaParams = ReplicaParams()
    remotes: tuple[RemoteParams, ...] = Field((), max_length=64, description="endpoints that answer beside")
    queue: int = Field(64, ge=0, le=100_000, description="requests that may wait; more are refused with 429")
    deadline_s: float = Field(600.0, gt=0, description="a request is ended after this many seconds")
    load_timeout_s: float = Field(120.0, gt=0, description="a model that is not ready by then is not served")
    drain_s: float = Field(30.0, ge=0, description="seconds that running requests get to finish when the server stops")
    first_token_s: float = Field(300.0, gt=0, description="an engine that is silent for so long is started again")
    temperature: float = Field(
        0.0, ge=0, le=2, description="when a request does not say; 0 gives the answers that evaluation measured"
    )
    max_tokens: int = Field(512, ge=1, description="answer length when a request does not say")
    cache: CacheParams = CacheParams()
    log: LogParams = LogParams()
    tracing: bool = Field(False, description="send OpenTelemetry spans and metrics to where OTEL_* variables say")
    vllm_metrics: bool = Field(False, description="tell metrics under vLLM's names too, for dashboards made for it")
    price_per_hour: float | None = Field(
        None, gt=0, description="price of an hour of this machine, in any currency; /metrics then tells it per answer"
    )
    embeddings: bool = Field(
        False,
        description="answer /v1/embeddings, /v1/rerank and /v1/score; loads the model a second time when first used",
    )
    files: FileParams = FileParams()
    batches: BatchParams = BatchParams()
    responses_days: int = Field(30, ge=0, le=3650, description="/v1/responses are kept so long; 0: none is kept")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="larger request bodies are refused with 413")

    def engine_settings(self) -> dict[str, Any]:
        """The part that changes what the engine answers or needs; a release records it."""
        usual = self.model_dump(include={"context_length", "parallel", "threads", "temperature", "max_tokens"})
        return usual | self.model_dump(include=OWN, exclude_defaults=True)

    def shared(self) -> ServeParams:
        """What holds for every release of a server: all but what each release says, or leaves out, for itself."""
        return self.model_validate(self.model_dump(exclude=OWN))


class ReleaseNode(Params):
    """Everything the release stage is asked for."""

    release: ReleaseParams = ReleaseParams()
    serve: ServeParams = ServeParams()
    declared_use: str = Field("evaluation", pattern="^(evaluation|internal|commercial)$")
    project: str = Field("", description="name of the project; releases are numbered under it")
