"""Who asks, and what they may do.

Guard stands before everything: a request without a valid key costs no more than a look at it, and its body is not read. Each
route then takes one of the dependencies at the end, which hold the key to a role and the run to its owner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.known_keys import KnownKeys
from api.limits import Limits
from api.problems import HEADERS_TOO_LARGE, URI_TOO_LONG, error_response, problem_response
from api.routes_page import FILES
from api.state import StoreDep
from service.errors import Forbidden, MillionwayError, RunNotFound, Unauthenticated
from service.keys import sha256
from service.runs import Key, Role, Run

OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", *FILES})
"""No key needed: nothing there is about a run or its owner."""
MAX_URI_BYTES = 4 << 10
MAX_HEADER_BYTES = 16 << 10


class Guard:
    """Lets in who carries a valid key and stays within the limits; the key is then `request.state.key`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits, known = cast(Limits, scope["state"]["limits"]), cast(KnownKeys, scope["state"]["keys"])
        try:
            if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > MAX_URI_BYTES:
                answer = problem_response(URI_TOO_LONG, f"the path and its query are longer than {MAX_URI_BYTES} bytes: shorten them")
            elif sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                answer = problem_response(HEADERS_TOO_LARGE, f"the headers are larger than {MAX_HEADER_BYTES} bytes: send fewer")
            elif scope["path"] in OPEN:
                limits.stranger(_host(scope))
                await self._app(scope, receive, send)
                return
            else:
                key = await _key(scope, limits, known)
                with limits.known(key):
                    scope["state"]["key"] = key
                    await self._app(scope, receive, send)
                return
        except MillionwayError as error:  # of the guard: those of a route are answered inside
            answer = error_response(error, scope["path"])
        await answer(scope, receive, send)


async def _key(scope: Scope, limits: Limits, known: KnownKeys) -> Key:
    scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        limits.stranger(_host(scope))
        raise Unauthenticated("the request carries no key: send Authorization: Bearer mw_..., from `millionway keys create`")
    digest = sha256(secret.strip())
    if known.is_new(digest):
        limits.stranger(_host(scope))
    key = await known.find(digest)
    if key is None:
        raise Unauthenticated("the key is not known here, or revoked: make one with `millionway keys create`")
    return key


def _host(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


_bearer = HTTPBearer(scheme_name="key", bearerFormat="mw_...", auto_error=False, description="From `millionway keys create`")


async def _guarded(request: Request, _: Annotated[object, Security(_bearer)]) -> Key:
    """The scheme is for the OpenAPI document."""
    return cast(Key, request.state.key)


KeyDep = Annotated[Key, Depends(_guarded)]


def _of_role(*roles: Role) -> Callable[[Key], Awaitable[Key]]:
    async def check(key: KeyDep) -> Key:
        if key.role not in roles:
            raise Forbidden(f"the key {key.name!r} has the role {key.role}: this takes {' or '.join(roles)}")
        return key

    return check


UserDep = Annotated[Key, Depends(_of_role(Role.USER, Role.ADMIN))]
WorkerDep = Annotated[Key, Depends(_of_role(Role.WORKER, Role.ADMIN))]
AdminDep = Annotated[Key, Depends(_of_role(Role.ADMIN))]


async def _own_run(run_id: str, key: UserDep, store: StoreDep) -> Run:
    """The run of the path, if the key may see it: to others it does not exist."""
    run = await store.get(run_id)
    if key.role != Role.ADMIN and run.owner != key.name:
        raise RunNotFound(run_id)
    return run


OwnRun = Annotated[Run, Depends(_own_run)]
