from __future__ import annotations

from tests.wire.fuzz import run


def test_mutated_frames_are_refused_or_taken_and_nothing_else() -> None:
    outcomes = run(20_000, seed=7)
    assert sum(outcomes.values()) == 20_000
    # The mutations reach both ends of every path, or they would show nothing.
    for kind in ("payload", "frame", "raw", "handshake"):
        assert outcomes[f"{kind}: ProtocolError"] > 100
    for kind in ("payload", "frame", "raw"):
        assert outcomes[f"{kind}: taken"] > 100
    assert outcomes["handshake: Refused"] > 100
