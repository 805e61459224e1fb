"""Credentials: who gets them, who does not, and how tokens are fetched and kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pagepool.errors import DeniedError, UnauthorizedError
from pagepool.transport import Credentials, RegistryClient, Session
from pagepool.transport.auth import Authorizer, Challenge, parse_challenges
from tests.transport.peer import docker_registry
from tests.transport.scripted import Reply, Request, scripted_server, session

BASIC = "Basic " + base64.b64encode(b"user:secret").decode()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Basic realm=x"], [("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a:pull,push"})],
        ),
        (['Basic realm="a, b", Bearer realm=c'], [("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})]),
        (["Negotiate", 'BASIC Realm="q\\"q"'], [("negotiate", {}), ("basic", {"realm": 'q"q'})]),
        (["", "===", 'x="y"'], []),
    ],
)
def test_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, one.parameters) for one in parse_challenges(headers)] == expected


class TokenServer:
    """A registry, and the token server it sends to, in one."""

    def __init__(self, life_s: int = 300) -> None:
        self.life_s = life_s
        self.fetched: list[Request] = []
        self.valid: set[str] = set()
        self.url = ""

    def __call__(self, request: Request) -> Reply:
        if request.path == "/token":
            return self._token(request)
        if request.headers.get("authorization", "")[7:] in self.valid:
            return Reply(200, b'{"tags":["1"]}')
        realm = f'Bearer realm="{self.url}/token",service="test",scope="repository:a:pull"'
        return Reply(401, headers={"WWW-Authenticate": realm})

    def _token(self, request: Request) -> Reply:
        self.fetched.append(request)
        if request.method == "GET" and request.headers.get("authorization") not in (None, BASIC):
            return Reply(401)
        token = f"token{len(self.fetched)}"
        self.valid.add(token)
        return Reply(200, json.dumps({"token": token, "expires_in": self.life_s}).encode())


def test_challenges_are_gone_through_once() -> None:
    """Whatever a registry sends: these would take many minutes if each comma were a place to begin anew."""
    assert parse_challenges(["Basic " + "," * (1 << 18) + "\0", "," * (1 << 18)]) == [Challenge("basic", {})]


def test_token_is_fetched_once_and_kept() -> None:
    tokens = TokenServer()
    with scripted_server(tokens) as server, session(server.url, credentials=Credentials("user", "secret")) as link:
        tokens.url = server.url
        for _ in range(3):
            assert list(RegistryClient(link).tags("a")) == ["1"]
    (request,) = tokens.fetched
    assert request.query == {"scope": "repository:a:pull", "service": "test", "account": "user"}
    assert request.headers["authorization"] == BASIC


def test_token_that_was_revoked_is_fetched_again() -> None:
    tokens = TokenServer()
    with scripted_server(tokens) as server, session(server.url) as link:
        tokens.url = server.url
        list(RegistryClient(link).tags("a"))
        tokens.valid.clear()
        assert list(RegistryClient(link).tags("a")) == ["1"]
    assert len(tokens.fetched) == 2


def test_identity_token_is_exchanged() -> None:
    tokens = TokenServer()
    with scripted_server(tokens) as server, session(server.url, credentials=Credentials(identity_token="r")) as link:
        tokens.url = server.url
        list(RegistryClient(link).tags("a"))
    (request,) = tokens.fetched
    assert request.method == "POST"
    assert b"grant_type=refresh_token" in request.body
    assert b"refresh_token=r" in request.body


@pytest.mark.parametrize(
    ("credentials", "words"),
    [(Credentials(), "there are none"), (Credentials("user", "wrong"), "credentials of user")],
)
def test_refused_credentials(credentials: Credentials, words: str) -> None:
    def script(_: Request) -> Reply:
        return Reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    with scripted_server(script) as server, session(server.url, credentials=credentials) as link:
        with pytest.raises(UnauthorizedError, match=words):
            RegistryClient(link).ping()
        assert len(server.requests) <= 2


def test_wrong_password_at_the_token_server() -> None:
    tokens = TokenServer()
    with scripted_server(tokens) as server, session(server.url, credentials=Credentials("user", "wrong")) as link:
        tokens.url = server.url
        with pytest.raises(UnauthorizedError, match="credentials of user"):
            RegistryClient(link).ping()


def test_forbidden_is_denied() -> None:
    body = b'{"errors":[{"code":"DENIED","message":"not yours"}]}'
    with (
        scripted_server(lambda _: Reply(403, body)) as server,
        session(server.url) as link,
        pytest.raises(DeniedError, match="not yours"),
    ):
        RegistryClient(link).ping()


def test_redirect_to_another_host_gets_no_credentials() -> None:
    with scripted_server(lambda _: Reply(200, b'{"tags":[]}')) as other:

        def script(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, headers={"WWW-Authenticate": "Basic realm=x"})
            return Reply(307, headers={"Location": f"{other.url}/elsewhere"})

        with (
            scripted_server(script) as server,
            session(server.url, credentials=Credentials("user", "secret")) as link,
        ):
            list(RegistryClient(link).tags("a"))
        (request,) = other.requests
        assert request.path == "/elsewhere"
        assert "authorization" not in request.headers


@pytest.mark.parametrize("realm", ["http://token.invalid/t", "ftp://x/", "nonsense", "//x"])
def test_password_does_not_leave_https(realm: str) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing may be sent")

    authorizer = Authorizer("host", True, Credentials("user", "secret"), refuse)
    with pytest.raises(UnauthorizedError):
        authorizer.answer([f'Bearer realm="{realm}"'], "", "")


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token":5}', b'{"token":"a\\nb"}', b'{"token":"","x":1}'])
def test_answers_of_a_token_server_that_cannot_be_used(answer: bytes) -> None:
    def send(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=answer, request=request)

    authorizer = Authorizer("host", False, Credentials(), send)
    with pytest.raises(UnauthorizedError, match="token"):
        authorizer.answer(['Bearer realm="http://127.0.0.1/t"'], "", "")


def test_answers_of_a_token_server_have_a_limit() -> None:
    """One that never ends is read no further than a token can reach."""
    sent = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal sent
            while sent < 64 << 20:
                sent += 64 << 10
                yield b" " * (64 << 10)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, stream=Endless())
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="http://127.0.0.1/token"'})

    with (
        Session("http://127.0.0.1", transport=httpx.MockTransport(answer)) as link,
        pytest.raises(UnauthorizedError, match="token"),
    ):
        RegistryClient(link).ping()
    assert sent <= 2 << 20


def test_secrets_are_not_in_repr() -> None:
    assert "secret" not in repr(Credentials("user", "secret", "secret"))


def test_docker_registry_with_passwords(tmp_path: Path) -> None:
    with docker_registry(tmp_path, htpasswd=True) as peer:
        with Session(peer.url, credentials=Credentials("user", "secret")) as link:
            RegistryClient(link).ping()
        for credentials in (Credentials(), Credentials("user", "wrong")):
            with Session(peer.url, credentials=credentials) as link, pytest.raises(UnauthorizedError):
                RegistryClient(link).ping()
