"""docker, podman, skopeo and containerd's ctr log in, push, pull and delete as their users may, and are told why not.

Over TLS, with an authority that the clients were told of. While they run, all command lines of the machine are looked
at for the passwords; afterwards the service's log is.
"""

from __future__ import annotations

import io
import json
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.cli import exits
from pagepool.cli.app import run as run_program
from pagepool.errors import DeniedError, UnreachableError
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.transport import Credentials, RegistryClient, RegistrySink, ServiceClient, Session
from tests.auth.conftest import RIGHTS, password, write_users
from tests.oci.samples import Sample, tar
from tests.support.certificates import TestAuthority
from tests.support.docker import Docker, running_docker
from tests.support.podman import Podman, own_storage
from tests.support.server import Service, running_service
from tests.support.tools import ToolError, require, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.node.client import KernelMount


class _Watch:
    """Looks at the command lines of all processes, again and again."""

    def __init__(self, *secrets: str) -> None:
        self.looked = 0
        self.found: set[str] = set()
        self._secrets = secrets
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                self.looked += 1
                self.found |= {line for secret in self._secrets if secret in line}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """Who vouches for the service."""
    return TestAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, authority: TestAuthority) -> Iterator[Service]:
    """A service with TLS that logs all there is; afterwards its log holds no password and no token."""
    directory = tmp_path_factory.mktemp("clients")
    (directory / "rights.toml").write_text(RIGHTS)
    certificate, key = authority.issue("server")
    options = ["--workers", "2", "--htpasswd", str(write_users(directory / "users"))]
    options += ["--rights", str(directory / "rights.toml"), "--tls-certificate", str(certificate)]
    options += ["--tls-key", str(key), "--access-log", "--log-level", "debug", "--log-format", "json"]
    with running_service(directory / "data", *options) as running:
        yield running
        log = running.log()
    assert "/auth/token" in log
    assert [user for user in ("alice", "bob", "carol", "root") if password(user) in log] == []
    assert "eyJ" not in log  # tokens begin so


@pytest.fixture(scope="module", autouse=True)
def watch() -> Iterator[None]:
    """No password was ever in a command line, but ctr's, which takes it nowhere else."""
    with _Watch(password("alice"), password("bob"), password("carol")) as found:
        yield
    assert found.looked > 100
    assert found.found == set()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A small image, tag ``latest``."""
    sample = Sample()
    root = sample.add_image([tar({"etc/hello": b"hello\n" * 1000})])
    return sample.write_layout(tmp_path / "layout", {"latest": root})


def _refused(what: Callable[[], object], *words: str) -> str:
    """What a client says when it is refused; one of these words is in it."""
    with pytest.raises(ToolError) as caught:
        what()
    said = str(caught.value).partition("\n")[2]
    assert any(word in said for word in words), said
    return said


def test_skopeo(service: Service, authority: TestAuthority, layout: Path, tmp_path: Path) -> None:
    require("skopeo", root=False)
    trust = f"--cert-dir={authority.path.parent}"
    place = {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}

    def skopeo(*argv: str, stdin: str = "") -> str:
        return run(["skopeo", *argv], place, stdin=stdin)

    def login(user: str, secret: str) -> str:
        return skopeo("login", trust, "--username", user, "--password-stdin", service.host, stdin=secret)

    def push(name: str) -> str:
        return skopeo("copy", f"--dest-{trust[2:]}", f"oci:{layout}:latest", f"docker://{service.host}/{name}")

    _refused(lambda: login("alice", "wrong"), "invalid username/password")
    _refused(lambda: login("nobody", password("alice")), "invalid username/password")
    _refused(lambda: push("team/app:1"), "unauthorized", "authentication required")
    assert "Succeeded" in login("bob", password("bob"))
    push("team/app:1")
    _refused(lambda: push("carol/app:1"), "403")
    _refused(lambda: skopeo("list-tags", trust, f"docker://{service.host}/carol/app"), "403", "denied")
    _refused(lambda: skopeo("delete", trust, f"docker://{service.host}/team/app:1"), "bob may not delete in team/app")
    said = _refused(lambda: push("team/small:1"), "quota")
    assert re.search(r"the quota of repository team/small is 100 bytes: \d+ are used, and \d+ more are coming", said)
    login("alice", password("alice"))
    assert "1" in skopeo("list-tags", trust, f"docker://{service.host}/team/app")
    skopeo("delete", trust, f"docker://{service.host}/team/app:1")
    login("root", password("root"))
    push("public/base:1")
    skopeo("logout", service.host)
    assert "Digest" in skopeo("inspect", trust, f"docker://{service.host}/public/base:1")
    _refused(lambda: skopeo("inspect", trust, f"docker://{service.host}/team/app:1"), "unauthorized")


@pytest.fixture
def podman() -> Iterator[Podman]:
    """A storage of its own."""
    with own_storage() as podman:
        yield podman


def test_podman(service: Service, authority: TestAuthority, layout: Path, podman: Podman, tmp_path: Path) -> None:
    trust, auth = f"--cert-dir={authority.path.parent}", f"--authfile={tmp_path / 'auth.json'}"

    def login(user: str, secret: str) -> str:
        argv = ("login", trust, auth, "--username", user, "--password-stdin", service.host)
        return podman.podman(*argv, stdin=secret)

    podman.podman("pull", "--quiet", f"oci:{layout}:latest")
    image = podman.podman("images", "--quiet").split()[0]
    _refused(lambda: login("alice", "wrong"), "invalid username/password")
    login("bob", password("bob"))
    podman.podman("push", "--quiet", trust, auth, image, f"{service.host}/team/podman:1")
    denied = f"{service.host}/carol/podman:1"
    _refused(lambda: podman.podman("push", "--quiet", trust, auth, image, denied), "403")
    podman.podman("rmi", "--all", "--force")
    podman.podman("pull", "--quiet", trust, auth, f"{service.host}/team/podman:1")
    podman.podman("logout", auth, service.host)
    _refused(lambda: podman.podman("pull", "--quiet", trust, auth, f"{service.host}/team/podman:1"), "unauthorized")


@pytest.fixture
def docker() -> Iterator[Docker]:
    """A daemon of its own."""
    with running_docker() as running:
        yield running


def test_docker_and_containerd(service: Service, authority: TestAuthority, layout: Path, docker: Docker) -> None:
    def login(user: str, secret: str) -> str:
        return docker("login", "--username", user, "--password-stdin", service.host, stdin=secret)

    mine, theirs = f"{service.host}/team/docker:1", f"{service.host}/carol/docker:1"
    archive = layout.parent / "image.tar"
    run(["skopeo", "copy", "--quiet", f"oci:{layout}:latest", f"docker-archive:{archive}:{mine}"])
    docker("load", "--input", archive)
    docker("tag", mine, theirs)
    _refused(lambda: login("bob", "wrong"), "wrong user name, password or token", "unauthorized")
    assert "Retrying" not in _refused(lambda: docker("push", mine), "unauthorized: authentication required")
    assert "Succeeded" in login("bob", password("bob"))
    docker("push", mine)
    assert "Retrying" not in _refused(lambda: docker("push", theirs), "denied: bob may not")
    small = f"{service.host}/team/small:1"
    docker("tag", mine, small)
    said = _refused(lambda: docker("push", small), "denied: the quota of repository team/small is 100 bytes")
    assert "Retrying" not in said
    docker("image", "rm", "--force", mine, theirs, small)
    docker("pull", "--quiet", mine)
    # docker keeps a token in place of the password, and gets new ones with it.
    kept = (docker.socket.parent / "config" / "config.json").read_text()
    assert "identitytoken" in kept
    docker("logout", service.host)
    _refused(lambda: docker("pull", "--quiet", mine), "unauthorized: authentication required")

    # The daemon's containerd. ctr takes a password in its command line, or asks a terminal for it.
    (socket,) = docker.socket.parent.rglob("containerd.sock")
    ctr = ["ctr", "--address", str(socket), "--namespace", "test", "images"]
    hosts = layout.parent / "hosts" / service.host / "hosts.toml"  # ctr speaks http to 127.0.0.1, unless told
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f'server = "{service.url}"\n[host."{service.url}"]\nca = "{authority.path}"\n')
    pull = [*ctr, "pull", "--hosts-dir", str(hosts.parents[1])]
    _refused(lambda: run([*pull, mine]), "401", "authorization")
    _refused(lambda: run([*pull, "--user", "root:wrong", mine]), "401", "authorization")
    run([*pull, "--user", f"root:{password('root')}", mine])
    assert mine in run([*ctr, "list", "--quiet"])


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, for the program that runs in this process. Returns docker's file in it."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".docker" / "config.json"


def test_pagepool(
    service: Service,
    authority: TestAuthority,
    layout: Path,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Our own program logs in, and keeps that where the others do, beside what is there."""
    monkeypatch.setenv("PAGEPOOL_CA_CERTIFICATE", str(authority.path))
    monkeypatch.setenv("PAGEPOOL_SERVER", service.url)
    environment.parent.mkdir()
    environment.write_text('{"auths": {"other.example": {"auth": "YTpi"}}, "currentContext": "x"}')

    def pagepool(*arguments: str, stdin: str = "") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = run_program(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    def login(user: str, secret: str) -> tuple[int, str]:
        return pagepool("login", "--username", user, "--password-stdin", stdin=f"{secret}\n")

    assert login("alice", "wrong")[0] == exits.DENIED
    assert "other.example" in environment.read_text()
    assert login("alice", password("alice")) == (0, f"pagepool: {service.host} lets alice in; kept in {environment}\n")
    kept = json.loads(environment.read_text())
    assert set(kept["auths"]) == {"other.example", service.host}
    assert kept["currentContext"] == "x"
    assert stat.S_IMODE(environment.stat().st_mode) == 0o600
    assert pagepool("push", str(layout), "team/ours:1")[0] == 0
    code, said = pagepool("push", str(layout), "carol/ours:1")
    assert (code, "you may not do that in carol/ours" in said) == (exits.DENIED, True)
    assert pagepool("cat", "team/ours:1:/etc/hello") == (0, "hello\n" * 1000)
    assert pagepool("stats")[0] == exits.DENIED
    assert "team/ours" in pagepool("images")[1]
    place = {"REGISTRY_AUTH_FILE": str(environment)}
    assert "1" in run(
        ["skopeo", "list-tags", f"--cert-dir={authority.path.parent}", f"docker://{service.host}/team/ours"], place
    )
    assert pagepool("rm", "team/ours:1")[0] == 0
    assert pagepool("logout")[0] == 0
    assert set(json.loads(environment.read_text())["auths"]) == {"other.example"}
    assert pagepool("logout")[0] == exits.DENIED
    assert pagepool("tags", "team/ours")[0] == exits.DENIED
    # Everybody may see what is public, which is nothing now: an empty list says whose it is.
    assert login("root", password("root"))[0] == 0
    for row in json.loads(pagepool("images", "--json")[1])["images"]:
        assert pagepool("rm", f"{row['name']}:{row['tag']}")[0] == 0
    assert "pagepool login" not in pagepool("images")[1]
    assert pagepool("logout")[0] == 0
    assert "asks for credentials, and there are none for it (pagepool login)" in pagepool("images")[1]
    assert json.loads(pagepool("images", "--json")[1]) == {"images": []}


def test_a_node(service: Service, authority: TestAuthority, tmp_path: Path) -> None:
    """It fetches as who asked for the mount, by TLS, and keeps the credentials where only root can read them."""
    from pagepool.node.client import KernelMountOptions
    from pagepool.node.worker import WorkerOptions
    from tests.support.nodeserver import running_node

    sample = Sample()
    sample.add_image([tar({"hello": b"hello" * 1000})])
    who = Credentials("bob", password("bob"))
    with Session(service.url, credentials=who, verify=str(authority.path)) as session:
        sink = RegistrySink(RegistryClient(session), Reference.parse("team/node:1"))
        run_copy(plan_copy(sample), sample, sink)
        ServiceClient(session).wait("team/node", "1", 30)
    at = tmp_path / "mnt"
    at.mkdir()
    with running_node(tmp_path, WorkerOptions(timeout_s=5.0, fill=False)) as node:

        def mount(reference: str, credentials: Credentials, verify: bool | str) -> KernelMount:
            options = KernelMountOptions(fill=False)
            parsed = Reference.parse(reference)
            return node.mount(service.url, parsed, at, options, credentials=credentials, verify=verify)

        with pytest.raises(UnreachableError, match="its certificate is refused"):
            mount("team/node:1", who, True)
        with pytest.raises(DeniedError, match="carol may not pull in team/node"):
            mount("team/node:1", Credentials("carol", password("carol")), str(authority.path))
        with mount("team/node:1", who, str(authority.path)):
            assert (at / "hello").read_bytes() == b"hello" * 1000
            places = node.places
            records = [path for path in places.run.rglob("*.json") if password("bob") in json_text(path)]
            assert records
            assert {stat.S_IMODE(path.stat().st_mode) for path in records} == {0o600}
            assert stat.S_IMODE(places.run.stat().st_mode) == 0o700
            assert password("bob") not in places.log.read_text(errors="replace")


def json_text(path: Path) -> str:
    """A JSON file's text, without its escapes."""
    return str(json.loads(path.read_text()))
