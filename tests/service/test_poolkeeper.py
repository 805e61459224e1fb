"""The service's pool on disk: what is damaged at rest is found, removed, and read from the store again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool, Scrubber
from pagepool_service.cache import ExtentCache
from pagepool_service.poolkeeper import repair
from pagepool_service.settings import Settings
from pagepool_service.store.store import Store
from tests.store.helpers import noise, text
from tests.support.objects import add_layer, build_tree

if TYPE_CHECKING:
    from pathlib import Path

SMALL = text(9000, 1)
LARGE = noise(3 * EXTENT_SIZE + 1, 2)
STRANGE = b"of nobody"


def test_damage_is_mended_from_the_store(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "data")
    with Store.open(settings.data) as store:
        tree = build_tree(store, [add_layer(store, {"small": SMALL, "large": LARGE})])
        pool = Pool.open(tmp_path / "pool", budget=1 << 30, durable=True)
        cache = ExtentCache(store, pool, pool.budget)
        for index in range(tree.object_count):
            info = tree.object(index)
            assert cache.fill(info, 0, info.extent_count)
        strange = pool.put(blake3_raw(STRANGE), STRANGE)
        assert strange is not None
        strange.close()
        cache.close()
    with Pool.open(tmp_path / "pool", budget=1 << 30) as pool:
        for data in (SMALL, LARGE, STRANGE):
            name = blake3_raw(data).hex()
            path = pool.path / "objects" / name[:2] / name[2:]
            with path.open("r+b") as file:
                file.seek(len(data) // 2)
                file.write(bytes((data[len(data) // 2] ^ 1,)))
        report = Scrubber(pool, lambda digest: repair(pool, settings, digest)).run()
        assert {damage.digest: damage.repaired for damage in report.damaged} == {
            blake3_raw(SMALL): True,
            blake3_raw(LARGE): True,
            blake3_raw(STRANGE): False,
        }
        for data in (SMALL, LARGE):
            found = pool.get(blake3_raw(data))
            assert found is not None
            assert found.view == data
            found.close()
        assert pool.get(blake3_raw(STRANGE)) is None
