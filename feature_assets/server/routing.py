"""What the routes that FastAPI serves have in common: who is asking, and how they are refused."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from feature_assets.access import Principal, in_general
from feature_assets.errors import Forbidden
from feature_assets.server.audit import FIRST, Audit
from feature_assets.server.bearer import Bearer
from feature_assets.server.gate import Exchange, exchange_of
from feature_assets.server.problems import Dialect, Problem, problem_of, unforeseen

_NO_STORE: Final = {"cache-control": "no-store"}


class Callers:
    """Tells FastAPI's routes who is asking, and its OpenAPI document what they need to be allowed."""

    def __init__(self, bearer: Bearer, security: SecurityBase, audit: Audit | None = None) -> None:
        self._bearer, self._security, self._audit = bearer, security, audit

    def who_may(self, act: str, *, everywhere: bool = False) -> Any:
        """A dependency of a route: the principal, who may do that on some view at least, or on every one.

        Raises:
            Problem: there is no valid token, or it does not allow this.
        """

        async def caller(
            request: Request, token: Annotated[str | None, Security(self._security, scopes=[act])]
        ) -> Principal:
            return await self.checked(request.scope, act, exchange=exchange_of(request.scope), everywhere=everywhere)

        return Depends(caller)

    async def checked(self, scope: Scope, act: str, *, exchange: Exchange, everywhere: bool = False) -> Principal:
        """The same for whoever reads requests without FastAPI."""
        principal = await self._bearer.principal(scope["headers"], exchange)
        exchange.decision = in_general(principal, act, everywhere=everywhere).enforce()
        if self._audit is not None and act in FIRST:
            self._audit.first(exchange)
        return principal


class Refusal(Response):
    """A refusal as an answer of FastAPI's."""

    def __init__(self, problem: Problem, dialect: Dialect | None = None) -> None:
        super().__init__(status_code=problem.status)
        self._problem, self._dialect = problem, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        exchange = exchange_of(scope)
        await self._problem.answer(scope, send, exchange.id.decode(), self._dialect or exchange.dialect)


class ProblemRoute(APIRoute):
    """A route that refuses with problem documents, whatever happens in it."""

    dialect: Dialect | None = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except HTTPException:
                raise
            except Exception as error:  # noqa: BLE001 (no request may end without an answer)
                return Refusal(_problem(error, request), self.dialect)

        return answer


def _problem(error: Exception, request: Request) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, Forbidden):
        exchange_of(request.scope).decision = error.decision or exchange_of(request.scope).decision
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    return problem_of(error) or unforeseen(error, exchange_of(request.scope).id.decode())


def _invalid(error: RequestValidationError) -> Problem:
    """What was sent is not quoted: it may be long, or somebody else's."""
    first = error.errors()[0]
    where, *path = map(str, first["loc"])
    name = ".".join(path) or where
    return Problem(422, "bad-request", f"'{name}' ({where}): {first['msg']}.", pointer="/" + "/".join(path))


def as_json(value: Any, *, status: int = 200, headers: "dict[str, str] | None" = None) -> Response:
    """An answer that no cache keeps."""
    body = orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)
    return Response(body, status, headers={**_NO_STORE, **(headers or {})}, media_type="application/json")
