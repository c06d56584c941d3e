from __future__ import annotations

import pytest

from runtime.errors import ConfigError
from runtime.wire import format_address, parse_address
from runtime.wire.address import reachable_address


@pytest.mark.parametrize(("text", "host", "port"), [("a.local:7", "a.local", 7), ("[::1]:65535", "::1", 65535)])
def test_an_address_is_read_and_written(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "host:seven", "host:65536", "::1:80", "host:-1", "host:²", "a..b:1"]
)
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("advertised", "observed", "reachable"),
    [
        ("10.0.0.7:70", "10.0.0.9", "10.0.0.7:70"),
        ("0.0.0.0:70", "10.0.0.9", "10.0.0.9:70"),
        ("[::]:70", "fe80::1", "[fe80::1]:70"),
        (":70", "10.0.0.9", "10.0.0.9:70"),
        ("127.0.0.1:70", "127.0.0.1", "127.0.0.1:70"),
        ("localhost:70", "127.0.0.1", "localhost:70"),
        ("127.0.0.1:70", "10.0.0.9", ""),
        ("host:0", "10.0.0.9", ""),
        ("", "10.0.0.9", ""),
        ("nonsense", "10.0.0.9", ""),
    ],
)
def test_a_peer_is_dialled_where_others_can_see_it(advertised: str, observed: str, reachable: str) -> None:
    assert reachable_address(advertised, observed) == reachable
