"""Prefixes are found by their tokens, by those who may."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.inference.prefixes import LEAST_USED, Prefix, Prefixes, common

TOKENS = tuple(range(1000, 1200))


@given(shared=st.lists(st.integers(0, 3)), one=st.lists(st.integers(0, 3)), other=st.lists(st.integers(0, 3)))
def test_what_two_sequences_have_in_common_is_counted(shared: list[int], one: list[int], other: list[int]) -> None:
    first, second = (*shared, *one), (*shared, *other)
    expected = next(
        (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
    assert common(first, second) == expected


def test_the_longest_beginning_is_found_and_never_the_whole_of_what_is_asked() -> None:
    prefixes = Prefixes(trims=True)
    assert prefixes.keep(1, "", TOKENS[:100]) == []
    assert prefixes.keep(2, "", (*TOKENS[:150], 7)) == [1], "the longer one has it all"
    assert prefixes.find("", TOKENS) == Prefix(2, 150)
    assert prefixes.find("", TOKENS[:150]) == Prefix(2, 149)
    assert prefixes.find("", TOKENS[:LEAST_USED]) is None
    assert prefixes.find("other", TOKENS) is None


def test_what_another_one_has_already_is_not_kept_twice() -> None:
    prefixes = Prefixes(trims=True)
    prefixes.keep(1, "", TOKENS)
    assert prefixes.keep(2, "", TOKENS[:100]) == [2]
    assert prefixes.keep(3, "other", TOKENS[:100]) == []


def test_what_cannot_be_cut_is_found_as_a_whole_only() -> None:
    prefixes = Prefixes(trims=False)
    assert prefixes.keep(1, "", TOKENS[:100]) == []
    assert prefixes.keep(2, "", TOKENS[:150]) == []
    assert prefixes.find("", TOKENS[:140]) == Prefix(1, 100)
    assert prefixes.find("", TOKENS) == Prefix(2, 150)
    assert prefixes.find("", TOKENS[:100]) is None, "a step has to be run over something"


def test_the_least_recently_used_goes_first_and_what_is_pinned_stays() -> None:
    prefixes = Prefixes(trims=True)
    for sequence, start in enumerate((0, 1000, 2000)):
        prefixes.keep(sequence, "", tuple(range(start, start + 100)))
    assert prefixes.positions(lambda tokens: tokens) == 300
    prefixes.find("", tuple(range(200)))
    assert prefixes.evict({1}) == 2
    assert prefixes.evict({1}) == 0
    assert prefixes.evict({1}) is None
    assert prefixes.positions(lambda tokens: tokens) == 100


def test_what_is_pinned_stays_though_a_longer_one_has_it_all() -> None:
    prefixes = Prefixes(trims=True)
    prefixes.keep(1, "", TOKENS[:100])
    assert prefixes.keep(2, "", TOKENS, {1}) == []
    assert prefixes.length(1) == 100
