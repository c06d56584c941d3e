"""Which frontend owns a path, and how a fault is put to its clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse

from runtime.errors import Overloaded, RuntimeFault, Unauthorized
from runtime.spi import Frontend

ErrorBody = Callable[[RuntimeFault], dict[str, Any]]


def kernel_error_body(fault: RuntimeFault) -> dict[str, Any]:
    """Put a fault into the form of the kernel's own API, used wherever no frontend owns the path."""
    error: dict[str, Any] = {"code": fault.code, "message": fault.message}
    if fault.param is not None:
        error["param"] = fault.param
    return {"error": error}


class Dialects:
    """The error dialect of every path: that of the frontend with the longest prefix, else the kernel's."""

    def __init__(self, frontends: Mapping[str, Frontend]) -> None:
        owned = [
            (prefix.rstrip("/"), frontend.error_body) for frontend in frontends.values() for prefix in frontend.prefixes
        ]
        self._owned: list[tuple[str, ErrorBody]] = sorted(owned, key=lambda entry: len(entry[0]), reverse=True)

    def error_body(self, path: str) -> ErrorBody:
        """Return the dialect of a path. Prefixes match whole segments: ``/v1`` owns ``/v1/x`` and not ``/v11``."""
        for prefix, body in self._owned:
            if path == prefix or path.startswith(f"{prefix}/"):
                return body
        return kernel_error_body

    def response(self, path: str, fault: RuntimeFault) -> JSONResponse:
        """Answer a request for ``path`` with a fault."""
        headers = {}
        if isinstance(fault, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(fault, Overloaded):
            headers["Retry-After"] = "1"
        return JSONResponse(self.error_body(path)(fault), status_code=fault.http_status, headers=headers)
