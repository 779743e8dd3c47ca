"""OpenTelemetry: one span for every request, with its token counts.

Needs the extra `moonlet[otel]`; nothing of it is imported before `OtlpTracing` is made. The environment
says where spans go: OTEL_EXPORTER_OTLP_ENDPOINT and its sisters. A request that carries `traceparent`
is part of its sender's trace. Attributes are those of the semantic conventions for generative AI.
"""

from typing import Any

from starlette.types import Scope

from moonlet.chat.provider import Usage
from moonlet.errors import NotSupportedError


class OtlpTracing:
    """Spans for an OTLP collector, or for `exporter`. Close it, or the last spans are lost."""

    def __init__(self, exporter: Any = None) -> None:
        """Raises NotSupportedError without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise NotSupportedError(
                "traces need OpenTelemetry: pip install 'moonlet[otel]', or leave --otel out"
            ) from error
        resource = Resource.create({"service.name": "moonlet"})
        self._spans = TracerProvider(resource=resource)
        self._spans.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._spans.get_tracer("moonlet.server")

    def start(self, scope: Scope, model: str) -> "RequestSpan":
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        attributes = {
            "gen_ai.request.model": model,
            "url.path": scope["path"],
            "moonlet.request_id": scope.get("state", {}).get("request_id", ""),
        }
        span = self._tracer.start_span(
            f"POST {scope['path']}", extract(carrier), SpanKind.SERVER, attributes
        )
        return RequestSpan(span)

    def close(self) -> None:
        """Sends what has not been sent yet."""
        self._spans.shutdown()


class RequestSpan:
    """The span of one request."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, reasons: list[str], usage: Usage | None, failure: BaseException | None) -> None:
        from opentelemetry.trace import StatusCode

        if usage is not None:
            self._span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                    "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                }
            )
        if reasons:
            self._span.set_attribute("gen_ai.response.finish_reasons", reasons)
        if failure is not None:
            self._span.set_attribute("error.type", type(failure).__name__)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
