"""What would make a model fit that does not: found by asking for less, or with more, until it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

CONTEXT_STEP = 256
"""Tokens by which MLX grows a cache: what is between two multiples saves nothing."""
MORE_NODES = 8
"""Further nodes that are tried."""
QUANTIZATIONS = (8, 4)
"""Bits a weight that are tried."""
SCALES_BITS = 0.5
"""What MLX's scale and bias of 16 bits for each 64 weights add to each."""
MIB = 1 << 20
SEARCH_SECONDS = 5.0
"""How long the search may take: in a large cluster each trial is slow."""


class Asked(NamedTuple):
    """What is asked of the nodes."""

    context: int
    sequences: int
    bits: float
    """That a weight takes, once loaded."""
    weights: float = 1.0
    """The share of their bytes that the weights keep."""
    more_nodes: int = 0
    reserve: int = 0
    """The most bytes that any node keeps free."""


class _Remedy(NamedTuple):
    change: float
    """How much it takes away, or adds: the factor between before and after."""
    text: str


def what_would_help(fits: Callable[[Asked], bool], asked: Asked) -> str:
    """Return a line with the changes that are each enough by themselves, the smallest change first.

    ``fits`` says whether a placement is possible; whoever can do with less can do with still less. After
    :data:`SEARCH_SECONDS` nothing more is tried, which is said.
    """
    deadline = time.monotonic() + SEARCH_SECONDS
    failed: list[Asked] = []
    untried: list[Asked] = []

    def in_time(changed: Asked) -> bool:
        if time.monotonic() >= deadline:
            untried.append(changed)
            return False
        enough = fits(changed)
        if not enough:
            failed.append(changed)
        return enough

    found = sorted(_remedies(in_time, asked), key=lambda remedy: remedy.change)
    sentences = [f"What would help: {'; or '.join(each.text for each in found) or 'a smaller model, or more memory'}."]
    if not found and failed:
        sentences.append(f"Not enough by itself: {', '.join(_in_words(failed, asked))}.")
    if untried:
        sentences.append(f"The search was cut short after {SEARCH_SECONDS:g} s: less, or something else, may do too.")
    return " ".join(sentences)


def _in_words(failed: list[Asked], asked: Asked) -> Iterator[str]:
    """Yield the most of each change that was tried and was not enough."""
    if min(each.context for each in failed) < asked.context:
        yield "less context"
    if min(each.sequences for each in failed) < asked.sequences:
        yield "a single sequence"
    if more := max(each.more_nodes for each in failed):
        yield f"{more} more node(s) of this size"
    if (share := min(each.weights for each in failed)) < 1:
        yield f"{share * asked.bits - SCALES_BITS:g} bit weights"
    if min(each.reserve for each in failed) < asked.reserve:
        yield "a models.memory_reserve of 0"


def _remedies(fits: Callable[[Asked], bool], asked: Asked) -> Iterator[_Remedy]:
    steps = (asked.context - 1) // CONTEXT_STEP
    most = _most(steps, lambda step: fits(asked._replace(context=step * CONTEXT_STEP)))
    if most:
        context = most * CONTEXT_STEP
        yield _Remedy(asked.context / context, f"a context of {context} tokens instead of {asked.context}")
    sequences = _most(asked.sequences - 1, lambda count: fits(asked._replace(sequences=count)))
    if sequences:
        yield _Remedy(asked.sequences / sequences, f"{sequences} sequence(s) at once instead of {asked.sequences}")
    for more in range(1, MORE_NODES + 1):
        if fits(asked._replace(more_nodes=more)):
            yield _Remedy(1.0 + more, f"{more} more node(s) like the one with the most memory")
            break
    for bits in QUANTIZATIONS:
        share = (bits + SCALES_BITS) / asked.bits
        if share < 1 and fits(asked._replace(weights=share)):
            yield _Remedy(1 / share, f"the model quantized to {bits} bits instead of {asked.bits:g}")
            break
    kept = _most(asked.reserve // MIB, lambda count: fits(asked._replace(reserve=(count - 1) * MIB)))
    if kept:  # the last to be said, whatever it is: it is other programs that pay for it
        yield _Remedy(inf, f"a models.memory_reserve of at most {kept - 1} MiB where it lacks")


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the most of 1 to ``limit`` that fits, by bisection; 0 if not even one does."""
    if limit < 1 or not fits(1):
        return 0
    least, most = 1, limit
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least
