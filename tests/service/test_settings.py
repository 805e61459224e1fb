"""Settings: defaults, environment, options, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pagepool_service.settings import SettingInvalidError, Settings, parse_flag, parse_listen, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10k", 10_000),
        ("10KB", 10_000),
        ("1.5 MB", 1_500_000),
        ("1 KiB", 1024),
        ("2gib", 2 << 30),
        ("3Ti", 3 << 40),
        ("0.5t", 500_000_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """SI and IEC units, in any case."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1 2", "1e9", "10 parsecs", "KB", "1..5k", "٣", pytest.param("9" * 400 + ".5", id="long")]
)
def test_what_is_no_size(text: str) -> None:
    """Is refused by name."""
    with pytest.raises(SettingInvalidError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5000", ("127.0.0.1", 5000)),
        (":5000", ("127.0.0.1", 5000)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """Host and port, or a port alone."""
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "1:2:3", "host:65536", "[::1]", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    """Is refused."""
    with pytest.raises(SettingInvalidError, match="port"):
        parse_listen(text)


def test_environment_is_overridden_by_options() -> None:
    """And defaults by both."""
    environment = {
        "PAGEPOOL_DATA": "/x",
        "PAGEPOOL_LISTEN": "0.0.0.0:80",
        "PAGEPOOL_WORKERS": "3",
        "PAGEPOOL_QUOTA": "",
    }
    settings = Settings.load(environment, port=81, workers=None, data=None)
    assert (settings.data, settings.host, settings.port, settings.workers) == (Path("/x"), "0.0.0.0", 81, 3)
    assert settings.quota_bytes == 0


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PAGEPOOL_WORKERS", "many"),
        ("PAGEPOOL_WORKERS", "0"),
        ("PAGEPOOL_LISTEN", "here"),
        ("PAGEPOOL_QUOTA", "-1"),
        ("PAGEPOOL_UPLOAD_IDLE", "-1"),
        ("PAGEPOOL_UPLOAD_IDLE", "nan"),
        ("PAGEPOOL_LOG_LEVEL", "loud"),
        ("PAGEPOOL_LOG_FORMAT", "xml"),
        ("PAGEPOOL_READ_ONLY", "maybe"),
        ("PAGEPOOL_MAX_MANIFEST_SIZE", "1"),
        ("PAGEPOOL_MAX_LAYER_RATIO", "1"),
        ("PAGEPOOL_GRACEFUL_TIMEOUT", "soon"),
        ("PAGEPOOL_ANONYMOUS_PULL", "yes"),
        ("PAGEPOOL_TLS_KEY", "/key"),
        ("PAGEPOOL_CHALLENGE", "none"),
    ],
)
def test_bad_variables(variable: str, text: str) -> None:
    """Are named, in the words of whoever sets them."""
    with pytest.raises(SettingInvalidError) as caught:
        Settings.load({variable: text})
    assert f"'{variable}={text}'" in str(caught.value)
    assert not re.search(r"int\(\)|float|True|None|4611686018427387904", str(caught.value))


def test_bad_options_are_named_by_their_variable() -> None:
    """Whatever the field is called."""
    with pytest.raises(SettingInvalidError, match=r"'PAGEPOOL_GRACEFUL_TIMEOUT=-1': must be at least 0$"):
        Settings.load({}, graceful_s=-1)
    with pytest.raises(SettingInvalidError, match="'PAGEPOOL_TOKEN_KEYS, PAGEPOOL_TOKEN_ISSUER': is missing"):
        Settings.load({"PAGEPOOL_TOKEN_REALM": "https://tokens.example"})


def test_times_have_units() -> None:
    """All of them, as those of collection; or are seconds."""
    variables = ("UPLOAD_IDLE", "BODY_TIMEOUT", "HEAD_TIMEOUT", "GRACEFUL_TIMEOUT")
    settings = Settings.load({f"PAGEPOOL_{name}": "2h" for name in variables})
    found = (settings.upload_idle_s, settings.body_timeout_s, settings.head_timeout_s, settings.graceful_s)
    assert found == (7200.0,) * 4
    assert Settings.load({"PAGEPOOL_GRACEFUL_TIMEOUT": "1.5"}).graceful_s == 1.5


def test_every_setting_can_be_given_by_the_environment() -> None:
    """None was forgotten in the table of variables."""
    from pagepool_service.settings import _VARIABLES

    names = {name for name, _ in _VARIABLES.values()} - {"listen"} | {"host", "port"}
    assert names == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(("text", "value"), [("1", True), ("YES", True), ("on", True), ("0", False), ("false", False)])
def test_flags(text: str, value: bool) -> None:
    """Several words for each."""
    assert parse_flag(text) is value


def test_data_directory_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's is the system's; another's is where his data belongs."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert Settings.load({}).data == Path("/var/lib/pagepool")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert Settings.load({"XDG_DATA_HOME": "/home/u/data"}).data == Path("/home/u/data/pagepool")
    assert Settings.load({}).data == Path.home() / ".local/share/pagepool"
