"""Who is asking, by the `Authorization` header of a request, and whether they ask too often (RFC 6750)."""

from math import ceil

from feature_assets.access import Principal
from feature_assets.errors import StoreUnavailable, Unauthenticated
from feature_assets.server.auth import TokenValidator
from feature_assets.server.gate import Exchange, Headers
from feature_assets.server.limits import Quota
from feature_assets.server.problems import Problem


class Bearer:
    """Tells who is asking. With a `quota`, whoever asked too often is told to wait."""

    def __init__(self, validator: TokenValidator, quota: Quota | None = None) -> None:
        self._validator, self._quota = validator, quota

    def known(self, headers: Headers) -> Principal | None:
        """Who is asking, if the token was found good before. What it asks for does not count yet: see `admits`."""
        return self._validator.remembered(_token(headers))

    def admits(self, principal: Principal) -> bool:
        """Whether one more request is within the quota. If so it counts."""
        return self._quota is None or not self._quota.take((principal.issuer, principal.subject))

    async def principal(self, headers: Headers, exchange: Exchange) -> Principal:
        """Who is asking. The request counts, and the exchange says who it was or why it is nobody.

        Raises:
            Problem: nobody that we know (401), a header that is none (400), one who asked too often (429), or the
                issuer's keys cannot be had (503).
        """
        try:
            principal = await self._validated(headers)
            exchange.asked_by(principal)
            wait = self._quota.take((principal.issuer, principal.subject)) if self._quota else 0.0
            if wait:
                retry = {"retry-after": str(ceil(wait))}
                raise Problem(429, "too-many-requests", f"Too many requests. Wait {ceil(wait)} s.", headers=retry)
        except Problem as problem:
            exchange.denied = problem.kind
            raise
        return principal

    async def _validated(self, headers: Headers) -> Principal:
        try:
            return await self._validator.validated(_token(headers))
        except StoreUnavailable as error:
            raise Problem(503, "issuer-unreachable", str(error), headers={"retry-after": "30"}) from error
        except Unauthenticated as error:
            raise _unauthenticated(str(error), "invalid_token") from error


def _token(headers: Headers) -> bytes:
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) > 1:
        raise _unauthenticated("There is more than one Authorization header.", "invalid_request", 400)
    if not given or given[0][:7].lower() != b"bearer ":
        raise _unauthenticated("Send an access token: Authorization: Bearer …")
    return given[0][7:].strip()


def _unauthenticated(why: str, code: str = "", status: int = 401) -> Problem:
    # Without a token there is nothing wrong with it, and no code says so (RFC 6750, 3.1).
    challenge = f'error="{code}", error_description="{why}"' if code else ""
    return Problem(status, "unauthenticated", why, challenge=challenge)
