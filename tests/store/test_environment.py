"""The environment's contract: checked records, whole transactions, readers beside writers, quota, and errors."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import threading
from typing import TYPE_CHECKING

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.errors import (
    BusyError,
    CorruptError,
    PagepoolError,
    ReadOnlyError,
    StoreFormatError,
    StoreFullError,
    UnsupportedError,
)
from pagepool_service.store.environment import CHECKSUM_SIZE, Environment, Table, checksum
from tests.faults import file_size_limit, flip_record, in_child, records, replace_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def env(data: Path) -> Iterator[Environment]:
    with Environment.open(data / "store") as opened:
        yield opened


def put(env: Environment, key: bytes, payload: bytes, table: Table = Table.TREES) -> None:
    with env.write() as txn:
        txn.put(table, key, payload)


def get(env: Environment, key: bytes, table: Table = Table.TREES) -> bytes | None:
    with env.read() as txn:
        payload = txn.get(table, key)
        return None if payload is None else bytes(payload)


# -- records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 300_000])
def test_a_record_comes_back(env: Environment, size: int) -> None:
    put(env, b"key", b"x" * size)
    assert get(env, b"key") == b"x" * size


def test_the_same_key_in_another_table_is_another_record(env: Environment) -> None:
    put(env, b"key", b"one", Table.TREES)
    assert get(env, b"key", Table.LEASES) is None


@pytest.mark.parametrize("at", [0, 50, -CHECKSUM_SIZE, -1])
def test_a_flipped_byte_is_found_and_the_record_named(data: Path, at: int) -> None:
    with Environment.open(data / "store") as env:
        put(env, b"key", b"a payload that is long enough to be found in the database file again")
    (record,) = records(data, Table.TREES)
    flip_record(data, record, at)
    with Environment.open(data / "store") as env, env.read() as txn:
        with pytest.raises(CorruptError) as caught:
            txn.get(Table.TREES, b"key")
        assert caught.value.kind == "trees record"
        assert caught.value.name == b"key".hex()
        with pytest.raises(CorruptError):
            list(txn.scan(Table.TREES))
        with pytest.raises(CorruptError):
            txn.last(Table.TREES, b"", b"z")
        assert [key for key, _ in txn.scan(Table.TREES, check=False)] == [b"key"]
        assert txn.has(Table.TREES, b"key")


def test_a_value_shorter_than_a_checksum_is_corrupt(data: Path) -> None:
    Environment.open(data / "store").close()
    replace_record(data, Table.TREES, b"key", b"1234567")
    with Environment.open(data / "store") as env, pytest.raises(CorruptError):
        get(env, b"key")


def test_a_record_moved_to_another_key_or_table_is_corrupt(data: Path) -> None:
    Environment.open(data / "store").close()
    value = b"payload" + checksum(Table.TREES, b"key", b"payload")
    replace_record(data, Table.TREES, b"other", value)
    replace_record(data, Table.LEASES, b"key", value)
    replace_record(data, Table.TREES, b"key", value)
    with Environment.open(data / "store") as env:
        assert get(env, b"key") == b"payload"
        for table, key in ((Table.TREES, b"other"), (Table.LEASES, b"key")):
            with pytest.raises(CorruptError):
                get(env, key, table)


KEYS = st.binary(min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(content=st.dictionaries(KEYS, st.binary(max_size=40)), prefix=st.binary(max_size=2), at_most=KEYS)
def test_scans_agree_with_a_sorted_dict(
    tmp_path_factory: pytest.TempPathFactory, content: dict[bytes, bytes], prefix: bytes, at_most: bytes
) -> None:
    with Environment.open(tmp_path_factory.mktemp("env")) as env:
        with env.write() as txn:
            for key, payload in content.items():
                txn.put(Table.TREES, key, payload)
        below = [key for key in sorted(content) if key.startswith(prefix) and key <= at_most]
        with env.read() as txn:
            scanned = [(key, bytes(payload)) for key, payload in txn.scan(Table.TREES, prefix)]
            assert scanned == [(key, content[key]) for key in sorted(content) if key.startswith(prefix)]
            started = [key for key, _ in txn.scan(Table.TREES, prefix, start=at_most)]
            assert started == [key for key in sorted(content) if key.startswith(prefix) and key >= at_most] or (
                prefix and at_most < prefix
            )
            last = txn.last(Table.TREES, prefix, at_most)
            greatest = max((key for key in content if key <= at_most), default=None)
            # `last` looks at the greatest key at or below, and answers it if it has the prefix.
            expected = greatest if greatest is not None and greatest.startswith(prefix) else None
            assert (None if last is None else last[0]) == expected
            assert expected is None or expected == below[-1]
            wanted = [*content, at_most]
            assert txn.present(Table.TREES, wanted) == {key for key in wanted if key in content}
            assert txn.count(Table.TREES) == len(content)
        with env.write() as txn:
            assert txn.delete_prefix(Table.TREES, prefix) == len(scanned)
        with env.read() as txn:
            left = {key: bytes(payload) for key, payload in txn.scan(Table.TREES)}
        assert left == {key: payload for key, payload in content.items() if not key.startswith(prefix)}


# -- transactions --------------------------------------------------------------------------------------------


def test_an_exception_undoes_the_whole_transaction(env: Environment) -> None:
    put(env, b"kept", b"before")
    with pytest.raises(ZeroDivisionError), env.write() as txn:  # noqa: PT012 - the block is what is tested
        txn.put(Table.TREES, b"kept", b"after")
        txn.put(Table.LEASES, b"new", b"")
        raise ZeroDivisionError
    assert get(env, b"kept") == b"before"
    assert get(env, b"new", Table.LEASES) is None


def test_a_writer_sees_its_own_writes_and_readers_do_not_until_it_ends(env: Environment) -> None:
    with env.write() as txn:
        txn.put(Table.TREES, b"key", b"value")
        assert bytes(txn.get(Table.TREES, b"key") or b"") == b"value"
        seen: list[bytes | None] = []
        thread = threading.Thread(target=lambda: seen.append(get(env, b"key")))
        thread.start()
        thread.join()  # a reader that waited for the writer would hang here
        assert seen == [None]
    assert get(env, b"key") == b"value"


def test_a_reader_keeps_its_snapshot_while_others_write(env: Environment) -> None:
    put(env, b"key", b"old")
    with env.read() as txn:
        thread = threading.Thread(target=put, args=(env, b"key", b"new"))
        thread.start()
        thread.join()
        assert bytes(txn.get(Table.TREES, b"key") or b"") == b"old"
    assert get(env, b"key") == b"new"


def test_put_new_keeps_the_first(env: Environment) -> None:
    with env.write() as txn:
        assert txn.put_new(Table.TREES, b"key", b"first")
        assert not txn.put_new(Table.TREES, b"key", b"second")
    assert get(env, b"key") == b"first"


def _write_many(path: Path, name: bytes, count: int) -> None:
    with Environment.open(path) as env:
        for number in range(count):
            with env.write() as txn:
                txn.put(Table.TREES, name + number.to_bytes(4, "big"), name * 100)


def test_several_processes_write_and_read_at_once(data: Path, env: Environment) -> None:
    context = multiprocessing.get_context("spawn")
    names = [b"a", b"b", b"c"]
    processes = [context.Process(target=_write_many, args=(data / "store", name, 60)) for name in names]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        with env.read() as txn:
            for key, payload in txn.scan(Table.TREES):
                assert bytes(payload) == key[:1] * 100
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with env.read() as txn:
        assert txn.count(Table.TREES) == 180


def _die_in_transaction(path: Path) -> None:
    env = Environment.open(path)
    with env.write() as txn:
        txn.put(Table.TREES, b"half", b"x" * 100_000)
        os.kill(os.getpid(), signal.SIGKILL)


def _die_while_reading(path: Path) -> None:
    env = Environment.open(path)
    with env.read() as txn:
        txn.has(Table.TREES, b"any")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_that_is_killed_leaves_nothing_and_no_lock(data: Path, env: Environment) -> None:
    put(env, b"key", b"value")
    assert in_child(_die_in_transaction, data / "store").signal is signal.SIGKILL
    assert get(env, b"half") is None
    put(env, b"key", b"newer")
    assert get(env, b"key") == b"newer"


def test_the_slot_of_a_reader_that_was_killed_is_freed(data: Path, env: Environment) -> None:
    assert in_child(_die_while_reading, data / "store").signal is signal.SIGKILL
    assert env.check_readers() == 1
    assert env.check_readers() == 0


# -- opening -------------------------------------------------------------------------------------------------


def test_a_read_only_environment_reads_and_refuses_writes(data: Path) -> None:
    with Environment.open(data / "store") as env:
        put(env, b"key", b"value")
    before = (data / "store" / "data.mdb").read_bytes()
    with Environment.open(data / "store", readonly=True) as env:
        assert get(env, b"key") == b"value"
        with pytest.raises(ReadOnlyError), env.write():
            pytest.fail("a transaction began")
    assert (data / "store" / "data.mdb").read_bytes() == before


def test_a_shared_reader_sees_what_others_write(data: Path, env: Environment) -> None:
    assert in_child(_write_many, data / "store", b"x", 1).error == ""
    found = in_child(_read_shared, data / "store", b"x\0\0\0\0")
    assert found.value == b"x" * 100, found.error
    assert get(env, b"x\0\0\0\0") == b"x" * 100


def _read_shared(path: Path, key: bytes) -> bytes | None:
    with Environment.open(path, readonly=True, shared=True) as env:
        return get(env, key)


def test_a_read_only_reader_keeps_its_snapshot_while_a_command_writes(data: Path) -> None:
    """It takes part in the table of readers where it can; a writer would use the pages that it looks at again."""
    with Environment.open(data / "store") as env:
        put(env, b"key", b"value")
    (data / "store" / "lock.mdb").unlink()
    with Environment.open(data / "store", readonly=True) as env, env.read() as txn:
        seen = txn.version
        assert in_child(_oldest_after_writing, data / "store").value == seen
        assert bytes(txn.get(Table.TREES, b"key") or b"") == b"value"


def _oldest_after_writing(path: Path) -> int:
    with Environment.open(path) as env:
        put(env, b"other", b"value")
        put(env, b"another", b"value")
        return env.oldest_reader(env.version())


def test_read_only_makes_nothing(data: Path) -> None:
    with pytest.raises(PagepoolError):
        Environment.open(data / "store", readonly=True)
    assert not data.exists()


def test_another_format_is_refused_and_left_alone(data: Path) -> None:
    Environment.open(data / "store").close()
    payload = (2).to_bytes(4, "big")
    replace_record(data, Table.META, b"format", payload + checksum(Table.META, b"format", payload))
    for readonly in (False, True):
        with pytest.raises(StoreFormatError, match="store format 2"):
            Environment.open(data / "store", readonly=readonly)


@pytest.mark.parametrize("content", [b"", b"no database at all\n" * 1000])
def test_what_is_no_database_is_refused_or_begun_anew(data: Path, content: bytes) -> None:
    (data / "store").mkdir(parents=True)
    (data / "store" / "data.mdb").write_bytes(content)
    if content:
        with pytest.raises(StoreFormatError):
            Environment.open(data / "store")
        assert (data / "store" / "data.mdb").read_bytes() == content
    else:
        Environment.open(data / "store").close()


# -- limits and errors ---------------------------------------------------------------------------------------


def test_the_quota_refuses_before_anything_is_written(data: Path) -> None:
    with Environment.open(data / "store", quota_bytes=1 << 20) as env:
        put(env, b"key", b"x" * 1000)
        with env.read() as txn:
            used = txn.used_bytes()
        with pytest.raises(StoreFullError, match=str(1 << 20)), env.write(reserve=(1 << 20) - used + 1):
            pytest.fail("a transaction began")
        with env.write(reserve=(1 << 20) - used) as txn:
            txn.put(Table.TREES, b"fits", b"")
        assert get(env, b"fits") == b""


def test_removing_is_possible_at_the_quota(data: Path) -> None:
    with Environment.open(data / "store", quota_bytes=200_000) as env:
        put(env, b"key", b"x" * 150_000)
        with pytest.raises(StoreFullError), env.write(reserve=150_000):
            pass
        with env.write() as txn:
            assert txn.delete(Table.TREES, b"key")
        with env.write(reserve=150_000) as txn:
            txn.put(Table.TREES, b"other", b"x" * 150_000)


def _grow_beyond_limit(path: Path) -> list[str]:
    """Write more than the kernel lets the file have; then see what is left, and that it goes on."""
    said = []
    with Environment.open(path) as env:
        put(env, b"before", b"1" * 100)
        size = (path / "data.mdb").stat().st_size
        with file_size_limit(size + (1 << 20)):
            for number in range(3):
                try:
                    with env.write() as txn:
                        txn.put(Table.TREES, b"large", bytes(8 << 20))
                except PagepoolError as error:
                    said.append(type(error).__name__)
                put(env, b"small", b"%d" % number)
                assert get(env, b"large") is None
        put(env, b"large", bytes(8 << 20))
        assert get(env, b"before") == b"1" * 100
        assert len(get(env, b"large") or b"") == 8 << 20
    return said


def test_a_write_that_the_kernel_refuses_leaves_the_store_as_it_was(data: Path) -> None:
    outcome = in_child(_grow_beyond_limit, data / "store")
    assert outcome.value == ["StoreFullError"] * 3, outcome.error


def _system_error(number: int) -> lmdb.Error:
    """What LMDB raises for an error of the system, as its binding makes it."""
    error = lmdb.Error(f"mdb_txn_commit: {os.strerror(number)}")
    vars(error)["code"] = number
    return error


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (lmdb.MapFullError("mdb_put"), StoreFullError),
        (lmdb.DiskError("mdb_txn_commit"), StoreFullError),
        (_system_error(errno.EDQUOT), StoreFullError),
        (lmdb.ReadonlyError("mdb_put"), ReadOnlyError),
        (_system_error(errno.EROFS), ReadOnlyError),
        (lmdb.ReadersFullError("mdb_txn_begin"), BusyError),
        (lmdb.MemoryError("mdb_get"), BusyError),
        (_system_error(errno.EMFILE), BusyError),
        (lmdb.CorruptedError("mdb_get"), CorruptError),
        (lmdb.PageNotFoundError("mdb_get"), CorruptError),
        (lmdb.Error("mdb_get: something else"), CorruptError),
    ],
    ids=lambda value: str(value) if isinstance(value, lmdb.Error) else value.__name__,
)
def test_the_librarys_errors_are_told_in_our_words(
    env: Environment, raised: lmdb.Error, expected: type[PagepoolError]
) -> None:
    with pytest.raises(expected), env.write() as txn:  # noqa: PT012 - the block is what is tested
        txn.put(Table.TREES, b"key", b"")
        raise raised
    with pytest.raises(expected), env.read():
        raise raised
    assert get(env, b"key") is None


def _open_with_few_addresses(data: Path) -> str:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    with pytest.raises(UnsupportedError) as caught:
        Environment.open(data)
    return str(caught.value)


def test_a_process_that_may_not_map_it_is_told_so(data: Path) -> None:
    """A limit of addresses is no damage."""
    found = in_child(_open_with_few_addresses, data)
    assert "see ulimit -v" in str(found.value), found


def test_a_path_of_any_bytes(tmp_path: Path) -> None:
    """It need not be UTF-8."""
    path = tmp_path / os.fsdecode(b"d\xff\n")
    Environment.open(path).close()
    with Environment.open(path, readonly=True) as env:
        assert get(env, b"key") is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EFBIG, errno.ENOSPC])
def test_a_refused_write_is_a_full_store_and_no_damage(env: Environment, number: int) -> None:
    error = lmdb.DiskError("mdb_txn_commit") if number == errno.ENOSPC else _system_error(number)
    with pytest.raises(StoreFullError), env.write():
        raise error


def test_a_panic_is_told_to_whoever_wants_to_end(env: Environment) -> None:
    told: list[str] = []
    env.on_panic = lambda: told.append("panic")
    with pytest.raises(StoreFullError), env.write():
        raise lmdb.PanicError("mdb_txn_commit")
    assert told == ["panic"]
