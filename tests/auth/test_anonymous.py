"""`--anonymous-pull`: everybody may pull everything, by HTTP and by real clients, and do nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference, mediatypes
from pagepool.transport import Credentials, RegistryClient, RegistrySink, ServiceClient, Session
from tests.auth.conftest import basic, password, write_users
from tests.oci.samples import Sample, tar
from tests.support.podman import own_storage
from tests.support.server import Service, running_service
from tests.support.tools import ToolError, require, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LAYER = tar({"etc/hello": b"hello\n" * 1000})
_CHALLENGES = ("bearer", "basic")


@pytest.fixture(scope="module", params=_CHALLENGES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that lets everybody pull, with an image that somebody has pushed, as ``some/app:1``."""
    directory = tmp_path_factory.mktemp("anonymous")
    options = ("--htpasswd", str(write_users(directory / "users")), "--anonymous-pull", "--challenge", request.param)
    with running_service(directory / "data", *options) as running:
        who = Credentials("alice", password("alice"))
        with Session(running.url, credentials=who) as session:
            sample = Sample()
            sample.add_image([_LAYER], media_type=mediatypes.OCI_LAYER)
            run_copy(plan_copy(sample), sample, RegistrySink(RegistryClient(session), Reference.parse("some/app:1")))
            ServiceClient(session).wait("some/app", "1", 30)
        yield running
        assert not running.faults()


def _get(service: Service, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(f"{service.url}{path}", headers=headers or {})


def _paths() -> list[str]:
    """What somebody who pulls, and who reads, asks for."""
    blob = f"/v2/some/app/blobs/{Digest.of(_LAYER)}"
    return [
        "/v2/some/app/manifests/1",
        "/v2/some/app/tags/list",
        f"/v2/some/app/referrers/{Digest.of(b'')}",
        blob,
        "/v1/some/app/images/1",
        "/v1/some/app/images/1/tree",
        "/v1/some/app/images/1/files?path=/etc/hello",
    ]


def test_pulling_takes_no_credentials(service: Service) -> None:
    for path in _paths():
        assert _get(service, path).status_code == 200, path
    assert _get(service, f"/v2/some/app/blobs/{Digest.of(_LAYER)}").content == _LAYER
    assert _get(service, "/v2/some/none/tags/list").status_code == 404


def test_nothing_else_is_to_be_had_without(service: Service) -> None:
    """Not a push, not a deletion, no lease, and no lists or figures."""
    refused = [
        ("GET", "/v2/"),
        ("GET", "/v2/_catalog"),
        ("GET", "/v1/images"),
        ("GET", "/v1/stats"),
        ("GET", "/v1/overview"),
        ("POST", "/v2/some/app/blobs/uploads/"),
        ("PUT", "/v2/some/app/manifests/2"),
        ("DELETE", "/v2/some/app/manifests/1"),
        ("DELETE", f"/v2/some/app/blobs/{Digest.of(_LAYER)}"),
        ("POST", f"/v1/some/app/trees/{Digest('blake3', bytes(32))}/lease"),
    ]
    for method, path in refused:
        answer = httpx.request(method, f"{service.url}{path}")
        assert answer.status_code == 401, path
        assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
        assert answer.headers["WWW-Authenticate"].split()[0].lower() in _CHALLENGES
    upload = httpx.post(f"{service.url}/v2/some/app/blobs/uploads/", auth=basic("bob"))
    assert upload.status_code == 202
    assert _get(service, upload.headers["location"]).status_code == 401


def test_wrong_credentials_are_not_nobodys(service: Service) -> None:
    answer = httpx.get(f"{service.url}/v2/some/app/tags/list", auth=("alice", "wrong"))
    assert answer.status_code == 401


@pytest.mark.parametrize("service", ["bearer"], indirect=True)
def test_as_docker_does_it(service: Service) -> None:
    """Asked for a token it comes without credentials, and gets one to pull with; more than that is not in it."""
    told = _get(service, "/v2/").headers["WWW-Authenticate"]
    fields = dict(re.findall(r'(\w+)="([^"]*)"', told))
    assert fields == {"realm": f"{service.url}/auth/token", "service": "pagepool"}

    def token(scope: str) -> dict[str, str]:
        answer = httpx.get(fields["realm"], params={"service": fields["service"], "scope": scope})
        assert answer.status_code == 200
        assert "refresh_token" not in answer.json()
        return {"Authorization": f"Bearer {answer.json()['token']}"}

    pull = token("repository:some/app:pull")
    for path in _paths():
        assert _get(service, path, pull).status_code == 200, path
    assert _get(service, "/v2/some/other/tags/list", pull).status_code == 401
    assert _get(service, "/v2/", pull).status_code == 401
    push = token("repository:some/app:pull,push,delete")
    assert _get(service, "/v2/some/app/tags/list", push).status_code == 200
    for method, path in (("POST", "/v2/some/app/blobs/uploads/"), ("DELETE", "/v2/some/app/manifests/1")):
        assert httpx.request(method, f"{service.url}{path}", headers=push).status_code == 401
    catalog = token("registry:catalog:*")
    assert _get(service, "/v2/_catalog", catalog).json() == {"repositories": ["some/app"]}
    assert _get(service, "/v1/images", catalog).status_code == 200
    assert _get(service, "/v1/stats", catalog).status_code == 401


def test_skopeo(service: Service, tmp_path: Path) -> None:
    require("skopeo", root=False)
    nowhere = {"REGISTRY_AUTH_FILE": str(tmp_path / "none.json")}
    image = f"docker://{service.host}/some/app"
    run(["skopeo", "copy", "--src-tls-verify=false", f"{image}:1", f"oci:{tmp_path / 'layout'}:1"], nowhere)
    assert '"1"' in run(["skopeo", "list-tags", "--tls-verify=false", image], nowhere)
    with pytest.raises(ToolError, match=r"unauthorized|authentication required"):
        run(["skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path / 'layout'}:1", f"{image}:2"], nowhere)
    with pytest.raises(ToolError, match="authentication required: log in"):
        run(["skopeo", "delete", "--tls-verify=false", f"{image}:1"], nowhere)


def test_podman(service: Service, tmp_path: Path) -> None:
    image, auth = f"{service.host}/some/app", f"--authfile={tmp_path / 'none.json'}"
    (tmp_path / "none.json").write_text("{}")
    with own_storage() as storage:
        storage.podman("pull", "--quiet", "--tls-verify=false", auth, f"{image}:1")
        with pytest.raises(ToolError, match=r"unauthorized|authentication required"):
            storage.podman("push", "--quiet", "--tls-verify=false", auth, f"{image}:1", f"{image}:2")
