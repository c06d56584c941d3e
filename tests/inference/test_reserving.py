"""Reservations of several placements at once: for each of them everything or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
from hypothesis import given
from hypothesis import strategies as st

from runtime.actors import ActorRef
from runtime.cluster import Release, Reservations, Reserve, Reserved, Settled
from runtime.errors import PeerUnreachable, PlacementRefused
from runtime.inference.reserving import reserve
from runtime.spi import LayerSpan, NodeMemory, Plan, StagePlan

CAPACITY = 100
NODES = "abcd"


class Ledgers:
    """A ledger on every node; ``order`` says which of the waiting questions is answered next."""

    def __init__(self, order: list[int], lost: frozenset[str] = frozenset()) -> None:
        self.held = {node: Reservations() for node in NODES}
        self._order = order
        self._lost = lost
        self._waiting: list[asyncio.Future[None]] = []
        self._asked = asyncio.Event()

    async def ask(self, target: ActorRef, request: Any, timeout: float) -> Any:
        """Answer as the ledger on ``target``'s node does."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._asked.set()
        await turn
        if target.node in self._lost:
            raise PeerUnreachable(f"no link to {target.node}")
        held = self.held[target.node]
        match request:
            case Reserve():
                memory = NodeMemory(total=CAPACITY, available=CAPACITY)
                grant = held.reserve(request.model, 1, request.bytes, request.owner, memory, 0, 0)
                assert self.granted(target.node) <= CAPACITY
                return Reserved(grant.id)
            case Release(number):
                held.release(number)
                return Settled()

    def granted(self, node: str) -> int:
        """Bytes granted on a node."""
        return sum(grant.bytes for grant in self.held[node].all())

    async def answer(self, everything: asyncio.Future[Any]) -> None:
        """Answer the questions until all placements are through."""
        everything.add_done_callback(lambda done: self._asked.set())
        while not everything.done():
            self._asked.clear()
            while self._waiting:
                index = self._order.pop() if self._order else 0
                self._waiting.pop(index % len(self._waiting)).set_result(None)
                await asyncio.sleep(0)  # whoever was answered may ask again before the next is answered
            if not everything.done():
                await self._asked.wait()


def plan(needs: dict[str, int]) -> Plan:
    total = len(needs)
    stages = (StagePlan(node, LayerSpan(i, i + 1, total), size) for i, (node, size) in enumerate(needs.items()))
    return Plan(tuple(stages), "a test")


async def place_all(ledgers: Ledgers, wanted: list[dict[str, int]]) -> list[Any]:
    placing = asyncio.gather(
        *(reserve(ledgers, plan(needs), f"{i}", 1, ActorRef("a", f"/{i}", 1)) for i, needs in enumerate(wanted)),
        return_exceptions=True,
    )
    await ledgers.answer(placing)
    return await placing


NEEDS = st.dictionaries(st.sampled_from(NODES), st.integers(1, CAPACITY), min_size=1).flatmap(
    lambda needs: st.permutations(list(needs.items())).map(dict)
)


@given(st.lists(NEEDS, min_size=1, max_size=5), st.lists(st.integers(0, 9), max_size=60))
def test_every_placement_gets_all_or_nothing_and_one_of_them_gets_all(
    wanted: list[dict[str, int]], order: list[int]
) -> None:
    ledgers = Ledgers(order)
    results = anyio.run(place_all, ledgers, wanted)
    through = [index for index, result in enumerate(results) if isinstance(result, tuple)]
    assert all(isinstance(result, tuple | PlacementRefused) for result in results)
    assert through, "each fits alone, so the first to come must get through"
    for node in NODES:
        held = {grant.model: grant.bytes for grant in ledgers.held[node].all()}
        assert held == {str(index): wanted[index][node] for index in through if node in wanted[index]}


def test_the_reservations_are_in_the_order_of_the_stages() -> None:
    ledgers = Ledgers([])
    (numbers,) = anyio.run(place_all, ledgers, [{"c": 1, "a": 2, "b": 3}])
    held = [ledgers.held[node].all()[0] for node in "cab"]
    assert numbers == tuple(grant.id for grant in held)
    assert [grant.bytes for grant in held] == [1, 2, 3]


def test_a_node_that_cannot_be_reached_leaves_nothing_reserved_on_the_others() -> None:
    ledgers = Ledgers([], lost=frozenset("d"))
    (result,) = anyio.run(place_all, ledgers, [{"d": 1, "a": 2, "b": 3}])
    assert isinstance(result, PeerUnreachable)
    assert [ledgers.granted(node) for node in NODES] == [0, 0, 0, 0]
