"""Records of mounts and trees, as they are read by another version, and after another boot."""

from __future__ import annotations

import json
import stat
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from pagepool.node.records import MountRecord, SourceRecord, read_records, uptime_s, write_record
from tests.faults import file_size_limit

if TYPE_CHECKING:
    from pathlib import Path


def released(directory: Path, moment_s: float) -> float:
    """What a tree's record says of when it was released, once it is read again."""
    record = SourceRecord("00", "http://127.0.0.1:9", "repository", "image:1", released=moment_s)
    write_record(directory / "00.json", record)
    (found,) = read_records(directory, SourceRecord)
    return found.released


def test_moments_of_this_boot_stay(tmp_path: Path) -> None:
    now_s = uptime_s()
    assert released(tmp_path, 0.0) == 0.0
    assert released(tmp_path, now_s) == now_s


def test_moments_of_an_older_version_are_of_unix_time(tmp_path: Path) -> None:
    """A tree would be kept for ever, and a mount be said to need no node that reads files through it."""
    assert released(tmp_path, time.time() - 3600) == pytest.approx(uptime_s() - 3600, abs=60)
    mount = MountRecord("id", "/at", "image", "00", "", False, False, time.time() - 0.5, "0:1")
    (tmp_path / "mounts").mkdir()
    write_record(tmp_path / "mounts" / "id.json", mount)
    (found,) = read_records(tmp_path / "mounts", MountRecord)
    assert found.since == pytest.approx(uptime_s(), abs=60)
    assert found.shown()["since"] == pytest.approx(time.time(), abs=60)


def test_moments_of_another_boot_are_long_past(tmp_path: Path) -> None:
    assert released(tmp_path, uptime_s() + 1e6) < uptime_s() - 86400


def test_what_a_later_version_notes_besides_is_passed_over(tmp_path: Path) -> None:
    """A node that is replaced by an earlier version would know nothing of what is mounted, and serve nothing of it."""
    record = SourceRecord("00", "http://127.0.0.1:9", "repository", "image:1")
    (tmp_path / "00.json").write_text(json.dumps({**asdict(record), "later": [1]}))
    assert list(read_records(tmp_path, SourceRecord)) == [record]


def test_credentials_are_for_nobody_else(tmp_path: Path) -> None:
    record = SourceRecord("00", "http://127.0.0.1:9", "repository", "image:1", password="secret")
    write_record(tmp_path / "00.json", record)
    assert stat.S_IMODE((tmp_path / "00.json").stat().st_mode) == 0o600
    assert list(read_records(tmp_path, SourceRecord)) == [record]


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    """The older one stays, and nothing else."""
    record = SourceRecord("00", "http://127.0.0.1:9", "repository", "image:1")
    write_record(tmp_path / "00.json", record)
    with file_size_limit(10), pytest.raises(OSError, match="File too large"):
        write_record(tmp_path / "00.json", SourceRecord("00", "http://127.0.0.1:9", "repository", "image:2"))
    assert [path.name for path in tmp_path.iterdir()] == ["00.json"]
    assert list(read_records(tmp_path, SourceRecord)) == [record]


@pytest.mark.parametrize("found", [b"", b"{", b"null", b"[]", b"{}", b'{"since": "x"}', b"\xff"], ids=range(7))
def test_a_record_that_cannot_be_read_is_left_out(tmp_path: Path, found: bytes) -> None:
    """A worker that takes over serves all other mounts."""
    record = SourceRecord("01", "http://127.0.0.1:9", "repository", "image:1")
    (tmp_path / "00.json").write_bytes(found)
    write_record(tmp_path / "01.json", record)
    (tmp_path / "02.json").symlink_to("gone")
    assert list(read_records(tmp_path, SourceRecord)) == [record]
