"""Credentials as docker and podman keep them: `docker login` and `podman login` are enough for pagepool too.

Looked up in podman's files and then in docker's, the first entry that fits wins; credential helpers are asked
as docker asks them. Nothing is written here: see `keeping`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.errors import PagepoolError, UnauthorizedError
from pagepool.linux.home import home_directory
from pagepool.transport.credentials import Credentials

if TYPE_CHECKING:
    from pagepool.oci.fields import Object

_RUN = Path("/run/containers")
_HELPER_TIMEOUT_S = 30
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


def find_credentials(host: str, repository: str) -> Credentials:
    """Credentials for a repository of a registry; empty ones if there are none.

    Args:
        host: ``host[:port]``, as it was named.
        repository: podman's files may have entries for a part of a registry.

    Raises:
        UnauthorizedError: a file or helper that should have them cannot be used.
    """
    for path in auth_files():
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UnauthorizedError(f"credentials in {path} cannot be read: {error.strerror}") from None
        from pagepool.oci.fields import load_object  # most have no such file

        found = _look_up(load_object(data, "file", _complaint(path)), path, _keys(host, repository))
        if found is not None:
            return found
    return Credentials()


def auth_files() -> Iterator[Path]:
    """Where credentials may be, as containers-auth.json(5) and docker say."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # podman's place for root where no session gave it one (sudo, cron, a unit of systemd).
    yield (Path(runtime) / "containers" if runtime else _RUN / str(os.getuid())) / "auth.json"
    configured = os.environ.get("XDG_CONFIG_HOME")
    yield (Path(configured) if configured else home_directory() / ".config") / "containers" / "auth.json"
    docker = os.environ.get("DOCKER_CONFIG")
    yield (Path(docker) if docker else home_directory() / ".docker") / "config.json"


def _keys(host: str, repository: str) -> list[str]:
    """The names an entry may have, the narrowest first."""
    parts = repository.split("/")
    return [*(f"{host}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)), *keys_of(host)]


def keys_of(host: str) -> list[str]:
    """The names that an entry of all of a server may have."""
    keys = [host, f"https://{host}", f"http://{host}", f"https://{host}/v2/", f"https://{host}/v1/"]
    if host in _DOCKER_HUB:
        keys += ["docker.io", "index.docker.io", "https://index.docker.io/v1/"]
    return keys


def _look_up(fields: Object, path: Path, keys: list[str]) -> Credentials | None:
    entries = fields.object("auths") if fields.has("auths") else None
    helpers = fields.string_map("credHelpers")
    for key in keys:
        if key in helpers:
            return _ask_helper(helpers[key], key)
        if entries is not None and entries.has(key):
            found = _decode(entries.object(key), path)
            if found is not None:
                return found
    if store := fields.optional_string("credsStore"):
        for key in keys:
            if found := _ask_helper(store, key):
                return found
    return None


def _decode(entry: Object, path: Path) -> Credentials | None:
    """An entry of `auths`; None if it is empty, as it is beside a credential store."""
    token = entry.optional_string("identitytoken")
    text = entry.optional_string("auth")
    username, password = entry.optional_string("username"), entry.optional_string("password")
    if text:
        import base64
        import binascii

        try:
            username, _, password = base64.b64decode(text, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError):
            raise UnauthorizedError(f"credentials in {path} cannot be used: auth is not base64") from None
    return Credentials(username, password, token) if username or token else None


def _ask_helper(name: str, key: str) -> Credentials | None:
    import json
    import re
    import subprocess

    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UnauthorizedError(f"the credential helper {name!r} has no proper name")
    try:
        done = subprocess.run(
            [f"docker-credential-{name}", "get"],
            input=key.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnauthorizedError(f"the credential helper docker-credential-{name} failed: {error}") from None
    if done.returncode != 0:
        return None  # helpers say so when they have nothing
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise UnauthorizedError(f"the credential helper docker-credential-{name} gave no credentials") from None
    return Credentials(identity_token=secret) if username == "<token>" else Credentials(username, secret)


def _complaint(path: Path) -> Any:
    def complain(field: str, reason: str) -> PagepoolError:
        return UnauthorizedError(f"credentials in {path} cannot be used: {field} {reason}")

    return complain
