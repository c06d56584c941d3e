"""The kernel's own API under ``/runtime/v1``: what the command line asks a node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import anyio
import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import Field

from runtime.actors import ActorInfo
from runtime.http.dialect import kernel_error_body
from runtime.spi import Download, Engine, ModelCard
from runtime.spi.body import MODEL_NAME_CHARACTERS, StrictBody, read_body
from runtime.spi.engine import LONGEST_KEEP_ALIVE
from runtime.spi.streaming import Stream, Write

PREFIX = "/runtime/v1"


class NodeStatus(msgspec.Struct, frozen=True):
    """The node that answers."""

    node: str
    version: str
    pid: int
    uptime: float
    """Seconds."""
    backend: str
    """``metal``, ``cuda`` or ``cpu``."""
    blas: str | None
    """Which BLAS MLX computes with on a CPU; None where it has no part."""
    memory_total: int
    memory_available: int
    memory_reserved: int
    """Bytes that the node's ledger has granted to models."""
    nodes: int
    """Live nodes, this one included."""
    models: int
    """Models being served in the cluster."""
    active: int
    """Generations in progress in the cluster."""
    default_model: str
    urls: tuple[str, ...]


class NodeEntry(msgspec.Struct, frozen=True):
    """A node as this one sees it."""

    name: str
    """Empty for an address where nobody has told a name."""
    state: str
    """``self``, ``up``, ``unhealthy`` (up, and cannot compute), ``suspect``, ``down``; or ``unreached``, which is an
    address that nobody could be linked to."""
    address: str
    backend: str
    memory_total: int
    memory_available: int
    version: str
    rtt: float | None
    """Round trip in seconds; None for itself, and before the first measurement."""
    phi: float | None
    """How unlikely its silence is: the negative decimal logarithm of the chance that it is only late. None for itself,
    and where not every peer is pinged."""
    last_seen: float | None
    """Seconds ago; None for itself, and for who was never seen."""
    reason: str | None
    """Why it is not up, or cannot compute."""


class ActorTree(msgspec.Struct, frozen=True):
    """The actors of the node that answers."""

    actors: Sequence[ActorInfo]
    """Each followed by its children."""
    dead_letters: dict[str, int]
    """Messages that no actor handled, by reason."""


class Inspector(Protocol):
    """What the node tells of itself and would do. Called on the event loop; must not block."""

    def status(self) -> NodeStatus:
        """Describe this node."""
        ...

    def nodes(self) -> list[NodeEntry]:
        """List the nodes known, this one first, and the addresses that are dialled in vain last."""
        ...

    def actors(self) -> ActorTree:
        """List the living actors."""
        ...

    def plugins(self) -> Sequence[msgspec.Struct]:
        """List the plugins found, with their state."""
        ...

    async def plan(self, model: str, context: int | None) -> msgspec.Struct:
        """Plan a model as it would be placed now, without loading it."""
        ...


class LoadBody(StrictBody):
    """What to load."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS)
    keep_alive: float | None = Field(None, le=LONGEST_KEEP_ALIVE)
    """Seconds; negative is for ever."""


class PlanBody(StrictBody):
    """What to plan."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS)
    context: int | None = Field(None, ge=1)
    """Tokens a sequence, instead of what is configured."""


class UnloadBody(StrictBody):
    """What to let go of."""

    model: str = Field(min_length=1, max_length=MODEL_NAME_CHARACTERS)


class Done(msgspec.Struct, frozen=True):
    """The last line of a load, and the answer to an unload."""

    model: str
    done: bool = True


class ModelBrief(msgspec.Struct, frozen=True):
    """A :class:`ModelCard` without what is long."""

    name: str
    source: str
    bytes: int
    modified: float
    architecture: str
    parameters: int
    quantization: str
    context: int
    layers: int
    digest: str
    license: str | None

    @classmethod
    def of(cls, card: ModelCard) -> ModelBrief:
        """Leave out the configuration and the chat template."""
        return cls(**{name: getattr(card, name) for name in cls.__struct_fields__})


def admin_router(engine: Engine, inspector: Inspector) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix=PREFIX)

    @router.get("/status")
    async def status() -> Response:
        return _json(inspector.status())

    @router.get("/nodes")
    async def nodes() -> Response:
        return _json({"nodes": inspector.nodes()})

    @router.get("/actors")
    async def actors() -> Response:
        return _json(inspector.actors())

    @router.get("/plugins")
    async def plugins() -> Response:
        return _json({"plugins": list(inspector.plugins())})

    @router.get("/models")
    async def models() -> Response:
        return _json({"models": [ModelBrief.of(card) for card in await engine.models()]})

    @router.get("/ps")
    async def ps() -> Response:
        return _json({"models": await engine.loaded()})

    @router.post("/plan")
    async def plan(request: Request) -> Response:
        body = read_body(PlanBody, await request.body())
        return _json(await inspector.plan(body.model, body.context))

    @router.post("/load")
    async def load(request: Request) -> Response:
        body = read_body(LoadBody, await request.body())

        async def produce(write: Write) -> None:
            await _load(engine, body, write)

        return Stream(
            produce,
            media_type="application/x-ndjson",
            on_fault=lambda fault: msgspec.json.encode(kernel_error_body(fault)) + b"\n",
        )

    @router.post("/unload")
    async def unload(request: Request) -> Response:
        body = read_body(UnloadBody, await request.body())
        await engine.unload(body.model)
        return _json(Done(model=body.model))

    return router


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _load(engine: Engine, body: LoadBody, write: Write) -> None:
    """Load, and write a line for the newest progress whenever the client has time for one."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    newest: list[Download] = []
    failures: list[Exception] = []

    def note(progress: Download) -> None:
        newest[:] = [progress]
        changed.set()

    def report(progress: Download) -> None:
        # From the source's worker thread, as often as it likes.
        loop.call_soon_threadsafe(note, progress)

    async def relay() -> None:
        while True:
            await changed.wait()
            changed.clear()
            await write(msgspec.json.encode(newest[0]) + b"\n")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay)
        try:
            await engine.load(body.model, keep_alive=body.keep_alive, progress=report)
        except Exception as error:  # noqa: BLE001 - raised again below, where the group cannot wrap it
            failures.append(error)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    await write(msgspec.json.encode(Done(model=body.model)) + b"\n")
