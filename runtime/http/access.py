"""Who may call the node: decisions over header values alone.

Two attacks from a web page that the user happens to visit are ruled out. DNS rebinding makes the page's own name
resolve to this machine, so the ``Host`` header must be a name that is ours. A cross-site request needs no permission
to be *sent*, so a mutation with an ``Origin`` must come from an origin that is ours or was allowed. Programs that are
not browsers send no ``Origin``.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from urllib.parse import urlsplit

from runtime.errors import Forbidden, Unauthorized
from runtime.http.settings import HttpSettings

MUTATIONS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
OPEN_PATHS = frozenset({"/"})
"""Answered without the key: ``/`` only says that a server is there, which load balancers and clients probe for."""


def split_host(value: str) -> str:
    """Return the name in a ``Host`` header, or in a setting: lower case, without port, brackets or the root's dot.

    An address of IPv6 without brackets, which only settings have, is taken whole.
    """
    if any(mark in value for mark in "/?#@"):
        return ""
    if value.count(":") > 1 and _is_address(value):
        return value.lower()
    try:
        name = urlsplit(f"//{value}").hostname or ""
    except ValueError:
        return ""
    # urlsplit leaves the zone of an address as it is written.
    return name.removesuffix(".").lower()


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine. ``localhost`` and its sub-domains do (RFC 6761)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether binding to ``host`` listens on every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


class AccessPolicy:
    """The node's rules, made once from its settings."""

    def __init__(self, settings: HttpSettings) -> None:
        self._hosts = {_canonical(split_host(host)) for host in (*settings.allowed_hosts, settings.host)}
        self._wildcard = is_wildcard(settings.host)
        if self._wildcard:
            self._hosts.add(socket.gethostname().lower())
        self._origins = frozenset(normal_origin(origin) for origin in settings.allowed_origins)
        self._key = settings.api_key.strip().encode() if settings.api_key else None
        # Other nodes hear of it, so it must not be a plain digest, from which a weak key could be guessed.
        self._caller = hmac.digest(secrets.token_bytes(32), self._key or b"", "sha256").hex()

    def check_host(self, value: str | None) -> None:
        """Refuse a ``Host`` that is not ours. A wildcard bind takes any address, for a rebound name is never one."""
        name = split_host(value or "")
        if is_loopback(name) or _canonical(name) in self._hosts - {""} or (self._wildcard and _is_address(name)):
            return
        raise Forbidden(
            f"this node does not go by the host {value!r}; call it by its address, or add that name to "
            "http.allowed_hosts"
        )

    def check_origin(self, method: str, origin: str | None, host: str | None) -> None:
        """Refuse a mutation by a web page whose origin is neither loopback, nor the node's own, nor allowed."""
        if method not in MUTATIONS or origin is None or self.allows_origin(origin, host):
            return
        raise Forbidden(f"web pages of {origin} may not call this node; add the origin to http.allowed_origins")

    def allows_origin(self, origin: str, host: str | None) -> bool:
        """Whether a web page of ``origin`` may call the node, asked for as ``host``."""
        origin = normal_origin(origin)
        if origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        return is_loopback(parts.hostname or "") or (host is not None and parts.netloc == host.lower())

    def check_key(self, method: str, path: str, authorization: str | None) -> str:
        """Refuse a request without the key, if there is one. A browser's preflight never carries it (Fetch, 4.8).

        Returns:
            A name for the caller, as :data:`runtime.spi.caller.CALLER` has it.
        """
        if self._key is None or path in OPEN_PATHS or method == "OPTIONS":
            return ""
        scheme, _, presented = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise Unauthorized("this node wants an API key; send it as the header 'Authorization: Bearer <key>'")
        # A header's bytes were read as Latin-1 (ASGI), whatever the client wrote them in.
        if not hmac.compare_digest(presented.strip().encode("latin-1", "replace"), self._key):
            raise Unauthorized("the API key is wrong; compare it with http.api_key of the node's configuration")
        return self._caller


def normal_origin(origin: str) -> str:
    """Return an origin as browsers send it, whether a setting has it with capitals or a slash at its end."""
    return origin.strip().rstrip("/").lower()


def _canonical(name: str) -> str:
    """Write an address in the one form of all it has (RFC 5952); leave a name as it is."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
