"""The encoders that never change: they make what the libraries make that they were built from, here and everywhere."""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.encoders import (
    PROBE_SIZE,
    EncoderDiedError,
    EncoderMissingError,
    candidates,
    checked,
    decode,
    frozen,
    in_background,
    probe,
    remake,
    tried,
)
from pagepool_service.encoders.frozen import MODULES, SUFFIX, FrozenEncoder, load_program, program_digest
from pagepool_service.encoders.modules.build import ENCODERS
from tests.encoders.samples import mixed

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN: dict[str, str] = json.loads((Path(__file__).parents[1] / "golden/encoders.json").read_text())
"""``MODULE KIND:LEVEL`` -> BLAKE3, 128 bits, of what the same source makes of `mixed()` where it is built for amd64."""

PROGRAMS = {
    "go-1.26": "18134d261eeb6eef8a5616d58365025f9447e7e58f7538e182f6ed9cab42ce4a",
    "go-1.27": "95985ec21b9eb38ee5ce9f1aa0f66cd12ac7a3dec21b6cfdbbde869673de2d62",
    "klauspost-1.13": "3cf00306d22204cfb2705bd78ca559c4c06c6474c39258f566665985fb0fbed6",
    "klauspost-1.14": "31376f9d84108795b0e97eae4b7bd55c20fc3117604649ccd207ef05b596accb",
    "klauspost-1.15": "64ce5c3073417dde19706104357de52f239db1ee28982e7547c61a4318523724",
    "klauspost-1.18": "e94521c1997f5e18c0badd9175fe313f5460eea2e8fc8f5607e718ece929251b",
    "klauspost-1.18.1": "b1232804bf32ca75b8e94f2ef0e9a4ee4a5803e41c05a7a63754adfeedf10533",
    "klauspost-1.19": "d2fe47b2e8974caf8df30b69a73b4d5fe65f69123d0d9f3d12931eff85386275",
    "klauspost-1.20": "bedcc6bcba50d76beb329dea54259c166056e49706225d98616a9a0979471fed",
}
"""Programs as they were released: stores hold layers that only these make again."""


def encoder(module: str, kind: str, level: int, header: bytes = bytes.fromhex("1f8b08000000000000ff")) -> FrozenEncoder:
    digest = program_digest(module)
    assert digest is not None
    return FrozenEncoder(module, digest, kind, level, "" if kind.startswith("zstd") else header.hex())


def compress(one: FrozenEncoder, plain: bytes) -> bytes:
    return b"".join(one.compress(plain[at : at + 100_000] for at in range(0, len(plain), 100_000)))


def expand(blob: bytes) -> bytes:
    return (
        gzip.decompress(blob)
        if blob[:2] == b"\x1f\x8b"
        else zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    )


def test_programs_are_those_that_were_released() -> None:
    """One that changes makes layers unreadable that are stored nowhere else: a new one gets a new name."""
    here = {path.name.removesuffix(SUFFIX) for path in MODULES.glob(f"*{SUFFIX}")}
    assert here == set(ENCODERS)
    assert PROGRAMS.items() <= {name: program_digest(name) for name in here}.items()


@pytest.mark.parametrize("name", sorted({name.rpartition(":")[0] for name in GOLDEN}))
def test_output_is_the_librarys(name: str) -> None:
    """What Go's compiler makes of the same source for this machine, without WebAssembly, says so."""
    module, kind = name.split()
    plain = mixed()
    asked = [one for one in GOLDEN if one.startswith(f"{name}:")]
    results = list(frozen._probe(module, [one.split()[1] for one in asked], plain))
    for one, made in zip(asked, results, strict=True):
        assert blake3(made).hexdigest()[:32] == GOLDEN[one], one
        assert expand(made) == plain
    level = int(asked[0].rpartition(":")[2])
    header = results[0][:10] if not kind.startswith("zstd") else b""
    assert compress(encoder(module, kind, level, header), plain) == results[0]


def test_every_encoder_is_compared_with_its_library() -> None:
    kinds = {"go": ("gzip",), "klauspost": ("gzip", "pgzip", "zstd", "zstd-detected")}
    assert {name.rpartition(":")[0] for name in GOLDEN} == {
        f"{module} {kind}" for module, (source, *_) in ENCODERS.items() for kind in kinds[source]
    }


@pytest.mark.parametrize(
    ("module", "kind", "level"),
    [
        ("go-1.26", "gzip", -1),
        ("go-1.26", "gzip", 1),
        ("go-1.26", "gzip", 9),
        ("go-1.27", "gzip", -1),
        ("klauspost-1.13", "pgzip", -1),
        ("klauspost-1.14", "pgzip", -1),
        ("klauspost-1.15", "pgzip", -1),
        ("klauspost-1.18", "pgzip", -1),
        ("klauspost-1.18", "pgzip", 9),
        ("klauspost-1.18", "gzip", 3),
        ("klauspost-1.18.1", "pgzip", -1),
        ("klauspost-1.19", "pgzip", -1),
        ("klauspost-1.20", "pgzip", -1),
        ("klauspost-1.18", "zstd", 3),
        ("klauspost-1.18", "zstd-detected", 3),
        ("klauspost-1.20", "zstd", 3),
        ("klauspost-1.13", "zstd", 1),
    ],
)
def test_the_encoder_of_a_blob_is_found(module: str, kind: str, level: int) -> None:
    """Among the first that are compared with all of the blob is one that makes all of it."""
    plain = mixed(5 << 19, seed=2)
    blob = compress(encoder(module, kind, level), plain)
    # As Go's writers say it.
    if not kind.startswith("zstd"):
        blob = blob[:8] + bytes([{1: 4, 9: 2}.get(level, 0)]) + blob[9:]
    assert is_found(blob, plain)


@pytest.mark.parametrize("size", [1, 70_000, PROBE_SIZE, PROBE_SIZE + 1, 2 * PROBE_SIZE])
@pytest.mark.parametrize(
    ("module", "kind"), [("go-1.26", "gzip"), ("klauspost-1.18", "pgzip"), ("klauspost-1.18", "zstd-detected")]
)
def test_the_encoder_is_found_whatever_the_size(module: str, kind: str, size: int) -> None:
    plain = mixed(size, seed=size)
    assert is_found(compress(encoder(module, kind, -1), plain), plain)


def test_the_encoder_is_found_behind_much_that_is_alike() -> None:
    """A layer that begins with zeros, or with what cannot be compressed."""
    for head in (bytes(3 * PROBE_SIZE), random.Random(1).randbytes(2 * PROBE_SIZE)):
        plain = head + mixed()
        for module, kind in (("go-1.26", "gzip"), ("klauspost-1.18", "pgzip")):
            assert is_found(compress(encoder(module, kind, -1), plain), plain), (module, plain[0])


def test_what_no_encoder_makes_has_no_candidate() -> None:
    small = mixed(100_000)
    other = zstandard.ZstdCompressor(level=19).compress(small)
    for one in (other, b"\x1f\x8b" + os.urandom(1000), b"", b"\x1f", small[:5000]):
        assert list(candidates(one, small, len(small))) == []


def test_what_only_begins_as_an_encoder_makes_it_is_not_equal() -> None:
    plain = mixed()
    blob = gzip.compress(plain[: 1 << 20]) + gzip.compress(plain[1 << 20 :])
    for found in candidates(blob[:PROBE_SIZE], plain[:PROBE_SIZE], len(plain)):
        assert b"".join(found.compress([plain])) != blob


def test_the_header_stays_as_it_came() -> None:
    """A name, a time and a comment in it are nobody's to know."""
    header = bytes.fromhex("1f8b081c65a1b2c30003") + (4).to_bytes(2, "little") + b"xtra" + b"layer.tar\0" + b"hello\0"
    plain = mixed(300_000)
    blob = header + compress(encoder("klauspost-1.18", "pgzip", -1), plain)[10:]
    assert gzip.decompress(blob) == plain
    found = next(iter(candidates(blob, plain, len(plain))))
    assert b"".join(found.compress([plain])) == blob


@pytest.mark.parametrize("size", [900, 1100, 70_000, 1 << 20])
def test_a_header_that_is_long_is_not_kept_in_a_record(size: int) -> None:
    plain = mixed(300_000)
    for body in (compress(encoder("klauspost-1.20", "pgzip", -1), plain)[10:], gzip.compress(plain)[10:]):
        blob = bytes.fromhex("1f8b08080000000000ff") + b"n" * size + b"\0" + body
        assert gzip.decompress(blob) == plain
        found = list(islice(candidates(blob, plain, len(plain)), 1))
        assert all(len(one.encode()) < 4096 for one in found)
        assert bool(found) == (size < 1000)


def test_an_encoder_that_dies_is_not_damage() -> None:
    """Nor is what it has made until then taken for all."""
    one = encoder("go-1.26", "gzip", 9)

    def plain() -> Iterator[bytes]:
        for _ in range(400):
            yield mixed(1 << 20)
            for pid in children():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(EncoderMissingError, match=r"go-1\.26 ended with -9"):
        list(one.compress(plain()))
    assert not children()


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_an_encoder_that_was_killed_is_run_again(deaths: int) -> None:
    """And whoever reads goes on where he was: there is nothing for him until then, and nothing twice."""
    one, whole = encoder("klauspost-1.18", "pgzip", 1), mixed(6 << 20)
    begun: list[int] = []
    blob = compress(one, whole)
    made = remake(one, lambda: killed_at(whole, 5 << 20, begun, deaths), names_of(blob), "x")
    given = list(made)
    assert b"".join(given) == blob
    assert len(begun) == deaths + 1
    assert (b"" in given) == bool(deaths)
    assert not children()


def test_an_encoder_that_is_killed_each_time_is_given_up() -> None:
    one, whole = encoder("klauspost-1.18", "pgzip", 1), mixed(6 << 20)
    begun: list[int] = []
    names = names_of(compress(one, whole))
    with pytest.raises(EncoderDiedError, match=r"klauspost-1\.18 ended with -9"):
        list(remake(one, lambda: killed_at(whole, 5 << 20, begun, 1000), names, "x"))
    assert len(begun) == 3
    assert not children()


def test_an_encoder_that_is_not_there_is_not_run_again() -> None:
    begun: list[int] = []
    for one in (encoder("go-1.26", "bzip2", 6), FrozenEncoder("go-9.9", "00" * 32, "gzip", 6, "")):
        with pytest.raises(EncoderMissingError) as raised:
            list(remake(one, lambda: killed_at(b"x", 2, begun, 0), [], "x"))
        assert not isinstance(raised.value, EncoderDiedError)
    assert len(begun) == 1


def killed_at(whole: bytes, place: int, begun: list[int], deaths: int) -> Iterator[bytes]:
    """What is to be compressed. Until so many have died, the process that is given it is killed at a place of it."""
    begun.append(1)
    for at in range(0, len(whole), 1 << 18):
        if at == place and len(begun) <= deaths:
            for pid in children():
                os.kill(pid, signal.SIGKILL)
        yield whole[at : at + (1 << 18)]


def names_of(blob: bytes) -> list[bytes]:
    """The digests of a blob's extents."""
    return [blake3(blob[at : at + EXTENT_SIZE]).digest() for at in range(0, len(blob), EXTENT_SIZE)]


def test_nothing_is_left_of_a_reader_that_goes_away() -> None:
    one = encoder("klauspost-1.18", "pgzip", 1)
    pieces = one.compress(mixed(1 << 20, seed=number) for number in range(1000))
    for _ in range(4):
        next(pieces)
    assert children()
    pieces.close()  # type: ignore[attr-defined]
    assert not children()


def test_background_work_gives_way() -> None:
    one = encoder("klauspost-1.18", "pgzip", 1)

    def plain() -> Iterator[bytes]:
        yield mixed(1 << 20)
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in children()] == [19]

    with in_background():
        assert gzip.decompress(b"".join(one.compress(plain()))) == mixed(1 << 20)


def test_an_unknown_program_is_missing_not_damage() -> None:
    newer = FrozenEncoder("go-9.9", "00" * 32, "gzip", 6, "")
    other = FrozenEncoder("go-1.26", "00" * 32, "gzip", 6, "")
    for one in (newer, other):
        with pytest.raises(EncoderMissingError, match=one.module):
            list(one.compress([b"x"]))
    for name in ("../../../etc/passwd", "", "go 1.26", "."):
        assert load_program(name) is None


def test_without_the_runtime_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    one = encoder("go-1.26", "gzip", 6)
    before = tried()
    monkeypatch.setattr(frozen, "_RUNTIME", "no_such_package")
    with pytest.raises(EncoderMissingError, match=r"pip install 'pagepool\[rebuild\]'"):
        list(one.compress([b"x"]))
    assert tried() != before  # those blobs are looked at again once it is there


def test_a_damaged_output_is_never_handed_out() -> None:
    plain = mixed()
    made = compress(encoder("klauspost-1.18", "pgzip", 1), plain)
    names = names_of(made)
    assert b"".join(checked([made], names, "x")) == made
    wrong = bytearray(made)
    wrong[200_000] ^= 1
    pieces = checked([bytes(wrong)], names, "x")
    given = next(pieces)
    with pytest.raises(CorruptError, match="other bytes than were pushed"):
        next(pieces)
    assert given == made[: 128 << 10]


@pytest.mark.parametrize(
    "stored",
    [b"", b"{", b"[]", b"{}", b'{"module":1}', b'{"library":"zlib"}', b"tried 1", b"\xff", b'{"module":"go-1.26"}'],
)
def test_parameters_that_are_none_are_damage(stored: bytes) -> None:
    with pytest.raises(CorruptError, match="its encoder cannot be read"):
        decode(stored, "sha256:x")


@pytest.fixture
def own_temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files, in which nothing was compiled."""
    directory = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_what_was_compiled_is_kept_and_only_in_a_directory_of_ones_own(
    tmp_path: Path, own_temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there is run: another user's is not touched."""
    monkeypatch.setattr(frozen, "_compiled", None)
    mine, shared = tmp_path / "mine", tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    plain = mixed(10_000)
    for directory in (mine, mine, shared):
        frozen.keep_compiled(directory)
        assert gzip.decompress(compress(encoder("go-1.26", "gzip", 6), plain)) == plain
    (elsewhere,) = own_temporary.glob("pagepool-encoders-*/*")  # for the last of them
    assert len(list(mine.iterdir())) == 1
    assert mine.stat().st_mode & 0o777 == 0o700
    assert list(shared.iterdir()) == []
    # A file that is no program, as a full disk leaves it, is made anew.
    elsewhere.unlink()
    (kept,) = mine.iterdir()
    kept.write_bytes(b"")
    frozen.keep_compiled(mine)
    assert gzip.decompress(compress(encoder("go-1.26", "gzip", 6), plain)) == plain
    assert kept.stat().st_size


@pytest.mark.usefixtures("own_temporary")
def test_machine_code_that_a_crash_left_half_written_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the right beginning and size, and zeros in its middle."""
    monkeypatch.setattr(frozen, "_compiled", tmp_path / "kept")
    one = encoder("go-1.26", "gzip", 6)
    plain = mixed(10_000)
    compress(one, plain)
    (kept,) = (tmp_path / "kept").iterdir()
    right = kept.read_bytes()
    kept.write_bytes(right[: 1 << 20] + bytes(4 << 20) + right[5 << 20 :])
    assert gzip.decompress(compress(one, plain)) == plain
    assert kept.read_bytes() == right


@pytest.mark.usefixtures("own_temporary")
def test_what_nothing_here_can_run_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other versions of the runtime compiled, of programs that are no more, and what a kill left half written."""
    kept = tmp_path / "kept"
    monkeypatch.setattr(frozen, "_compiled", kept)
    kept.mkdir(mode=0o700)
    program = program_digest("klauspost-1.20")
    assert program is not None
    ours = f"{program[:32]}-{version('wasmtime')}-{platform.machine()}.cwasm"
    old = [f"{program[:32]}-1.0.0-{platform.machine()}.cwasm", ours.replace(program[:32], "0" * 32), ".new-old"]
    others = [ours, ".new-now", "notes"]
    for name in (*old, *others):
        (kept / name).write_bytes(b"x")
    os.utime(kept / ".new-old", (1, 1))
    compress(encoder("go-1.26", "gzip", 6), mixed(10_000))
    left = {path.name for path in kept.iterdir()}
    assert left & {*old, *others} == set(others)
    assert len(left) == len(others) + 1


@pytest.mark.usefixtures("own_temporary")
def test_fsck_uses_what_the_service_compiled_and_makes_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "_compiled", None)
    frozen.keep_compiled(tmp_path / "encoders", make=False)
    assert frozen._compiled is None
    (tmp_path / "encoders").mkdir(mode=0o700)
    frozen.keep_compiled(tmp_path / "encoders", make=False)
    compress(encoder("go-1.26", "gzip", 6), mixed(10_000))
    assert len(list((tmp_path / "encoders").iterdir())) == 1


def test_an_encoder_that_nobody_reads_ends_while_it_waits() -> None:
    """Whoever ran it was killed, and something still holds its standard input."""
    command = [sys.executable, "-P", "-m", "pagepool_service.encoders.process", "go-1.26", "stream", "gzip:6", "--"]
    command.append(f"{tempfile.gettempdir()}/pagepool-encoders-{os.geteuid()}")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(bytes(1 << 20))
        process.stdin.flush()
        process.stdout.close()
        assert process.wait(60) == 1


@pytest.mark.usefixtures("own_temporary")
def test_what_was_compiled_is_used_where_nothing_may_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data directory on a file system that is mounted noexec."""
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700,noexec", "tmpfs", str(tmp_path)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("needs root, and to mount a tmpfs")
    try:
        monkeypatch.setattr(frozen, "_compiled", tmp_path / "kept")
        one = encoder("go-1.26", "gzip", 6)
        plain = mixed(10_000)
        compress(one, plain)
        (kept,) = (tmp_path / "kept").iterdir()
        before = kept.stat().st_ino
        assert gzip.decompress(compress(one, plain)) == plain
        assert kept.stat().st_ino == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("head -c 1000000 /dev/zero >&2; echo >&2; echo the reason >&2; exit 3", "ended with 3: the reason"),
        ("exec sleep 1000", "hangs"),
        ("exec 1>&- 2>&-; exec sleep 1000", "hangs"),
    ],
)
def test_a_program_that_talks_or_hangs_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    if said == "hangs":
        monkeypatch.setattr(frozen, "_LONGEST_SILENCE_S", 0.5)
    with pytest.raises(EncoderMissingError, match=said):
        compress(encoder("go-1.26", "gzip", 6), mixed(1000))
    assert not children()


@pytest.mark.parametrize("last", [20, 40])
def test_looking_for_an_encoder_can_be_ended_at_each_program_and_level(last: int) -> None:
    plain = mixed(100_000)
    looked: list[int] = []

    class EndError(Exception):
        pass

    def look() -> None:
        looked.append(1)
        if len(looked) == last:  # after those that Python has, and among levels
            raise EndError

    blob = compress(encoder("klauspost-1.13", "gzip", 6), plain)
    with pytest.raises(EndError):
        list(candidates(blob, plain, len(plain), look))
    assert not children()


def is_found(blob: bytes, plain: bytes) -> bool:
    head = probe(lambda size: plain[:size], len(plain))
    found = islice(candidates(blob[: len(head) + (128 << 10)], head, len(plain)), 3)
    return any(b"".join(decode(one.encode(), "x").compress([plain])) == blob for one in found)


def children() -> list[int]:
    """The encoders' processes that this one has."""
    try:
        text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    except OSError:  # a kernel without that list
        return []
    return [int(pid) for pid in text.split() if _is_encoder(int(pid))]


def _is_encoder(pid: int) -> bool:
    try:
        return b"pagepool_service.encoders.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
