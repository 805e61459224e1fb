"""Simple addresses: taken apart as the parser of URLs does, or left to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.errors import InvalidError
from pagepool.transport.addresses import plain_host
from pagepool.transport.http import parse_base


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost", "registry.example.org", "a-b.c:8080"])
@pytest.mark.parametrize("scheme", ["http://", "https://"])
def test_what_is_simple(scheme: str, host: str) -> None:
    assert plain_host(scheme + host) == plain_host(host) == (host.partition(":")[0], host)


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "http://",
        "h:443",
        "h:80",
        "[::1]:5000",
        "A.example",
        "u@h",
        "h/p",
        "h?q",
        "-a",
        "a..b",
        "1.2.3.999",
        "xn--a",
    ],
)
def test_what_is_not(odd: str) -> None:
    assert plain_host(odd) is None


@given(st.from_regex(r"https?://[a-z0-9.:@-]{1,30}", fullmatch=True))
def test_it_is_what_the_parser_says(url: str) -> None:
    found = plain_host(url)
    if found is not None:
        try:
            base = parse_base(url)
        except InvalidError:
            pytest.fail(f"{url} is no address, and was taken apart")
        assert found == (base.host, base.netloc.decode("ascii"))


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_no_port(port: int) -> None:
    """The resolver would take it modulo 65536, and another server would be asked."""
    with pytest.raises(InvalidError, match="a port is 1 to 65535"):
        parse_base(f"http://127.0.0.1:{port}")
