"""Static discovery."""

from __future__ import annotations

import anyio
import pytest
from pydantic import ValidationError

from runtime_static.discovery import StaticDiscovery
from runtime_static.settings import StaticSettings


@pytest.mark.parametrize("address", ["10.0.0.1:7000", "studio.local:1", "[::1]:65535", "node_a:7000"])
def test_an_address_with_host_and_port_is_taken(address: str) -> None:
    assert StaticSettings.model_validate({"peers": [address]}).peers == (address,)


@pytest.mark.parametrize(
    "address",
    ["", "studio", ":7000", "studio:", "studio:0", "studio:65536", "studio:http", "::1:70", "a b:1", "ws://a:1"],
)
def test_anything_else_is_refused_with_what_was_written(address: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        StaticSettings.model_validate({"peers": [address]})
    assert repr(address) in str(refusal.value)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        StaticSettings.model_validate({"peer": ["a:1"]})


async def test_the_set_comes_once_and_the_iterator_then_waits() -> None:
    addresses = StaticDiscovery(("b:2", "a:1", "b:2")).addresses()
    assert await anext(addresses) == {"a:1", "b:2"}
    with anyio.move_on_after(0.05) as scope:
        await anext(addresses)
    assert scope.cancelled_caught
