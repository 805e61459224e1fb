"""What the parts of one round of a repair share: the store, where content may come from, and what was done."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError
from pagepool_service.repair.bits import is_sound, mend_record
from pagepool_service.repair.keys import find_keys
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pagepool_service.repair.quarantine import Quarantine
    from pagepool_service.repair.sources import Source
    from pagepool_service.store.checks import Problem
    from pagepool_service.store.environment import Environment, Reader, Writer
    from pagepool_service.store.store import Store

Outcome = Literal["repaired", "set aside", "quarantined"]
Lost = tuple[Table, bytes]  # a record to be kept in the quarantine


class ChangedError(Exception):
    """What was looked at is another by now: somebody else writes. The next round sees to it."""


def expect(txn: Reader, table: Table, key: bytes, value: bytes | None) -> None:
    """Look again at what is to be changed.

    Raises:
        ChangedError: the record is not the one that was looked at.
    """
    now = txn.get_unchecked(table, key)
    if (None if now is None else bytes(now)) != value:
        raise ChangedError


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a repair did, or would do.

    Args:
        kind: of the record, as fsck says it.
        name: of the record, as fsck says it.
        outcome: ``repaired``; ``set aside``: it was damaged, and what it held is stored elsewhere, or is looked for
            next; ``quarantined``: it is gone until somebody pushes it again.
        how: in words.
        images: concerned, as fsck says it.
        paths: of files in layers that are lost with it, ``LAYER PATH``.
    """

    kind: str
    name: str
    outcome: Outcome
    how: str
    images: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(slots=True)
class Context:
    """One round.

    Args:
        store: open for writing.
        problems: what fsck found.
        quarantine: where to put what is taken out.
        sources: other places that may have content.
        cache: directory of the service's pool; it need not be there.
        dry_run: change nothing.
        actions: what was done.
        jobs: blobs that are to be read as layers again, or moved out of the spool.
        recount: whether the totals have to be counted anew.
        look_again: whether what fsck has found may not be so any more, though nothing was done about it.
        tell: told what is being waited for.
    """

    store: Store
    problems: Sequence[Problem]
    quarantine: Quarantine
    sources: Sequence[Source] = ()
    cache: Path | None = None
    dry_run: bool = False
    actions: list[Action] = field(default_factory=list)
    jobs: set[Digest] = field(default_factory=set)
    recount: bool = False
    look_again: bool = False
    tell: Callable[[str], None] = lambda _: None
    _blobs: dict[Digest, BlobRecord] | None = None

    @property
    def env(self) -> Environment:
        """The store's environment."""
        return self.store.env

    def names(self, *kinds: str) -> list[str]:
        """The names of the problems of some kinds, each once, in order."""
        return list(dict.fromkeys(problem.name for problem in self.problems if problem.kind in kinds))

    def images(self, kind: str, *names: str) -> tuple[str, ...]:
        """The images that problems concern."""
        found = (problem.images for problem in self.problems if problem.kind == kind and problem.name in names)
        return tuple(sorted({image for images in found for image in images}))

    def reasons(self, kind: str, name: str) -> list[str]:
        """What fsck says of a record."""
        return [problem.reason for problem in self.problems if (problem.kind, problem.name) == (kind, name)]

    def repaired(
        self, kind: str, name: str, how: str, apply: Callable[[Writer], None], images: tuple[str, ...] = ()
    ) -> bool:
        """Do something that makes a record right again, in one transaction. Returns whether it was done.

        Args:
            images: concerned, where fsck has found no problem.
        """
        return self._act(Action(kind, name, "repaired", how, images or self.images(kind, name)), (), apply)

    def remove(
        self, action: Action, lost: Iterable[Lost], apply: Callable[[Writer], None], files: Iterable[Path] = ()
    ) -> bool:
        """Take records out, in one transaction, after they were put into the quarantine. Returns whether it was done.

        Args:
            lost: records that `apply` removes.
            files: files that are removed afterwards.
        """
        return self._act(action, lost, apply, files)

    def _act(
        self, action: Action, lost: Iterable[Lost], apply: Callable[[Writer], None], files: Iterable[Path] = ()
    ) -> bool:
        if not self.dry_run:
            self._keep(action, lost, files)
            try:
                with self.env.write() as txn:
                    apply(txn)
            except ChangedError:
                self.look_again = True
                return False
        self.actions.append(action)
        self._blobs = None
        return True

    @contextmanager
    def unless_changed(self) -> Iterator[None]:
        """Leave to the next round what turns out to be another than it was, within the block."""
        try:
            yield
        except ChangedError:
            self.look_again = True

    def _keep(self, action: Action, lost: Iterable[Lost], files: Iterable[Path]) -> None:
        kept: list[str] = []
        for table, key in lost:
            with self.env.read() as txn:
                value = txn.get_unchecked(table, key)
                raw = None if value is None else bytes(value)
            if raw is not None:
                kept.append(self.quarantine.keep_record(table, key, raw))
        kept += [self.quarantine.keep_file(path, "spool") for path in files if path.exists()]
        if kept or action.outcome != "repaired":
            entry = {"kind": action.kind, "name": action.name, "reason": action.how, "outcome": action.outcome}
            self.quarantine.note({**entry, "images": action.images, "paths": action.paths, "files": kept})

    def blobs(self) -> dict[Digest, BlobRecord]:
        """All blobs whose record can be read."""
        if self._blobs is None:
            found: dict[Digest, BlobRecord] = {}

            def visit(txn: Reader, key: bytes, _value: memoryview) -> None:
                with suppress(CorruptError, InvalidError):
                    payload = txn.get(Table.BLOBS, key)
                    if payload is not None:
                        digest = Digest.from_key(key)
                        found[digest] = BlobRecord.decode(payload, str(digest))

            walk_values(self.env, Table.BLOBS, visit)
            self._blobs = found
        return self._blobs

    def holders(self, digest: Digest) -> list[str]:
        """The repositories that have a blob, as far as their links can be read."""
        return self._reverse(Table.LINKS, digest)

    def manifest_holders(self, digest: Digest) -> list[str]:
        """The repositories that have a manifest, as far as their links can be read."""
        return self._reverse(Table.MANIFEST_LINKS, digest)

    def _reverse(self, table: Table, digest: Digest) -> list[str]:
        with self.env.read() as txn:
            keys = [key for key, _ in txn.scan(table, digest.key, check=False)]
        return sorted({name for key in keys if (name := key[len(digest.key) :].decode(errors="ignore"))})

    def value(self, table: Table, key: bytes) -> bytes | None:
        """A record as it lies there, with its checksum."""
        with self.env.read() as txn:
            value = txn.get_unchecked(table, key)
            return None if value is None else bytes(value)

    def is_sound(self, table: Table, key: bytes) -> bool:
        """Whether a record is there, and its checksum is right."""
        value = self.value(table, key)
        return value is not None and is_sound(table, key, value)


def mend_bits(context: Context) -> None:
    """Mend all records with a problem in which one bit is wrong. Their problems are done with."""
    left: list[Problem] = []
    for problem in context.problems:
        found = find_keys(problem.kind, problem.name)
        mended = [] if found is None else [_mend(context, problem, found[0], key) for key in found[1]]
        if not any(mended):
            left.append(problem)
    context.problems = left


def _mend(context: Context, problem: Problem, table: Table, key: bytes) -> bool:
    value = context.value(table, key)
    if value is None or is_sound(table, key, value):
        return False
    mended = mend_record(table, key, value)
    if mended is None:
        return False
    right, payload = mended

    def apply(txn: Writer) -> None:
        expect(txn, table, key, value)
        if right != key and txn.has(table, right):
            raise ChangedError
        txn.delete(table, key)
        txn.put(table, right, payload)

    context.recount = context.recount or right != key
    how = "one bit of it was wrong" if right == key else f"one bit of its key was wrong: {name_record(table, right)[1]}"
    return context.repaired(problem.kind, problem.name, how, apply)
