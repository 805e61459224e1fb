"""Who may make which request: one table from route to what it needs, asked before any route runs.

`authorize` is a dependency of the whole application. A route that has no entry is refused, and a test fails for it.
`Caller` is the access of whoever asks, for routes that filter a list or take from a second repository.

401  no credentials where some are needed, wrong ones, or a token that was asked for less: with a challenge
403  DENIED: whoever it is may not do that there, whether the repository is there or not
404  as always, in repositories that may be seen
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from pagepool.errors import DeniedError, NameInvalidError, UnauthorizedError
from pagepool.oci import validate_repository
from pagepool_service.auth import OPEN, Access, CredentialsError
from pagepool_service.auth.principals import CATALOG, DELETE, PULL, PUSH
from pagepool_service.routes.challenge import challenge

if TYPE_CHECKING:
    from pagepool_service.auth.authority import Authority
    from pagepool_service.routes.context import Context


class Need(Enum):
    """What a route needs."""

    NOTHING = "nothing"
    LOGIN = "credentials, whoever's"
    SOMETHING = "a right, whichever; what is listed is what may be seen"
    CATALOG = CATALOG
    PULL = PULL
    REPORT = "pull, and credentials: it leaves something behind"
    PUSH = PUSH
    DELETE = DELETE


_V2 = "/v2/{name}"
_IMAGE = "/v1/{name}/images/{reference}"
_TREE = "/v1/{name}/trees/{tree}"

TABLE: dict[tuple[str, str], Need] = {
    ("GET", "/healthz"): Need.NOTHING,
    ("GET", "/readyz"): Need.NOTHING,
    ("GET", "/auth/token"): Need.NOTHING,
    ("POST", "/auth/token"): Need.NOTHING,
    ("GET", "/v2"): Need.LOGIN,
    ("GET", "/v2/"): Need.LOGIN,
    ("GET", "/v2/_catalog"): Need.SOMETHING,
    ("GET", f"{_V2}/tags/list"): Need.PULL,
    ("GET", f"{_V2}/referrers/{{digest}}"): Need.PULL,
    ("GET", f"{_V2}/manifests/{{reference}}"): Need.PULL,
    ("PUT", f"{_V2}/manifests/{{reference}}"): Need.PUSH,
    ("DELETE", f"{_V2}/manifests/{{reference}}"): Need.DELETE,
    ("GET", f"{_V2}/blobs/{{digest}}"): Need.PULL,
    ("DELETE", f"{_V2}/blobs/{{digest}}"): Need.DELETE,
    ("POST", f"{_V2}/blobs/uploads"): Need.PUSH,
    ("POST", f"{_V2}/blobs/uploads/"): Need.PUSH,
    ("GET", f"{_V2}/blobs/uploads/{{session}}"): Need.PUSH,
    ("PATCH", f"{_V2}/blobs/uploads/{{session}}"): Need.PUSH,
    ("PUT", f"{_V2}/blobs/uploads/{{session}}"): Need.PUSH,
    ("DELETE", f"{_V2}/blobs/uploads/{{session}}"): Need.PUSH,
    ("GET", "/v1/openapi.json"): Need.NOTHING,
    # The page has no figures in it; what it asks has.
    ("GET", "/"): Need.NOTHING,
    ("GET", "/page/{file}"): Need.NOTHING,
    ("GET", "/v1/images"): Need.SOMETHING,
    ("GET", "/v1/stats"): Need.CATALOG,
    # These name images of all repositories.
    ("GET", "/v1/overview"): Need.CATALOG,
    ("GET", "/v1/activity"): Need.CATALOG,
    ("GET", "/v1/history"): Need.CATALOG,
    ("GET", "/v1/sharing"): Need.CATALOG,
    ("GET", f"{_IMAGE}/sharing"): Need.CATALOG,
    ("GET", "/v1/cache"): Need.CATALOG,
    ("GET", _IMAGE): Need.PULL,
    ("GET", f"{_IMAGE}/tree"): Need.PULL,
    ("GET", f"{_IMAGE}/files"): Need.PULL,
    ("GET", _TREE): Need.PULL,
    ("GET", f"{_TREE}/erofs"): Need.PULL,
    ("GET", f"{_TREE}/objects/{{object}}"): Need.PULL,
    ("POST", f"{_TREE}/extents"): Need.PULL,
    ("POST", f"{_TREE}/fill"): Need.PULL,
    ("POST", f"{_TREE}/lease"): Need.REPORT,
    ("DELETE", f"{_TREE}/lease/{{lease}}"): Need.REPORT,
    ("GET", f"{_TREE}/profile"): Need.PULL,
    ("POST", f"{_TREE}/profile"): Need.REPORT,
    ("DELETE", f"{_TREE}/profile"): Need.DELETE,
    ("GET", "/v1/{name}/profiles"): Need.PULL,
}
"""By method and path, with parameters' names; HEAD is as GET."""

_ACTION = {Need.PULL: PULL, Need.REPORT: PULL, Need.PUSH: PUSH, Need.DELETE: DELETE}
_ASKED = {Need.PULL: "pull", Need.REPORT: "pull", Need.PUSH: "pull,push", Need.DELETE: "delete"}
_LISTING = "registry:catalog:*"
# What scripts look for in what clients print, the test suites of skopeo, podman and buildah among them. Never alone:
# docker takes an error with the very words of its own table, and no detail, for one that is worth trying again, for 50
# seconds.
_WORDS = "authentication required"


class ChallengeError(UnauthorizedError):
    """Credentials are needed, and which.

    Args:
        reason: why; the words that every client's user knows come before it.
        headers: that say so.
    """

    def __init__(self, reason: str, headers: dict[str, str]) -> None:
        super().__init__(f"{_WORDS}: {reason}")
        self.headers = headers


class NoRouteEntryError(DeniedError):
    """A route that nobody has said who may use."""


def need_of(method: str, path: str) -> Need | None:
    """What a route needs; None if nobody has said."""
    return TABLE.get(("GET" if method == "HEAD" else method, path))


async def authorize(request: Request) -> None:
    """Let a request through, or refuse it.

    Raises:
        ChallengeError, DeniedError: it is refused.
        TooManyLoginsError: it is to be tried again.
    """
    service = cast("Context", request.app.state.context)
    request.state.access = OPEN
    authority = service.authority
    if authority is None:
        return
    need = need_of(request.method, str(getattr(request.scope.get("route"), "path_format", "")))
    if need is None:
        raise NoRouteEntryError(f"{request.method} {request.url.path} is for nobody")
    if need is Need.NOTHING:
        return
    name = str(request.path_params.get("name", ""))
    scope = _scope(need, name, _source(request))
    try:
        access = await authority.authenticate(request.headers.raw)
    except CredentialsError as error:
        raise ChallengeError(str(error), challenge(request, service, scope, "invalid_token")) from None
    request.state.access = access
    if not _is_allowed(need, access, authority, name):
        _refuse(request, service, need, name, scope, access)


def authorize_source(request: Request, service: Context, access: Access, name: str, source: str) -> None:
    """Have a client ask for a token of both repositories, where that lets it mount a blob from one in the other.

    A client that learns from challenges what to ask for has one of the other repository alone. Whoever may not pull
    from the source is not told to come again: it would have to upload the blob all the same.

    Raises:
        ChallengeError: another token allows it.
    """
    authority = service.authority
    if authority is None or authority.delegates or access.principal.anonymous:
        return
    if not access.sees(source) and access.would(PULL, source):
        reason = "the token was not asked for the repository to mount from"
        raise ChallengeError(reason, challenge(request, service, _scope(Need.PUSH, name, source), "insufficient_scope"))


def _is_allowed(need: Need, access: Access, authority: Authority, name: str) -> bool:
    if need is Need.LOGIN:
        return not access.principal.anonymous
    if need is Need.SOMETHING:
        return access.lists and (authority.delegates or authority.rights.has_any(access.principal))
    if need is Need.CATALOG:
        return access.catalog
    if need is Need.REPORT and access.principal.anonymous:
        return False
    return access.may(_ACTION[need], name)


def _refuse(request: Request, service: Context, need: Need, name: str, scope: str, access: Access) -> None:
    """Say no, in the way that clients know what to do next.

    Raises:
        ChallengeError: other credentials may help, or a token that is asked for more.
        DeniedError: nothing helps but more rights.
    """
    who = access.principal
    if who.anonymous:
        raise ChallengeError("log in", challenge(request, service, scope, ""))
    action = _ACTION.get(need)
    more = access.would(action, name) if action is not None else not access.lists
    if more:
        reason = "the token was asked for less than this takes"
        raise ChallengeError(reason, challenge(request, service, scope, "insufficient_scope"))
    if action is None:
        raise DeniedError(f"{who} may not see the names and figures of all repositories")
    raise DeniedError(f"{who} may not {action} in {name}, if there is such a repository")


def _scope(need: Need, name: str, source: str = "") -> str:
    if need in _ASKED:
        asked = f"repository:{name.replace(' ', '?')}:{_ASKED[need]}"
        return f"{asked} repository:{source}:pull" if source else asked
    return _LISTING if need in (Need.SOMETHING, Need.CATALOG) else ""


def _source(request: Request) -> str:
    """The repository that a blob is to be mounted from; "" if none is."""
    source = request.query_params.get("from", "") if "mount" in request.query_params else ""
    try:
        return validate_repository(source) if source else ""
    except NameInvalidError:
        return ""  # there is none to ask for


async def _caller(request: Request, _allowed: Annotated[None, Depends(authorize)]) -> Access:
    return cast("Access", request.state.access)


Caller = Annotated[Access, Depends(_caller)]
