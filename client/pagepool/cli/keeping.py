"""Writes credentials where docker and podman keep them, so that all three know them; and takes them out again.

A file is replaced as a whole, and is readable to its owner alone. What else is in it stays. Where a credential helper
is configured, the credentials go to it and not into a file. A new login replaces an older entry where that is, since
files are looked at in an order, and an older one in front would win; without any it goes into docker's file.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pagepool.cli.credentials import auth_files, keys_of
from pagepool.errors import UnauthorizedError

_HELPER_TIMEOUT_S = 30


def store_credentials(host: str, username: str, password: str) -> str:
    """Keep a user name and password for a server.

    Args:
        host: ``host[:port]``, as it was named.

    Returns:
        where they are now, for people.

    Raises:
        UnauthorizedError: a file or helper cannot be used.
        OSError: a file cannot be written.
    """
    keys = keys_of(host)
    files = [(path, _read(path)) for path in auth_files()]
    path, document = next(
        ((path, document) for path, document in files if _has(document, keys)),
        files[-1],
    )
    key = "https://index.docker.io/v1/" if host in ("docker.io", "index.docker.io") else host
    helper = document.get("credHelpers", {}).get(host) or document.get("credsStore")
    if helper:
        secret = {"ServerURL": key, "Username": username, "Secret": password}
        _ask(helper, "store", json.dumps(secret))
        return f"the credential helper docker-credential-{helper}"
    for old in keys:
        document.get("auths", {}).pop(old, None)
    value = base64.b64encode(f"{username}:{password}".encode()).decode()
    document.setdefault("auths", {})[key] = {"auth": value}
    _write(path, document)
    return str(path)


def erase_credentials(host: str) -> list[str]:
    """Forget a server's credentials.

    Returns:
        where they were; empty if there were none.

    Raises:
        UnauthorizedError, OSError: as `store_credentials`.
    """
    found = []
    keys = keys_of(host)
    for path in auth_files():
        document = _read(path)
        helper = document.get("credHelpers", {}).get(host) or document.get("credsStore")
        if helper and any(_ask(helper, "erase", key, check=False) for key in keys[:1]):
            found.append(f"the credential helper docker-credential-{helper}")
        known = [key for key in keys if key in document.get("auths", {})]
        if known:
            for key in known:
                del document["auths"][key]
            _write(path, document)
            found.append(str(path))
    return found


def _has(document: dict[str, Any], keys: list[str]) -> bool:
    return any(key in document.get("auths", {}) or key in document.get("credHelpers", {}) for key in keys)


def _read(path: Path) -> dict[str, Any]:
    """A file's document; an empty one if there is none."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or not isinstance(document.get("auths", {}), dict):
            raise ValueError("it has no auths")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UnauthorizedError(f"credentials in {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UnauthorizedError(f"{path} is no file of credentials; it is left as it is") from None
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path = Path(os.path.realpath(path))  # a link, as some keep it, stays one
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp's files are 0600 from the beginning.
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent="\t")
            file.write("\n")
            # A loss of power leaves the older file or this one, not an empty one without anybody's credentials.
            file.flush()
            os.fsync(file.fileno())
        Path(part).rename(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _ask(name: str, what: str, text: str, *, check: bool = True) -> bool:
    """Have a helper do something. The text goes in by its standard input. Returns whether it did."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UnauthorizedError(f"the credential helper {name!r} has no proper name")
    command = [f"docker-credential-{name}", what]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnauthorizedError(f"the credential helper {command[0]} failed: {error}") from None
    if check and done.returncode != 0:
        words = done.stdout.decode(errors="replace").strip()[:200]
        raise UnauthorizedError(f"the credential helper {command[0]} keeps nothing: {words}")
    return done.returncode == 0
