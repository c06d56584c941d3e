"""Sets of ranges against sets of numbers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from runtime.spi.ranges import Range, covers, difference, pieces, size, union

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def numbers(ranges: object) -> set[int]:
    assert isinstance(ranges, list | tuple)
    return {number for start, stop in ranges for number in range(start, stop)}


@given(RANGES, RANGES)
def test_unions_and_differences_hold_what_sets_would(one: list[Range], two: list[Range]) -> None:
    a, b = union(one), union(two)
    assert numbers(a) == numbers(one)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(a))
    assert numbers(difference(a, b)) == numbers(one) - numbers(two)
    assert difference(a, b) == union(difference(a, b)), "it is a set of ranges too"
    assert size(a) == len(numbers(one))


@given(RANGES, st.integers(0, 60), st.integers(0, 60))
def test_what_is_covered_lacks_nothing(ranges: list[Range], start: int, stop: int) -> None:
    assert covers(union(ranges), start, stop) == (not set(range(start, stop)) - numbers(ranges))


@given(RANGES, st.integers(0, 10))
def test_ranges_that_are_joined_over_gaps_are_further_apart_than_those(ranges: list[Range], gap: int) -> None:
    joined = union(ranges, gap=gap)
    assert numbers(ranges) <= numbers(joined)
    assert all(after[0] - before[1] > gap for before, after in itertools.pairwise(joined))


@given(RANGES, st.integers(1, 10))
def test_pieces_are_small_and_make_up_the_whole(ranges: list[Range], most: int) -> None:
    cut = list(pieces(union(ranges), most))
    assert union(cut) == union(ranges)
    assert size(cut) == size(union(ranges))
    assert all(0 < stop - start <= most for start, stop in cut)
