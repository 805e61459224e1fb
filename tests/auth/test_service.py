"""A service with users: logging in in every way, rights on every path, and what other tenants find out."""

from __future__ import annotations

import base64
import stat
import time
from typing import TYPE_CHECKING

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pagepool.digest import Digest
from pagepool.errors import DeniedError, UnauthorizedError
from pagepool.transport import Credentials, RegistryClient, ServiceClient, Session
from pagepool_service.auth.tokens import hash_token, new_token
from tests.auth.conftest import basic, password, push_blob, push_image, write_users
from tests.oci.samples import Sample, tar
from tests.service.pushes import push_image as push_files
from tests.service.test_images_api import settled
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from pathlib import Path


def _token(http: httpx.Client, *scopes: str, auth: httpx.BasicAuth | None = None, **query: str) -> httpx.Response:
    return http.get("/auth/token", params={"service": "pagepool", "scope": list(scopes), **query}, auth=auth)


def _bearer(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


# -- logging in --------------------------------------------------------------------------------------------------


def test_a_token_allows_what_was_asked_for(http: httpx.Client) -> None:
    push_image(http, "team/tokens", "1", basic("alice"))
    pull = _bearer(_token(http, "repository:team/tokens:pull", auth=basic("alice")))
    assert http.get("/v2/team/tokens/tags/list", headers=pull).status_code == 200
    more = http.post("/v2/team/tokens/blobs/uploads/", headers=pull)
    assert more.status_code == 401
    assert 'error="insufficient_scope"' in more.headers["WWW-Authenticate"]
    assert 'scope="repository:team/tokens:pull,push"' in more.headers["WWW-Authenticate"]
    assert http.get("/v2/team/other/tags/list", headers=pull).status_code == 401
    both = _bearer(_token(http, "repository:team/tokens:pull,push,delete", auth=basic("bob")))
    assert http.post("/v2/team/tokens/blobs/uploads/", headers=both).status_code == 202
    assert http.delete("/v2/team/tokens/manifests/1", headers=both).status_code == 403
    assert http.get("/v2/", headers=pull).status_code == 200


def test_a_token_of_nobody(http: httpx.Client) -> None:
    push_image(http, "public/tokens", "1", basic("root"))
    token = _bearer(_token(http, "repository:public/tokens:pull,push"))
    assert http.get("/v2/public/tokens/manifests/1", headers=token).status_code == 200
    assert http.post("/v2/public/tokens/blobs/uploads/", headers=token).status_code == 401
    assert http.get("/v2/", headers=token).status_code == 401


def test_refresh_tokens(http: httpx.Client) -> None:
    answer = _token(http, auth=basic("alice"), offline_token="true").json()
    form = {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"], "service": "pagepool"}
    form["scope"] = "repository:team/x:pull"
    again = http.post("/auth/token", data=form)
    assert http.get("/v2/team/x/tags/list", headers=_bearer(again)).status_code == 404
    assert again.json()["refresh_token"] == answer["refresh_token"]
    as_request = {"Authorization": f"Bearer {answer['refresh_token']}"}
    assert http.get("/v2/", headers=as_request).status_code == 401
    as_refresh = form | {"refresh_token": answer["token"]}
    assert http.post("/auth/token", data=as_refresh).status_code == 401


def test_a_password_in_a_form(http: httpx.Client) -> None:
    form = {"grant_type": "password", "username": "bob", "password": password("bob"), "access_type": "offline"}
    answer = http.post("/auth/token", data=form)
    assert answer.headers["Cache-Control"] == "no-store"
    assert "refresh_token" in answer.json()
    assert http.post("/auth/token", data=form | {"password": "wrong"}).status_code == 401
    assert http.post("/auth/token", data={"grant_type": "magic"}).status_code == 400
    assert http.post("/auth/token", content=b"x" * 70000).status_code == 413


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(b"alice").decode(),
        "Bearer",
        "Bearer x.y.z",
        pytest.param("Bearer " + new_token(), id="a token that nobody knows"),
        "Digest username=alice",
        "nonsense",
    ],
)
def test_credentials_that_are_none(http: httpx.Client, value: str) -> None:
    """They are refused, also where nobody needs any: who believes to be logged in is not."""
    for path in ("/v2/", "/v2/public/tokens/tags/list", "/v2/team/x/tags/list"):
        answer = http.get(path, headers={"Authorization": value})
        assert answer.status_code == 401, path
        assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"


def test_the_words_that_scripts_look_for(http: httpx.Client) -> None:
    """As docker-registry says it; and never these alone, which docker would take for worth trying again."""
    narrow = _bearer(_token(http, auth=basic("alice"), scope="repository:team/x:pull"))
    answers = [
        http.get("/v2/"),
        http.get("/v2/team/x/tags/list"),
        http.get("/v2/team/x/tags/list", auth=("alice", "wrong")),
        http.get("/auth/token", auth=("alice", "wrong")),
        http.post("/v2/team/x/blobs/uploads/", headers=narrow),
        http.get("/v2/_catalog"),
    ]
    for answer in answers:
        assert answer.status_code == 401, answer.url
        assert answer.json()["errors"][0]["message"].startswith("authentication required: "), answer.url


def test_empty_credentials_are_nobodys(http: httpx.Client) -> None:
    push_image(http, "public/empty", "1", basic("root"))
    assert http.get("/v2/public/empty/tags/list", auth=("", "")).status_code == 200
    assert http.get("/v2/", auth=("", "")).status_code == 401


# -- rights ------------------------------------------------------------------------------------------------------


def test_a_repository_that_may_not_be_seen_is_as_one_that_is_not_there(http: httpx.Client) -> None:
    push_image(http, "carol/secret", "1", basic("carol"))
    for auth in (None, basic("bob")):
        answers = {}
        for name in ("carol/secret", "carol/nothing"):
            for path in ("tags/list", "manifests/1", f"blobs/sha256:{'0' * 64}", f"referrers/sha256:{'0' * 64}"):
                answer = http.get(f"/v2/{name}/{path}", auth=auth)
                answers[name, path] = answer.status_code, answer.text.replace(name, "NAME")
            answer = http.get(f"/v1/{name}/images/1/tree", auth=auth)
            answers[name, "tree"] = answer.status_code, answer.text.replace(name, "NAME")
        for (name, path), answer_of in answers.items():
            assert answer_of[0] == (401 if auth is None else 403)
            assert answer_of == answers["carol/nothing", path], name


def test_listings_have_what_may_be_seen(http: httpx.Client) -> None:
    for name, user in (("team/listed", "alice"), ("carol/listed", "carol"), ("public/listed", "root")):
        push_image(http, name, "1", basic(user))

    nobody = _bearer(_token(http, "registry:catalog:*"))
    assert http.get("/v2/_catalog").status_code == http.get("/v1/images").status_code == 401

    def listed(path: str, auth: httpx.BasicAuth | None, **query: str) -> set[str]:
        found: set[str] = set()
        url: str | None = path
        while url is not None:
            headers = nobody if auth is None else {}
            answer = http.get(url, params=query if url == path else None, auth=auth, headers=headers)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            found |= set(body.get("repositories", ())) | {one["name"] for one in body.get("images", ())}
            url = answer.links["next"]["url"] if "next" in answer.links else None
        return {name for name in found if name.endswith("/listed")}

    everything = {"team/listed", "carol/listed", "public/listed"}
    for path in ("/v2/_catalog", "/v1/images"):
        for n in ("1", "100"):
            assert listed(path, basic("root"), n=n) == everything
            assert listed(path, basic("bob"), n=n) == {"team/listed", "public/listed"}
            assert listed(path, basic("carol"), n=n) == {"carol/listed", "public/listed"}
            assert listed(path, None, n=n) == {"public/listed"}
    token = _bearer(_token(http, "registry:catalog:*", auth=basic("carol")))
    names = http.get("/v2/_catalog", headers=token).json()["repositories"]
    assert "carol/listed" in names
    assert not any(name.startswith("team/") for name in names)
    assert http.get("/v2/_catalog", headers=_bearer(_token(http, auth=basic("carol")))).status_code == 401
    for path in ("/v1/stats", "/v1/cache"):
        assert http.get(path, auth=basic("alice")).status_code == 403
        assert http.get(path, auth=basic("root")).status_code in (200, 405)


def test_mounting_takes_only_from_where_one_may_pull(http: httpx.Client) -> None:
    """What may not be pulled is not there to be mounted, named or not: the client is to upload it."""
    secret = b"carol's own" * 1000
    digest = str(Digest.of(secret))
    assert push_blob(http, "carol/mounted", secret, basic("carol")).status_code == 201

    def mount(auth: httpx.BasicAuth, name: str, **query: str) -> int:
        return http.post(f"/v2/{name}/blobs/uploads/", params={"mount": digest, **query}, auth=auth).status_code

    url = f"/v2/team/mounted/blobs/{digest}"
    for query in ({"from": "carol/mounted"}, {}):
        assert mount(basic("alice"), "team/mounted", **query) == 202
        assert http.head(url, auth=basic("alice")).status_code == 404
    assert mount(basic("root"), "team/mounted", **{"from": "carol/mounted"}) == 201
    assert http.head(url, auth=basic("alice")).status_code == 200
    # Now somebody lets her have it.
    assert mount(basic("alice"), "team/again") == 201


def test_a_client_that_mounts_learns_to_ask_for_both_repositories(http: httpx.Client) -> None:
    """python-dxf asks for what challenges name, and no more; from where its user may not pull, it is to upload."""
    digest = str(push_blob(http, "carol/source", b"to mount" * 1000, basic("carol")).headers["Docker-Content-Digest"])
    both = ("repository:carol/x:pull,push", "repository:carol/source:pull")
    query = {"mount": digest, "from": "carol/source"}
    url = "/v2/carol/x/blobs/uploads/"
    one = _bearer(_token(http, both[0], auth=basic("carol")))
    for headers, error in (({}, ""), (one, 'error="insufficient_scope"')):
        asked = http.post(url, params=query, headers=headers)
        assert asked.status_code == 401
        assert f'scope="{both[0]} {both[1]}"' in asked.headers["WWW-Authenticate"]
        assert error in asked.headers["WWW-Authenticate"]
    two = _bearer(_token(http, *both, auth=basic("carol")))
    assert http.post(url, params=query, headers=two).status_code == 201
    # From one that she may not pull from, or that cannot be.
    assert http.post(url, params={**query, "from": "team/secret"}, headers=one).status_code == 202
    assert http.post(url, params={**query, "from": "team/ x"}, headers=one).status_code == 202
    challenge = http.post(url, params={**query, "from": 'a" b'}).headers["WWW-Authenticate"]
    assert f'scope="{both[0]}"' in challenge


def test_page_reads_ask_too(http: httpx.Client, service: Service) -> None:
    """Those that are answered before anything else is asked, and those of others that come right behind them."""
    content = b"a page of a file" * 256
    sample = Sample()
    sample.add_image([tar({"file": content})])
    with Session(service.url, credentials=Credentials("alice", password("alice"))) as session:
        registry = RegistryClient(session)
        for blob, data in sample.content.items():
            if blob != sample.root().digest:
                assert push_blob(http, "team/pages", data, basic("alice")).status_code == 201
        registry.put_manifest("team/pages", "1", sample.read_manifest(sample.root()))
        ServiceClient(session).wait("team/pages", "1", 30)
        tree = session.request(_call("/v1/team/pages/images/1/tree")).json()
    assert tree["cache"] is None  # the pool is not for others
    found = http.get("/v1/team/pages/images/1/files", params={"path": "/file"}, auth=basic("alice")).json()
    url = f"/v1/team/pages/trees/{tree['tree']}/objects/{found['entries'][0]['object'].removeprefix('blake3:')}"
    token = _bearer(_token(http, "repository:team/pages:pull", auth=basic("bob")))
    other = _bearer(_token(http, "repository:team/other:pull", auth=basic("bob")))
    with httpx.Client(base_url=service.url) as client:
        for _ in range(20):  # both workers, cold and warm
            assert client.get(url, auth=basic("alice")).content == content
            assert client.get(url, headers=token).content == content
            assert client.get(url, headers={**token, "Range": "bytes=0-9"}).content == content[:10]
            assert client.get(url).status_code == 401
            assert client.get(url, headers=other).status_code == 401
            assert client.get(url, auth=basic("carol")).status_code == 403
            assert client.get(url, auth=("alice", "wrong")).status_code == 401
            # Through a repository that she may pull, and that does not have the tree.
            assert client.get(url.replace("team/pages", "carol/x"), auth=basic("carol")).status_code == 404
    assert stat.S_IMODE(service.cache.stat().st_mode) == 0o700
    assert not service.cache.with_name(f"{service.cache.name}.door").exists()
    assert stat.S_IMODE(service.data.stat().st_mode) & 0o007 == 0
    for path in (f"/v2/team/pages/blobs/{sample.root().digest}", f"/v2/team/pages/manifests/{sample.root().digest}"):
        kept = http.get(path, auth=basic("alice")).headers.get("Cache-Control", "private")
        assert "public" not in kept  # no cache that is shared may keep it
    fill = http.post(url.partition("/objects/")[0] + "/fill", json={"objects": []}, auth=basic("alice"))
    assert fill.status_code == 405


def _call(path: str):  # type: ignore[no-untyped-def]
    from pagepool.errors import NameUnknownError
    from pagepool.transport.answers import Subject
    from pagepool.transport.http import Call

    return Call("GET", path, Subject(NameUnknownError, path), scope="repository:team/pages:pull")


def test_leases_and_profiles_are_for_those_who_log_in(http: httpx.Client) -> None:
    """Whoever may pull without a name leaves nothing behind."""
    base = f"/v1/public/x/trees/blake3:{'0' * 64}"
    for path, body in (("lease", {"holder": "me", "ttl_s": 60}), ("profile", {"objects": []})):
        assert http.post(f"{base}/{path}", json=body).status_code == 401
        assert http.post(f"{base}/{path}", json=body, auth=basic("bob")).status_code == 404
    assert http.delete(f"{base}/profile", auth=basic("bob")).status_code == 403


def test_our_own_client(service: Service, http: httpx.Client) -> None:
    push_image(http, "team/client", "1", basic("alice"))
    with Session(service.url, credentials=Credentials("alice", password("alice"))) as session:
        assert list(RegistryClient(session).tags("team/client")) == ["1"]
        assert "team/client" in list(RegistryClient(session).catalog())
        assert "team/client" in [image["name"] for image in ServiceClient(session).images()]
        with pytest.raises(DeniedError, match="alice may not see the names and figures"):
            ServiceClient(session).stats()
        with pytest.raises(DeniedError, match="alice may not pull in carol/app"):
            list(RegistryClient(session).tags("carol/app"))
    with Session(service.url) as session:
        assert set(RegistryClient(session).catalog()) >= {"public/listed"}
    with (
        Session(service.url, credentials=Credentials("alice", "wrong")) as session,
        pytest.raises(UnauthorizedError, match="does not accept the credentials of alice"),
    ):
        RegistryClient(session).ping()


# -- changes while it runs ---------------------------------------------------------------------------------------


def test_files_are_read_again(tmp_path: Path) -> None:
    """A new password, a new right and a revoked token count within seconds; a broken file changes nothing."""
    users, rights, tokens = tmp_path / "users", tmp_path / "rights.toml", tmp_path / "tokens.toml"
    rule = '[[rules]]\nwho = ["{}"]\nrepositories = ["**"]\nactions = ["pull"]\n'
    write_users(users)
    rights.write_text(rule.format("alice") + rule.format("ci"))
    secret = new_token()
    tokens.write_text(f'["ci"]\nsha256 = "{hash_token(secret)}"\n')
    options = (
        "--htpasswd",
        str(users),
        "--rights",
        str(rights),
        "--tokens",
        str(tokens),
        "--external-url",
        "https://registry.example/base/",
    )
    with running_service(tmp_path / "data", *options) as service, httpx.Client(base_url=service.url) as http:

        def status(auth: httpx.Auth | tuple[str, str]) -> int:
            return http.get("/v2/a/tags/list", auth=auth).status_code

        def comes(wanted: int, auth: httpx.Auth | tuple[str, str]) -> None:
            deadline = time.monotonic() + 60
            while status(auth) != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.05)

        # Behind a proxy clients are sent to the address that they know.
        challenge = http.get("/v2/", headers={"Host": "evil.example"}).headers["WWW-Authenticate"]
        assert 'realm="https://registry.example/base/auth/token"' in challenge
        assert (status(basic("alice")), status(basic("bob")), status(("x", secret))) == (404, 403, 404)
        assert http.get("/v2/a/tags/list", headers={"Authorization": f"Bearer {secret}"}).status_code == 404
        form = {"grant_type": "password", "username": "alice", "password": password("alice"), "access_type": "offline"}
        given = http.post("/auth/token", data=form | {"scope": "repository:a:pull"}).json()
        bearer = {"Authorization": f"Bearer {given['token']}"}
        assert http.get("/v2/a/tags/list", headers=bearer).status_code == 404
        rights.write_text(rule.format("bob"))
        comes(404, basic("bob"))
        assert status(basic("alice")) == 403
        assert http.get("/v2/a/tags/list", headers=bearer).status_code == 403
        rights.write_text("nonsense")
        tokens.write_text("")
        comes(401, ("x", secret))
        assert status(basic("bob")) == 404
        write_users(users, ("bob",))
        comes(401, basic("alice"))
        assert http.get("/v2/a/tags/list", headers=bearer).status_code == 401
        refresh = {"grant_type": "refresh_token", "refresh_token": given["refresh_token"]}
        assert http.post("/auth/token", data=refresh).status_code == 401
        assert "what was read before stays in force" in service.log()
        assert secret not in service.log()


def test_a_host_that_would_break_the_header(http: httpx.Client) -> None:
    answer = http.get("/v2/", headers={"Host": 'a",realm="https://evil.example'})
    assert answer.status_code in (400, 401)
    assert "evil" not in answer.headers.get("WWW-Authenticate", "")


def test_another_server_of_tokens(tmp_path: Path) -> None:
    """Clients are sent there, and its tokens allow what they say, as long as they are signed with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(key.public_key().public_bytes(*public))
    settings = {
        "PAGEPOOL_TOKEN_REALM": "https://tokens.example/auth",
        "PAGEPOOL_TOKEN_KEYS": str(tmp_path / "key.pem"),
        "PAGEPOOL_TOKEN_ISSUER": "tokens.example",
        "PAGEPOOL_TOKEN_SERVICE": "registry.example",
    }
    access = [{"type": "repository", "name": "a/b", "actions": ["pull", "push"]}]
    end = int(time.time()) + 60
    claims = {"iss": "tokens.example", "aud": "registry.example", "sub": "zoe", "exp": end, "access": access}

    def bearer(private: ec.EllipticCurvePrivateKey, algorithm: str = "ES256") -> dict[str, str]:
        return {"Authorization": f"Bearer {jwt.encode(claims, private, algorithm=algorithm)}"}

    with running_service(tmp_path / "data", **settings) as service, httpx.Client(base_url=service.url) as http:
        challenge = http.get("/v2/").headers["WWW-Authenticate"]
        assert challenge == 'Bearer realm="https://tokens.example/auth",service="registry.example"'
        assert http.get("/auth/token").status_code == 405
        assert http.post("/v2/a/b/blobs/uploads/", headers=bearer(key)).status_code == 202
        assert http.post("/v2/a/c/blobs/uploads/", headers=bearer(key)).status_code == 401
        assert http.get("/v2/_catalog", headers=bearer(key)).status_code == 401
        assert http.get("/v2/", headers=bearer(ec.generate_private_key(ec.SECP256R1()))).status_code == 401
        assert http.get("/v2/", headers=bearer(ec.generate_private_key(ec.SECP384R1()), "ES384")).status_code == 401


def test_who_sees_figures_sees_no_names_of_files(tmp_path: Path) -> None:
    """The right `catalog` is about repositories; what is in an image is for who may pull it."""
    rights = tmp_path / "rights.toml"
    rights.write_text(
        'admins = ["root"]\n[[rules]]\nwho = ["carol"]\nactions = ["catalog"]\n'
        '[[rules]]\nwho = ["alice"]\nrepositories = ["team/*"]\nactions = ["pull", "push"]\n'
    )
    options = ("--htpasswd", str(write_users(tmp_path / "users")), "--rights", str(rights))
    url = "/v1/team/app/images/1/sharing"
    with (
        running_service(tmp_path / "data", *options) as service,
        httpx.Client(base_url=service.url, timeout=30, auth=basic("alice")) as http,
    ):
        push_files(http, "team/app", "1", {"of-alice": b"x"})
        settled(http, "/v1/team/app/images/1")
        watching = http.get(url, auth=basic("carol"))
        assert watching.status_code == 200
        assert (watching.json()["files"], watching.json()["largest"]) == (1, [])
        assert [file["path"] for file in http.get(url, auth=basic("root")).json()["largest"]] == ["/of-alice"]
        assert http.get(url).status_code == 403
