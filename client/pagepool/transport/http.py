"""One server, spoken to over HTTP: connections, authentication, redirects, retries, errors.

`Session` knows nothing of registries. A request is a `Call`; it either gives an answer with an expected
status or raises one of pagepool's errors, never httpx's. Thread-safe: threads share the connections. A forked child
makes its own.

What may be tried again is tried again: connection errors and the statuses in `retry.RETRY_STATUSES`, as long
as the call says it is repeatable. Not tried again is the very first connection to a server: it is most likely
not running, and whoever asked should hear so at once.

Credentials are sent to the server's own origin only, whatever it redirects to or names as an upload location.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import httpx

from pagepool.errors import InvalidError, LimitError, UnauthorizedError, UnreachableError
from pagepool.transport.addresses import is_loopback
from pagepool.transport.answers import Subject, error_of
from pagepool.transport.auth import MAX_TOKEN_ANSWER, Authorizer, add_params
from pagepool.transport.credentials import Credentials
from pagepool.transport.openpools import close_expired
from pagepool.transport.pace import pace
from pagepool.transport.retry import RETRY_STATUSES, RetryPolicy
from pagepool.transport.tracecontext import trace_headers
from pagepool.transport.trust import Verify, context_of, explain

DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)
_MAX_REDIRECTS = 5
_MAX_ERROR_BODY = 64 << 10
_MAX_CONNECTIONS = 64
_BODILESS = ("GET", "HEAD")
_WANTS_TLS = (b"port speaks TLS", b"HTTP request to an HTTPS server", b"HTTP request was sent to HTTPS port")
"""What a port that speaks TLS answers to plain http: of pagepool's service, of servers in Go, and of nginx."""

VerifyTypes = Verify

Body = Callable[[], Iterable[bytes]]
"""Begins a request's body from its start; called once for each time the request is sent."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and what is to be thought of its answer.

    Args:
        method: HTTP method.
        url: absolute, or a path on the server.
        about: what it is about, for errors.
        expect: statuses that are answers; every other is an error.
        params: added to the URL's query.
        headers: request headers.
        body: begins the body, if there is one. `headers` should then have its Content-Length.
        scope: what a token must allow.
        repeatable: whether the request may be sent again after it failed midway.
        limit: most bytes of body that `Session.request` reads.
    """

    method: str
    url: httpx.URL | str
    about: Subject
    expect: tuple[int, ...] = (200,)
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    scope: str = ""
    repeatable: bool = True
    limit: int = 64 << 20


class Session:
    """Connections to one server. Thread-safe; close it.

    Args:
        url: ``http://host[:port]`` or ``https://…``, a path prefix included if there is one.
        credentials: who we are.
        verify: whether, and by whom, the server's certificate is vouched for: see `trust`.
        timeout: of connecting, and of each read and write; an answer that comes in small pieces is given up, too: see
            `pace`.
        retry: bounds of trying again.
        on_warning: called with the text of each new ``Warning`` header.
        transport: replaces the network, in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        verify: VerifyTypes = True,
        timeout: httpx.Timeout = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        on_warning: Callable[[str], None] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base = parse_base(url)
        self._patient = retry or RetryPolicy()
        self.retry = self._patient
        """Bounds of trying again, at present."""
        self.read_timeout_s = math.inf if timeout.read is None else timeout.read
        """How long an answer may let us wait."""
        # A proxy from the environment cannot reach this machine's own loopback.
        trust_env = not is_loopback(self.base.host)
        connect = partial(
            httpx.Client,
            verify=context_of(verify),
            timeout=timeout,
            transport=transport,
            trust_env=trust_env,
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
            headers={"User-Agent": "pagepool", "Accept-Encoding": "identity"},
        )
        self._connect: Callable[[], httpx.Client] = lambda: pace(connect())
        self._opened: httpx.Client | None = self._connect()
        self._parents: list[httpx.Client] = []
        self._authorizer = Authorizer(
            self.where,
            self.base.scheme == "https",
            credentials or Credentials(),
            self._send_plainly,
        )
        self._on_warning = on_warning
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._met = False
        self.requests = 0
        """How many calls were made, also those that failed; about, if several threads make them."""
        _sessions.add(self)

    def hurry(self, *, hurried: bool) -> None:
        """From now on try everything once, or as often as before."""
        self.retry = replace(self._patient, attempts=1) if hurried else self._patient

    @property
    def where(self) -> str:
        """The server as messages name it: ``host:port``."""
        return self.base.netloc.decode("ascii")

    def request(self, call: Call) -> httpx.Response:
        """Send a call and read its answer whole.

        Raises:
            PagepoolError: the answer is an error, or there is none; LimitError if it is larger than
                `call.limit`.
        """
        return self._with_retries(call, self._read_whole)

    @contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """Send a call; its answer's body is read by the caller, and closed at the end of the block.

        Errors while the caller reads are httpx's: see `translate`.
        """
        response = self.open(call)
        try:
            yield response
        finally:
            _close(response)

    def open(self, call: Call) -> httpx.Response:
        """As `stream`, but the caller closes the answer."""
        return self._with_retries(call, lambda opened, _: opened)

    def url(self, path: httpx.URL | str) -> httpx.URL:
        """Make a path, or a URL that the server gave, absolute."""
        if isinstance(path, str) and path.startswith("/"):
            path = self.base.raw_path.decode("ascii").rstrip("/") + path
        return self.base.join(path)

    def resolve(self, response: httpx.Response, location: str) -> httpx.URL:
        """Make absolute what an answer's header says; relative is relative to the request's own URL.

        Raises:
            UnreachableError: it is no http URL.
        """
        try:
            url = response.request.url.join(location)
        except (httpx.InvalidURL, ValueError):
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise UnreachableError(self.where, f"it names a location that cannot be used: {location[:200]!r}")
        return url

    def translate(self, error: httpx.HTTPError) -> UnreachableError:
        """The error to raise for one of httpx's."""
        reason = _reason(error)
        if isinstance(error, httpx.RemoteProtocolError) and self.base.scheme == "http" and not self._met:
            reason += "; if it speaks TLS, its address begins with https://"
        return UnreachableError(_where(error) or self.where, reason)

    def same_origin(self, url: httpx.URL) -> bool:
        """Tell whether a URL is on this server."""
        return _origin(url) == _origin(self.base)

    def close(self) -> None:
        """Close all connections; requests of other threads fail."""
        self._client.close()

    def close_expired(self) -> None:
        """Close connections that have not been used for some seconds: see `openpools`. Others are made when needed."""
        if self._opened is not None and not self._opened.is_closed:
            close_expired(self._opened)

    def leave_connections(self) -> None:
        """In a forked child: leave the parent's connections, and make others once they are needed.

        Both would read each other's answers. They are not closed: TLS would take leave of the server for the parent.
        """
        self._lock = threading.Lock()
        if self._opened is not None and not self._opened.is_closed:
            self._parents.append(self._opened)
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _client(self) -> httpx.Client:
        opened = self._opened
        if opened is None:
            with self._lock:
                opened = self._opened = self._opened or self._connect()
        return opened

    def _with_retries(self, call: Call, finish: Callable[[httpx.Response, Call], httpx.Response]) -> httpx.Response:
        failures = 0
        self.requests += 1
        while True:
            failures += 1
            again = call.repeatable and failures < self.retry.attempts
            after: str | None = None
            try:
                response = self._exchange(call)
                if response.status_code not in RETRY_STATUSES or response.status_code in call.expect or not again:
                    return finish(self._checked(response, call), call)
                after = response.headers.get("Retry-After")
                _close(response)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if not again or not self._met:
                    raise self.translate(error) from error
            except httpx.TransportError as error:
                if not again or isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
                    raise self.translate(error) from error
            except httpx.HTTPError as error:
                raise self.translate(error) from error
            self.retry.sleep(self.retry.delay_s(failures, after))

    def _exchange(self, call: Call) -> httpx.Response:
        """Send once, following redirects and answering one challenge for each place."""
        url = self.url(call.url)
        if call.params:
            url = add_params(url, call.params)
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send_authorized(call, url)
            location = response.headers.get("Location")
            follow = (301, 302, 303, 307, 308) if call.method in _BODILESS else (307, 308)
            if response.status_code not in follow or not location:
                return response
            _close(response)
            url = self.resolve(response, location)
        raise UnreachableError(self.where, f"more than {_MAX_REDIRECTS} redirects")

    def _send_authorized(self, call: Call, url: httpx.URL) -> httpx.Response:
        own = self.same_origin(url)
        header = self._authorizer.header(call.scope) if own else ""
        response = self._send(call, url, header)
        if response.status_code != 401 or not own:
            return response
        challenges = response.headers.get_list("WWW-Authenticate")
        if not challenges:
            return response
        _close(response)
        response = self._send(call, url, self._authorizer.answer(challenges, call.scope, header))
        if response.status_code == 401:
            _close(response)
            raise UnauthorizedError(self._authorizer.complaint())
        return response

    def _send_plainly(self, request: httpx.Request) -> httpx.Response:
        """Send a request to a token server, and read of its answer what a token can have."""
        request.headers.setdefault("Accept-Encoding", "identity")
        response = self._client.send(request, stream=True)
        try:
            body = read_up_to(response, MAX_TOKEN_ANSWER)
        finally:
            _close(response)
        return httpx.Response(response.status_code, content=body[:MAX_TOKEN_ANSWER], request=request)

    def _send(self, call: Call, url: httpx.URL, authorization: str) -> httpx.Response:
        headers = {**trace_headers(), **call.headers}
        if authorization:
            headers["Authorization"] = authorization
        content = call.body() if call.body is not None else None
        request = self._client.build_request(call.method, url, headers=headers, content=content)
        response = self._client.send(request, stream=True)
        self._met = True
        self._warn(response)
        return response

    def _warn(self, response: httpx.Response) -> None:
        for header in response.headers.get_list("Warning") if self._on_warning else ():
            # distribution-spec v1.1.0, "Warnings": 299 - "text"
            if not header.startswith('299 - "'):
                continue
            with self._lock:
                new = header not in self._warned and len(self._warned) < 100
                self._warned.add(header)
            if new and self._on_warning:
                self._on_warning(header[7:].rstrip('"').replace('\\"', '"'))

    def _checked(self, response: httpx.Response, call: Call) -> httpx.Response:
        if response.status_code in call.expect:
            return response
        try:
            body = read_up_to(response, _MAX_ERROR_BODY)
        except httpx.HTTPError:
            body = b""  # the status alone says enough
        finally:
            _close(response)
        if response.status_code == 400 and response.url.scheme == "http" and any(word in body for word in _WANTS_TLS):
            where = response.url.netloc.decode("ascii")
            raise UnreachableError(where, f"this port speaks TLS: its address is https://{where}")
        raise error_of(response, body, call.about)

    def _read_whole(self, response: httpx.Response, call: Call) -> httpx.Response:
        try:
            body = read_up_to(response, call.limit + 1)
        finally:
            _close(response)
        if len(body) > call.limit:
            raise LimitError(f"the answer of {self.where} about {call.about.name}", len(body), call.limit)
        headers = [(name, value) for name, value in response.headers.multi_items() if name != "content-encoding"]
        return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _leave_connections() -> None:
    for session in list(_sessions):
        session.leave_connections()


os.register_at_fork(after_in_child=_leave_connections)


def parse_base(url: str) -> httpx.URL:
    """Parse a server's address.

    Raises:
        InvalidError: not an http or https URL with a host, or one with a query or a password in it.
    """
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as bad:
        raise InvalidError(url, f"not a server's address: {bad}") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise InvalidError(url, "a server's address begins with http:// or https://")
    if base.port is not None and not 0 < base.port < 1 << 16:
        raise InvalidError(url, "a port is 1 to 65535")  # modulo 65536 it would be another's
    if base.query or base.fragment or base.userinfo:
        raise InvalidError(base.host, "a server's address has no user, query or fragment")
    return base


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def read_up_to(response: httpx.Response, limit: int) -> bytes:
    """The beginning of a body, at least `limit` bytes of it if there are so many."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body)


def _close(response: httpx.Response) -> None:
    with suppress(httpx.HTTPError):
        response.close()


def _where(error: httpx.HTTPError) -> str:
    try:
        return error.request.url.netloc.decode("ascii")
    except RuntimeError:  # httpx's way to say that the request is not known
        return ""


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    text = str(error).split("] ", 1)[-1] if str(error).startswith("[Errno") else explain(str(error))
    return text.strip().rstrip(".") or type(error).__name__
