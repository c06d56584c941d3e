"""Events become metrics that a scraper can read."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import runtime_prometheus
from runtime.spi import HealthChanged, ModelLoaded, ModelUnloaded, PeerChanged, RequestFinished, Telemetry
from runtime.spi.hookspecs import Factory, PluginContext
from runtime_prometheus.telemetry import MAX_MODELS, OTHER, PrometheusTelemetry
from tests.http.scripted import ScriptedEngine, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(telemetry: Telemetry) -> Samples:
    async with serving(ScriptedEngine(), telemetry={"prometheus": telemetry}) as node, httpx.AsyncClient() as client:
        response = await client.get(f"{node.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_requests_are_counted_by_model_and_reason() -> None:
    telemetry = PrometheusTelemetry("alpha")
    telemetry.emit(RequestFinished("m", "stop", 10, 21, 0.5, 2.5))
    telemetry.emit(RequestFinished("m", "cancelled", 10, 0, None, 1.0))
    samples = await scrape(telemetry)
    assert samples[key("runtime_requests_total", model="m", reason="stop")] == 1
    assert samples[key("runtime_requests_total", model="m", reason="cancelled")] == 1
    assert samples[key("runtime_prompt_tokens_total", model="m")] == 20
    assert samples[key("runtime_completion_tokens_total", model="m")] == 21
    assert samples[key("runtime_time_to_first_token_seconds_sum", model="m")] == 0.5
    assert samples[key("runtime_time_to_first_token_seconds_count", model="m")] == 1
    assert samples[key("runtime_request_duration_seconds_count", model="m")] == 2
    assert samples[key("runtime_decode_tokens_per_second_sum", model="m")] == 10.0
    assert samples[key("runtime_node_info", node="alpha")] == 1


async def test_loads_and_peers_are_gauges_that_go_down_again() -> None:
    telemetry = PrometheusTelemetry("alpha")
    telemetry.emit(ModelLoaded("m", 15, 1000, 2.0))
    telemetry.emit(PeerChanged("beta", "up"))
    telemetry.emit(PeerChanged("gamma", "up"))
    telemetry.emit(PeerChanged("beta", "down"))
    samples = await scrape(telemetry)
    assert samples[key("runtime_loaded_layers", model="m")] == 15
    assert samples[key("runtime_loaded_bytes", model="m")] == 1000
    assert [samples[key("runtime_peers", state=state)] for state in ("up", "suspect", "down")] == [1, 0, 1]
    telemetry.emit(ModelUnloaded("m", 15))
    assert (await scrape(telemetry))[key("runtime_loaded_layers", model="m")] == 0


async def test_nodes_that_cannot_compute_are_shown_until_they_can() -> None:
    telemetry = PrometheusTelemetry("alpha")
    telemetry.emit(PeerChanged("beta", "up"))
    samples = await scrape(telemetry)
    assert (samples[key("runtime_node_healthy")], samples[key("runtime_peers", state="unhealthy")]) == (1, 0)
    telemetry.emit(HealthChanged("a step has not come back"))
    telemetry.emit(PeerChanged("beta", "unhealthy"))
    samples = await scrape(telemetry)
    assert (samples[key("runtime_node_healthy")], samples[key("runtime_peers", state="unhealthy")]) == (0, 1)
    assert samples[key("runtime_peers", state="up")] == 0
    telemetry.emit(HealthChanged(None))
    telemetry.emit(PeerChanged("beta", "up"))
    samples = await scrape(telemetry)
    assert (samples[key("runtime_node_healthy")], samples[key("runtime_peers", state="unhealthy")]) == (1, 0)


async def test_names_that_clients_invent_cannot_fill_the_memory() -> None:
    telemetry = PrometheusTelemetry("alpha")
    for index in range(MAX_MODELS + 5):
        telemetry.emit(RequestFinished(f"m{index}", "error", 1, 0, None, 0.1))
    samples = await scrape(telemetry)
    assert samples[key("runtime_requests_total", model=OTHER, reason="error")] == 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_process_is_measured() -> None:
    assert (await scrape(PrometheusTelemetry("alpha")))[key("process_resident_memory_bytes")] > 0


async def test_two_nodes_in_one_process_have_registries_of_their_own() -> None:
    one, two = PrometheusTelemetry("one"), PrometheusTelemetry("two")
    one.emit(RequestFinished("m", "stop", 1, 1, 0.1, 0.2))
    assert key("runtime_requests_total", model="m", reason="stop") not in await scrape(two)


def test_the_plugin_registers_it(tmp_path: Path) -> None:
    found: dict[str, Factory[Telemetry]] = {}
    runtime_prometheus.register_telemetry(found.__setitem__)
    context = PluginContext(node="alpha", data_dir=tmp_path)
    assert isinstance(found["prometheus"](None, context), PrometheusTelemetry)
