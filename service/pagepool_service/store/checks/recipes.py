"""Recipes and objects' extent lists: structure only, no file content is read."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import LITERAL, SLICE, decode_chunk
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.checks.walk import walk, walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table, checksum
from pagepool_service.store.schema import LayerRecord, Location, ObjectRecord, parse_recipe_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.image import Op
    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Reader

_UNKNOWN = -1


def check_objects(context: Context) -> None:
    """Every object's extents have the lengths that make up its size.

    Whether they must be there depends on who refers to the object, see `lacks_extents`.
    """
    walk(context, Table.OBJECTS, _check_object)


def _check_object(txn: Reader, key: bytes, payload: memoryview) -> None:
    record = ObjectRecord.decode(payload, key.hex())
    left = record.size
    for repeat, digest in record.runs:
        length = _length_of(txn, digest)
        if length is not None and (length != min(left, EXTENT_SIZE) or repeat * length > left):
            raise CorruptError("object", key.hex(), f"its extent {digest.hex()} has {length} bytes")
        left -= repeat * EXTENT_SIZE


def lacks_extents(txn: Reader, digest: bytes) -> bool:
    """Whether an object with an extent list has extents that are not stored.

    No damage by itself: the extents of a blob that is in the spool, or is rebuilt from a recipe, are known by their
    digests alone. A damaged list is reported with the objects.
    """
    value = txn.get_unchecked(Table.OBJECTS, digest)
    if value is None:
        return False
    try:
        names = {name for _, name in ObjectRecord.decode(value[:-CHECKSUM_SIZE], digest.hex()).runs}
    except CorruptError:
        return False
    return len(txn.present(Table.EXTENTS, sorted(names))) < len(names)


def _length_of(txn: Reader, digest: bytes) -> int | None:
    """Bytes of an extent as the index has it; None if it does not, or that record is damaged itself."""
    try:
        payload = txn.get(Table.EXTENTS, digest)
        return None if payload is None else Location.decode(payload).length
    except CorruptError:
        return None


def check_recipes(context: Context) -> None:
    """Every recipe's chunks follow each other without a gap, and what they refer to is there."""
    with context.env.read() as txn:
        context.findings.stage("recipes", txn.table_bytes(Table.RECIPES))
    recipes = _Recipes(context)
    count = walk_values(context.env, Table.RECIPES, recipes.visit)
    recipes.finish()
    context.seen[Table.RECIPES.label] = count
    context.findings.count("recipe chunks", count)


class _Recipes:
    """Where the walk over the recipes is: the recipe at hand, and how far its chunks have come."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sizes: dict[int, int] = {}  # plain size of the layer that owns a recipe
        self._recipe = -1
        self._position = 0
        self._unowned: dict[int, int] = {}

        def note_owner(_txn: Reader, _key: bytes, payload: memoryview) -> None:
            with suppress(CorruptError):
                layer = LayerRecord.decode(payload)
                self._sizes[layer.recipe] = layer.plain_size

        # Damaged records are reported by the stage that checks the layers.
        walk_values(context.env, Table.LAYERS, lambda txn, key, value: note_owner(txn, key, value[:-CHECKSUM_SIZE]))

    def visit(self, txn: Reader, key: bytes, value: memoryview) -> None:
        """Take the next chunk."""
        findings = self._context.findings
        findings.advance(len(value))
        self._context.recounted.recipes_stored += len(value) - CHECKSUM_SIZE
        kind, name = name_record(Table.RECIPES, key)
        try:
            recipe, start = parse_recipe_key(key)
        except struct.error:
            findings.problem("database", Table.RECIPES.label, f"a key of {len(key)} bytes")
            return
        if recipe != self._recipe:
            self._close()
            self._recipe, self._position = recipe, 0
        if recipe not in self._sizes:
            # Of a layer that is being read now, or of an attempt that was cut off.
            self._unowned[recipe] = self._unowned.get(recipe, 0) + len(value)
            return
        try:
            self._check_chunk(txn, key, value, name, start)
        except CorruptError as error:
            findings.problem(kind, name, error.reason)
            self._position = -1

    def finish(self) -> None:
        """The walk has ended: check the last recipe, and that every layer has one."""
        self._close()
        for recipe, size in self._sizes.items():
            if size:
                self._context.findings.problem("recipe", str(recipe), "a layer is rebuilt from it, and it is not there")
        if self._unowned:
            total = sum(self._unowned.values())
            self._context.findings.note(
                f"{len(self._unowned)} recipes ({total} bytes) belong to no layer: "
                "of layers being read now, or left by interrupted attempts"
            )

    def _check_chunk(self, txn: Reader, key: bytes, value: memoryview, name: str, start: int) -> None:
        payload = value[:-CHECKSUM_SIZE]
        if checksum(Table.RECIPES, key, payload) != value[-CHECKSUM_SIZE:]:
            raise CorruptError("recipe", name, "its checksum does not match its bytes")
        ops = decode_chunk(payload, name)
        if self._position not in (start, _UNKNOWN):
            self._context.findings.problem("recipe", name, f"the chunk before it ends at {self._position}")
        self._position = start + sum(op.size for op in ops)
        if self._context.quick:
            _check_references(txn, ops, name)

    def _close(self) -> None:
        size = self._sizes.pop(self._recipe, None)
        if size is not None and self._position not in (size, _UNKNOWN):
            reason = f"it ends at {self._position}, and its layer has {size} bytes"
            self._context.findings.problem("recipe", str(self._recipe), reason)


def _check_references(txn: Reader, ops: Sequence[Op], name: str) -> None:
    small, large = references(ops)
    missing = small - txn.present(Table.EXTENTS, sorted(small))
    absent = large - txn.present(Table.OBJECTS, sorted(large))
    # An object of which only a slice is named may be of one extent.
    missing |= absent - txn.present(Table.EXTENTS, sorted(absent))
    missing |= {digest for digest in large - absent if lacks_extents(txn, digest)}
    if missing:
        raise CorruptError("recipe", name, f"{min(missing).hex()} is referred to and not there ({len(missing)} in all)")


def references(ops: Sequence[Op]) -> tuple[set[bytes], set[bytes]]:
    """The objects that operations name: those of one extent, and those that may have a record of their own."""
    small: set[bytes] = set()
    large: set[bytes] = set()
    for op in ops:
        if op.kind == LITERAL:
            continue
        (large if op.kind == SLICE or op.size > EXTENT_SIZE else small).add(bytes(op.data))
    return small, large
