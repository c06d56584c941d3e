from __future__ import annotations

from runtime.cluster.addresses import FORGOTTEN, MOST_LEARNT, AddressBook


def test_discovered_and_learnt_addresses_are_dialled() -> None:
    book = AddressBook()
    book.discovered = frozenset({"a:1"})
    assert book.learn(("b:1", "a:1"), 0)
    assert not book.learn(("b:1",), 1)
    assert book.wanted() == {"a:1", "b:1"}


def test_an_address_that_discovery_drops_is_dialled_no_more_unless_a_peer_named_it() -> None:
    book = AddressBook()
    book.discovered = frozenset({"a:1", "b:1"})
    book.linked("b:1", 0)
    book.discovered = frozenset()
    assert book.wanted() == {"b:1"}


def test_what_a_peer_says_is_checked_and_bounded() -> None:
    book = AddressBook()
    assert not book.learn(("nonsense", "", ":5", "host:0"), 0)
    book.learn(tuple(f"host:{port}" for port in range(1, 1000)), 0)
    assert len(book.wanted()) == MOST_LEARNT


def test_a_learnt_address_is_forgotten_when_it_is_of_no_use_for_long() -> None:
    book = AddressBook()
    book.learn(("b:1", "c:1"), 0)
    book.linked("c:1", FORGOTTEN / 2)
    book.forget(FORGOTTEN)
    assert book.wanted() == {"c:1"}
