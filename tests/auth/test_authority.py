"""Verifying: once for each credential however many requests bring it, a bounded number at a time, and not for ever."""

from __future__ import annotations

import asyncio
import base64
import datetime
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import bcrypt
import pytest

from pagepool.errors import PagepoolError
from pagepool_service.auth import CredentialsError, TooManyLoginsError, open_authority
from pagepool_service.auth.htpasswd import Htpasswd
from pagepool_service.auth.principals import ACCESS_S, Scope
from pagepool_service.auth.tokens import hash_token, new_token
from pagepool_service.routes.errors import render
from pagepool_service.settings import Settings
from tests.auth.conftest import password, write_users

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.auth.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """One with users, without rights."""
    settings = Settings.load({}, data=tmp_path / "data", htpasswd=write_users(tmp_path / "users"))
    found = open_authority(settings)
    assert found is not None
    return found


def _headers(user: str, secret: str) -> list[tuple[bytes, bytes]]:
    value = base64.b64encode(f"{user}:{secret}".encode())
    return [(b"host", b"x"), (b"authorization", b"Basic " + value)]


def test_each_credential_is_verified_once(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: Counter[str] = Counter()
    real = Htpasswd.verify

    def counted(self: Htpasswd, name: str, secret: str) -> bool:
        verified[secret] += 1
        return real(self, name, secret)

    monkeypatch.setattr(Htpasswd, "verify", counted)
    good, bad = _headers("alice", password("alice")), _headers("alice", "wrong")

    async def talk() -> None:
        assert authority.known(good) is None
        found = await asyncio.gather(*(authority.authenticate(good) for _ in range(20)))
        assert {access.principal.name for access in found} == {"alice"}
        assert authority.known(good) is found[0]
        answers = await asyncio.gather(*(authority.authenticate(bad) for _ in range(20)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {CredentialsError}
        assert authority.known(bad) is None
        assert verified == {password("alice"): 1, "wrong": 1}
        # What has changed in the files counts at once.
        authority.renew()
        assert authority.known(good) is None
        authority.close()

    asyncio.run(talk())


def test_what_was_verified_is_remembered_for_a_time_only(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is asked for: then it is verified again."""
    verified: list[str] = []
    real = Htpasswd.verify

    def counted(self: Htpasswd, name: str, secret: str) -> bool:
        verified.append(name)
        return real(self, name, secret)

    monkeypatch.setattr(Htpasswd, "verify", counted)
    monkeypatch.setattr("pagepool_service.auth.authority.REMEMBERED_S", -1.0)
    good = _headers("alice", password("alice"))

    async def talk() -> None:
        for number in range(1, 3):
            await authority.authenticate(good)
            assert authority.known(good) is None
            assert len(verified) == 2 * number - 1
            await authority.login("alice", password("alice"))
            assert len(verified) == 2 * number
        authority.close()

    asyncio.run(talk())


def test_what_changes_while_it_is_verified_is_looked_at_the_next_time(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who has lost the password is a stranger again."""
    begun, go_on = threading.Event(), threading.Event()
    real = Htpasswd.verify

    def slow(self: Htpasswd, name: str, secret: str) -> bool:
        begun.set()
        assert go_on.wait(30)
        return real(self, name, secret)

    monkeypatch.setattr(Htpasswd, "verify", slow)
    good = _headers("alice", password("alice"))

    async def talk() -> None:
        running = asyncio.create_task(authority.authenticate(good))
        assert await asyncio.to_thread(begun.wait, 30)
        write_users(tmp_path / "users", ("bob",))
        assert authority.refresh()
        authority.renew()
        go_on.set()
        await running
        assert authority.known(good) is None
        with pytest.raises(CredentialsError):
            await authority.authenticate(good)
        go_on.clear()
        guesses = [asyncio.create_task(authority.login("alice", f"guess {number}")) for number in range(64)]
        await asyncio.sleep(0)
        try:
            with pytest.raises(TooManyLoginsError):
                await authority.authenticate(good)
        finally:
            go_on.set()
            await asyncio.gather(*guesses, return_exceptions=True)
        authority.close()

    asyncio.run(talk())


def test_only_so_many_wait(authority: Authority) -> None:
    """The rest is told to come again: nobody's passwords take all of the machine."""

    async def talk() -> list[BaseException | object]:
        attempts = (authority.login("alice", f"guess {number}") for number in range(70))
        found = await asyncio.gather(*attempts, return_exceptions=True)
        authority.close()
        return list(found)

    kinds = Counter(type(answer) for answer in asyncio.run(talk()))
    assert kinds == {CredentialsError: 64, TooManyLoginsError: 6}
    answer = render(TooManyLoginsError("64 logins are being verified; try again"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    assert b"TOOMANYREQUESTS" in answer.body


def test_strangers_keep_nobody_waiting_who_was_in_before(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose password was right is verified again, though others send any number of wrong ones."""
    go_on = threading.Event()
    real = Htpasswd.verify

    def slow(self: Htpasswd, name: str, secret: str) -> bool:
        assert not secret.startswith("guess") or go_on.wait(30)
        return real(self, name, secret)

    monkeypatch.setattr(Htpasswd, "verify", slow)
    good, bad = _headers("alice", password("alice")), _headers("alice", "wrong")

    async def talk() -> None:
        await authority.authenticate(good)
        authority.renew()
        guesses = [asyncio.create_task(authority.login("alice", f"guess {number}")) for number in range(64)]
        await asyncio.sleep(0)
        try:
            assert (await authority.authenticate(good)).principal.name == "alice"
            assert (await authority.login("alice", password("alice"))).principal.name == "alice"
            for stranger in (_headers("bob", password("bob")), bad):
                with pytest.raises(TooManyLoginsError):
                    await authority.authenticate(stranger)
        finally:
            go_on.set()
            await asyncio.gather(*guesses, return_exceptions=True)
        assert (await authority.authenticate(_headers("bob", password("bob")))).principal.name == "bob"
        authority.close()

    asyncio.run(talk())


def test_a_token_for_requests_ends_with_the_static_token_it_was_given_for(tmp_path: Path) -> None:
    """With its end, though what was verified is remembered; where it is another user's; and with its removal."""
    secret, path = new_token(), tmp_path / "tokens.toml"
    ends = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=100)
    path.write_text(f'[ci]\nsha256 = "{hash_token(secret)}"\nexpires = {ends.isoformat()}\n')
    authority = open_authority(Settings.load({}, data=tmp_path / "data", tokens=path))
    assert authority is not None

    async def talk() -> None:
        principal = (await authority.login("x", secret)).principal
        token = authority.sign_access(principal, Scope(), authority.stamp_of(principal.name, secret), ACCESS_S)
        header = [(b"authorization", f"Bearer {token}".encode())]
        access = await authority.authenticate(header)
        assert access is authority.known(header)
        assert access.until <= time.monotonic() + 100
        for text in (f'[ci]\nuser = "another"\nsha256 = "{hash_token(secret)}"\n', ""):
            path.write_text(text)
            assert authority.refresh()
            authority.renew()
            with pytest.raises(CredentialsError):
                await authority.authenticate(header)

    asyncio.run(talk())
    authority.close()


def test_a_new_password_ends_what_was_given_for_the_one_before(authority: Authority, tmp_path: Path) -> None:
    """Of its user, and of nobody else."""
    given = {
        user: authority.sign_refresh(authority.rights.principal(user), authority.stamp_of(user))
        for user in ("alice", "bob")
    }
    lines = (tmp_path / "users").read_text().splitlines()
    fresh = bcrypt.hashpw(b"new", bcrypt.gensalt(5)).decode()
    lines = [f"alice:{fresh}" if line.startswith("alice:") else line for line in lines]
    assert authority.redeem(given["alice"])[0].name == "alice"
    (tmp_path / "users").write_text("\n".join(lines))
    assert authority.refresh()
    authority.renew()
    with pytest.raises(CredentialsError):
        authority.redeem(given["alice"])
    assert authority.redeem(given["bob"])[0].name == "bob"
    authority.close()


def test_secrets_are_not_shown(authority: Authority) -> None:
    """By what is printed of the values: in a traceback, or in a debugger."""
    shown = f"{authority.__dict__!r} {authority.keys.current()!r}"
    assert "$2b$" not in shown
    assert authority.keys.current().secret.hex() not in shown
    assert repr(authority.keys.current().secret) not in shown
    with pytest.raises(PagepoolError) as caught:
        asyncio.run(authority.authenticate(_headers("alice", "secret-guess")))
    assert "secret-guess" not in str(caught.value)
    assert "alice" not in str(caught.value)
