"""The lazy mount below a real overlay, served by this process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Semaphore

import pytest

from pagepool.mount.fuse.protocol import Opcode
from pagepool.node.forgetting import reconfigure
from pagepool.node.lazy import LazyServer, settle
from tests.node.stack import LARGE, ScriptedSource, Stack, name_of, open_gate

_Mounted = tuple[Stack, int]
_LOOKUPS = 64


def _serve(mounted: _Mounted, source: ScriptedSource | None = None) -> LazyServer:
    stack, descriptor = mounted
    server = LazyServer(descriptor, source or ScriptedSource(stack.root), state=stack.state, large=LARGE)
    server.start()
    assert server.wait_ready(60)
    settle(stack.root / "lazy")
    assert server.requests[Opcode.FLUSH] == 1
    stack.mount()
    return server


class _Held(ScriptedSource):
    """Holds some objects up until it is told to go on."""

    def __init__(self, stack: Stack, held: set[bytes]) -> None:
        super().__init__(stack.root)
        self.held = held
        self.begun = Semaphore(0)
        self.go = Event()

    def bring(self, digest: bytes) -> bool:
        if digest in self.held:
            self.begun.release()
            assert self.go.wait(60)
        return super().bring(digest)


def test_reading(mounted: _Mounted) -> None:
    """Everything has its bytes, each object is brought once, and then nothing is asked any more."""
    stack, _ = mounted
    stack.fill(20, 3)
    server = _serve(mounted)
    for _ in range(2):
        for name, data in stack.files.items():
            assert (stack.at / name).read_bytes() == data
    assert len(stack.brought()) == 20
    known = server.requests.total()
    assert (server.requests[Opcode.OPEN], server.requests[Opcode.FLUSH]) == (1, 1)
    for name, data in stack.files.items():
        assert (stack.at / name).read_bytes() == data
    assert server.requests.total() == known
    assert [path.name for path in stack.root.joinpath("lazy").iterdir()] == []


def test_programs(mounted: _Mounted) -> None:
    """A small object and a large one can be run."""
    stack, _ = mounted
    stack.add("small", b"#!/bin/sh\necho small\n")
    stack.add("large", b"#!/bin/sh\necho large\nexit\n" + b"#" * LARGE)
    _serve(mounted)
    for name in ("small", "large"):
        # By a shell that is started first: the one that serves would wait for itself.
        done = subprocess.run(["sh", "-c", '"$0"', str(stack.at / name)], capture_output=True, timeout=60, check=True)
        assert done.stdout == name.encode() + b"\n"


def test_look_ups_run_in_parallel(mounted: _Mounted) -> None:
    """So many slow ones are under way at once, and one that is not slow does not wait for them."""
    stack, _ = mounted
    held = {stack.add(f"slow{number}", b"slow %d" % number) for number in range(_LOOKUPS)}
    stack.add("fast", b"fast")
    stack.add("large", bytes(LARGE + 1))
    source = _Held(stack, held)
    _serve(mounted, source)
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        reads = [pool.submit((stack.at / f"slow{number}").read_bytes) for number in range(_LOOKUPS)]
        try:
            for _ in range(_LOOKUPS):
                assert source.begun.acquire(timeout=60)
            assert (stack.at / "fast").read_bytes() == b"fast"
            assert (stack.at / "large").read_bytes() == bytes(LARGE + 1)
        finally:
            source.go.set()
        assert [read.result(60) for read in reads] == [b"slow %d" % number for number in range(_LOOKUPS)]


def test_one_object_under_many_names(mounted: _Mounted) -> None:
    """All wait for the one fetch."""
    stack, _ = mounted
    held = {stack.add(f"same{number}", b"the same") for number in range(16)}
    source = _Held(stack, held)
    _serve(mounted, source)
    with ThreadPoolExecutor(16) as pool:
        reads = [pool.submit((stack.at / f"same{number}").read_bytes) for number in range(16)]
        assert source.begun.acquire(timeout=60)
        source.go.set()
        assert {read.result(60) for read in reads} == {b"the same"}
    assert len(stack.brought()) == 1


def test_what_cannot_be_had(mounted: _Mounted, caplog: pytest.LogCaptureFixture) -> None:
    """It is EIO, said in the log with the object and the reason, and there when the source is well again."""
    stack, _ = mounted
    digests = {"small": stack.add("small", b"small"), "large": stack.add("large", bytes(LARGE + 1))}
    _serve(mounted)
    for name, digest in digests.items():
        broken = stack.root / "broken" / digest.hex()
        broken.touch()
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output") as caught:
                (stack.at / name).read_bytes()
            assert caught.value.errno == errno.EIO
        assert f"object {digest.hex()} cannot be" in caplog.text
        assert "it is not there" in caplog.text
        broken.unlink()
        assert (stack.at / name).read_bytes() == stack.files[name]


def test_an_object_that_goes_away(mounted: _Mounted) -> None:
    """Evicted and forgotten by the kernel, it is fetched again; whoever has it open is not hurt."""
    stack, _ = mounted
    digest = stack.add("small", b"small")
    _serve(mounted)
    with (stack.at / "small").open("rb") as file:
        for layer in ("objects", "fetched"):
            (stack.root / layer / name_of(digest)).unlink()
        assert file.read() == b"small"
    assert (stack.at / "small").read_bytes() == b"small"


@pytest.mark.parametrize("name", ["small", "large"])
def test_readers_that_are_killed(mounted: _Mounted, name: str) -> None:
    """They end, though what they wait for does not come."""
    stack, _ = mounted
    gates = {
        "small": stack.gate(stack.add("small", b"small")),
        "large": stack.gate(stack.add("large", bytes(LARGE + 1))),
    }
    _serve(mounted)
    reader = subprocess.Popen(["cat", str(stack.at / name)], stdout=subprocess.DEVNULL)
    try:
        with open_gate(gates[name]):
            reader.terminate()
            assert reader.wait(60) == -signal.SIGTERM
    finally:
        reader.kill()
        reader.wait()


_HANDLING = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("got", flush=True))
sys.stdout.write(open(sys.argv[1]).read())
"""


@pytest.mark.parametrize("name", ["small", "large"])
def test_signals_that_do_not_kill(mounted: _Mounted, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who handles a signal while a file is fetched for him gets the file."""
    stack, _ = mounted
    digest = stack.add(name, b"x" * (5 if name == "small" else LARGE + 1))
    gate = stack.gate(digest)
    server = _serve(mounted)
    told = _tell(server, monkeypatch)
    words = [sys.executable, "-c", _HANDLING, str(stack.at / name)]
    reader = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        with open_gate(gate):
            reader.send_signal(signal.SIGUSR1)
            if name == "small":
                assert told(60)
        output, _ = reader.communicate(timeout=60)
        assert output == stack.files[name] + b"got\n" or output == b"got\n" + stack.files[name]
    finally:
        reader.kill()
        reader.wait()


def _tell(server: LazyServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], bool]:
    """Waits until an INTERRUPT has come."""
    told = Event()
    interrupt = server._waiting.interrupt

    def interrupted(unique: int) -> None:
        interrupt(unique)
        told.set()

    monkeypatch.setattr(server._waiting, "interrupt", interrupted)
    return told.wait


def test_it_is_told_when_no_mount_reads_an_object_any_more(mounted: _Mounted) -> None:
    """What is open stays; once it is closed both file systems forget it, and the kernel says so."""
    stack, _ = mounted
    digests = {name: stack.add(name, name.encode() * LARGE) for name in ("one", "other")}
    unread: SimpleQueue[bytes] = SimpleQueue()

    class Source(ScriptedSource):
        def forgotten(self, digest: bytes) -> None:
            unread.put(digest)

    _serve(mounted, Source(stack.root))
    with (stack.at / "one").open("rb") as file:
        assert (stack.at / "other").read_bytes() == stack.files["other"]
        for path in (stack.at, stack.root / "lazy"):
            reconfigure(path)
        assert unread.get(timeout=60) == digests["other"]
        assert file.read() == stack.files["one"]
    for path in (stack.at, stack.root / "lazy"):
        reconfigure(path)
    assert unread.get(timeout=60) == digests["one"]
    assert {name: (stack.at / name).read_bytes() for name in digests} == stack.files


def test_the_mount_is_usable_by_its_numbers(mounted: _Mounted) -> None:
    """What stat(2) shows, directly."""
    stack, _ = mounted
    digest = stack.add("large", bytes(LARGE + 1))
    _serve(mounted)
    status = (stack.root / "lazy" / "fetch" / name_of(digest)).stat()
    assert (status.st_size, status.st_mode, status.st_uid, status.st_mtime) == (LARGE + 1, 0o100444, 0, 0)
    assert os.statvfs(stack.root / "lazy").f_namemax == 255
