"""TLS between nodes: what proves a node to those that dial it, and, where that is asked for, those to it.

Both ends are nodes of this runtime, so nothing older than TLS 1.3 is spoken.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from runtime.errors import ConfigError


def server_context(cert: Path, key: Path, ca: Path | None, *, mutual: bool) -> ssl.SSLContext:
    """Return the side that is dialled. With ``mutual`` it takes only those whose certificate ``ca`` vouches for.

    Raises:
        ConfigError: a file cannot be read, or they do not fit each other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _prove_by(context, cert, key)
    if mutual:
        if ca is None:
            raise ConfigError(
                "cluster.tls_mutual needs cluster.tls_ca: without it there is nothing to check certificates of peers "
                "against",
                param="cluster.tls_mutual",
            )
        _trust(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(cert: Path, key: Path, ca: Path | None) -> ssl.SSLContext:
    """Return the side that dials. It shows its certificate to whoever asks, and checks the peer's with its host.

    Raises:
        ConfigError: a file cannot be read, or they do not fit each other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _prove_by(context, cert, key)
    if ca is None:
        context.load_default_certs()
    else:
        _trust(context, ca)
    return context


def _prove_by(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    for path, param in ((cert, "cluster.tls_cert"), (key, "cluster.tls_key")):
        _readable(path, param)
    try:
        # An encrypted key would have OpenSSL ask for its password on the terminal.
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"cluster.tls_cert is {cert} and cluster.tls_key is {key}, which cannot be used: {_reason(error)}; they "
            "are PEM files of a certificate and of its private key, without a password",
            param="cluster.tls_cert",
        ) from error


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    _readable(ca, "cluster.tls_ca")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ConfigError(
            f"cluster.tls_ca is {ca}, which cannot be used: {_reason(error)}; it is a PEM file of certificates",
            param="cluster.tls_ca",
        ) from error


def _readable(path: Path, param: str) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{param} is {path}, which cannot be read: {error.strerror}", param=param) from error


def _no_password() -> str:
    raise ValueError("the private key is encrypted")


def _reason(error: Exception) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or str(error)
