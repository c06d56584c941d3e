"""The application: the frontends' routes, the kernel's own, and one form of error for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from runtime.errors import InvalidRequest, MethodNotAllowed, NotFound, PluginError, RuntimeFault
from runtime.http.access import AccessPolicy, normal_origin
from runtime.http.boundary import Boundary
from runtime.http.dialect import Dialects
from runtime.http.guard import Guard
from runtime.http.settings import HttpSettings
from runtime.spi import Engine, Frontend, Telemetry
from runtime.spi.body import explain

_KERNEL = "the kernel's own API"
_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(
    frontends: Mapping[str, Frontend],
    telemetry: Mapping[str, Telemetry],
    engine: Engine,
    admin: APIRouter,
    settings: HttpSettings,
) -> FastAPI:
    """Put every router on one application.

    Args:
        frontends: by the name they were registered with, which errors use.
        telemetry: likewise; those without routes are passed over.
        engine: what the frontends' routes call.
        admin: the routes of :func:`runtime.http.admin.admin_router`.
        settings: who may call.

    Raises:
        PluginError: two of them serve one path, or a frontend could not make its routes.
    """
    dialects = Dialects(frontends)
    # No docs: they would describe every dialect as one API, and load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _answer_faults(app, dialects)

    routers = [(_KERNEL, admin)]
    routers += [(f"frontend {name!r}", frontend.router(engine)) for name, frontend in frontends.items()]
    for name, sink in telemetry.items():
        router = sink.router()
        if router is not None:
            routers.append((f"telemetry {name!r}", router))
    _refuse_clashes(routers)
    for _, router in routers:
        app.include_router(router)

    # The last one added is the first to see a request.
    app.add_middleware(Boundary, dialects=dialects)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=[normal_origin(origin) for origin in settings.allowed_origins],
        allow_origin_regex=_LOOPBACK_ORIGIN,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_middleware(Guard, policy=AccessPolicy(settings), dialects=dialects, max_body_bytes=settings.max_body_bytes)
    return app


def _answer_faults(app: FastAPI, dialects: Dialects) -> None:
    # Starlette types every handler as one of Exception; each of these is registered for the class it names.
    async def answer_fault(request: Request, error: Exception) -> Response:
        assert isinstance(error, RuntimeFault)  # noqa: S101 - narrows the type for mypy
        if error.http_status >= 500:
            # Not the client's mistake, so the operator is told too.
            logger.warning("{} {} answered {}: {}", request.method, request.url.path, error.http_status, error)
        return dialects.response(request.url.path, error)

    async def answer_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - narrows the type for mypy
        # FastAPI puts the place (body, query, path) before the field.
        errors = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
        return dialects.response(request.url.path, explain(errors))

    async def answer_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - narrows the type for mypy
        method, path = request.method, request.url.path
        response = dialects.response(path, _routing_fault(error, method, path))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(RuntimeFault, answer_fault)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)


def _routing_fault(error: HTTPException, method: str, path: str) -> RuntimeFault:
    match error.status_code:
        case 404:
            return NotFound(f"this node serves nothing at {method} {path}")
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return MethodNotAllowed(f"{path} does not take {method}; use {allowed}")
        case status if status < 500:
            return InvalidRequest(str(error.detail))
        case _:
            return RuntimeFault(str(error.detail))


def _refuse_clashes(routers: Sequence[tuple[str, APIRouter]]) -> None:
    owners: dict[tuple[str, str], str] = {}
    for owner, router in routers:
        for route in iter_route_contexts(router.routes):
            # The names of parameters do not tell two paths apart.
            path = re.sub(r"{[^}]*}", "{}", route.path or "")
            for method in sorted(getattr(route.original_route, "methods", None) or {"*"}):
                other = owners.setdefault((path, method), owner)
                if other != owner:
                    raise PluginError(
                        f"{other} and {owner} both serve {method} {route.path}; select one of them in the configuration"
                    )
