"""One node: everything put together, from a configuration to a served endpoint, and taken apart again."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from loguru import logger

from runtime import __version__
from runtime.actors import ActorRef, ActorSystem
from runtime.cluster import (
    DetectorSettings,
    Ledger,
    Membership,
    NodeInfo,
    NodeProfile,
    PeerState,
    Registry,
    ServedModel,
)
from runtime.config.load import Config
from runtime.config.sections import ClusterSection
from runtime.errors import RuntimeFault
from runtime.http.admin import ActorTree, NodeEntry, NodeStatus, admin_router
from runtime.http.listener import Listener, serve
from runtime.http.server import create_app
from runtime.http.settings import HttpSettings
from runtime.inference.accelerator import Accelerator, held_bytes, prepare, working_set_left
from runtime.inference.blas import backend_name
from runtime.inference.borrowing import Borrower
from runtime.inference.catalogue import Catalogue
from runtime.inference.compute import ComputeThread
from runtime.inference.driver import Driver, DriverLimits
from runtime.inference.engine import RuntimeEngine
from runtime.inference.health import ComputeHealth
from runtime.inference.lending import FILES, Lender
from runtime.inference.models import MODELS, Models
from runtime.inference.placing import Placer
from runtime.inference.planning import PlacingSettings, Planner
from runtime.inference.probe_cache import Probes
from runtime.inference.progress import ProgressBoard
from runtime.inference.report import PlanReport, describe
from runtime.inference.rivals import RIVALS, Rivals
from runtime.inference.stage import STAGES, StageHost
from runtime.inference.survey import SURVEYOR, Surveyor, Surveys
from runtime.inference.telemetry import emit_all
from runtime.keyless import LoopbackOnly
from runtime.machine import Machine
from runtime.spi import Discovery, Frontend, HealthChanged, ModelFamily, ModelSource, PeerChanged, Telemetry
from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import PluginRecord, Plugins, Role
from runtime.wire import DialStatus, Limits, Network, WebSockets
from runtime.wire.tls import client_context, server_context

DRAIN_SECONDS = 10.0
"""How long a stopping node lets its actors finish."""
WAITING_PER_SEQUENCE = 16
"""Generations that may wait for each that may run."""
MOST_NODES = 256
"""Nodes of a cluster in which not all are pinged; each still has a link to each."""


class Node:
    """A running node. Made by :func:`run_node`."""

    def __init__(self, config: Config, plugins: Plugins, fail: Callable[[Exception], None]) -> None:
        """``fail`` is called when the node cannot go on."""
        self.config = config
        self._plugins = plugins
        self._started = time.time()
        self._accelerator: Accelerator | None = None
        self._listener: Listener | None = None
        self._background: set[asyncio.Task[None]] = set()
        self.abandoned = False
        """Whether the node has stopped and its compute thread has not. MLX aborts a process that ends so by itself."""

        name = config.node.name
        self.system = ActorSystem(name, fail)
        cluster = config.cluster
        limits = Limits() if cluster.membership == "mesh" else Limits(peers=MOST_NODES - 1)
        self._network = Network(
            self.system,
            key=cluster.key.get_secret_value().encode() if cluster.key else b"",
            advertise=str(cluster.advertise_address) if cluster.advertise_address else None,
            limits=limits,
            medium=_medium(cluster, limits),
        )
        self._families: dict[str, ModelFamily] = self._providers("family", config.roles.families)
        self._telemetry: dict[str, Telemetry] = self._providers("telemetry", config.roles.telemetry)
        self._frontends: dict[str, Frontend] = self._providers("frontend", config.roles.frontends)
        sources: dict[str, ModelSource] = self._providers("source", config.roles.sources)

        self._machine = Machine(int(config.models.memory_reserve), config.memory.policy, working_set_left)
        self.ledger = Ledger(self.system, self._machine.memory, held_bytes)
        discovery: Discovery = self._provider("discovery", config.roles.discovery)
        self.membership = Membership(
            self.system,
            self._network,
            discovery if cluster.key else LoopbackOnly(discovery),
            self._profile,
            self._detector_settings(),
            cluster.membership,
        )
        self.registry = Registry(self.system, self._network)
        self.compute = ComputeThread(config.models.step_patience)
        self.health = ComputeHealth(name, self.compute, self._health_changed)
        self._board = ProgressBoard()
        self._catalogue = Catalogue(sources)
        sinks = tuple(self._telemetry.values())
        self._borrower = (
            Borrower(self.system, self._peers, config.node.data_dir / "borrowed") if config.models.share else None
        )
        self.engine = RuntimeEngine(
            self.system,
            self._catalogue,
            self.compute,
            self._board,
            self.registry.entries,
            sinks,
            config.models.default,
            self._borrower,
        )
        self._placer = Placer(
            self.system,
            self._catalogue,
            self.membership.views,
            Planner(
                self._provider("placement", config.roles.placement),
                self._provider("memory", config.roles.memory),
                PlacingSettings.of(config.models),
            ),
            Surveys(self.system),
        )
        self._probes = Probes(self._families, config.node.data_dir / "probes")
        self._sinks = sinks

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the actors, and join the cluster if one is configured."""
        if self.config.memory.policy == "off":
            logger.warning("memory.policy is off: models are placed here whether or not there is memory for them")
        self.ledger.start()
        self.membership.start()
        self.registry.start()
        self.membership.subscribe(self._peer_changed)
        self.system.spawn(
            lambda: StageHost(
                self._catalogue,
                self._families,
                self.compute,
                self._board,
                self._sinks,
                self.membership.pausing,
                self._borrower,
            ),
            STAGES,
        )
        if self.config.models.share:
            self.system.spawn(lambda: Lender(self._catalogue), FILES)
        self.system.spawn(lambda: Surveyor(self._probes, self.compute, self._round_trip), SURVEYOR)
        self.system.spawn(lambda: Models(self._new_driver, self._served_by, self._peers), MODELS)
        self.system.spawn(lambda: Rivals(self.registry), RIVALS)
        self._run(self.health.watch(), "watch over the compute thread")
        listen = self.config.cluster.listen_address
        if listen is not None:
            await self._network.listen(listen.host, listen.port)

    def listening(self, listener: Listener) -> None:
        """The endpoint is up: now there is time to load what is slow."""
        self._listener = listener
        self._run(self._warm_up(), "warm up")

    async def stop(self) -> None:
        """Finish what runs, within a few seconds, and leave the cluster."""
        for task in self._background:
            task.cancel()
        await self.system.shut_down(DRAIN_SECONDS)
        await self._network.close()
        self.abandoned = not self.compute.close(DRAIN_SECONDS)
        if self.abandoned:
            logger.warning("the compute thread is still busy; leaving it")

    def app(self) -> Any:
        """Make the HTTP application."""
        return create_app(
            self._frontends, self._telemetry, self.engine, admin_router(self.engine, self), self.http_settings()
        )

    def http_settings(self) -> HttpSettings:
        """The configuration of the HTTP server, in its own terms."""
        http = self.config.http
        return HttpSettings(
            host=http.host,
            port=http.port,
            api_key=http.api_key.get_secret_value() if http.api_key else None,
            allowed_hosts=http.allowed_hosts,
            allowed_origins=http.allowed_origins,
            max_body_bytes=http.max_body_bytes,
        )

    def greetings(self, url: str) -> list[str]:
        """Shell commands that try each API with the default model."""
        key = self.config.http.api_key is not None
        lines = (frontend.greeting(url, self.config.models.default, key) for frontend in self._frontends.values())
        return [line for line in lines if line]

    # -- what the admin API asks --------------------------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """Describe this node."""
        memory = self.ledger.memory()
        served = self.registry.entries()
        accelerator = self._accelerator
        return NodeStatus(
            node=self.system.node,
            version=__version__,
            pid=os.getpid(),
            uptime=time.time() - self._started,
            backend=self._backend(),
            blas=None if accelerator is None else accelerator.blas.name,
            memory_total=memory.total,
            memory_available=memory.available,
            memory_reserved=memory.reserved,
            nodes=len(self.membership.live()),
            models=len(served),
            active=sum(entry.active for entry in served),
            default_model=self.config.models.default,
            urls=() if self._listener is None else self._listener.urls,
        )

    def nodes(self) -> list[NodeEntry]:
        """List the nodes known, this one first, and the addresses that are dialled in vain last."""
        members = self.membership.members()
        known = {info.address for info in members} | {info.name for info in members}
        # Where a known node is, or was before it moved, says nothing new; a refusal does, whoever it comes from.
        unreached = (
            status
            for status in self.membership.unreached()
            if status.lasting or not known & {status.address, status.node}
        )
        return [*map(_entry, members), *map(_unreached_entry, unreached)]

    def actors(self) -> ActorTree:
        """List the living actors."""
        return ActorTree(self.system.actors(), dict(self.system.dead_letters.counts))

    def plugins(self) -> tuple[PluginRecord, ...]:
        """List the plugins found, with their state."""
        return self._plugins.records

    async def plan(self, model: str, context: int | None) -> PlanReport:
        """Plan a model as it would be placed now."""
        planned = await self._placer.plan(model, lambda progress: None, context)
        return describe(planned, self.membership.views())

    # -- inside -----------------------------------------------------------------------------------------------------

    def _provider(self, role: Role, name: str) -> Any:
        context = PluginContext(
            node=self.config.node.name, data_dir=self.config.node.data_dir, model_paths=self.config.models.path
        )
        return self._plugins.make(role, name, self.config.plugin_settings, context)

    def _providers(self, role: Role, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: self._provider(role, name) for name in names}

    def _detector_settings(self) -> DetectorSettings:
        cluster = self.config.cluster
        return DetectorSettings(
            heartbeat=cluster.heartbeat,
            phi=cluster.phi,
            least_deviation=cluster.least_deviation,
            acceptable_pause=cluster.acceptable_pause,
            longest_silence=cluster.longest_silence,
            probes=cluster.probes,
            probe_timeout=cluster.probe_timeout,
        )

    def _new_driver(self, model: str) -> Driver:
        models = self.config.models
        limits = DriverLimits(
            sequences=max(models.batch, models.sequences),
            waiting=WAITING_PER_SEQUENCE * models.sequences,
            prefix_cache=models.prefix_cache,
            keep_alive=models.keep_alive,
        )
        return Driver(model, self._placer, limits, self._board, self._publish, self._withdraw)

    def _publish(self, entry: ServedModel) -> None:
        self.registry.publish(entry)

    def _withdraw(self, model: str, driver: ActorRef) -> None:
        self.registry.withdraw(model, driver)

    def _served_by(self, model: str) -> ActorRef | None:
        entry = self.registry.lookup(model)
        return None if entry is None else entry.driver

    def _round_trip(self, peer: str) -> float | None:
        info = self.membership.member(peer)
        return None if info is None else info.rtt

    def _peers(self) -> list[str]:
        return [name for name in self.membership.live() if name != self.system.node]

    def _backend(self) -> str:
        return backend_name() if self._accelerator is None else self._accelerator.backend

    def _profile(self) -> NodeProfile:
        return NodeProfile(
            version=__version__,
            backend=self._backend(),
            memory=self.ledger.memory(),
            families=tuple(self._families),
            unhealthy=self.health.reason,
        )

    def _peer_changed(self, info: NodeInfo) -> None:
        emit_all(self._sinks, PeerChanged(info.name, _state(info)))

    def _health_changed(self) -> None:
        self.membership.report()
        emit_all(self._sinks, HealthChanged(self.health.reason))

    async def _warm_up(self) -> None:
        # However long a slow disk takes to import MLX, the model is loaded afterwards.
        self._accelerator = await self.compute.run(prepare, outlasts=True)
        blas = self._accelerator.blas
        logger.info("computing on {} ({}) with {}", self._accelerator.device, self._accelerator.backend, blas.name)
        if blas.advice is not None:
            logger.warning("{}", blas.advice)
        if self.config.models.preload:
            try:
                await self.engine.load(self.config.models.default)
            except RuntimeFault as fault:
                logger.error("{} is not preloaded: {}", self.config.models.default, fault)

    def _run(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("{} failed", task.get_name())


def _state(info: NodeInfo) -> str:
    """Return a node's state as it is shown: one that is up may be unhealthy."""
    unhealthy = info.profile is not None and info.profile.unhealthy is not None
    return "unhealthy" if unhealthy and info.state is PeerState.UP else str(info.state)


def _entry(info: NodeInfo) -> NodeEntry:
    profile = info.profile
    return NodeEntry(
        name=info.name,
        state="self" if info.local else _state(info),
        address=info.address,
        backend=profile.backend if profile else "unknown",
        memory_total=profile.memory.total if profile else 0,
        memory_available=profile.memory.available if profile else 0,
        version=profile.version if profile else "unknown",
        rtt=info.rtt,
        phi=info.phi,
        last_seen=None if info.local else info.last_seen,
        reason=info.reason or (profile.unhealthy if profile else None),
    )


def _unreached_entry(status: DialStatus) -> NodeEntry:
    return NodeEntry(
        name=status.node or "",
        state="unreached",
        address=status.address,
        backend="unknown",
        memory_total=0,
        memory_available=0,
        version="unknown",
        rtt=None,
        phi=None,
        last_seen=None,
        reason=status.reason,
    )


def _medium(cluster: ClusterSection, limits: Limits) -> WebSockets:
    """Return what the node reaches its peers by.

    Raises:
        ConfigError: its certificates cannot be used.
    """
    if cluster.tls_cert is None or cluster.tls_key is None:
        return WebSockets(limits)
    return WebSockets(
        limits,
        server_context(cluster.tls_cert, cluster.tls_key, cluster.tls_ca, mutual=cluster.tls_mutual),
        client_context(cluster.tls_cert, cluster.tls_key, cluster.tls_ca),
    )


@asynccontextmanager
async def run_node(
    config: Config, plugins: Plugins, fail: Callable[[Exception], None]
) -> AsyncIterator[tuple[Node, Listener]]:
    """Run a node for the length of the block.

    Args:
        config: the whole configuration.
        plugins: the plugins that it was validated with.
        fail: called when the node cannot go on; the block should then be left.

    Raises:
        ConfigError: an address is taken or not this machine's.
        PluginError: a selected provider cannot be made.
    """
    node = Node(config, plugins, fail)
    try:
        await node.start()
        async with serve(node.app(), node.http_settings()) as listener:
            node.listening(listener)
            yield node, listener
    finally:
        await node.stop()


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop where it is installed, else None for the standard one."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
