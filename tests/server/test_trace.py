"""Traces: one span for every request, none of OpenTelemetry's SDK without being asked."""

import contextlib
import subprocess
import sys
from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from moonlet.chat.fake import FakeProvider, broken
from moonlet.chat.provider import Finish, TextDelta, Usage
from moonlet.errors import NotSupportedError
from moonlet.server import create_app
from moonlet.server.trace import OtlpTracing
from tests.server.running import serving

HELLO: Any = [{"role": "user", "content": "hi"}]
SCRIPT = [TextDelta("a"), Finish("stop", Usage(10, 3, 1, cached_tokens=4))]


def traced(script: list[Any], **headers: str) -> Any:
    """The one span that a request leaves behind."""
    exporter = InMemorySpanExporter()
    tracing = OtlpTracing(exporter)
    app = create_app(FakeProvider(script), tracing=tracing)
    with serving(app) as server, server.client() as client:
        with contextlib.suppress(openai.InternalServerError):
            client.chat.completions.create(model="fake", messages=HELLO, extra_headers=headers)
        client.models.list()
    tracing.close()
    [span] = exporter.get_finished_spans()
    return span


def test_a_span_has_the_counts_of_its_request() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    span = traced(SCRIPT, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    assert span.name == "POST /v1/chat/completions"
    assert f"{span.context.trace_id:032x}" == trace
    told = dict(span.attributes)
    assert told.pop("moonlet.request_id").startswith("req_")
    assert told == {
        "gen_ai.request.model": "fake",
        "url.path": "/v1/chat/completions",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert span.status.is_ok


def test_a_failure_is_told() -> None:
    span = traced([broken()])
    assert span.attributes["error.type"] == "EngineError"
    assert not span.status.is_ok


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, moonlet.server, moonlet.server.trace\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(NotSupportedError, match=r"moonlet\[otel\]"):
        OtlpTracing()
