"""Measure how soon a large cluster notices a lost member, and whether it ever accuses a living one; in virtual time.

    uv run python -m benchmarks.membership [--json] [--sizes 20,100,1000] [--seeds 3]

In each cluster one member crashes after ten seconds. The exit status is 1 where the 99th percentile of the times in
which the others call it down is above the aim, or a living member was called down.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from runtime.cluster.detector import PeerState
from tests.cluster.virtual import SETTINGS, VirtualCluster, Weather, swim

AIM = 8.0
"""Seconds in which 99 of 100 members are to know of a loss."""
BEFORE, AFTER = 10.0, 20.0
"""Seconds of virtual time."""
WEATHERS = {
    "calm": Weather(),
    "5 % loss, 300 ms jitter": Weather(jitter=0.3, loss=0.05),
    "the same, and each stalls 2 s in 10": Weather(jitter=0.3, loss=0.05, stall=2.0),
}


class Row(msgspec.Struct, frozen=True):
    """One size in one weather. Times are in seconds of virtual time, over all observers and seeds."""

    members: int
    weather: str
    seeds: int
    p50: float
    p99: float
    most: float
    unaware: int
    """Observers that never noticed."""
    false_downs: int
    messages: float
    """That a member sends in a heartbeat, on average."""

    @property
    def met(self) -> bool:
        """Whether the aims are met; in stalls the observers themselves are late, so only the false ones count."""
        return not self.false_downs and not self.unaware and (self.p99 <= AIM or "stalls" in self.weather)


def measure(members: int, weather: str, seeds: int) -> Row:
    """Crash one member in each of ``seeds`` clusters."""
    times: list[float] = []
    false_downs = unaware = 0
    messages = 0.0
    for seed in range(1, seeds + 1):
        cluster = VirtualCluster(swim, members, WEATHERS[weather], seed)
        seen = list(cluster.run(BEFORE))
        messages += sum(cluster.sent.values()) / members / (BEFORE / SETTINGS.heartbeat)
        lost = list(cluster.nodes)[members // 2]
        cluster.crashed.add(lost)
        at = cluster.now
        seen += cluster.run(AFTER)
        downs = [each for each in seen if each.state is PeerState.DOWN]
        noticed = [each.at - at for each in downs if each.subject == lost]
        false_downs += len(downs) - len(noticed)
        unaware += members - 1 - len(noticed)
        times += noticed
    times.sort()
    return Row(
        members,
        weather,
        seeds,
        times[len(times) // 2],
        times[len(times) * 99 // 100],
        times[-1],
        unaware,
        false_downs,
        messages / seeds,
    )


def main() -> int:
    """Measure, and print a line a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sizes", default="20,100,1000", help="members of the clusters")
    parser.add_argument("--seeds", type=int, default=3, help="clusters of each size and weather")
    options = parser.parse_args()
    rows = []
    for members in map(int, options.sizes.split(",")):
        for weather in WEATHERS:
            row = measure(members, weather, options.seeds)
            rows.append(row)
            if not options.json:
                print(
                    f"{row.members:>5} {row.weather:<36} p50 {row.p50:.1f} p99 {row.p99:.1f} most {row.most:.1f} s,"
                    f" {row.messages:.1f} messages a heartbeat, {row.false_downs} false, {row.unaware} unaware"
                    f"{'' if row.met else '  NOT MET'}",
                    flush=True,
                )
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
