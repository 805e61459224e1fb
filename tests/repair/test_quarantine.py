"""What repair does to what it cannot get, and what it leaves alone."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import BlobUnknownError
from pagepool.oci import parse_manifest
from pagepool.oci.mediatypes import OCI_FOREIGN_LAYER_GZIP, OCI_MANIFEST
from pagepool_service.backup.repository import open_repository
from pagepool_service.backup.taking import take_backup
from pagepool_service.repair.sources import LayoutSource
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.backup.helpers import blobs_of, content
from tests.faults import records
from tests.repair.helpers import file_frames, first, opaque_frames, repair, wreck, wreck_all
from tests.store.checking import check
from tests.store.samples import APP, OPAQUE
from tests.support.cli import pagepool
from tests.support.server import running_service

if TYPE_CHECKING:
    from tests.backup.conftest import Made
    from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("checked_here")


def test_what_nothing_brings_back_is_named_and_can_be_pushed_again(alone: Path, tmp_path: Path, run: Run) -> None:
    layout = tmp_path / "layout"
    with running_service(alone) as service:
        pagepool("pull", f"{service.host}/lib/two:1", layout)
    wreck_all(alone, [*file_frames(alone), *opaque_frames(alone, OPAQUE)])
    _heal_from_layout(alone, tmp_path / "healed", layout)
    result = run("fsck", "--repair", "--json", "--data", alone)
    assert result.code == 5
    told = result.json
    lost = {(a["kind"], a["name"]): a for a in told["actions"] if a["outcome"] == "quarantined"}
    app, opaque = str(Digest.of(APP)), str(Digest.of(OPAQUE))
    assert set(lost) == {("layer", app), ("blob", app), ("blob", opaque)}
    layer = lost["layer", app]
    assert layer["images"] == lost["blob", app]["images"] == ["lib/two:1"]
    assert layer["paths"] == [f"{Digest.of(APP)} {path}" for path in ("srv/app", "srv/small")]
    assert told["remaining"] == []
    quarantine = Path(told["quarantine"])
    lines = [json.loads(line) for line in (quarantine / "listing.jsonl").read_text().splitlines()]
    assert str(Digest.of(APP)) in {line["name"] for line in lines}
    assert all((quarantine / name).is_file() for line in lines for name in line["files"])
    assert "image: lib/two:1" in (quarantine / "listing.txt").read_text()
    assert run("fsck", "--repair", "--data", alone).code == 0
    with running_service(alone) as service:
        for repository, name in (("lib/two", app), ("lib/one", opaque)):
            assert httpx.head(f"{service.url}/v2/{repository}/blobs/{name}").status_code == 404
        pagepool("push", layout, f"{service.host}/lib/two:1")
        pagepool("pull", f"{service.host}/lib/two:1", tmp_path / "again")
    assert {p.name for p in (tmp_path / "again" / "blobs").rglob("*")} == {
        p.name for p in (layout / "blobs").rglob("*")
    }
    assert check(alone).problems == []


def test_what_an_earlier_repair_has_taken_out_is_fetched(data: Path, made: Made, tmp_path: Path, run: Run) -> None:
    """If a manifest still lists it, and only there; a dry run and a place without it change nothing."""
    wreck_all(data, records(data, Table.FRAMES))
    assert run("fsck", "--repair", "--data", data).code == 5
    with Store.open(data, readonly=True) as store:
        lost = [digest for digest in made.sample.blobs if not store.blobs.exists(digest)]
    assert lost
    with open_repository(tmp_path / "backup", write=True) as repository:
        take_backup(made.data, repository)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    _name_elsewhere(data, "lib/thief", APP)
    before = content(data)
    for more in (("--from", tmp_path / "empty"), ("--from", tmp_path / "backup", "--dry-run")):
        assert run("fsck", "--repair", "--data", data, *more).code == 0
        assert content(data) == before
    done = run("fsck", "--repair", "--json", "--data", data, "--from", tmp_path / "backup")
    assert (done.code, done.json["remaining"]) == (0, []), done.out
    brought = {action["name"] for action in done.json["actions"]}
    assert {action["outcome"] for action in done.json["actions"]} == {"repaired"}
    manifests = [record.value for record in records(data, Table.MANIFESTS)]
    assert all(any(name.encode() in manifest for manifest in manifests) for name in brought)
    listed = {str(digest) for digest in lost if any(str(digest).encode() in manifest for manifest in manifests)}
    assert str(Digest.of(APP)) in listed
    assert brought & set(map(str, lost)) == listed  # there are configurations, too
    with Store.open(data, readonly=True) as store:
        assert {str(digest) for digest in lost if store.blobs.exists(digest)} == listed
        assert store.registry.stat_blob("lib/two", Digest.of(APP)).size == len(APP)
        with pytest.raises(BlobUnknownError):
            store.registry.stat_blob("lib/thief", Digest.of(APP))
    wanted = [digest for digest in made.sample.blobs if str(digest) in brought]
    assert blobs_of(data, wanted) == {digest: made.sample.blobs[digest] for digest in wanted}
    again = run("fsck", "--repair", "--json", "--data", data, "--from", tmp_path / "backup")
    assert (again.code, again.json["actions"]) == (0, [])


def _name_elsewhere(data: Path, repository: str, blob: bytes) -> None:
    """Put a manifest there that names somebody else's blob, as a layer that a repository need not have."""
    elsewhere = {"mediaType": OCI_FOREIGN_LAYER_GZIP, "digest": str(Digest.of(blob)), "size": len(blob)}
    elsewhere["urls"] = ["https://example.com/layer"]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": elsewhere, "layers": [elsewhere]}
    raw = json.dumps(document).encode()
    with Store.open(data) as store:
        store.registry.put_manifest(repository, Digest.of(raw), parse_manifest(raw, OCI_MANIFEST))


def _heal_from_layout(data: Path, copy: Path, layout: Path) -> None:
    shutil.copytree(data, copy)
    wreck_all(copy, [first(copy, Table.MANIFESTS)])
    done = repair(copy, sources=[LayoutSource(layout, None)])
    assert any(str(layout) in action.how for action in done.actions), done.actions
    assert blobs_of(copy, [Digest.of(APP)]) == {Digest.of(APP): APP}
    assert done.after.problems == []


def test_a_dry_run_changes_nothing(alone: Path, run: Run) -> None:
    wreck_all(alone, file_frames(alone))
    for table in (Table.MANIFESTS, Table.TAGS, Table.LINKS, Table.LEASES, Table.JOBS):
        wreck(alone, first(alone, table), random.Random(1))
    before = {table: records(alone, table) for table in Table}
    result = run("fsck", "--repair", "--dry-run", "--data", alone)
    assert result.code == 5
    assert "would be quarantined: layer" in result.out
    assert "nothing was changed" in result.out
    assert {table: records(alone, table) for table in Table} == before
    assert not (alone / "quarantine").exists()
    assert [path.name for path in (alone / "uploads").iterdir()] == []


def test_what_cannot_be_asked_for(data: Path, run: Run, tmp_path: Path) -> None:
    assert run("fsck", "--dry-run", "--data", data).code == 2
    assert run("fsck", "--from", "x", "--data", data).code == 2
    assert run("fsck", "--repair", "lib/one:1", "--data", data).code == 2
    result = run("fsck", "--repair", "--from", tmp_path / "none", "--data", data)
    assert (result.code, "there is no such file" in result.err) == (4, True)
    assert run("fsck", "--repair", "--data", tmp_path / "none").code == 1
    # A place that cannot be asked may have everything: nothing is given up for lost.
    wreck_all(data, records(data, Table.FRAMES))
    assert run("fsck", "--repair", "--from", "http://127.0.0.1:9", "--data", data).code == 6
    assert not (data / "quarantine").exists()
    shutil.rmtree(data)
    Store.open(data).close()
    assert "no problems found" in run("fsck", "--repair", "--data", data).out
