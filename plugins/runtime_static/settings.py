"""The section ``plugins.static``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _address(value: str) -> str:
    """Check ``host:port``; an IPv6 host stands in brackets."""
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]") and len(host) > 2
    if (
        not colon
        or not host
        or (":" in host and not bracketed)
        or any(letter.isspace() or letter == "/" for letter in host)
    ):
        raise ValueError(f"{value!r} is not an address; write host:port, or [host]:port for IPv6")
    if not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{value!r} has no port between 1 and 65535 after its last colon")
    return value


class StaticSettings(BaseModel):
    """Who to dial."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peers: tuple[Annotated[str, AfterValidator(_address)], ...] = ()
    """Addresses of other nodes, ``host:port``. One that answers is enough: it knows the rest."""
