"""Files of users, tokens and rights: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import bcrypt
import pytest

from pagepool_service.auth import ANONYMOUS, FileInvalidError, Principal
from pagepool_service.auth.htpasswd import hash_password, load_htpasswd
from pagepool_service.auth.patterns import Pattern
from pagepool_service.auth.rights import everything_for_all, load_rights
from pagepool_service.auth.tokens import hash_token, is_token, load_tokens, new_token
from tests.auth.conftest import RIGHTS

if TYPE_CHECKING:
    from pathlib import Path

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(5)).decode()


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [
        ("app", ["app"], ["app/x", "x/app", "apps", ""]),
        ("team/*", ["team/app", "team/a-b_c.d"], ["team", "team/app/web", "teams/app"]),
        ("team/**", ["team", "team/app", "team/app/web"], ["teams", "x/team/app"]),
        ("**", ["a", "a/b/c", "NOT A NAME", "x" * 300], []),
        ("*", ["a"], ["a/b"]),
        ("**/web", ["web", "a/web", "a/b/web"], ["a/webs", "web/a"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a/bz", "az"]),
        ("base-*", ["base-1", "base-"], ["base", "x/base-1"]),
        ("a.b", ["a.b"], ["axb"]),
        ("team/*", [], ["team/../other", "team/" + "x" * 300, "team/a\nb/c"]),
    ],
)
def test_patterns(pattern: str, fits: list[str], not_: list[str]) -> None:
    assert [name for name in fits if not Pattern(pattern).matches(name)] == []
    assert [name for name in not_ if Pattern(pattern).matches(name)] == []


@pytest.mark.parametrize(
    "text", ["", "/a", "a/", "a//b", "A", "a b", "a**", "a/**b", "a?", "x" * 256, "**/a/**/b/**", "*a*b*"]
)
def test_no_patterns(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pattern(text)


def test_a_name_that_is_made_to_take_long_does_not() -> None:
    """It is no longer than a name may be, so the worst of it ends; the test's time-out says if not."""
    assert not Pattern("**/a/**/b").matches("a/" * 126 + "a")
    assert not Pattern("*a*b").matches("a" * 255)


def test_rights_add_up(tmp_path: Path) -> None:
    path = tmp_path / "rights.toml"
    path.write_text(RIGHTS)
    rights = load_rights(path)
    alice, bob, root, stranger = (rights.principal(name) for name in ("alice", "bob", "root", "stranger"))
    assert alice == Principal("alice", frozenset(("team",)))
    assert rights.actions(alice, "team/app") == {"pull", "push", "delete"}
    assert rights.actions(bob, "team/app") == {"pull", "push"}
    assert rights.actions(bob, "carol/app") == set()
    assert rights.actions(bob, "public/base") == rights.actions(ANONYMOUS, "public/base") == {"pull"}
    assert rights.actions(stranger, "team/app") == rights.actions(ANONYMOUS, "team/app") == set()
    assert rights.actions(root, "anything/at/all") == {"pull", "push", "delete"}
    assert (rights.catalog(root), rights.catalog(alice), rights.catalog(ANONYMOUS)) == (True, False, False)
    assert rights.has_any(stranger)
    assert (rights.quota("team/small", 7), rights.quota("team/large", 7)) == (100, 7)
    assert rights.names() == {"alice", "bob", "carol", "root"}


def test_a_right_to_the_catalogue_is_of_those_who_are_named(tmp_path: Path) -> None:
    """And an administrator needs no rule."""
    path = tmp_path / "rights.toml"
    path.write_text("admins = ['root']\n[[rules]]\nwho = ['monitor']\nactions = ['catalog']\n")
    rights = load_rights(path)
    who = [rights.principal(name) for name in ("root", "monitor", "stranger")]
    assert [rights.catalog(principal) for principal in who] == [True, True, False]
    assert [rights.has_any(principal) for principal in who] == [True, True, False]
    assert [len(rights.actions(principal, "a")) for principal in who] == [3, 0, 0]


def test_without_a_file() -> None:
    rights = everything_for_all(anonymous_pull=False)
    assert rights.actions(Principal("x"), "a") == {"pull", "push", "delete"}
    assert rights.catalog(Principal("x"))
    assert not rights.has_any(ANONYMOUS)
    assert everything_for_all(anonymous_pull=True).actions(ANONYMOUS, "a") == {"pull"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules = 1", "rules: is no list of tables"),
        ("[[rule]]\nwho = ['a']", "'rule' is none of admins, groups, rules, quotas"),
        ("[[rules]]\nrepositories = ['a']\nactions = ['pull']", "rules[1]: who is missing"),
        ("[[rules]]\nwho = ['a']\nactions = ['pull']", "rules[1]: repositories is missing"),
        ("[[rules]]\nwho = []\nrepositories = ['a']\nactions = ['pull']", "rules[1].who: is no list of strings"),
        ("[[rules]]\nwho = 'a'\nrepositories = ['a']\nactions = ['pull']", "rules[1].who: is no list of strings"),
        ("[[rules]]\nwho = ['@a']\nrepositories = ['a']\nactions = ['pull']", "there is no group 'a'"),
        ("[[rules]]\nwho = ['a']\nrepositories = ['a']\nactions = ['write']", "'write' is none of pull, push, delete"),
        ("[[rules]]\nwho = ['a']\nrepositories = ['A']\nactions = ['pull']", "rules[1].repositories: 'A' has other"),
        ("[[rules]]\nwho = ['a']\nrepositories = ['a']\nactions = ['catalog']", "is about all repositories"),
        ("[[rules]]\nwho = ['a']\nrepository = ['a']\nactions = ['pull']", "'repository' is none of who, repositories"),
        ("admins = ['anonymous']", "cannot be one"),
        ("[groups]\na = ['anonymous']", "groups.a: 'anonymous' cannot be a name"),
        ("[[quotas]]\nrepositories = ['a']\nsize = '1 elephant'", "quotas[1].size: '1 elephant' is not a size"),
        ("[[quotas]]\nrepositories = ['a']\nsize = true", "quotas[1].size: True is no size"),
        ("[[rules]]\n= 1", "line 2, column 1"),
    ],
)
def test_rights_that_mean_nothing(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rights.toml"
    path.write_text(text)
    with pytest.raises(FileInvalidError) as caught:
        load_rights(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_users(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"# people\n\nalice:{HASH}\nzoë:{HASH.replace('$2b$', '$2y$')}\n")
    users = load_htpasswd(path)
    assert users.verify("alice", "secret")
    assert users.verify("zoë", "secret")
    assert not users.verify("alice", "Secret")
    assert not users.verify("nobody", "nobody")
    for odd in ("", "\0", "secret\0", "x" * 100):
        assert not users.verify("alice", odd)


def test_what_can_be_no_password_is_nobodys(tmp_path: Path) -> None:
    """Whatever it is compared with, so that the answer takes as long."""
    path = tmp_path / "users"
    path.write_text(f"alice:{bcrypt.hashpw(b'-', bcrypt.gensalt(5)).decode()}\n")
    users = load_htpasswd(path)
    assert users.verify("alice", "-")
    for odd in ("", "-\0", "x" * 73):
        assert not users.verify("alice", odd)
        with pytest.raises(ValueError, match="the password"):
            hash_password(odd)


def test_more_than_bcrypt_looks_at_is_refused(tmp_path: Path) -> None:
    """Else every password with the same 72 bytes in front would do."""
    path = tmp_path / "users"
    path.write_text(f"alice:{bcrypt.hashpw(b'x' * 72, bcrypt.gensalt(5)).decode()}\n")
    assert load_htpasswd(path).verify("alice", "x" * 72)
    assert not load_htpasswd(path).verify("alice", "x" * 73)
    with pytest.raises(ValueError, match="73 bytes"):
        hash_password("x" * 73)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice", "line 2 is not NAME:HASH"),
        ("alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "line 2 has no bcrypt hash"),
        ("alice:$apr1$abc$def", "line 2 has no bcrypt hash"),
        ("alice:plain", "line 2 has no bcrypt hash"),
        (":x", "line 2 is no name of a user"),
        ("anonymous:x", "line 2 is no name of a user"),
        pytest.param(f"bob:{HASH}", "line 2 is the second of its user", id="bob again"),
        pytest.param(f"alice:{HASH.replace('$05$', '$31$')}", "line 2 has a bcrypt cost of 31", id="a cost of 31"),
    ],
)
def test_users_that_are_none(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "users"
    path.write_text(f"bob:{HASH}\n{line}\n")
    with pytest.raises(FileInvalidError) as caught:
        load_htpasswd(path)
    assert says in str(caught.value)
    assert HASH[7:] not in str(caught.value)


def test_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    good, old = new_token(), new_token()
    assert is_token(good)
    entry = '["{}"]\nsha256 = "{}"\n'
    path.write_text(
        entry.format("ci", hash_token(good))
        + 'user = "robot"\nexpires = 2999-01-01\n'
        + entry.format("old", hash_token(old))
        + "expires = 2020-01-01T00:00:00Z\n"
    )
    tokens = load_tokens(path)
    found = tokens.find(good)
    assert found is not None
    assert (found.name, found.user) == ("ci", "robot")
    assert found.expires_s is not None
    assert found.expires_s > time.time()
    assert tokens.find(old) is None
    assert tokens.find(new_token()) is None
    assert tokens.find("") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ci = 1", "token 'ci' is no table"),
        ("[ci]\ntoken = 'x'", "has 'token', which is none of user, sha256, expires"),
        ("[ci]\nsha256 = 'x'", "has no sha256 of 64 hex digits"),
        (f"[ci]\nsha256 = '{'0' * 64}'\nexpires = 'soon'", "has an end that is no date"),
        (f"[a]\nsha256 = '{'0' * 64}'\n[b]\nsha256 = '{'0' * 64}'", "token 'b' is the same as a"),
        (f"[a]\nsha256 = '{'0' * 64}'\nuser = 'anonymous'", "token 'a' is no name of a user"),
    ],
)
def test_tokens_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(FileInvalidError) as caught:
        load_tokens(path)
    assert says in str(caught.value)


def test_without_a_terminal_nobody_is_asked_for_a_password() -> None:
    """As with `pagepool login`: it says what to give, not that it was interrupted."""
    command = [sys.executable, "-m", "pagepool.cli", "auth", "hash", "alice"]
    done = subprocess.run(
        command, input="secret\n", capture_output=True, text=True, check=False, timeout=60, start_new_session=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "pagepool: error: Nobody can be asked here: give --password-stdin (see pagepool auth hash --help)\n"
    )


def test_a_file_stays_whose_it_was(tmp_path: Path) -> None:
    """Root adds to a file that the service reads as another user."""
    if os.geteuid():
        pytest.skip("needs root: files of others")
    for words, name in ((("hash", "alice", "--password-stdin"), "users"), (("token", "new", "ci"), "tokens.toml")):
        path = tmp_path / name
        path.touch()
        path.chmod(0o640)
        os.chown(path, 4321, 1234)
        command = [sys.executable, "-m", "pagepool.cli", "auth", *words, "--file", str(path)]
        subprocess.run(command, input="secret\n", capture_output=True, text=True, check=True, timeout=60)
        found = path.stat()
        assert found.st_size
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4321, 1234, 0o640)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    """Where the disk takes no more: it would have the secret in it."""
    path = tmp_path / "tokens.toml"
    path.write_text("# none\n")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20)); import signal; "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from pagepool.cli import main; main()"
    command = [sys.executable, "-c", limit, "auth", "token", "new", "ci", "--file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "# none\n"
