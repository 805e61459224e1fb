"""Says what an ``Authorization`` header is worth, and reads the files of users, tokens and rights when they change.

One for each worker; made before the fork, so that what is wrong in a file is said at the start. Verifying a password
takes about 50 ms of a processor and is done in threads, a few at a time, and once for each header however many
requests bring it; then it is remembered for a minute, as is a token until it ends, under a keyed hash of the header. So
a request by a known client costs a hash and a look-up. That a password was right is remembered for longer: it is
verified again beside those of strangers, who may send any number of wrong ones, and not behind them.

The event loop calls `known` and `authenticate`; `refresh` blocks for the time of reading some small files.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import PagepoolError
from pagepool_service.auth import bearer
from pagepool_service.auth.basic import parse_basic
from pagepool_service.auth.errors import CredentialsError, FileInvalidError, TooManyLoginsError
from pagepool_service.auth.external import TokenServer, load_public_keys
from pagepool_service.auth.htpasswd import Htpasswd, load_htpasswd
from pagepool_service.auth.keys import KeyRing
from pagepool_service.auth.principals import ACCESS_S, ANONYMOUS, Access, Everything, Principal, Scope
from pagepool_service.auth.rights import Rights, everything_for_all, load_rights
from pagepool_service.auth.tokens import Tokens, hash_token, is_token, load_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import Any

    from pagepool_service.auth.tokens import StaticToken
    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.auth")

REMEMBERED_S: Final = 60.0
_MOST_REMEMBERED = 16384
_MOST_WAITING = 64
_VERIFIERS = 2  # of strangers, and of those who are known: the rest of the machine is for serving
_FIELD = b"authorization"
_STAMP_SIZE = 16
_STATIC: Final = "t:"  # what the stamp of a static token begins with


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files say; a value that is replaced as a whole."""

    htpasswd: Htpasswd
    tokens: Tokens
    rights: Rights
    server: TokenServer | None


class Authority:
    """Who is who, and who may do what, of one service.

    Args:
        settings: name the files.
        keys: of the tokens that the service signs.

    Raises:
        FileInvalidError: a file cannot be used.
    """

    def __init__(self, settings: Settings, keys: KeyRing) -> None:
        self._settings = settings
        self.keys = keys
        self.audience = settings.token_service
        self._loaders: dict[str, tuple[Path, Callable[[Path], Any]]] = {
            name: (path, load)
            for name, path, load in (
                ("htpasswd", settings.htpasswd, load_htpasswd),
                ("tokens", settings.tokens, load_tokens),
                ("rights", settings.rights, load_rights),
                ("token_keys", settings.token_keys, load_public_keys),
            )
            if path is not None
        }
        self._read: dict[str, Any] = {}
        self._seen: dict[str, object] = {}
        for name, (path, load) in self._loaders.items():
            self._seen[name] = _look(path)
            self._read[name] = load(path)
        self._files = self._put_together()
        self._hasher = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=16)
        self._known: dict[bytes, Access] = {}
        self._proven: dict[bytes, None] = {}  # marks of names and passwords that were right when they were verified
        self._verifying: dict[bytes, asyncio.Task[Access]] = {}
        self._strangers = 0  # of these
        self._executors: dict[bool, ThreadPoolExecutor] = {}  # of those who are proven, and of strangers
        self._nobody = self._make_nobody()

    @classmethod
    def of(cls, settings: Settings) -> Authority | None:
        """That of a service; None if no authentication is configured.

        Raises:
            FileInvalidError, ReadOnlyError, CorruptError: a file cannot be used.
        """
        if not settings.authenticates:
            return None
        keys = KeyRing(settings.data / "auth", writable=not settings.read_only)
        authority = cls(settings, keys)
        keys.prepare()
        return authority

    # -- what everything else asks ---------------------------------------------------------------------------

    @property
    def rights(self) -> Rights:
        """Those in force."""
        return self._files.rights

    def users(self) -> frozenset[str]:
        """Everybody who can log in."""
        return frozenset(self._files.htpasswd.hashes) | {token.user for token in self._files.tokens.known.values()}

    @property
    def nobody(self) -> Access:
        """Of a request without credentials."""
        return self._nobody

    @property
    def delegates(self) -> bool:
        """Whether another server makes the tokens."""
        return self._files.server is not None

    def known(self, headers: Iterable[tuple[bytes, bytes]]) -> Access | None:
        """The access of a request, if that can be said at once. Takes about two microseconds.

        Args:
            headers: of the request, names in lower case.
        """
        for name, value in headers:
            if name == _FIELD:
                access = self._known.get(self._mark(value))
                return access if access is not None and time.monotonic() < access.until else None
        return self._nobody

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Access:
        """The access of a request.

        Raises:
            CredentialsError: it has credentials, and they are wrong.
            TooManyLoginsError: too many others are being verified.
        """
        value = next((value for name, value in headers if name == _FIELD), None)
        if value is None:
            return self._nobody
        mark = self._mark(value)
        access = self._known.get(mark)
        if access is not None and time.monotonic() < access.until:
            return access
        scheme, _, rest = value.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            return self._remember(mark, self._of_bearer(rest.strip()))
        if scheme.lower() == "basic":
            name, password = parse_basic(rest)
            if not name and not password:  # what some clients send for "no credentials"
                return self._nobody
            return await self.login(name, password, mark)
        raise CredentialsError("Authorization is neither Basic nor Bearer")

    async def login(self, name: str, password: str, mark: bytes | None = None) -> Access:
        """The access of a user, or of a static token that stands in place of a password.

        Raises:
            CredentialsError: they are wrong.
            TooManyLoginsError: too many others are being verified.
        """
        if is_token(password):
            return self._of_static(password)
        proof = self._mark(f"\0{name}:{password}".encode(errors="surrogatepass"))
        mark = proof if mark is None else mark
        known = self._known.get(mark)
        if known is not None and time.monotonic() < known.until:
            return known
        running = self._verifying.get(mark)
        if running is None:
            stranger = proof not in self._proven
            if stranger and self._strangers >= _MOST_WAITING:
                raise TooManyLoginsError(f"{self._strangers} logins are being verified; try again")
            self._strangers += stranger
            running = asyncio.create_task(self._verify(mark, proof, name, password))
            self._verifying[mark] = running
            running.add_done_callback(lambda task: self._verified(mark, task, stranger=stranger))
        return await asyncio.shield(running)

    def redeem(self, token: str) -> tuple[Principal, str]:
        """Who a refresh token is of, and the stamp of the credential that it was given for.

        Raises:
            CredentialsError: it is none of ours, has ended, or its password was changed since.
        """
        claims = bearer.verify(self.keys, self.audience, token)
        if claims is None or claims.use != "refresh" or not self._is_current(claims.subject, claims.stamp):
            raise CredentialsError("the token to log in with is not valid any more: log in again")
        return self.rights.principal(claims.subject), claims.stamp

    def grant(self, principal: Principal, wanted: Scope) -> Scope:
        """Of a scope that was asked for, what the principal may have."""
        found = {}
        for name, actions in wanted.repositories.items():
            allowed = actions & self.rights.actions(principal, name)
            if allowed:
                found[name] = allowed
        return Scope(found, wanted.catalog and self.rights.has_any(principal))

    def sign_access(self, principal: Principal, scope: Scope, stamp: str, life_s: float) -> str:
        """A token for requests."""
        return bearer.sign(
            self.keys, self.audience, principal.name, use="access", life_s=life_s, stamp=stamp, scope=scope
        )

    def sign_refresh(self, principal: Principal, stamp: str) -> str:
        """A token to get such tokens with, in place of the password."""
        return bearer.sign(
            self.keys, self.audience, principal.name, use="refresh", life_s=bearer.REFRESH_S, stamp=stamp
        )

    def stamp_of(self, name: str, password: str | None = None) -> str:
        """What ties a token to a credential: it changes, and ends the token, with the password or static token.

        Args:
            password: what was logged in with; None for a user's password.
        """
        if not name:
            return ""
        if password is not None and is_token(password):
            return f"{_STATIC}{hash_token(password)}"
        return self._stamp_user(name)

    # -- files -----------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read again what has changed. Blocks for milliseconds. Returns whether anything has."""
        changed = False
        for name, (path, load) in self._loaders.items():
            look = _look(path)
            if look == self._seen[name]:
                continue
            self._seen[name] = look
            try:
                self._read[name] = load(path)
                changed = True
                log.info("%s was read again", path)
            except FileInvalidError as error:
                log.error("%s; what was read before stays in force", error)
        try:
            changed |= self.keys.reread()
        except PagepoolError as error:
            log.error("%s", error)
        return changed

    def renew(self) -> None:
        """Put in force what `refresh` has read, and verify everybody anew. In the event loop's thread."""
        self._files = self._put_together()
        self._known.clear()
        self._nobody = self._make_nobody()

    def close(self) -> None:
        """End the threads."""
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)

    def _put_together(self) -> _Files:
        read, settings = self._read, self._settings
        rights = read.get("rights") or everything_for_all(anonymous_pull=settings.anonymous_pull)
        server = None
        if "token_keys" in read:
            assert settings.token_realm is not None
            server = TokenServer(settings.token_realm, settings.token_issuer, self.audience, read["token_keys"])
        return _Files(read.get("htpasswd") or Htpasswd(), read.get("tokens") or Tokens(), rights, server)

    def _make_nobody(self) -> Access:
        return Access(ANONYMOUS, self._files.rights)

    # -- verifying -------------------------------------------------------------------------------------------

    def _mark(self, value: bytes) -> bytes:
        hasher = self._hasher.copy()  # half the time of taking in the key again
        hasher.update(value)
        return hasher.digest()

    def _remember(self, mark: bytes, access: Access) -> Access:
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[mark] = access
        return access

    async def _verify(self, mark: bytes, proof: bytes, name: str, password: str) -> Access:
        proven = proof in self._proven
        if proven not in self._executors:
            self._executors[proven] = ThreadPoolExecutor(_VERIFIERS, thread_name_prefix="password")
        files = self._files
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._executors[proven], files.htpasswd.verify, name, password):
            self._proven.pop(proof, None)
            raise CredentialsError
        if not proven and len(self._proven) >= _MOST_REMEMBERED:
            del self._proven[next(iter(self._proven))]
        self._proven[proof] = None
        access = Access(files.rights.principal(name), files.rights, until=time.monotonic() + REMEMBERED_S)
        # Not if the files have changed meanwhile: then it is verified against the new ones next time.
        return self._remember(mark, access) if files is self._files else access

    def _verified(self, mark: bytes, task: asyncio.Task[Access], *, stranger: bool) -> None:
        self._verifying.pop(mark, None)
        self._strangers -= stranger
        if not task.cancelled():
            task.exception()  # whoever waited for it may have left

    def _of_static(self, token: str) -> Access:
        found = self._files.tokens.find(token)
        if found is None:
            raise CredentialsError
        left_s = REMEMBERED_S if found.expires_s is None else min(REMEMBERED_S, found.expires_s - time.time())
        return Access(self.rights.principal(found.user), self.rights, until=time.monotonic() + left_s)

    def _of_bearer(self, token: str) -> Access:
        if is_token(token):
            return self._of_static(token)
        server = self._files.server
        if server is not None:
            theirs = server.verify(token)
            if theirs is not None:
                name, scope, expires_s = theirs
                return Access(Principal(name), Everything(), scope, until=_until(expires_s))
        claims = bearer.verify(self.keys, self.audience, token)
        if claims is None or claims.use != "access" or not self._is_current(claims.subject, claims.stamp):
            raise CredentialsError("the token is not valid, or has expired")
        principal = self.rights.principal(claims.subject) if claims.subject else ANONYMOUS
        expires_s = claims.expires_s
        if (static := self._static_of(claims.stamp)) is not None and static.expires_s is not None:
            expires_s = min(expires_s, static.expires_s)  # what is remembered is not looked at again before
        return Access(principal, self.rights, claims.scope, until=_until(expires_s))

    def _is_current(self, name: str, stamp: str) -> bool:
        """Whether the credential that a token was given for is still one."""
        if not name:
            return stamp == ""
        if stamp.startswith(_STATIC):
            token = self._static_of(stamp)
            return token is not None and token.user == name
        return bool(self._files.htpasswd.hash_of(name)) and secrets.compare_digest(stamp, self._stamp_user(name))

    def _static_of(self, stamp: str) -> StaticToken | None:
        """The static token of a stamp, if it is one's and that has not ended."""
        return self._files.tokens.stamp(stamp.removeprefix(_STATIC)) if stamp.startswith(_STATIC) else None

    def _stamp_user(self, name: str) -> str:
        # Not keyed by what rotates: a hash of a hash that nobody but us has says nothing.
        hashed = self._files.htpasswd.hash_of(name)
        return "u:" + hashlib.blake2b(hashed, digest_size=_STAMP_SIZE, person=b"pagepool-stamp").hexdigest()


def _until(expires_s: float) -> float:
    """Unix time on the monotonic clock; no longer than is remembered."""
    return time.monotonic() + min(expires_s - time.time(), ACCESS_S)


def _look(path: Path) -> object:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
