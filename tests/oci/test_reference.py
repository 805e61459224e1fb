"""The grammar of names, tags and references, against tables and against the specification's own expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.digest import Digest
from pagepool.errors import NameInvalidError, PagepoolError, ReferenceInvalidError, TagInvalidError
from pagepool.oci import Reference, validate_repository, validate_tag

# Verbatim from distribution-spec v1.1.0, "Pulling manifests".
SPEC_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
SPEC_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
DIGEST = Digest.of(b"x")

GOOD_NAMES = [
    *("a", "0", "a0", "abc/def", "a/b/c/d/e", "a.b", "a_b", "a__b", "a-b", "a--b", "a-----b"),
    *("library/debian", "a.b/c_d/e__f/g-h", "xn--7o8h", "a" * 255),
]
BAD_NAMES = [
    *("", "A", "a/", "/a", "a//b", ".a", "a.", "_a", "a_", "-a", "a-", "a..b", "a___b", "a._b", "a.-b", "a-_b"),
    *("a b", "a\n", "a/b\n", "ä", "a:b", "a@b", "a\0", "a/../b", "٣", "a" * 256, "a%2fb", "\uff41"),
]
GOOD_TAGS = ["a", "A", "0", "_", "_a", "1.2.3", "v1-rc_2", "a" * 128, "latest", "a.", "a-", "a..b", "__"]
BAD_TAGS = ["", ".", "-", ".a", "-a", "a" * 129, "a b", "a:b", "a/b", "a\n", "ä", "a@b", "a+b", "a\0"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_repository_names(name: str) -> None:
    assert validate_repository(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_repository_names(name: str) -> None:
    with pytest.raises(NameInvalidError):
        validate_repository(name)


@pytest.mark.parametrize("tag", GOOD_TAGS)
def test_good_tags(tag: str) -> None:
    assert validate_tag(tag) == tag


@pytest.mark.parametrize("tag", BAD_TAGS)
def test_bad_tags(tag: str) -> None:
    with pytest.raises(TagInvalidError):
        validate_tag(tag)


@given(st.text(alphabet="aZ0._-/:@ \n", max_size=12))
def test_names_and_tags_agree_with_the_specification(text: str) -> None:
    assert _accepts(validate_repository, text) == bool(re.fullmatch(SPEC_NAME, text))
    assert _accepts(validate_tag, text) == bool(re.fullmatch(SPEC_TAG, text))


REFERENCES = [
    ("app", None, "app", None, None),
    ("app:1", None, "app", "1", None),
    ("team/app:1", None, "team/app", "1", None),
    (f"app@{DIGEST}", None, "app", None, DIGEST),
    (f"app:1@{DIGEST}", None, "app", "1", DIGEST),
    ("localhost/app", "localhost", "app", None, None),
    ("localhost:5000/app:1", "localhost:5000", "app", "1", None),
    ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "a/b", "1", None),
    ("[::1]:5000/a:1", "[::1]:5000", "a", "1", None),
    ("[fe80::1]/a", "[fe80::1]", "a", None, None),
    ("example.org/a", "example.org", "a", None, None),
    ("Host/a", "Host", "a", None, None),
    ("host:1/a/b/c", "host:1", "a/b/c", None, None),
    ("host/a", None, "host/a", None, None),
    ("a.b", None, "a.b", None, None),
    ("localhost:5000", None, "localhost", "5000", None),
]


@pytest.mark.parametrize(("text", "host", "repository", "tag", "digest"), REFERENCES)
def test_references(text: str, host: str | None, repository: str, tag: str | None, digest: Digest | None) -> None:
    reference = Reference.parse(text)
    assert reference == Reference(repository, tag, digest, host)
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "repository name"),
        ("A", "repository name"),
        ("a:", "tag"),
        ("a:b:c", "tag"),
        ("a@", "digest"),
        ("a@sha256:00", "digest"),
        ("a@md5:" + "0" * 32, "algorithm"),
        ("host:0/a", "port"),
        ("host:99999/a", "port"),
        ("ho_st:1/a", "host"),
        ("-host.x/a", "host"),
        ("https://a/b", "has no scheme: leave https:// out"),
        ("docker://a/b:1", "has no scheme: leave docker:// out"),
        ("a@sha256:00", "digest: sha256:00 is no sha256:… or sha512:… with all its hex digits"),
        ("a.b/", "'a.b' is a host, and no name follows it"),
        ("a:1/", "'a:1' is a host, and no name follows it"),
        (f"{'h' * 60}.{'h' * 60}/{'a' * 200}", "255"),
        ("./layout", "a path stands where"),
        ("/srv/app.tar", "a path stands where"),
    ],
)
def test_bad_references_name_the_bad_part(text: str, word: str) -> None:
    with pytest.raises(ReferenceInvalidError, match=word):
        Reference.parse(text)


def test_target_prefers_the_digest_and_defaults_to_latest() -> None:
    assert Reference.parse("a").target == "latest"
    assert Reference.parse("a:1").target == "1"
    assert Reference.parse(f"a:1@{DIGEST}").target == str(DIGEST)
    assert str(Reference.parse("h:1/a:1").with_digest(DIGEST)) == f"h:1/a@{DIGEST}"


@given(st.text(max_size=80))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ReferenceInvalidError:
        return
    assert Reference.parse(str(reference)) == reference


def test_long_hostile_names_are_refused_quickly() -> None:
    for text in ("a-" * 50_000, "a" * 100_000 + "!", "/".join(["a"] * 50_000), ":" * 100_000, "a." * 50_000 + "/"):
        with pytest.raises(PagepoolError):
            Reference.parse(text)


def _accepts(check: object, text: str) -> bool:
    assert callable(check)
    try:
        check(text)
    except PagepoolError:
        return False
    return True
