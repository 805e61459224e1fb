"""Who says that he is a proxy, and for whom he asks, is believed only if he is one that the service was told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool_service.settings import SettingInvalidError, parse_proxies
from tests.auth.conftest import write_users
from tests.service.test_logs import records_of
from tests.support.server import running_service

if TYPE_CHECKING:
    from pathlib import Path

_SAYS = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("proxies", "remote", "scheme"),
    [
        (None, "127.0.0.1", "http"),
        ("192.0.2.1,10.0.0.0/8", "127.0.0.1", "http"),
        ("192.0.2.1, 127.0.0.0/8", "203.0.113.9", "https"),
    ],
    ids=["none", "others", "this one"],
)
def test_whose_word_counts(tmp_path: Path, proxies: str | None, remote: str, scheme: str) -> None:
    """A proxy's for the address in the log, and the scheme of the place where tokens are to be had; not another
    user's on this machine, and not because a variable that is no setting says so."""
    options = ["--htpasswd", str(write_users(tmp_path / "users")), "--access-log", "--log-format", "json"]
    options += [] if proxies is None else ["--trusted-proxies", proxies]
    with running_service(tmp_path / "data", *options, FORWARDED_ALLOW_IPS="*") as service:
        told = httpx.get(f"{service.url}/v2/", headers=_SAYS).headers["WWW-Authenticate"]
        assert f'realm="{scheme}://{service.host}/auth/token"' in told
    (record,) = (record for record in records_of(service) if record["logger"] == "pagepool.access")
    assert record["remote"] == remote


def test_addresses_and_networks() -> None:
    assert parse_proxies("10.0.0.1, 2001:db8::/32,::1") == ("10.0.0.1", "2001:db8::/32", "::1")
    for text in ("*", "", "proxy.example", "10.0.0.1/8", "10.0.0.1:80", "10.0.0.1,,::1"):
        with pytest.raises(SettingInvalidError, match="no addresses"):
            parse_proxies(text)
