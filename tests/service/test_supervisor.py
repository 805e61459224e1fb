"""The service's processes: who starts them, who may die, and what is left."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool_service.children import Child
from pagepool_service.roster import Roster
from pagepool_service.settings import Settings
from pagepool_service.store.locking import lock_data
from pagepool_service.supervisor import Supervisor
from tests.service.pushes import begin_upload, finishing, push_blob, push_image
from tests.support.server import Service, ServiceError, running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STRANGER = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
_CAN_BE_STRANGER = subprocess.run([*_STRANGER, "true"], capture_output=True, check=False).returncode == 0


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


def test_ready_line_says_where(tmp_path: Path) -> None:
    """Address with the real port, data directory, workers; the directory is made."""
    data = tmp_path / "new" / "data"
    data.parent.mkdir()
    service = Service(data, ("--workers", "3"), host="127.0.0.1:0")
    service.start()
    try:
        assert service.log().splitlines()[-1] == f"pagepool serving on {service.url} data {data} workers 3"
        assert not service.url.endswith(":0")
        assert httpx.get(f"{service.url}/readyz").status_code == 200
    finally:
        service.stop()


@pytest.mark.skipif(not _CAN_BE_STRANGER, reason="needs user namespaces, and unshare (util-linux 2.36)")
def test_what_only_root_can_do_is_no_news(tmp_path: Path) -> None:
    """A service of a user says in its log that it cannot hand its pool out as a mount, but not to everybody."""
    service = Service(tmp_path / "data", ("--log-level", "debug"), prefix=_STRANGER)
    service.start()
    try:
        until(lambda: "handed out" in service.log(), "it has tried")
        (line,) = [line for line in service.log().splitlines() if "handed out" in line]
        assert " DEBUG pagepool.poolkeeper" in line
    finally:
        service.stop()


def test_nothing_can_be_said_on_standard_output(tmp_path: Path) -> None:
    """The disk of a log is full, which is no other disk's business."""
    service = Service(tmp_path / "data", ("--ingest-processes", "1"), prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    service.start()
    try:
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        assert service.stop() == 0
    finally:
        service.kill()


def test_a_service_that_nohup_has_started(tmp_path: Path) -> None:
    """It outlives its terminal, whose end is a SIGHUP; and ends when it is told to, whatever else was ignored."""
    words = ("env", "--ignore-signal=HUP", "--ignore-signal=TERM")
    service = Service(tmp_path / "data", ("--graceful-timeout", "0s", "--ingest-processes", "1"), prefix=words)
    service.start()
    try:
        process, before = service.process, service.children()
        assert process is not None
        process.send_signal(signal.SIGHUP)
        os.kill(min(before), signal.SIGKILL)  # which is heard after that
        until(lambda: process.poll() is not None or len(service.children().keys() - before.keys()) == 1, "another one")
        assert process.poll() is None, "it has ended"
        assert service.stop() == 0
        assert "did not end in time" not in service.log()
    finally:
        service.kill()


def test_one_service_for_a_data_directory(tmp_path: Path) -> None:
    """The second says which process has it; when the first is gone, another may start."""
    with running_service(tmp_path / "data") as first:
        assert first.process is not None
        with pytest.raises(ServiceError, match=f"in use by process {first.process.pid}"):
            Service(tmp_path / "data").start()
        assert httpx.get(f"{first.url}/v2/").status_code == 200
    with running_service(tmp_path / "data"):
        pass


def test_address_in_use(tmp_path: Path) -> None:
    """Is said, and nothing is left running."""
    with running_service(tmp_path / "one") as first:
        other = Service(tmp_path / "two", host=first.host)
        with pytest.raises(ServiceError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
            other.start()


def test_killed_worker_is_replaced(tmp_path: Path) -> None:
    """While the other goes on serving."""
    with running_service(tmp_path / "data", "--workers", "2", "--ingest-processes", "1") as service:
        with httpx.Client(base_url=service.url) as http:
            digest = push_blob(http, "kill", b"stays")
        before = set(service.children())
        assert len(before) == 4
        for pid in before:
            os.kill(pid, signal.SIGKILL)
            until(partial(_is_reaped, service, pid), "the killed process is reaped")
            for _ in range(5):
                # A connection that the killed worker had accepted is lost; a new one is served.
                assert httpx.get(f"{service.url}/v2/kill/blobs/{digest}").content == b"stays"
            until(lambda: len(service.children()) == 4, "four processes run")
        assert not before & set(service.children())
        assert "signal SIGKILL" in service.log()


def test_a_process_that_cannot_be_forked_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There may be no more processes for a while; the others go on."""
    supervisor = Supervisor(Settings(data=tmp_path), lambda *_: None)
    child = Child("worker 1", lambda: None)
    supervisor._children, supervisor._roster = [child], Roster([child.name])

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        supervisor._start_due()
    assert (child.pid, child.ended) == (0, 1)
    assert child.due > time.monotonic()
    assert "worker 1 cannot be started: Resource temporarily unavailable" in caplog.text
    child.due = 0.0
    supervisor._start_due()
    assert os.waitpid(child.pid, 0) == (child.pid, 0)


def test_who_meets_a_page_that_cannot_be_read_is_told_what_to_do(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", "--workers", "1") as service:
        before = set(service.children())
        os.kill(min(before), signal.SIGBUS)
        until(lambda: "signal SIGBUS" in service.log() and len(set(service.children()) - before) == 1, "another runs")
        assert f"pagepool fsck --repair --data {tmp_path / 'data'}" in service.log()


def test_killed_by_a_signal_without_a_name(tmp_path: Path) -> None:
    """Python knows no name of most real-time signals: the supervisor goes on all the same."""
    with running_service(tmp_path / "data") as service:
        before = set(service.children())
        for pid in before:
            os.kill(pid, signal.SIGRTMIN + 3)
        until(lambda: service.log().count(f"ended (signal {signal.SIGRTMIN + 3})") == len(before), "all have ended")
        until(lambda: len(service.children()) == len(before), "others run")
        assert httpx.get(f"{service.url}/v2/").status_code == 200


def test_too_few_open_files_are_refused_in_a_line(tmp_path: Path) -> None:
    """Before anything is made; with just enough it serves. A soft limit is raised."""
    few = Service(tmp_path / "data", prefix=("prlimit", "--nofile=20:20"))
    with pytest.raises(ServiceError):
        few.start()
    assert few.log() == (
        "pagepool: error: only 20 open files are allowed, and the service needs 64: raise the hard limit "
        "(ulimit -Hn, LimitNOFILE= of a unit, --ulimit nofile= of a container)\n"
    )
    assert few.process is not None
    assert few.process.returncode == 1
    assert not (tmp_path / "data").exists()
    for limit in ("64:64", "20:4096"):
        enough = Service(tmp_path / "data", ("--workers", "2"), prefix=("prlimit", f"--nofile={limit}"))
        enough.start()
        try:
            for pid in enough.children():
                soft = Path(f"/proc/{pid}/limits").read_text().partition("Max open files")[2].split()[0]
                assert soft == limit.partition(":")[2]
            with httpx.Client(base_url=enough.url) as http:
                push_image(http, f"few-{limit[:2]}", "1")
        finally:
            enough.stop()


_FAILING = """
import os, signal, sys
from pagepool.cli.app import run
from pagepool_service import supervisor

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def fail(*_, **__):
    raise OSError(5, "no luck\\nat all")

supervisor.run_worker = {}
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("how", "why"), [("kill", "signal SIGKILL"), ("fail", "[Errno 5] no luck at all")])
def test_a_worker_that_never_serves_ends_the_service(tmp_path: Path, how: str, why: str) -> None:
    """After a few tries, with how it ended, or what it failed with."""
    words = ("serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--workers", "2")
    command = [sys.executable, "-c", _FAILING.format(how), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    *_, last = done.stderr.splitlines()
    assert last.startswith("pagepool: error: worker ")
    assert last.endswith(f" ended 5 times before it served: {why}")


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    """The kernel ends the others, and the data directory is free."""
    service = Service(tmp_path / "data", ("--workers", "2"))
    service.start()
    pids = list(service.children())
    assert pids
    service.kill()
    until(lambda: not any(_runs(pid) for pid in pids), "the other processes are gone")
    service.start()
    service.stop()


def test_requests_in_flight_are_finished(tmp_path: Path) -> None:
    """After SIGTERM: an upload that is being sent, while new connections are refused."""
    service = Service(tmp_path / "data")
    service.start()
    host, port = service.host.split(":")
    data = b"x" * 100_000
    with httpx.Client(base_url=service.url) as http:
        target = finishing(begin_upload(http, "flight"), Digest.of(data))
    with socket.create_connection((host, int(port))) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[:50_000])
        upload = next((tmp_path / "data" / "uploads").glob("*-????????????"))
        stopping = threading.Thread(target=service.stop)
        time.sleep(0.2)  # not for an outcome: the request is in flight whether it was read or not
        stopping.start()
        until(lambda: _refused(host, int(port)), "new connections are refused")
        connection.sendall(data[50_000:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")
    stopping.join(30)
    assert service.process is not None
    assert service.process.returncode == 0
    assert not upload.exists()
    service.start()
    try:
        assert httpx.get(f"{service.url}/v2/flight/blobs/{Digest.of(data)}").content == data
    finally:
        service.stop()


def test_requests_that_do_not_end_are_cut_off(tmp_path: Path) -> None:
    """After the time they are given; what a session has is kept."""
    service = Service(tmp_path / "data", ("--graceful-timeout", "1"))
    service.start()
    host, port = service.host.split(":")
    with httpx.Client(base_url=service.url) as http:
        location = begin_upload(http, "hang")
        http.patch(location, content=b"abc")
    with socket.create_connection((host, int(port))) as connection:
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
        connection.sendall(head.encode() + b"12345")
        begin = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begin < 10
    service.start()
    try:
        assert httpx.get(f"{service.url}{location}").headers["range"] == "0-2"
    finally:
        service.stop()


def test_a_stream_is_broken_off_and_kept(tmp_path: Path) -> None:
    """An upload without a length would keep the service from ending; it goes on where it was."""
    service = Service(tmp_path / "data", ("--graceful-timeout", "600"))
    service.start()
    host, port = service.host.split(":")
    data = b"x" * (3 << 20)
    with httpx.Client(base_url=service.url) as http:
        location = begin_upload(http, "stream")
    upload = next((tmp_path / "data" / "uploads").glob("*-????????????"))
    with socket.create_connection((host, int(port))) as connection:
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"%x\r\n%b\r\n" % (len(data), data))
        until(lambda: upload.stat().st_size > 0, "some of it was written")
        assert service.stop(60.0) == 0  # in a second or two; if it waited, this would raise
    kept = upload.stat().st_size
    assert 0 < kept <= len(data)
    service.start()
    try:
        with httpx.Client(base_url=service.url) as http:
            assert http.get(location).headers["range"] == f"0-{kept - 1}"
            http.patch(location, content=data[kept:])
            assert http.put(finishing(location, Digest.of(data))).status_code == 201
    finally:
        service.stop()
    assert not service.faults()


def test_read_only(tmp_path: Path) -> None:
    """Everything can be read; every write is refused with 405 and nothing else happens."""
    data = tmp_path / "data"
    with running_service(data) as service, httpx.Client(base_url=service.url) as http:
        digest = push_image(http, "app", "latest")
        location = begin_upload(http, "app")
    with running_service(data, "--read-only") as service, httpx.Client(base_url=service.url) as http:
        assert http.get("/v2/app/manifests/latest").headers["docker-content-digest"] == str(digest)
        assert http.get("/v2/app/tags/list").json()["tags"] == ["latest"]
        assert http.get("/readyz").json()["read_only"] is True
        blob = http.get("/v2/app/manifests/latest").json()["config"]["digest"]
        for answer in (
            http.post("/v2/app/blobs/uploads/"),
            http.post("/v2/app/blobs/uploads/", params={"digest": str(Digest.of(b"x"))}, content=b"x"),
            http.post("/v2/other/blobs/uploads/", params={"mount": blob}),
            http.patch(location, content=b"x"),
            http.put(finishing(location, Digest.of(b""))),
            http.delete(location),
            http.put("/v2/app/manifests/x", content=http.get("/v2/app/manifests/latest").content),
            http.delete("/v2/app/manifests/latest"),
            http.delete(f"/v2/app/manifests/{digest}"),
            http.delete(f"/v2/app/blobs/{blob}"),
        ):
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "READ_ONLY"), answer.request
            assert answer.headers["allow"]
        assert not service.faults()


@pytest.fixture
def read_only_mount() -> Iterator[Callable[[Path], None]]:
    """Makes a directory read-only by mounting it over itself; or skips."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a directory read-only")
    mounted: list[Path] = []

    def mount(path: Path) -> None:
        subprocess.run(["mount", "--bind", path, path], check=True)
        mounted.append(path)
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


def test_read_only_file_system(tmp_path: Path, read_only_mount: Callable[[Path], None]) -> None:
    """Is served read-only without being asked to; a new store cannot be made on one."""
    data = tmp_path / "data"
    with running_service(data) as service, httpx.Client(base_url=service.url) as http:
        digest = push_image(http, "app", "latest", {"a": os.urandom(300_000)})
    (data / "empty").mkdir()
    read_only_mount(data)
    with running_service(data, "--workers", "2") as service:
        assert service.log().rstrip().endswith(", read-only")
        answer = httpx.get(f"{service.url}/v2/app/manifests/{digest}")
        assert answer.status_code == 200
        layer = answer.json()["layers"][0]["digest"]
        assert str(Digest.of(httpx.get(f"{service.url}/v2/app/blobs/{layer}").content)) == layer
        assert httpx.post(f"{service.url}/v2/app/blobs/uploads/").status_code == 405
        assert len(service.children()) == 3
    with pytest.raises(ServiceError, match=r"[Rr]ead-only"):
        Service(data / "empty", log_directory=tmp_path).start()


def test_data_of_another_format(tmp_path: Path) -> None:
    """Is refused before anything is touched."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "format").write_text("pagepool store 99\n")
    with pytest.raises(ServiceError, match="pagepool store 99"):
        Service(tmp_path / "data").start()
    assert [path.name for path in (tmp_path / "data").iterdir() if path.name != "lock"] == ["format"]


def test_a_directory_of_others_is_left_alone(tmp_path: Path) -> None:
    """Whoever names his home by mistake does not find it closed to others, and full of a store."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    (data / "letters").touch()
    with pytest.raises(ServiceError, match="no data directory, and not empty: it holds 'letters'"):
        Service(data).start()
    assert stat.S_IMODE(data.stat().st_mode) == 0o755
    assert [path.name for path in data.iterdir()] == ["letters"]


def test_a_data_directory_is_closed_to_others(tmp_path: Path) -> None:
    """Not to its group; and by who only reads it, to nobody."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o757)
    for read_only, mode in ((True, 0o757), (False, 0o750)):
        fd = lock_data(data, read_only=read_only)
        assert fd is not None
        os.close(fd)
        assert stat.S_IMODE(data.stat().st_mode) == mode


def test_what_belongs_into_a_data_directory_may_be_there_first(tmp_path: Path) -> None:
    for name in ("lost+found", "node", "logs", "ended", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "format.123").touch()
    fd = lock_data(tmp_path, read_only=False)
    assert fd is not None
    os.close(fd)


def _is_reaped(service: Service, pid: int) -> bool:
    return pid not in service.children()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _refused(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return False
    except OSError:
        return True
