"""Credentials, and how a registry asks for them: basic, or a token from a token server.

Follows RFC 9110 section 11 and the distribution project's `spec/auth/token.md` and `oauth.md`. An
`Authorizer` belongs to one registry; it is thread-safe, and keeps tokens until shortly before they expire, by
what they allow. Passwords go to the registry itself, and to the token server it names, but never from an
https registry to a token server without https.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from pagepool.errors import PagepoolError, UnauthorizedError
from pagepool.oci.fields import load_object
from pagepool.transport.credentials import Credentials

_DEFAULT_LIFE_S = 60
_EARLY_S = 10
MAX_TOKEN_ANSWER = 1 << 20

CATALOG_SCOPE = "registry:catalog:*"
"""What a token must allow to list what there is."""

# Searched for, so nothing is said of what lies between items: it would be gone through once for each of its bytes.
_ITEM = re.compile(
    r"""(?:
        (?P<key>[!#$%&'*+.^_`|~\w-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))
      | (?P<scheme>[!#$%&'*+.^_`|~\w-]+)
    )""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers: scheme in lower case, and its parameters, names in lower case."""

    scheme: str
    parameters: dict[str, str]


def repository_scope(name: str, actions: str = "pull") -> str:
    """What a token must allow for actions in a repository."""
    return f"repository:{name}:{actions}"


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Parse ``WWW-Authenticate`` headers, several challenges in one header included. What is odd is skipped."""
    challenges: list[Challenge] = []
    for header in headers:
        for item in _ITEM.finditer(header):
            if item["scheme"]:
                challenges.append(Challenge(item["scheme"].lower(), {}))
            elif challenges:
                value = re.sub(r"\\(.)", r"\1", item["quoted"]) if item["quoted"] is not None else item["plain"]
                challenges[-1].parameters[item["key"].lower()] = value
    return challenges


class Authorizer:
    """Answers one registry's challenges and remembers the answers. Thread-safe.

    Args:
        host: the registry, for messages.
        secure: whether the registry is reached by https.
        credentials: who we are.
        send: sends a request to a token server and returns the answer, body included.
    """

    def __init__(
        self,
        host: str,
        secure: bool,
        credentials: Credentials,
        send: Callable[[httpx.Request], httpx.Response],
    ) -> None:
        self._host = host
        self._secure = secure
        self._credentials = credentials
        self._send = send
        self._lock = threading.Lock()
        self._basic = False
        self._tokens: dict[str, tuple[str, float]] = {}

    def header(self, scope: str) -> str:
        """The ``Authorization`` header that is known to be wanted for `scope`; "" before the first challenge."""
        with self._lock:
            if self._basic:
                return self._credentials.basic
            token, expires = self._tokens.get(scope, ("", 0.0))
            return f"Bearer {token}" if token and time.monotonic() < expires else ""

    def answer(self, headers: Sequence[str], scope: str, sent: str) -> str:
        """Answer a 401.

        Args:
            headers: the ``WWW-Authenticate`` headers.
            scope: what the request needs, in the form of the token specification; "" for no more than to log
                in.
            sent: the ``Authorization`` header that the request had.

        Returns:
            The header to try again with.

        Raises:
            UnauthorizedError: there is none, or it was just refused.
            httpx.TransportError: the token server could not be reached.
        """
        for challenge in parse_challenges(headers):
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                if sent.startswith("Bearer "):
                    with self._lock:
                        known, _ = self._tokens.pop(scope, ("", 0.0))
                    if sent != f"Bearer {known}" and known:
                        return f"Bearer {known}"  # another thread has a newer one
                return self._fetch_token(challenge.parameters, scope)
            if challenge.scheme == "basic" and self._credentials.basic and sent != self._credentials.basic:
                with self._lock:
                    self._basic = True
                return self._credentials.basic
        raise UnauthorizedError(self.complaint())

    def complaint(self) -> str:
        """What to tell the user after a refusal."""
        if self._credentials.username:
            return f"{self._host} does not accept the credentials of {self._credentials.username}"
        return f"{self._host} asks for credentials, and there are none for it (pagepool login)"

    def _fetch_token(self, challenge: dict[str, str], scope: str) -> str:
        realm = self._realm(challenge["realm"])
        wanted = scope or challenge.get("scope", "")
        query = [("scope", part) for part in wanted.split()]
        if service := challenge.get("service"):
            query.append(("service", service))
        if self._credentials.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "pagepool"}
            form |= {"refresh_token": self._credentials.identity_token, "scope": wanted}
            form |= {"service": challenge.get("service", "")}
            request = httpx.Request("POST", realm, data=form)
        else:
            if self._credentials.username:
                query.append(("account", self._credentials.username))
            basic = self._credentials.basic
            headers = {"Authorization": basic} if basic else {}
            request = httpx.Request("GET", add_params(realm, query), headers=headers)
        token, life_s = self._read_token(self._send(request))
        with self._lock:
            self._tokens[scope] = (token, time.monotonic() + max(life_s - _EARLY_S, 1))
        return f"Bearer {token}"

    def _realm(self, text: str) -> httpx.URL:
        try:
            realm = httpx.URL(text)
        except httpx.InvalidURL:
            realm = httpx.URL("")
        if realm.scheme not in ("http", "https") or not realm.host:
            raise UnauthorizedError(f"{self._host} names a token server that cannot be used: {text[:200]!r}")
        if self._secure and realm.scheme != "https" and (self._credentials.basic or self._credentials.identity_token):
            raise UnauthorizedError(f"{self._host} wants the password sent without https, to {realm.host}")
        return realm

    def _read_token(self, response: httpx.Response) -> tuple[str, float]:
        if response.status_code in (400, 401, 403):
            raise UnauthorizedError(self.complaint())
        if not response.is_success:
            # Handled as the registry's own failure: it is tried again.
            raise httpx.RemoteProtocolError(
                f"the token server {response.request.url.host} answered {response.status_code}",
                request=response.request,
            )
        fields = load_object(response.content[:MAX_TOKEN_ANSWER], "token", _bad_token)
        token = fields.optional_string("token") or fields.string("access_token")
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise _bad_token("token", "holds characters that no header can")
        return token, fields.integer("expires_in") if fields.has("expires_in") else _DEFAULT_LIFE_S


def add_params(url: httpx.URL, params: Sequence[tuple[str, str]]) -> httpx.URL:
    """Add to a URL's query without touching what is there, which may be signed or otherwise critical."""
    if not params:
        return url
    added = str(httpx.QueryParams(tuple(params))).encode("ascii")
    return url.copy_with(query=url.query + b"&" + added if url.query else added)


def _bad_token(field_name: str, reason: str) -> PagepoolError:
    return UnauthorizedError(f"the token server's answer cannot be used: {field_name} {reason}")
