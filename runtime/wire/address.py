"""Addresses of nodes, ``host:port``, as text."""

from __future__ import annotations

import ipaddress

from runtime.errors import ConfigError


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{address!r} is not an address; write an IPv6 host in brackets, as in [::1]:7878")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not an address of the form host:port")
    try:
        host.encode("idna")  # as whoever looks the name up does
    except UnicodeError as error:
        raise ConfigError(f"{address!r} is not an address: {host!r} is no host name ({error})") from error
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_address(advertised: str, observed: str) -> str:
    """Return where to reach a peer that says it listens on ``advertised`` and was seen at the host ``observed``.

    A peer that listens on all interfaces, or advertises a host that means itself to everyone, does not know how
    others see it. Empty if there is no telling.
    """
    try:
        host, port = parse_address(advertised)
    except ConfigError:
        return ""
    if port == 0:
        return ""
    ip = _ip(host)
    if host == "" or (ip is not None and ip.is_unspecified):
        return format_address(observed, port) if observed else ""
    if _is_loopback(host) and not _is_loopback(observed):
        return ""
    return advertised


def _is_loopback(host: str) -> bool:
    ip = _ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
