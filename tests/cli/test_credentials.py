"""Which server a command speaks to, and with whose credentials: docker's and podman's files, and their helpers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from pagepool.cli.connect import ServerOptions, on_server, server_url
from pagepool.cli.credentials import find_credentials
from pagepool.errors import UnauthorizedError
from pagepool.oci import Reference
from pagepool.transport import Credentials
from tests.cli.conftest import Run, program_command, program_environment
from tests.transport.peer import docker_registry
from tests.transport.scripted import Reply, scripted_server


def _options(**changes: object) -> ServerOptions:
    options: dict[str, object] = {"server": "http://127.0.0.1:5000", "plain_http": False, "insecure": False}
    options |= {"ca_certificate": None}
    options |= {"username": None, "password_stdin": False}
    return options | changes  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("reference", "changes", "url", "host"),
    [
        ("a:1", {}, "http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("a:1", {"server": "https://example.org/prefix/"}, "https://example.org/prefix", "example.org"),
        ("a:1", {"server": "example.org"}, "https://example.org", "example.org"),
        ("a:1", {"server": "localhost:5000"}, "http://localhost:5000", "localhost:5000"),
        ("localhost:7/a", {"server": "https://example.org"}, "http://localhost:7", "localhost:7"),
        ("[::1]:7/a", {}, "http://[::1]:7", "[::1]:7"),
        ("example.org/a", {}, "https://example.org", "example.org"),
        ("example.org:8/a", {"plain_http": True}, "http://example.org:8", "example.org:8"),
        ("docker.io/debian", {}, "https://registry-1.docker.io", "docker.io"),
    ],
)
def test_addresses(reference: str, changes: dict[str, object], url: str, host: str) -> None:
    assert server_url(_options(**changes), Reference.parse(reference)) == (url, host)


def test_docker_hub_keeps_its_own_images_below_library() -> None:
    assert on_server(Reference.parse("docker.io/debian:12")).repository == "library/debian"
    assert on_server(Reference.parse("docker.io/team/app")).repository == "team/app"
    assert on_server(Reference.parse("debian:12")).repository == "debian"


def _auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def _docker_config(home: Path, document: object) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker/config.json").write_text(json.dumps(document))


@pytest.mark.parametrize("key", ["h:1", "https://h:1", "http://h:1", "https://h:1/v2/", "h:1/team", "h:1/team/app"])
def test_credentials_of_docker(tmp_path: Path, key: str) -> None:
    _docker_config(tmp_path / "home", {"auths": {key: _auth("u", "p:q"), "other": _auth("x", "y")}})
    assert find_credentials("h:1", "team/app") == Credentials("u", "p:q")
    assert find_credentials("h:2", "team/app") == Credentials()


def test_narrow_credentials_win(tmp_path: Path) -> None:
    _docker_config(tmp_path / "home", {"auths": {"h": _auth("wide", "p"), "h/team": _auth("narrow", "p")}})
    assert find_credentials("h", "team/app").username == "narrow"
    assert find_credentials("h", "else").username == "wide"


def test_identity_token_and_docker_hub(tmp_path: Path) -> None:
    hub = {"https://index.docker.io/v1/": {"identitytoken": "t", "auth": ""}}
    _docker_config(tmp_path / "home", {"auths": hub})
    assert find_credentials("docker.io", "library/debian") == Credentials(identity_token="t")


def test_podman_goes_before_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _docker_config(tmp_path / "home", {"auths": {"h": _auth("docker", "p")}})
    unset, podman = tmp_path / f"run-containers/{os.getuid()}/auth.json", tmp_path / "run/containers/auth.json"
    for path, name in ((unset, "root"), (podman, "podman")):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"auths": {"h": _auth(name, "p")}}))
    assert find_credentials("h", "a").username == "root"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert find_credentials("h", "a").username == "podman"
    (tmp_path / "named.json").write_text(json.dumps({"auths": {"h": _auth("named", "p")}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "named.json"))
    assert find_credentials("h", "a").username == "named"


HELPER = """#!/bin/sh
read host
test "$1 $host" = "get h" || exit 1
printf '{"Username": "%s", "Secret": "s"}' "$NAME"
"""


@pytest.mark.parametrize("document", [{"credHelpers": {"h": "test"}}, {"credsStore": "test", "auths": {"h": {}}}])
def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: object) -> None:
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    _docker_config(tmp_path / "home", document)
    monkeypatch.setenv("NAME", "u")
    assert find_credentials("h", "a") == Credentials("u", "s")
    assert find_credentials("other", "a") == Credentials()
    monkeypatch.setenv("NAME", "<token>")
    assert find_credentials("h", "a") == Credentials(identity_token="s")


def test_started_by_whoever_ignores_children(tmp_path: Path) -> None:
    """Programs that fail do so all the same, as a helper that has no credentials."""
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with scripted_server(lambda _: Reply(200, b'{"tags":["x"]}')) as server:
        _docker_config(tmp_path / "home", {"credHelpers": {server.url.removeprefix("http://"): "test"}})
        command = ["env", "--ignore-signal=CHLD", *program_command("tags", "a", "--server", server.url)]
        environment = {**program_environment(), "PATH": f"{program.parent}:/usr/bin:/bin"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("x\n", "")


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"auths": []},
        {"auths": {"h": {"auth": "***"}}},
        {"auths": {"h": 5}},
        {"credHelpers": {"h": "../../bin/sh"}},
        {"credHelpers": {"h": "not-there"}},
    ],
)
def test_credentials_that_cannot_be_used(tmp_path: Path, document: object) -> None:
    _docker_config(tmp_path / "home", document)
    with pytest.raises(UnauthorizedError) as caught:
        find_credentials("h", "a")
    assert "***" not in str(caught.value)


def test_password_from_standard_input_and_from_login(tmp_path: Path, run: Run) -> None:
    with docker_registry(tmp_path / "registry", htpasswd=True) as peer:
        assert run("images", "--server", peer.url).code == 7
        _docker_config(tmp_path / "home", {"auths": {peer.host: _auth("user", "secret")}})
        assert run("images", "--server", peer.url).code == 0
        _docker_config(tmp_path / "home", {"auths": {peer.host: _auth("user", "wrong")}})
        refused = run("images", "--server", peer.url)
        assert refused.code == 7
        assert "wrong" not in refused.err
        command = program_command("images", "--server", peer.url, "--username", "user", "--password-stdin")
        done = subprocess.run(
            command, input=b"secret\n", env=program_environment(), capture_output=True, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stderr
