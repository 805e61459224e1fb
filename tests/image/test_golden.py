"""Golden files: layers of real writers, layers that must fail, and an encoded recipe, as they once were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pagepool.image import Kind, Limits, Member, Op, decode_chunk
from tests.image.harness import Ingest, ingest

GOLDEN = Path(__file__).parent.parent / "golden"
GOOD = sorted(path.stem for path in (GOLDEN / "tars").glob("*.txt") if path.stem != "should-fail")
BAD = sorted(path.stem.removeprefix("should-fail-") for path in (GOLDEN / "tars").glob("should-fail-*.tar"))


def split(tar: bytes) -> Ingest:
    return ingest(tar, (1000,))


def reason_of(tar: bytes) -> str:
    # The default limits: the reasons name them.
    return ingest(tar, (1000,), Limits()).problem


def describe_member(sink: Ingest, member: Member) -> str:
    """A member in one line."""
    fields = [
        member.kind.value,
        f"{member.mode:04o}",
        f"{member.uid}:{member.gid}",
        f"{member.uname.decode()}:{member.gname.decode()}",
        str(member.mtime_ns),
        str(member.size),
        repr(member.path),
    ]
    if member.linkname:
        fields.append(f"-> {member.linkname!r}")
    fields += [f"{name!r}={value!r}" for name, value in sorted(member.xattrs.items())]
    if member.segments is not None:
        fields.append(f"segments {list(member.segments)}")
    if member.kind is Kind.REGULAR:
        fields.append(f"sha256 {hashlib.sha256(sink.files[member.path]).hexdigest()[:16]}")
    return " ".join(fields) + "\n"


def describe_op(op: Op) -> str:
    """An operation in one line."""
    data = hashlib.sha256(op.data).hexdigest() if op.kind == 0 else bytes(op.data).hex()
    return f"{op.kind} {op.offset} {op.size} {data}\n"


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    sink = split((GOLDEN / "tars" / f"{name}.tar").read_bytes())
    assert sink.problem == ""
    found = "".join(describe_member(sink, member) for member in sink.members)
    assert found == (GOLDEN / "tars" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", BAD)
def test_should_fail(name: str) -> None:
    rows = (line.split(": ", 1) for line in (GOLDEN / "tars" / "should-fail.txt").read_text().splitlines())
    assert reason_of((GOLDEN / "tars" / f"should-fail-{name}.tar").read_bytes()) == dict(rows)[name]


def test_recipe_of_version_1() -> None:
    ops = decode_chunk((GOLDEN / "recipe-v1.chunk").read_bytes())
    assert "".join(describe_op(op) for op in ops) == (GOLDEN / "recipe-v1.txt").read_text()


def test_there_are_golden_files() -> None:
    assert len(GOOD) == 12
    assert len(BAD) > 20
