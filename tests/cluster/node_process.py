"""A node in a process of its own: prints its address, then serves until it is killed.

Arguments: name, listening port, seed addresses.
"""

from __future__ import annotations

import asyncio
import sys

from runtime.cluster import DetectorSettings
from tests.cluster.nodes import ClusterNode, Seeds
from tests.wire.messages import Doubler


async def main(name: str, port: int, seeds: frozenset[str]) -> None:
    node = ClusterNode(name, Seeds(seeds), DetectorSettings())
    node.system.spawn(Doubler, "doubler")
    print(await node.network.listen("127.0.0.1", port), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), frozenset(sys.argv[3:])))
