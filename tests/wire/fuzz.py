"""Feed mutated frames to a session, its codec and the handshake, which may refuse them and nothing else.

    uv run python -m tests.wire.fuzz --frames 1000000 --seed 1

It ends with an error at the first frame that raises anything but a refusal, that takes longer than :data:`LONGEST`, or
after which the process has grown by more than :data:`MOST_GROWTH`; the seed and the number of the case repeat it.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

from runtime.actors import ActorRef, Answer, Ask, Cancel, Failure, Gone, Lane, Signal, Tell, Unwatch, Watch
from runtime.errors import ProtocolError
from runtime.spi import LayerSpan
from runtime.wire.codec import decode, encode
from runtime.wire.frame import CHUNK_BYTES, Grant, batch_frame, grant_frame, payload_frames
from runtime.wire.handshake import Acceptor, Dialler, Identity, Refusal, Refused
from runtime.wire.limits import GIB, MIB, Limits
from runtime.wire.session import Session
from runtime.wire.tensor import Buffer, Tensor
from tests.wire.messages import Double, Everything, Number, Store

LONGEST = 2.0
"""Seconds for one case, on a machine that others use too."""
MOST_GROWTH = 96 * MIB
"""Of the resident memory. A message that claims to be a gibibyte, and sends little of it, must not take it."""

_REF = ActorRef("b", "/x", 7)
_TENSOR = Tensor("uint8", (40,), bytes(range(40)))
_SIGNALS: tuple[Signal, ...] = (
    Tell(_REF, Number(3)),
    Ask(_REF, Double(4), 9, 100),
    Tell(_REF, Everything("t", _REF, LayerSpan(1, 2, 3), (_TENSOR, _TENSOR), {"k": _TENSOR}, None)),
    Ask(_REF, Store(_TENSOR), 10, 100),
    Answer(9, Number(8)),
    Answer(9, None),
    Failure(9, "actor_stopped", "it is gone"),
    Watch(_REF),
    Unwatch(_REF),
    Gone(_REF, "normal"),
    Cancel(9),
)
_PAYLOADS = tuple(b"".join(bytes(part) for part in encode(signal)) for signal in _SIGNALS)
_EDGES = (0, 1, 2, 3, 4, 64, 65, 127, 128, 255)


class Fuzz:
    """Cases drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated, not a secret

    def case(self) -> None:
        """Try one mutated frame.

        Raises:
            Exception: something other than a refusal came of it.
        """
        kind = self._chance.choice((self._payload, self._frame, self._raw, self._handshake))
        try:
            kind()
        except (ProtocolError, Refused) as refusal:
            self.outcomes[f"{kind.__name__[1:]}: {type(refusal).__name__}"] += 1
        else:
            self.outcomes[f"{kind.__name__[1:]}: taken"] += 1

    def _payload(self) -> None:
        """A changed payload in a sound frame: what the codec is given."""
        _take(_session(), Lane.BULK, [self._mutated(self._chance.choice(_PAYLOADS))])

    def _frame(self) -> None:
        """A changed frame among sound ones."""
        first = batch_frame(0, [_PAYLOADS[0], _PAYLOADS[1]])
        other = self._chance.choice(
            (
                lambda: batch_frame(2, self._chance.choices(_PAYLOADS, k=3)),
                lambda: bytes(next(payload_frames(2, [_PAYLOADS[2]], len(_PAYLOADS[2])))),
                lambda: grant_frame(self._chance.choice(list(Lane)), Grant(5, 500)),
            )
        )()
        session = _session()
        lane = self._chance.choice(list(Lane))
        for frame in (first, self._mutated(other)):
            for payload in session.feed(lane, frame):
                decode(payload)

    def _raw(self) -> None:
        """A payload of many frames, one of which is changed, left out, or sent twice."""
        head = bytearray(next(payload_frames(0, [b"\0" * 99], 99)))
        size = self._chance.choice((99 + len(head), 99 + 2 * len(head), CHUNK_BYTES + 1, GIB))
        head[16:24] = size.to_bytes(8, "little")
        session = _session()
        for _ in range(self._chance.randrange(1, 4)):
            frame = self._mutated(bytes(head)) if self._chance.random() < 0.5 else bytes(head)
            for payload in session.feed(Lane.BULK, frame):
                decode(payload)

    def _handshake(self) -> None:
        step = self._chance.randrange(5)
        dialler = Dialler(Identity("a", 1, b"aaaaaaaa", "10.0.0.1:70"), b"key", Lane.BULK, bytes(16))
        acceptor = Acceptor(Identity("b", 2, b"bbbbbbbb", "10.0.0.2:70"), b"key")

        def sent(payload: bytes, at_step: int) -> bytes:
            return self._mutated(payload) if step == at_step else payload

        challenge = acceptor.challenge(sent(dialler.hello(), 0))
        if step == 4:
            dialler.prove(self._mutated(acceptor.turn_away(Refusal.FULL)))
        acceptor.verify(dialler.prove(sent(challenge, 1)) if step != 2 else self._mutated(dialler.prove(challenge)))
        peer = dialler.conclude(sent(acceptor.verdict(), 3))
        if peer.node != "b":
            raise AssertionError(f"a mutated handshake was believed: {peer}")

    def _mutated(self, frame: bytes) -> bytes:
        changed = bytearray(frame)
        for _ in range(self._chance.randint(1, 4)):
            at = self._chance.randrange(len(changed)) if changed else 0
            match self._chance.randrange(6):
                case 0 | 1 if changed:
                    changed[at] = self._chance.randrange(256)
                case 2 if changed:
                    changed[at] = self._chance.choice(_EDGES)
                case 3:
                    del changed[at : at + self._chance.randint(1, 9)]
                case 4:
                    changed[at:at] = self._chance.randbytes(self._chance.randint(1, 9))
                case 5:
                    # A length or a count gone wild.
                    changed[at : at + 4] = self._chance.choice(
                        (b"\xff" * 4, b"\0" * 4, b"\xdd\xff\xff\xff", b"\x7f" * 4)
                    )
                case _:
                    pass
        return bytes(changed)


def _session() -> Session:
    session = Session(Limits(), _ignore)
    # It takes nothing before it has granted something.
    for _ in session.frames(Lane.CONTROL):
        pass
    return session


def _ignore(lane: Lane) -> None:
    del lane


def _take(session: Session, lane: Lane, parts: list[Buffer]) -> None:
    size = sum(len(part) for part in parts)
    for frame in payload_frames(0, parts, size):
        for payload in session.feed(lane, bytes(frame)):
            decode(payload)


def run(frames: int, seed: int, progress: Callable[[int], None] = lambda number: None) -> Counter[str]:
    """Try as many cases as that; return what came of them.

    Raises:
        AssertionError: one of them did what none may do.
    """
    fuzz = Fuzz(seed)
    before = _resident()
    for number in range(frames):
        start = time.perf_counter()
        try:
            fuzz.case()
        except Exception as error:
            raise AssertionError(f"case {number} of seed {seed} raised {error!r}") from error
        taken = time.perf_counter() - start
        if taken > LONGEST:
            raise AssertionError(f"case {number} of seed {seed} took {taken:.1f} s")
        if number % 10_000 == 0:
            progress(number)
            if number == 0:
                before = _resident()  # the first case imports and compiles things
            elif _resident() - before > MOST_GROWTH:
                raise AssertionError(
                    f"after case {number} of seed {seed} the process had grown by {_resident() - before}"
                )
    return fuzz.outcomes


def _resident() -> int:
    """The most memory that the process has had resident, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(description="Feed mutated frames to the wire.")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.perf_counter()
    outcomes = run(options.frames, options.seed, lambda number: print(f"\r{number:,}", end="", flush=True))
    print(f"\r{options.frames:,} frames of seed {options.seed} in {time.perf_counter() - start:.0f} s")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>10,}  {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
