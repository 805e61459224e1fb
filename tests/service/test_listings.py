"""Lists that come in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_MANIFEST
from tests.service.pushes import image_parts, push_blob, push_image, put_manifest

if TYPE_CHECKING:
    import httpx

TAGS = ["0", "10", "9", "Z", "_", "a", "b.1", "b_1", "latest", "x" * 128]


def follow(http: httpx.Client, url: str, name: str) -> list[list[str]]:
    """The pages of a list, by its links."""
    pages = []
    following: str | None = url
    while following:
        answer = http.get(following)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json()[name])
        link = answer.links.get("next")
        following = link["url"] if link else None
    return pages


@pytest.fixture(scope="module", autouse=True)
def _pushed(service: object) -> None:
    """Images in three repositories, whose names sort differently with and without what follows them."""
    import httpx

    with httpx.Client(base_url=service.url) as http:  # type: ignore[attr-defined]
        for tag in reversed(TAGS):
            push_image(http, "list/a", tag)
        for name in ("list/a-b", "list/a/b", "list/b"):
            push_image(http, name, "latest")
        push_blob(http, "list/onlyblobs", b"no manifest")


@pytest.mark.parametrize("n", [1, 3, 10, 11, 10**17])
def test_tags(http: httpx.Client, n: int) -> None:
    """In byte order; every page but the last is full; no link to an empty page."""
    pages = follow(http, f"/v2/list/a/tags/list?n={n}", "tags")
    assert [tag for page in pages for tag in page] == TAGS
    assert all(len(page) == n for page in pages[:-1])
    assert pages[-1]


@pytest.mark.parametrize(
    ("last", "index"),
    [
        ("", 0),
        ("0", 1),
        ("1", 1),
        ("Zz", 4),
        ("b.1", 7),
        ("x", 9),
        ("x" * 128, 10),
        ("x" * 2000, 10),
        ("%00", 0),
        ("ÿ", 10),
    ],
)
def test_tags_behind_another(http: httpx.Client, last: str, index: int) -> None:
    """That need not be there, nor be a tag."""
    assert http.get(f"/v2/list/a/tags/list?last={last}").json()["tags"] == TAGS[index:]


def test_no_tags_asked_for(http: httpx.Client) -> None:
    """n=0 is an empty list, without a link."""
    answer = http.get("/v2/list/a/tags/list?n=0")
    assert (answer.json()["tags"], answer.headers.get("link")) == ([], None)


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "9" * 19, "%00", "٣"])
def test_bad_page_size(http: httpx.Client, n: str) -> None:
    """400."""
    for url in ("/v2/list/a/tags/list", "/v2/_catalog", "/v1/images"):
        assert http.get(f"{url}?n={n}").status_code == 400


def test_empty_page_size(http: httpx.Client) -> None:
    """Is none, as to docker-registry."""
    for url in ("/v2/list/a/tags/list", "/v2/_catalog", "/v1/images"):
        answer = http.get(f"{url}?n=")
        assert (answer.status_code, answer.json()) == (200, http.get(url).json())


def test_repository_without_tags(http: httpx.Client) -> None:
    """Is there: it has a blob. But there is nothing in it to list."""
    assert http.get("/v2/list/onlyblobs/tags/list").json()["tags"] == []
    assert "list/onlyblobs" not in http.get("/v2/_catalog").json()["repositories"]


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_repositories(http: httpx.Client, n: int) -> None:
    """In byte order of their names."""
    pages = follow(http, f"/v2/_catalog?n={n}", "repositories")
    assert [name for page in pages for name in page] == ["list/a", "list/a-b", "list/a/b", "list/b"]
    assert all(len(page) == n for page in pages[:-1])


@pytest.mark.parametrize(
    ("last", "first"), [("list", "list/a"), ("list/a", "list/a-b"), ("list/a-b", "list/a/b"), ("list/a.", "list/a/b")]
)
def test_repositories_behind_another(http: httpx.Client, last: str, first: str) -> None:
    """That need not be there."""
    assert http.get("/v2/_catalog", params={"last": last, "n": 1}).json()["repositories"] == [first]
    for beyond in ("list/b", "~" * 3000):
        assert http.get("/v2/_catalog", params={"last": beyond}).json()["repositories"] == []


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_referrers(http: httpx.Client, n: int) -> None:
    """Linked like the others, the filter kept."""
    subject = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"subject")), "size": 7}
    pushed = []
    for number in range(6):
        kind = f"application/x.{'even' if number % 2 == 0 else 'odd'}"
        manifest = image_parts(subject=subject, artifactType=kind, annotations={"n": str(number)})[0]
        pushed.append(put_manifest(http, "list/a", f"r{number}", manifest))
        http.delete(f"/v2/list/a/manifests/r{number}")
    url = f"/v2/list/a/referrers/{subject['digest']}"
    found = [entry["digest"] for page in _pages(http, f"{url}?n={n}") for entry in page]
    assert sorted(found) == sorted(map(str, pushed))
    filtered = [
        entry["digest"] for page in _pages(http, f"{url}?n={n}&artifactType=application/x.odd") for entry in page
    ]
    assert sorted(filtered) == sorted(map(str, pushed[1::2]))


def _pages(http: httpx.Client, url: str) -> list[list[dict[str, str]]]:
    return follow(http, url, "manifests")  # type: ignore[return-value]


def test_referrers_too_large_for_one_answer(http: httpx.Client) -> None:
    """Come in several, each an index that any client takes."""
    subject = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"large subject")), "size": 7}
    for number in range(5):
        manifest = image_parts(subject=subject, annotations={"n": str(number), "x": "y" * 1_000_000})[0]
        put_manifest(http, "list/a", f"large{number}", manifest)
        http.delete(f"/v2/list/a/manifests/large{number}")
    pages = _pages(http, f"/v2/list/a/referrers/{subject['digest']}")
    assert [len(page) for page in pages] == [3, 2]


def test_images(http: httpx.Client) -> None:
    """All tags of all repositories, paged by link and by `next`."""
    expected = [("list/a", tag) for tag in TAGS] + [(f"list/{name}", "latest") for name in ("a-b", "a/b", "b")]
    pages = follow(http, "/v1/images?n=4", "images")
    found = [(image["name"], image["tag"]) for page in pages for image in page]  # type: ignore[index]
    assert found == expected
    assert [len(page) for page in pages] == [4, 4, 4, 1]
    answer = http.get("/v1/images", params={"n": 4}).json()
    assert answer["next"] == "list/a:Z"
    assert http.get("/v1/images", params={"last": "list/a:Z", "n": 1}).json()["images"][0]["tag"] == "_"
    assert http.get("/v1/images", params={"last": "no colon"}).status_code == 400
