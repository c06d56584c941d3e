"""Measuring speeds and links before a model is placed: the actor that does it, and asking those of all nodes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from time import perf_counter
from typing import ClassVar

from loguru import logger

from runtime.actors import Actor, ActorRef, ActorSystem, Lane, Message, ReplyTo, Request
from runtime.errors import RuntimeFault
from runtime.inference.compute import ComputeThread
from runtime.inference.failure import as_fault
from runtime.inference.planning import Measures
from runtime.inference.probe_cache import Probes
from runtime.inference.protocol import Done
from runtime.spi import Checkpoint, LayerSeconds, Link, LoadOptions, NodeView
from runtime.wire import Tensor

SURVEYOR = "surveyor"
"""Path of every node's :class:`Surveyor`."""
SURVEY_SECONDS = 30.0
"""How long the nodes may take; what a node measures later, it knows the next time."""
SURVEYED_PEERS = 16
"""Nodes whose links to each other are measured."""
ECHO_SECONDS = 3.0
ECHO_BYTES = 256 << 10
"""Of the message that a link's bandwidth is measured with."""
LINK_SECONDS = 300.0
"""For how long a link is taken to stay as it was measured."""
LONGEST_SECONDS = 3600.0
"""Longer than any layer takes for a token, or any message on its way: whoever says so has not measured."""


class Surveyed(Message, frozen=True, tag="survey.done"):
    """What a node has measured."""

    seconds: LayerSeconds | None
    reason: str
    """Why there are no seconds."""
    links: dict[str, Link]
    """To those peers that could be measured."""


class Survey(Request[Surveyed], frozen=True, tag="survey.start"):
    """Measure the layers of a model, and the links to peers, unless that is known."""

    config: bytes
    """The model's ``config.json``."""
    options: LoadOptions
    peers: tuple[str, ...]


class Echo(Request[Done], frozen=True, tag="survey.echo"):
    """Answer at once. Timed, to know how long so many bytes take."""

    lane: ClassVar[Lane] = Lane.BULK
    payload: Tensor


class Surveyor(Actor):
    """Measures for whoever is about to place a model."""

    def __init__(self, probes: Probes, compute: ComputeThread, rtt: Callable[[str], float | None]) -> None:
        """``rtt`` returns the round trip to a peer in seconds, as the pings have it, or None if they do not."""
        self._probes = probes
        self._compute = compute
        self._rtt = rtt
        self._links: dict[str, tuple[Link, float]] = {}

    async def receive(self, message: Message) -> Message | None:
        """Measure, or be measured."""
        match message:
            case Survey():
                self.context.start_task(self._survey(message, self.context.reply_later()), "survey")
            case Echo():
                return Done()
        return None

    async def _survey(self, order: Survey, reply: ReplyTo) -> None:
        links = await self._measure_links(order.peers)
        try:
            config = json.loads(order.config)
            got_on = self._compute.got_on
            seconds = await self._compute.run(lambda: self._probes.seconds(config, order.options, got_on))
        except Exception as error:  # noqa: BLE001 - without a measurement the model is placed all the same
            reply.answer(Surveyed(None, str(as_fault(error, "measuring the layers")), links))
        else:
            reply.answer(Surveyed(seconds, "", links))

    async def _measure_links(self, peers: tuple[str, ...]) -> dict[str, Link]:
        """Measure one link after the other: at the same time they would take each other's bandwidth."""
        found: dict[str, Link] = {}
        for peer in peers[:SURVEYED_PEERS]:
            if peer == self.context.node:
                continue
            link, measured = self._links.get(peer, (None, 0.0))
            if link is None or self.context.now() - measured > LINK_SECONDS:
                link = await self._measure(peer)
            if link is not None:
                found[peer] = link
                self._links.setdefault(peer, (link, self.context.now()))
        return found

    async def _measure(self, peer: str) -> Link | None:
        self._links.pop(peer, None)
        try:
            empty = min([await self._echo(peer, 0) for _ in range(2)])
            full = min([await self._echo(peer, ECHO_BYTES) for _ in range(2)])
        except RuntimeFault as fault:
            logger.debug("the link to {} is not measured: {}", peer, fault)
            return None
        # A ping that came back within one tick of the event loop's clock, which may be a millisecond, says nothing.
        rtt = min(empty, self._rtt(peer) or empty)
        # The difference of two noisy times; a link is no more than ten times as fast as both together look.
        return Link(latency=rtt / 2, bandwidth=ECHO_BYTES / max(full - empty, full / 10))

    async def _echo(self, peer: str, size: int) -> float:
        start = perf_counter()  # the event loop's clock is too coarse, see _measure
        await self.context.ask(
            ActorRef(peer, f"/{SURVEYOR}"), Echo(Tensor("uint8", (size,), bytes(size))), ECHO_SECONDS
        )
        return perf_counter() - start


class Surveys:
    """Asks all nodes at once, and makes do with what those answer that do."""

    def __init__(self, system: ActorSystem) -> None:
        self._system = system

    async def __call__(self, checkpoint: Checkpoint, options: LoadOptions, nodes: tuple[NodeView, ...]) -> Measures:
        """Return what the nodes have measured within :data:`SURVEY_SECONDS`.

        A node that is alone is not asked, as there is nothing to choose. What cannot have been measured is left out,
        with a line in the log: it would decide where the layers go.
        """
        if len(nodes) < 2:
            return Measures()
        names = tuple(node.name for node in nodes)
        # The driver, which is here, may be none of those that are to hold layers; the ways to it count all the same.
        peers = dict.fromkeys((self._system.node, *names))
        order = Survey(json.dumps(checkpoint.config).encode(), options, tuple(peers)[:SURVEYED_PEERS])
        answers = await asyncio.gather(
            *(self._system.ask(ActorRef(name, f"/{SURVEYOR}"), order, SURVEY_SECONDS) for name in names),
            return_exceptions=True,
        )
        seconds: dict[str, LayerSeconds] = {}
        links: dict[tuple[str, str], Link] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, RuntimeFault):
                    raise answer
                logger.info("{} has not measured in time: {}", name, answer)
                continue
            if answer.seconds is None:
                logger.info("{} has not measured its speed: {}", name, answer.reason)
            else:
                if _is_possible(answer.seconds):
                    seconds[name] = answer.seconds
                else:
                    logger.warning("{} says that its layers take a time that is not possible: not counted", name)
            for peer, link in answer.links.items():
                if _is_link(link):
                    links[name, peer] = link
                else:
                    logger.warning("{} says of its link to {} what is not possible, {}: not counted", name, peer, link)
        return Measures(seconds, links)


def _is_possible(seconds: LayerSeconds) -> bool:
    return all(_is_duration(each) for each in (*seconds.decode, *seconds.batched, *seconds.prefill))


def _is_link(link: Link) -> bool:
    return _is_duration(link.latency) and 1 <= link.bandwidth < math.inf


def _is_duration(seconds: float) -> bool:
    """Whether it is a time that can have been measured: a NaN is not."""
    return 0 <= seconds <= LONGEST_SECONDS
