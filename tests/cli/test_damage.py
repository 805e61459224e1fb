"""Damaged records of a store: every list names what is sound, and what is not; it is told from the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import Digest
from pagepool_service.store.catalogue import link_key
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import LayerRecord
from pagepool_service.store.store import Store
from tests.faults import Record, flip_record, records
from tests.service.test_metrics import figure, scrape
from tests.store.samples import ALONE, SPOOLED, Sample, fill_store, push_image
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Run


def _flip(data: Path, table: Table, key: bytes) -> None:
    (record,) = (record for record in records(data, table) if record.key == key)
    flip_record(data, record, len(record.value) // 2)


def _referrer(data: Path) -> Record:
    (record,) = records(data, Table.REFERRERS)
    return record


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Sample]]:
    """A service whose store has one damaged record of each kind that lists are made of."""
    data = tmp_path_factory.mktemp("damaged") / "data"
    with Store.open(data) as store:
        sample = fill_store(store)
        push_image(store, "lib/one", "2", [])
        gone = push_image(store, "gone", "1", [])
    layer = next(record for record in records(data, Table.LAYERS) if record.key == Digest.of(ALONE).key)
    recipe = LayerRecord.decode(layer.value[:-CHECKSUM_SIZE]).recipe
    _flip(data, Table.TAGS, b"lib/one\x001")
    _flip(data, Table.MANIFESTS, sample.images["lib/two:1"].key)
    _flip(data, Table.MANIFEST_LINKS, link_key("gone", Digest.of(gone.raw)))
    _flip(data, Table.RECIPES, recipe.to_bytes(8, "big") + bytes(8))
    _flip(data, Table.BLOBS, Digest.of(SPOOLED).key)
    _flip(data, Table.REFERRERS, _referrer(data).key)
    _flip(data, Table.META, b"totals")
    with running_service(data, "--metrics-listen", "127.0.0.1:0") as service:
        yield service, sample


def _get(service: Service, path: str) -> Any:
    answer = httpx.get(service.url + path, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _reasons(found: list[dict[str, str]]) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in found}


def test_images_with_damage_are_named_beside_the_others(run: Run, damaged: tuple[Service, Sample]) -> None:
    service, sample = damaged
    images = {f"{image['name']}:{image['tag']}": image for image in _get(service, "/v1/images")["images"]}
    assert {name: image["state"] for name, image in images.items()} == {
        "gone:1": "unmountable",
        "lib/one:1": "damaged",
        "lib/one:2": "unmountable",
        "lib/three:1": "unmountable",
        "lib/two:1": "damaged",
        "multi:1": "unmountable",
    }
    assert "corrupt tags record" in images["lib/one:1"]["reason"]
    assert "corrupt manifests record" in images["lib/two:1"]["reason"]
    assert images["lib/two:1"]["digest"] == str(sample.images["lib/two:1"])
    # Page by page, too: each once.
    for size in (1, 2, 4):
        page = _get(service, f"/v1/images?n={size}")
        found = list(page["images"])
        while "next" in page:
            page = _get(service, f"/v1/images?n={size}&last={page['next']}")
            found += page["images"]
        assert found == list(images.values())
    result = run("images", "--server", service.url)
    assert result.code == 5
    assert "multi" in result.out
    warnings = result.err.splitlines()
    assert len(warnings) == 2
    assert warnings[0].startswith("pagepool: warning: lib/one:1 is damaged on the server: corrupt tags record")
    quiet = run("images", "-q", "--server", service.url)
    assert (quiet.code, quiet.out.split(), quiet.err) == (
        5, ["gone:1", "lib/one:2", "lib/three:1", "multi:1"], result.err,
    )  # fmt: skip


def test_names_with_damage_are_named_beside_the_others(run: Run, damaged: tuple[Service, Sample]) -> None:
    service, _ = damaged
    found = _get(service, "/v2/_catalog")
    assert found["repositories"] == ["lib/one", "lib/three", "lib/two", "multi"]
    assert _reasons(found["damaged"]).keys() == {"gone"}
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    found = _get(service, "/v2/lib/one/tags/list")
    assert (found["tags"], *_reasons(found["damaged"])) == (["2"], "1")
    # They are not skipped between pages, nor told twice.
    first = httpx.get(f"{service.url}/v2/lib/one/tags/list?n=1")
    assert (first.json()["tags"], *_reasons(first.json()["damaged"])) == (["2"], "1")
    assert "next" not in first.links
    pages = [httpx.get(f"{service.url}/v2/_catalog?n=1")]
    while "next" in pages[-1].links:
        pages.append(httpx.get(service.url + pages[-1].links["next"]["url"]))
    assert [page.json()["repositories"] for page in pages] == [["lib/one"], ["lib/three"], ["lib/two"], ["multi"]]
    assert [len(page.json().get("damaged", ())) for page in pages] == [1, 0, 0, 0]
    assert "damaged" not in _get(service, "/v2/multi/tags/list")
    result = run("tags", f"{service.url.removeprefix('http://')}/lib/one")
    assert (result.code, result.out) == (5, "2\n")
    assert result.err.startswith("pagepool: warning: lib/one:1 is damaged on the server: corrupt tags record")
    assert result.err.count("\n") == 1
    result = run("tags", "--json", f"{service.url.removeprefix('http://')}/lib/one")
    assert (result.code, result.json["tags"], *_reasons(result.json["damaged"])) == (5, ["2"], "1")


def test_a_damaged_referrer_is_listed_as_its_manifest_has_it(damaged: tuple[Service, Sample]) -> None:
    service, sample = damaged
    (entry,) = _get(service, f"/v2/lib/one/referrers/{sample.images['lib/one:1']}")["manifests"]
    assert entry["digest"] == str(sample.images["about"])
    record = bytearray(_referrer(service.data).value)
    record[len(record) // 2] ^= 1  # as it was
    assert entry == json.loads(record[:-CHECKSUM_SIZE])


def test_what_is_damaged_is_not_counted_and_named(run: Run, damaged: tuple[Service, Sample]) -> None:
    service, _ = damaged
    found = _get(service, "/v1/stats")
    reasons = _reasons(found["damaged"])
    assert len(reasons) == 5  # two images that are left out, one whose files are not compared, a blob, the totals
    assert "corrupt recipes record" in reasons["lib/three:1"]
    images = {f"{image['name']}:{image['tag']}": image for image in found["images"]}
    assert images.keys() == {"gone:1", "lib/one:2", "lib/three:1", "multi:1"}
    assert images["lib/three:1"]["logical_bytes"] > 0
    assert images["lib/three:1"]["unique_bytes"] is None
    assert images["multi:1"]["unique_bytes"] > 0
    total = found["total"]
    assert total["blob_bytes"] > 0
    assert total["stored"]["index"] > 0
    assert total["unique_bytes"] is total["stored_bytes"] is total["stored"]["files"] is None
    result = run("stats", "--server", service.url)
    assert result.code == 5
    assert "multi" in result.out
    assert "warning: image lib/one:1 is damaged on the server: corrupt tags record" in result.err
    assert "warning: meta record 746f74616c73 is damaged on the server: corrupt meta record" in result.err
    assert run("stats", "--json", "--server", service.url).json["damaged"] == found["damaged"]
    overview = _get(service, "/v1/overview")["store"]
    assert (overview["damaged"], overview["images"], overview["stored_bytes"]) == (4, 4, None)
    assert _get(service, "/v1/sharing")["left_off"]


def test_metrics_go_on_without_what_is_damaged(damaged: tuple[Service, Sample]) -> None:
    figures = scrape(damaged[0])
    assert figure(figures, "pagepool_collect_success", part="store") == 0
    assert figure(figures, "pagepool_collect_success", part="jobs") == 1
    assert figure(figures, "pagepool_store_blobs") > 0
    assert figure(figures, "pagepool_store_bytes", kind="index") > 0
    assert ("pagepool_store_unique_bytes", ()) not in figures
