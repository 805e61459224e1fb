"""The token endpoint: credentials for a token that allows some things for some minutes.

Follows the distribution project's ``spec/auth/token.md`` (GET with basic credentials) and ``oauth.md`` (POST of a form,
with a password or a refresh token). What is asked for and may not be had is left out of the token: the client finds out
by the answer to its request. Nothing that was sent is ever logged or repeated.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from pagepool.errors import InvalidError, UnsupportedError
from pagepool_service.auth import ANONYMOUS, CredentialsError, Principal
from pagepool_service.auth.basic import parse_basic
from pagepool_service.auth.principals import ACCESS_S
from pagepool_service.auth.scopes import parse_scopes
from pagepool_service.routes.access import ChallengeError
from pagepool_service.routes.challenge import TOKEN_PATH
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import failures, json_object, success
from pagepool_service.routes.extents import read_body

if TYPE_CHECKING:
    from pagepool_service.auth.authority import Authority

router = APIRouter()

_LARGEST_FORM = 64 << 10
_TEXT = {"type": "string"}
_TOKEN = json_object(
    ("token", "access_token", "expires_in", "issued_at"),
    token={**_TEXT, "description": "Send it as `Authorization: Bearer`."},
    access_token={**_TEXT, "description": "The same."},
    expires_in={"type": "integer", "description": "Seconds."},
    issued_at=_TEXT,
    refresh_token={**_TEXT, "description": "Good for new tokens, in place of the password."},
    scope=_TEXT,
)
_NO_STORE = {"Cache-Control": "no-store"}
_FORM = {
    "requestBody": {
        "description": "`grant_type` (`password` or `refresh_token`), and what it takes.",
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["password", "refresh_token"]},
                        "username": _TEXT,
                        "password": _TEXT,
                        "refresh_token": _TEXT,
                        "scope": _TEXT,
                        "service": _TEXT,
                        "access_type": _TEXT,
                    },
                }
            }
        },
    }
}


@router.get(TOKEN_PATH, responses={200: success("A token.", content=_TOKEN), **failures(405)})
async def get_token(
    request: Request,
    service: Service,
    scope: Annotated[
        list[str], Query(description="What it is to allow, `repository:NAME:pull,push`; several, or none to log in.")
    ] = [],  # noqa: B006  (FastAPI copies defaults)
    offline_token: Annotated[str, Query(description="`true` for a refresh token, too.")] = "",
) -> JSONResponse:
    """Get a token, with basic credentials or without any."""
    authority = _authority(service)
    value = request.headers.get("authorization")
    principal, stamp = ANONYMOUS, ""
    if value is not None:
        kind, _, rest = value.partition(" ")
        if kind.lower() != "basic":
            raise _wrong("the token endpoint takes basic credentials")
        try:
            principal, stamp = await _login(authority, *parse_basic(rest))
        except CredentialsError as error:
            raise _wrong(str(error)) from None
    offline = offline_token.lower() == "true"
    return _answer(authority, principal, stamp, scope, offline=offline)


@router.post(
    TOKEN_PATH, openapi_extra=_FORM, responses={200: success("A token.", content=_TOKEN), **failures(405, 413)}
)
async def post_token(request: Request, service: Service) -> JSONResponse:
    """Get a token, with a password or a refresh token in a form."""
    authority = _authority(service)
    form = _parse_form(await read_body(request, service, _LARGEST_FORM, "form", service.forms))
    grant = form.get("grant_type", "")
    try:
        if grant == "password":
            principal, stamp = await _login(authority, form.get("username", ""), form.get("password", ""))
            offline = form.get("access_type") == "offline"
            return _answer(authority, principal, stamp, [form.get("scope", "")], offline=offline)
        if grant == "refresh_token":
            token = form.get("refresh_token", "")
            principal, stamp = authority.redeem(token)
            return _answer(authority, principal, stamp, [form.get("scope", "")], refresh=token)
    except CredentialsError as error:
        raise _wrong(str(error)) from None
    raise InvalidError(grant[:32], "grant_type is password or refresh_token")


async def _login(authority: Authority, name: str, password: str) -> tuple[Principal, str]:
    if not name and not password:
        return ANONYMOUS, ""
    access = await authority.login(name, password)
    return access.principal, authority.stamp_of(access.principal.name, password)


def _answer(
    authority: Authority,
    principal: Principal,
    stamp: str,
    scopes: list[str],
    *,
    offline: bool = False,
    refresh: str = "",
) -> JSONResponse:
    scope = authority.grant(principal, parse_scopes(scopes))
    token = authority.sign_access(principal, scope, stamp, ACCESS_S)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    body: dict[str, Any] = {
        "token": token,
        "access_token": token,
        "expires_in": ACCESS_S,
        "issued_at": now.isoformat().replace("+00:00", "Z"),
    }
    if offline and not principal.anonymous:
        refresh = authority.sign_refresh(principal, stamp)
    if refresh:
        body["refresh_token"] = refresh
    return JSONResponse(body, headers=_NO_STORE)


def _authority(service: Context) -> Authority:
    if service.authority is None or service.settings.token_realm is not None:
        raise UnsupportedError("this service makes no tokens")
    return service.authority


def _wrong(reason: str) -> ChallengeError:
    return ChallengeError(reason, {"WWW-Authenticate": 'Basic realm="pagepool", charset="UTF-8"'})


def _parse_form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=64)
    except ValueError:
        raise InvalidError("form", "it cannot be read") from None
    # Several scopes may come as several fields; of everything else the first counts.
    return {name: " ".join(values) if name == "scope" else values[0] for name, values in fields.items()}
