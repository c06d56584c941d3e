from __future__ import annotations

import pytest

from runtime.actors import Down, Message, Request, UnknownTag, message_type, tag_of


class Tagged(Message, frozen=True, tag="test.tags.tagged"):
    pass


class Asked(Request[Tagged], frozen=True, tag="test.tags.asked"):
    pass


class Nameless(Message, frozen=True):
    pass


@pytest.mark.parametrize("cls", [Tagged, Asked, Down])
def test_a_tag_leads_back_to_its_class(cls: type[Message]) -> None:
    assert message_type(tag_of(cls)) is cls


def test_a_tag_can_be_read_from_a_message_too() -> None:
    assert tag_of(Asked()) == "test.tags.asked"


def test_a_message_that_states_no_tag_cannot_be_named_between_nodes() -> None:
    with pytest.raises(TypeError, match="Nameless has no tag"):
        tag_of(Nameless())


@pytest.mark.parametrize("tag", ["test.tags.never", "Nameless", "Request", "Message", ""])
def test_an_unknown_tag_is_told_apart(tag: str) -> None:
    with pytest.raises(UnknownTag):
        message_type(tag)
