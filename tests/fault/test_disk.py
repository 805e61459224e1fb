"""Disks that are full, over quota, read-only or broken: clear refusals, nothing half there, and on it goes afterwards.

The file systems are small ones in a file, on a loop device; that needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.errors import StoreFailedError, StoreFullError
from pagepool_service.auth.keys import KeyRing
from pagepool_service.backup.repository import open_repository
from pagepool_service.store.disk import refused_database
from pagepool_service.store.fsck import check_store
from tests.fault.pushing import MANIFEST, digest_of, read_back, read_image
from tests.faults import cut_power, fill, filled, no_inodes, remount, small_file_system, stop_writing
from tests.service.pushes import begin_upload, finishing, push_blob, push_image
from tests.store.helpers import noise
from tests.support.cli import pagepool
from tests.support.server import Service, running_service
from tests.support.tools import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 96 << 20
WAIT_S = 60.0


@pytest.fixture(params=["ext4", "xfs"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    # mkfs.xfs makes nothing below 300 MB.
    size = SIZE if request.param == "ext4" else 320 << 20
    with small_file_system(tmp_path, size, request.param) as mounted:
        yield mounted


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, SIZE) as mounted:
        yield mounted


@contextlib.contextmanager
def serving(data: Path, *arguments: str) -> Iterator[tuple[Service, httpx.Client]]:
    with running_service(data, *arguments) as service, httpx.Client(base_url=service.url, timeout=60) as http:
        try:
            yield service, http
        except BaseException:
            print(service.log())
            raise


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look again and again, until it is so."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def state_of(http: httpx.Client, repository: str, tag: str = "1") -> str:
    return str(http.get(f"/v1/{repository}/images/{tag}").json()["state"])


def refused_push(http: httpx.Client, repository: str, blob: bytes) -> httpx.Response:
    """Try to push a blob; the first answer that is an error."""
    answer = http.post(f"/v2/{repository}/blobs/uploads/")
    if answer.status_code == 202:
        answer = http.put(finishing(answer.headers["location"], digest_of(blob)), content=blob)
    return answer


def assert_full(answer: httpx.Response) -> None:
    assert answer.status_code == 507, answer.text
    error = answer.json()["errors"][0]
    assert error["code"] == "STORE_FULL"
    assert "full" in error["message"]


def kill_processes(service: Service) -> None:
    """All but the supervisor, which starts others."""
    old = service.children().keys()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not old & service.children().keys(), "processes do not end")


def leftovers(data: Path) -> list[str]:
    return sorted(path.name for name in ("uploads", "spool") for path in (data / name).iterdir())


# -- a full disk -----------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_pushes_and_serves_pulls(small: Path) -> None:
    data = small / "data"
    with serving(data, "--workers", "2") as (service, http):
        push_image(http, "before", "1", {"file": noise(2_000_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the first image is not read")
        wait_for(lambda: leftovers(data) == [], "the first image is not settled")
        children = set(service.children())
        with filled(small):
            for size in (10, 100_000, 200_000, 5_000_000):
                assert_full(refused_push(http, "during", noise(size, "during")))
                assert read_image(http, "before", "1")
            manifest = http.get("/v2/before/manifests/1").content
            answer = http.put("/v2/before/manifests/2", content=manifest, headers={"Content-Type": MANIFEST})
            # A tag may find room in a free page of the database; if it was refused it is not there.
            if answer.status_code != 201:
                assert_full(answer)
                assert http.get("/v2/before/manifests/2").status_code == 404
            for size in (10, 100_000, 200_000, 5_000_000):
                digest = digest_of(noise(size, "during"))
                assert http.head(f"/v2/during/blobs/{digest}").status_code == 404
            assert http.get("/v2/during/tags/list").status_code == 404
            assert [name for name in leftovers(data) if (data / "spool" / name).exists()] == []
        for size in (10, 100_000, 200_000, 5_000_000):
            push_blob(http, "after", noise(size, "during"))
        push_image(http, "after", "1", {"file": noise(1_000_000, "after")})
        wait_for(lambda: state_of(http, "after") == "ready", "the image after is not read")
        assert read_image(http, "after", "1")
        assert set(service.children()) == children, "a process has died of it"
    assert check_store(data).problems == []


def test_a_disk_without_inodes_is_full_and_said_to_lack_them(tmp_path: Path) -> None:
    """`df` shows room; pulls go on, nothing is half there, and neither is a pull to such a disk."""
    with small_file_system(tmp_path, SIZE, inodes=128) as mounted:
        data = tmp_path / "data"
        data.symlink_to(mounted / "data")
        (mounted / "data").mkdir()
        with serving(data) as (service, http):
            push_image(http, "before", "1", {"file": noise(2_000_000)})
            wait_for(lambda: state_of(http, "before") == "ready", "the first image is not read")
            wait_for(lambda: leftovers(data) == [], "the first image is not settled")
            children = set(service.children())
            with no_inodes(mounted) as ballast:
                answer = refused_push(http, "during", noise(200_000, "during"))
                assert_full(answer)
                assert "no inodes are left" in answer.json()["errors"][0]["message"]
                assert read_image(http, "before", "1")
                assert leftovers(data) == []
                with pytest.raises(ToolError, match="no inodes are left"):
                    pagepool("pull", f"{service.host}/before:1", mounted / "pulled")
                assert {path.name for path in mounted.iterdir()} == {"data", "lost+found", ballast.name}
            push_blob(http, "after", noise(200_000, "during"))
            assert set(service.children()) == children, "a process has died of it"
        assert check_store(data).problems == []


@pytest.mark.parametrize("missing", ["data", "lock", "store"])
def test_a_service_that_finds_no_inode_says_that_its_disk_is_full(tmp_path: Path, missing: str) -> None:
    """Whatever it is that it cannot make when it begins."""
    with small_file_system(tmp_path, SIZE, inodes=128) as mounted:
        data = mounted / "data"
        if missing != "data":
            data.mkdir()
        if missing == "store":
            (data / "lock").touch()
        with no_inodes(mounted), pytest.raises(ToolError, match=r"exit status 8\n.*the store is full: .*no inodes"):
            pagepool("serve", "--data", data, "--listen", "127.0.0.1:0", "--cache-dir", tmp_path / "cache")


def test_keys_and_backups_on_a_disk_without_inodes(tmp_path: Path) -> None:
    with small_file_system(tmp_path, SIZE, inodes=128) as mounted:
        with open_repository(mounted / "backups", write=True):
            pass
        (mounted / "backups" / "lock").unlink()
        (mounted / "auth").mkdir()
        with no_inodes(mounted):
            for name in ("auth", "keys"):
                with pytest.raises(StoreFullError, match="no inodes are left"):
                    KeyRing(mounted / name).prepare()
            with pytest.raises(StoreFullError), open_repository(mounted / "backups", write=True):
                pass


def test_a_disk_that_fills_up_during_an_upload(ext4: Path) -> None:
    """What came before the refused request stays, and the session goes on when there is room."""
    data = ext4 / "data"
    first, second = noise(3_000_000, 1), noise(6_000_000, 2)
    with serving(data) as (_, http):
        location = begin_upload(http, "some")
        answer = http.patch(location, content=first)
        assert answer.status_code == 202
        location = answer.headers["location"]
        with filled(ext4, leave=2 << 20):
            assert_full(http.patch(location, content=second))
            answer = http.get(location)
            assert (answer.status_code, answer.headers["range"]) == (204, f"0-{len(first) - 1}")
        answer = http.patch(location, content=second)
        assert answer.status_code == 202, answer.text
        digest = digest_of(first + second)
        assert http.put(finishing(answer.headers["location"], digest)).status_code == 201
        assert read_back(http, "some", digest) == len(first) + len(second)


@pytest.mark.parametrize("leave", [0, 4096, 16384, 65536, 262_144, 1 << 20])
def test_whatever_room_is_left_a_push_is_whole_or_not_there(ext4: Path, leave: int) -> None:
    """The disk fills up at another step each time: the file, the database's pages, or nowhere."""
    data = ext4 / "data"
    blobs = [noise(size, leave) for size in (20, 3000, 100_000, 150_000, 900_000)]
    with serving(data) as (_, http):
        push_blob(http, "some", b"the first")
        acknowledged = []
        with filled(ext4, leave=leave):
            for blob in blobs:
                answer = refused_push(http, "some", blob)
                if answer.status_code == 201:
                    acknowledged.append(blob)
                else:
                    assert_full(answer)
                    assert http.head(f"/v2/some/blobs/{digest_of(blob)}").status_code == 404
                for known in acknowledged:
                    assert read_back(http, "some", digest_of(known)) == len(known)
        for blob in blobs:
            push_blob(http, "some", blob)
            assert read_back(http, "some", digest_of(blob)) == len(blob)
    assert check_store(data).problems == []


def test_a_disk_that_fills_up_while_layers_are_read(ext4: Path) -> None:
    """The blob is stored, its files do not fit: the job waits without a crash, and is done when there is room."""
    data = ext4 / "data"
    with serving(data) as (service, http):
        push_image(http, "before", "1", {"file": noise(100_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the first image is not read")
        children = set(service.children())
        ballast = ext4 / "ballast"
        fill(ballast, leave=14 << 20)
        try:
            # 10 MB in the spool; its frames would take as much again.
            push_image(http, "large", "1", {"file": noise(10_000_000, "large")})
            wait_for(lambda: "job put off" in service.log(), "the job was not put off")
            assert state_of(http, "large") == "pending"
            assert read_image(http, "large", "1")
            assert read_image(http, "before", "1")
            assert set(service.children()) == children
        finally:
            ballast.unlink()
        push_blob(http, "some", b"wakes the maintenance")
        wait_for(lambda: state_of(http, "large") == "ready", "the layer is not read though there is room")
        wait_for(lambda: leftovers(data) == [], "the blob is not settled")
        assert read_image(http, "large", "1")
        assert set(service.children()) == children, "a process has died of it"
    report = check_store(data)
    assert report.problems == []


# -- the quota -------------------------------------------------------------------------------------------------


def test_the_quota_refuses_pushes_and_serves_pulls(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, "--quota", "6MB") as (_, http):
        push_image(http, "before", "1", {"file": noise(1_000_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the first image is not read")
        answer = refused_push(http, "during", noise(8_000_000, "during"))
        assert_full(answer)
        assert "quota" in answer.json()["errors"][0]["message"]
        assert http.head(f"/v2/during/blobs/{digest_of(noise(8_000_000, 'during'))}").status_code == 404
        assert read_image(http, "before", "1")
        push_blob(http, "small", b"there is room for this")
    with serving(data, "--quota", "60MB") as (_, http):
        push_blob(http, "during", noise(8_000_000, "during"))
        assert read_image(http, "before", "1")
    assert check_store(data).problems == []


def test_what_waits_at_the_quota_is_done_beyond_it(tmp_path: Path) -> None:
    """The blob was taken in, its files do not fit beside it: readable, tried again, and read when there is room."""
    data = tmp_path / "data"
    with serving(data, "--quota", "5MB") as (service, http):
        push_image(http, "large", "1", {"file": noise(3_000_000)})
        wait_for(lambda: service.log().count("job put off") >= 2, "the job was not put off")
        assert state_of(http, "large") == "pending"
        assert len(leftovers(data)) == 1
        assert read_image(http, "large", "1")
    assert check_store(data).problems == []
    with serving(data) as (_, http):
        wait_for(lambda: state_of(http, "large") == "ready", "the layer is not read though there is room")
        wait_for(lambda: leftovers(data) == [], "the blob is not settled though there is room")
        assert read_image(http, "large", "1")


# -- read-only -------------------------------------------------------------------------------------------------


def test_a_read_only_file_system_is_served_for_reading(ext4: Path, tmp_path: Path) -> None:
    # The log of the service goes beside its data directory, which is not on that file system.
    data = tmp_path / "data"
    data.symlink_to(ext4 / "data")
    (ext4 / "data").mkdir()
    with serving(data) as (_, http):
        push_image(http, "before", "1", {"file": noise(2_000_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the image is not read")
        wait_for(lambda: leftovers(data) == [], "the image is not settled")
    os.sync()
    remount(ext4, "ro")
    try:
        for arguments in ((), ("--read-only", "--workers", "2")):
            with serving(data, *arguments) as (service, http):
                assert "read-only" in service.log()
                manifest = read_image(http, "before", "1")
                for answer in (
                    http.post("/v2/new/blobs/uploads/"),
                    http.delete(f"/v2/before/blobs/{digest_of(b'')}"),
                    http.put("/v2/before/manifests/2", content=manifest, headers={"Content-Type": MANIFEST}),
                ):
                    assert answer.status_code in (405, 503), answer.text
                    assert "read-only" in answer.json()["errors"][0]["message"]
                assert read_image(http, "before", "1") == manifest
        report = check_store(data)
        assert report.problems == []
    finally:
        remount(ext4, "rw")
    with serving(data) as (_, http):
        push_blob(http, "after", b"written")


def test_what_a_file_system_has_that_stopped_after_an_error_is_served(ext4: Path, tmp_path: Path) -> None:
    """By the service that ran, by its processes that begin anew, and by another one."""
    data = tmp_path / "data"
    data.symlink_to(ext4 / "data")
    (ext4 / "data").mkdir()
    with serving(data, "--workers", "1") as (service, http):
        push_image(http, "before", "1", {"file": noise(2_000_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the image is not read")
        wait_for(lambda: leftovers(data) == [], "the image is not settled")
        stop_writing(ext4)
        for killed in (False, True):
            if killed:
                kill_processes(service)
            with httpx.Client(base_url=service.url, timeout=60) as again:
                manifest = read_image(again, "before", "1")
                answer = refused_push(again, "during", noise(200_000, "stopped"))
                assert again.get("/readyz").json() == {"status": "ok", "read_only": True}
                assert again.get("/v1/overview").json()["read_only"] is True
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "READ_ONLY")
        assert "takes no writes any more" in service.log()
    with serving(data) as (service, http):
        assert "read-only" in service.log()
        assert read_image(http, "before", "1") == manifest


def test_a_disk_that_does_nothing_more_is_said_to_fail(small: Path, tmp_path: Path) -> None:
    """By what still runs, which serves what is in memory; nothing else can be served by a process that begins anew, so
    that the service ends with the reason, where clients would wait for an answer."""
    data = tmp_path / "data"
    data.symlink_to(small / "data")
    (small / "data").mkdir()
    service = Service(data, ("--workers", "1"))
    service.start()
    try:
        with httpx.Client(base_url=service.url, timeout=60) as http:
            push_image(http, "before", "1", {"file": noise(2_000_000)})
            wait_for(lambda: state_of(http, "before") == "ready", "the image is not read")
            wait_for(lambda: leftovers(data) == [], "the image is not settled")
            cut_power(small)
            ready = http.get("/readyz")
            assert (ready.status_code, ready.json()["read_only"]) == (503, False)
            assert "the disk under the store fails" in ready.json()["reasons"][0]
            answer = http.post("/v2/during/blobs/uploads/")
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (507, "STORE_FAILED")
        kill_processes(service)
        assert service.process is not None
        assert service.process.wait(WAIT_S) == 8
        assert "error: the disk under the store fails" in service.log()
        assert service.faults() == ""
    finally:
        service.stop()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_data_directory_that_is_gone_ends_the_service(tmp_path: Path, how: str) -> None:
    """It would take in what nobody finds again; and its processes that begin anew must make no empty store there."""
    data = tmp_path / "data"
    service = Service(data, ("--workers", "1"))
    service.start()
    try:
        data.rename(tmp_path / "elsewhere")
        if how == "replaced":
            data.mkdir()
            (data / "lock").touch()
        maintenance = max(service.children())
        os.kill(maintenance, signal.SIGKILL)
        assert service.process is not None
        assert service.process.wait(WAIT_S) == 1
        assert f"error: {data} " in service.log()
        assert not (data / "store").exists()
        assert service.faults() == ""
    finally:
        service.stop()


def test_a_write_that_fails_on_a_disk_with_room_is_no_full_disk(tmp_path: Path) -> None:
    """LMDB says the same of both."""
    with small_file_system(tmp_path, SIZE) as mounted:
        assert type(refused_database(mounted, "EIO")) is StoreFailedError
        with filled(mounted):
            assert type(refused_database(mounted, "EIO")) is StoreFullError


def test_a_disk_that_breaks_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """Every call is EIO from one moment on, as of a disk that was pulled: the kernel's own errors."""
    with small_file_system(tmp_path, SIZE) as mounted, serving(mounted / "data") as (service, http):
        push_image(http, "before", "1", {"file": noise(2_000_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the image is not read")
        wait_for(lambda: leftovers(mounted / "data") == [], "the image is not settled")
        layers = json.loads(read_image(http, "before", "1"))["layers"]
        cut_power(mounted)
        for size in (10, 200_000):
            try:
                answer = refused_push(http, "during", noise(size, "broken"))
            except httpx.TransportError:
                continue  # a worker may die of it; nothing was acknowledged
            assert answer.status_code in (405, 500, 503, 507), answer.text
        for layer in layers:
            with contextlib.suppress(httpx.TransportError):
                answer = http.get(f"/v2/before/blobs/{layer['digest']}")
                # From the page cache, or not at all; never wrong.
                assert answer.status_code in (404, 500, 503) or digest_of(answer.content) == layer["digest"]
        service.kill()
    again = tmp_path / "again"
    again.mkdir()
    with small_file_system(again, SIZE, image=tmp_path / "small.img") as mounted:
        with serving(mounted / "data") as (_, http):
            assert read_image(http, "before", "1")
            for size in (10, 200_000):
                assert http.head(f"/v2/during/blobs/{digest_of(noise(size, 'broken'))}").status_code == 404
            push_blob(http, "after", b"written")
        assert check_store(mounted / "data").problems == []
