"""Remove layers, recipes and objects that are not marked: from the top down, so that what is left is whole.

A layer goes before its recipe, a recipe before the objects and extents that it names. Whoever finds a layer, in a
transaction, has found one that is marked, or one that is marked before anything of it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool_service.store.collect.marking import batches
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import LayerRecord, parse_recipe_key, recipe_key
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.store.collect.gate import Gate, Turn
    from pagepool_service.store.collect.marking import Marker
    from pagepool_service.store.collect.report import Report
    from pagepool_service.store.environment import Environment, Writer


class RecordSweep:
    """Sweeps three tables.

    Args:
        gate: makes the write transactions; None for a dry run.
        recipe_limit: recipes from this number on are left alone.
    """

    def __init__(self, env: Environment, marker: Marker, gate: Gate | None, report: Report, recipe_limit: int) -> None:
        self._env = env
        self._marker = marker
        self._gate = gate
        self._report = report
        self._limit = recipe_limit

    def run(self) -> None:
        """Sweep them."""
        self._sweep_layers()
        self._sweep_recipes()
        self._sweep_objects()

    def _is_dead(self, recipe: int) -> bool:
        return recipe < self._limit and recipe not in self._marker.recipes

    def _sweep_layers(self) -> None:
        for batch in batches(self._env, Table.LAYERS):
            dead = [key for key, payload in batch if self._is_dead(LayerRecord.decode(payload).recipe)]
            self._report.kept["layers"] += len(batch) - len(dead)
            if self._gate is None:
                self._report.freed["layers"] += len(dead)
            else:
                self._gate.each(dead, self._drop_layer)

    def _drop_layer(self, txn: Writer, key: bytes) -> None:
        payload = txn.get(Table.LAYERS, key)
        if payload is not None and self._is_dead(LayerRecord.decode(payload).recipe):
            txn.delete(Table.LAYERS, key)
            self._report.freed["layers"] += 1

    def _sweep_recipes(self) -> None:
        for recipe in self._recipes():
            if not self._is_dead(recipe):
                continue
            if self._gate is None:
                with self._env.read() as txn:
                    chunks = txn.scan(Table.RECIPES, recipe_key(recipe, 0)[:8], check=False)
                    self._report.recipe_bytes += sum(len(value) - CHECKSUM_SIZE for _, value in chunks)
            else:
                while self._gate.run(lambda turn, recipe=recipe: self._drop_chunks(turn, recipe)):  # type: ignore[misc]
                    pass
            self._report.freed["recipes"] += 1

    def _recipes(self) -> Iterator[int]:
        """The numbers of all recipes, none of whose chunks is read."""
        number = 0
        while True:
            with self._env.read() as txn:
                record = next(txn.scan(Table.RECIPES, start=recipe_key(number, 0), check=False), None)
            if record is None:
                return
            number = parse_recipe_key(record[0])[0]
            yield number
            number += 1

    def _drop_chunks(self, turn: Turn, recipe: int) -> bool:
        """Remove some chunks of a recipe. Returns whether there may be more."""
        if not self._is_dead(recipe):
            return False
        removed, prefix = 0, recipe_key(recipe, 0)[:8]
        more = True
        while more and not turn.is_over:
            record = next(turn.txn.scan(Table.RECIPES, prefix, check=False), None)
            if record is None:
                more = False
            else:
                removed += len(record[1]) - CHECKSUM_SIZE
                turn.txn.delete(Table.RECIPES, record[0])
        totals = Totals.load(turn.txn)
        totals.recipes_stored = max(0, totals.recipes_stored - removed)
        totals.store(turn.txn)
        self._report.recipe_bytes += removed
        return more

    def _sweep_objects(self) -> None:
        for batch in batches(self._env, Table.OBJECTS, check=False):
            dead = [key for key, _ in batch if key not in self._marker.live]
            if self._gate is None:
                self._report.freed["objects"] += len(dead)
            else:
                self._gate.each(dead, self._drop_object)

    def _drop_object(self, txn: Writer, key: bytes) -> None:
        if key not in self._marker.live and txn.delete(Table.OBJECTS, key):
            self._report.freed["objects"] += 1
