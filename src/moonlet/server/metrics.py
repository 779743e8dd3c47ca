"""What is counted, for Prometheus: `GET /metrics`, with vLLM's names under the prefix `moonlet:`.

Counters and histograms are of this server's requests. A provider that has `stats() -> dict[str, float]`
adds its own, each under its name: gauges, and counters where they only grow (`_GROWING`). How many requests
an engine has in work gets the prefix `engine_`, since the server counts its requests by itself.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from moonlet.chat.provider import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144)
_MODEL = ("model_name",)
_GROWING = ("cache_evictions", "preemptions", "steps")


class Metrics:
    """The counts of one server. `stats` gives the provider's gauges as they are now."""

    def __init__(self, stats: Callable[[], dict[str, float]]) -> None:
        self.registry = registry = CollectorRegistry()

        def make(
            kind: Any, name: str, text: str, labels: tuple[str, ...] = _MODEL, **more: Any
        ) -> Any:
            return kind(f"moonlet:{name}", text, labels, registry=registry, **more)

        self.running: Gauge = make(Gauge, "num_requests_running", "Requests that are answered", ())
        self.waiting: Gauge = make(
            Gauge, "num_requests_waiting", "Requests without a first token yet", ()
        )
        self.prompt: Counter = make(Counter, "prompt_tokens", "Tokens of prompts")
        self.generated: Counter = make(Counter, "generation_tokens", "Tokens of answers")
        self.cost: Counter = make(Counter, "cost_usd", "What requests cost that have a price")
        self.queries: Counter = make(
            Counter, "prefix_cache_queries", "Tokens of prompts that the prefix cache was asked for"
        )
        self.hits: Counter = make(
            Counter, "prefix_cache_hits", "Tokens of prompts that were cached", (*_MODEL, "source")
        )
        self.ended: Counter = make(
            Counter, "request_success", "Answers by how they ended", (*_MODEL, "finished_reason")
        )
        self.refused: Counter = make(
            Counter, "request_refused", "Requests without an answer, by HTTP status", ("status",)
        )
        self.first: Histogram = make(
            Histogram,
            "time_to_first_token_seconds",
            "From request to first event",
            buckets=_SECONDS,
        )
        self.between: Histogram = make(
            Histogram,
            "inter_token_latency_seconds",
            "Between two events of a choice",
            buckets=_GAPS,
        )
        self.whole: Histogram = make(
            Histogram, "e2e_request_latency_seconds", "From request to end", buckets=_SECONDS
        )
        self.prompt_sizes: Histogram = make(
            Histogram, "request_prompt_tokens", "Tokens of a prompt", buckets=_TOKENS
        )
        self.answer_sizes: Histogram = make(
            Histogram, "request_generation_tokens", "Tokens of an answer", buckets=_TOKENS
        )
        registry.register(_Stats(stats))  # pyright: ignore[reportArgumentType]  a collector by shape

    def used(self, model: str, usage: Usage) -> None:
        """Counts the tokens of one request, all its choices together."""
        self.prompt.labels(model).inc(usage.prompt_tokens)
        self.generated.labels(model).inc(usage.completion_tokens)
        self.queries.labels(model).inc(usage.prompt_tokens)
        if usage.cost is not None:
            self.cost.labels(model).inc(usage.cost)
        in_memory = max(usage.cached_tokens - usage.cached_disk_tokens, 0)
        self.hits.labels(model, "memory").inc(in_memory)
        self.hits.labels(model, "disk").inc(usage.cached_disk_tokens)
        self.prompt_sizes.labels(model).observe(usage.prompt_tokens)
        self.answer_sizes.labels(model).observe(usage.completion_tokens)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Stats:
    """The provider's own numbers, read when they are asked for."""

    def __init__(self, stats: Callable[[], dict[str, float]]) -> None:
        self.stats = stats

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self.stats().items()):
            plain = re.sub(r"[^A-Za-z0-9_:]", "_", name)
            plain = f"engine_{plain}" if plain.startswith("requests_") else plain
            family = CounterMetricFamily if name in _GROWING else GaugeMetricFamily
            yield family(f"moonlet:{plain}", f"{name} of the provider", value=value)

    def describe(self) -> list[Metric]:
        return []  # not known before a model is loaded
