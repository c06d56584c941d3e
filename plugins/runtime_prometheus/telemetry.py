"""Events as Prometheus metrics, in a registry of the plugin's own."""

from __future__ import annotations

import sys
from collections import Counter as Tally

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from runtime.spi import (
    HealthChanged,
    ModelLoaded,
    ModelUnloaded,
    PeerChanged,
    RequestFinished,
    Telemetry,
    TelemetryEvent,
)

MAX_MODELS = 100
"""Names of models that get series of their own. Clients choose the names, and every series stays in memory."""
OTHER = "(other)"
PEER_STATES = ("up", "unhealthy", "suspect", "down")

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500)


class PrometheusTelemetry(Telemetry):
    """Keeps the metrics and serves them at ``/metrics``. Units are in the names, as Prometheus asks."""

    def __init__(self, node: str) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=True)
        self._models: set[str] = set()
        self._peers: dict[str, str] = {}
        Gauge("runtime_node_info", "This node.", ["node"], registry=registry).labels(node).set(1)
        self._healthy = Gauge(
            "runtime_node_healthy",
            "Whether this node can compute: 0 while its compute thread hangs.",
            registry=registry,
        )
        self._healthy.set(1)
        self._requests = Counter(
            "runtime_requests", "Generations that ended, by how.", ["model", "reason"], registry=registry
        )
        self._prompt_tokens = Counter("runtime_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self._completion_tokens = Counter(
            "runtime_completion_tokens", "Tokens generated.", ["model"], registry=registry
        )
        self._first_token = Histogram(
            "runtime_time_to_first_token_seconds",
            "From a request to its first token, loading included.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "runtime_request_duration_seconds",
            "From a request to its end.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode_rate = Histogram(
            "runtime_decode_tokens_per_second",
            "Tokens after the first, over the time they took, for each request.",
            ["model"],
            buckets=_TOKENS_PER_SECOND,
            registry=registry,
        )
        self._layers = Gauge("runtime_loaded_layers", "Layers this node holds.", ["model"], registry=registry)
        self._bytes = Gauge("runtime_loaded_bytes", "Memory of the layers held.", ["model"], registry=registry)
        self._load_seconds = Gauge(
            "runtime_load_duration_seconds", "What the last load took.", ["model"], registry=registry
        )
        self._peer_states = Gauge("runtime_peers", "Peers by state.", ["state"], registry=registry)
        for state in PEER_STATES:
            self._peer_states.labels(state).set(0)
        if sys.platform == "linux":
            # It reads /proc, and elsewhere would register metrics that stay empty.
            ProcessCollector(registry=registry)

    def emit(self, event: TelemetryEvent) -> None:
        """Count an event."""
        match event:
            case RequestFinished():
                self._finished(event)
            case ModelLoaded(model=name):
                model = self._label(name)
                self._layers.labels(model).set(event.layers)
                self._bytes.labels(model).set(event.bytes)
                self._load_seconds.labels(model).set(event.seconds)
            case ModelUnloaded(model=name):
                model = self._label(name)
                self._layers.labels(model).set(0)
                self._bytes.labels(model).set(0)
            case PeerChanged(node=node, state=state):
                self._peers[node] = state
                tally = Tally(self._peers.values())
                for known in PEER_STATES:
                    self._peer_states.labels(known).set(tally[known])
            case HealthChanged(reason=reason):
                self._healthy.set(0 if reason else 1)

    def router(self) -> APIRouter:
        """``/metrics``, in the format that the scraper asks for."""
        router = APIRouter()

        @router.get("/metrics")
        async def metrics(request: Request) -> Response:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encode(self._registry), headers={"Content-Type": content_type})

        return router

    def _finished(self, event: RequestFinished) -> None:
        model = self._label(event.model)
        self._requests.labels(model, event.reason).inc()
        self._prompt_tokens.labels(model).inc(event.prompt_tokens)
        self._completion_tokens.labels(model).inc(event.completion_tokens)
        self._duration.labels(model).observe(event.duration)
        if event.time_to_first_token is None:
            return
        self._first_token.labels(model).observe(event.time_to_first_token)
        decoding = event.duration - event.time_to_first_token
        if event.completion_tokens > 1 and decoding > 0:
            self._decode_rate.labels(model).observe((event.completion_tokens - 1) / decoding)

    def _label(self, model: str) -> str:
        if model not in self._models and len(self._models) < MAX_MODELS:
            self._models.add(model)
        return model if model in self._models else OTHER
