"""OpenTelemetry: a span and the GenAI metrics for every request, sent over OTLP/HTTP.

Off unless `serve.tracing` is set; where to send, and everything else, is said by the standard OTEL_* variables.
Names: the GenAI semantic conventions. No word of a prompt or an answer is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import require
from inhouse.serve.measured import Measured

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

NANO = 1_000_000_000
CHAT = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat")


class Tracing:
    """Makes spans and metrics of finished requests."""

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram("gen_ai.server.request.duration", "s", "From arrival to end.")
        self._client = meter.create_histogram("gen_ai.client.operation.duration", "s", "As the client sees it.")
        self._first = meter.create_histogram("gen_ai.server.time_to_first_token", "s", "Until the first token.")
        self._each = meter.create_histogram("gen_ai.server.time_per_output_token", "s", "After the first token.")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}", "Tokens of a request.")

    def __call__(self, seen: Measured) -> None:
        """Record one finished request."""
        who = attributes(seen)
        self._span(seen, who)
        self._duration.record(seen.total_s, who)
        self._client.record(seen.total_s, who)
        usage = seen.usage
        if seen.first_token_s is not None:
            self._first.record(seen.first_token_s, who)
        if seen.decode_s is not None and usage.answer > 1:
            self._each.record(seen.decode_s / (usage.answer - 1), who)
        self._tokens.record(usage.prompt, {**who, "gen_ai.token.type": "input"})
        self._tokens.record(usage.answer, {**who, "gen_ai.token.type": "output"})

    def _span(self, seen: Measured, who: dict[str, Any]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        begin = int(seen.at * NANO)
        name = f"{who['gen_ai.operation.name']} {seen.deployment}"
        span = self._tracer.start_span(name, _context(seen.parent), kind=SpanKind.SERVER, start_time=begin)
        usage = seen.usage
        span.set_attributes(
            {
                **who,
                "gen_ai.usage.input_tokens": usage.prompt,
                "gen_ai.usage.output_tokens": usage.answer,
                "http.response.status_code": seen.status,
                "inhouse.request_id": seen.request_id,
                "inhouse.engine": seen.engine,
                "inhouse.cache": seen.cache,
            }
        )
        if seen.finish is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [seen.finish])
        for name, value in seen.stages().items():
            if value is not None:
                span.set_attribute(f"inhouse.{name}", value)
        if seen.status >= 500:
            span.set_status(Status(StatusCode.ERROR, seen.error or ""))
        span.end(begin + int(seen.total_s * NANO))


def _context(parent: bytes | None) -> Context | None:
    """The client's trace, of which this request is a part; None for a trace of its own."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if parent is None:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": parent.decode("latin-1")})


def attributes(seen: Measured) -> dict[str, Any]:
    """What all signals of a request carry."""
    found: dict[str, Any] = {
        "gen_ai.operation.name": "chat" if seen.route in CHAT else "text_completion",
        "gen_ai.provider.name": "inhouse",
        "gen_ai.request.model": seen.deployment,
        "gen_ai.response.model": seen.model,
    }
    return found | ({"error.type": seen.error} if seen.error else {})


def start_tracing() -> Tracing:
    """Send to where OTEL_EXPORTER_OTLP_ENDPOINT says. Raises MissingExtra without the extra `otel`."""
    require("otel", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "inhouse"})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
    return Tracing(tracers.get_tracer("inhouse"), meters.get_meter("inhouse"))
