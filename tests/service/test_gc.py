"""`pagepool gc`, collection by itself, and what requests and settings have to do with it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from click.testing import CliRunner

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import BusyError, StoreFormatError
from pagepool_service.collecting import Keeper, policy_of
from pagepool_service.commands.gc import gc
from pagepool_service.metrics.collecting import ServiceCollector
from pagepool_service.roster import Roster
from pagepool_service.settings import SettingInvalidError, Settings
from pagepool_service.store.catalogue import link_time
from pagepool_service.store.collect import Policy, TagRule
from pagepool_service.store.collect.collector import lock_collection
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from pagepool_service.treesweep import sweep_trees
from tests.faults import flip_record, records
from tests.service.pushes import push_image as push_over_http
from tests.store.collecting import Layer, push_image
from tests.store.helpers import ingest_all, noise
from tests.support.server import running_service

if TYPE_CHECKING:
    from pathlib import Path

NAME = "some/app"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A data directory with an image, and one that was deleted."""
    data = tmp_path / "data"
    with Store.open(data) as store:
        push_image(store, NAME, [Layer({"a": noise(200_000)})], tags=["kept"])
        lost = push_image(store, NAME, [Layer({"b": noise(2_000_000, 1)})], tags=["lost"], note="lost")
        ingest_all(store)
        store.registry.delete_manifest(NAME, lost.digest)
    return data


def run(data: Path, *arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(gc, ["--data", str(data), *arguments], catch_exceptions=False)
    return found.exit_code, found.stdout


def test_the_command_says_what_it_would_free_and_what_it_freed(full: Path) -> None:
    now = ("--grace", "0", "--untagged-older-than", "0s")
    before = (full / "store" / "data.mdb").read_bytes()
    code, text = run(full, *now, "--dry-run")
    assert code == 0
    assert "would be freed:" in text
    assert (full / "store" / "data.mdb").read_bytes() == before
    said = json.loads(run(full, *now, "--dry-run", "--json")[1])
    done = json.loads(run(full, *now, "--json")[1])
    assert said["freed"]["blobs"] == done["freed"]["blobs"] == 2
    assert said["dry_run"]
    assert done["punched_bytes"] > 0
    assert done["space_after_bytes"] < done["space_before_bytes"]
    assert done["kept"]["manifests: tag"] == 1
    code, text = run(full, *now)
    assert code == 0
    assert "nothing" in text
    assert "manifests: tag" in text


def test_a_dry_run_names_the_tags_that_would_go(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Store.open(data) as store:
        push_image(store, NAME, [Layer({"a": b"a"})], tags=["b", "a", "c"])
        push_image(store, "other/app", [Layer({"a": b"a"})], tags=["x", "y"])
        ingest_all(store)
    code, text = run(data, "--dry-run", "--keep-tags", f"{NAME}=1")
    assert code == 0
    said = json.loads(run(data, "--dry-run", "--json", "--keep-tags", f"{NAME}=1")[1])["tags"]
    assert text.partition("tags that would go:\n")[2].splitlines()[:2] == [f"  {tag}" for tag in said]
    assert len(said) == 2
    done = json.loads(run(data, "--json", "--keep-tags", f"{NAME}=1")[1])
    assert done["freed"]["tags"] == 2
    with Store.open(data) as store:
        left = {f"{NAME}:{tag}" for tag in store.registry.listings.tags(NAME, 10).names}
    assert left | set(said) == {f"{NAME}:{tag}" for tag in "abc"}
    assert "tags that would go" not in run(data, "--dry-run")[1]


def test_by_default_what_was_deleted_has_its_time(full: Path) -> None:
    said = json.loads(run(full, "--json")[1])
    assert "blobs" not in said["freed"]
    assert said["kept"]["blobs: of no manifest, in their time"] == 2


def test_times_that_are_shorter_than_a_service_notes_are_warned_of(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is renewed by HEAD only where it is old: a blob that was found just now may look older than it is."""

    def warnings(*arguments: str) -> list[str]:
        found = CliRunner().invoke(gc, ["--data", str(full), "--dry-run", *arguments], catch_exceptions=False)
        assert found.exit_code == 0
        return [line for line in found.stderr.splitlines() if "warning" in line]

    assert warnings() == warnings("--grace", "2h") == warnings("--grace", "0", "--untagged-older-than", "0") == []
    (warning,) = warnings("--grace", "10m")
    assert "--grace is 600 s, and a service notes only every 3600 s" in warning
    (warning,) = warnings("--untagged-older-than", "90m", "--json")
    assert "--untagged-older-than is 5400 s" in warning
    monkeypatch.setenv("PAGEPOOL_GC_GRACE", "10m")  # the service's, too: it notes what it has to
    assert warnings() == []


def test_tags_beyond_the_newest_go(full: Path) -> None:
    with Store.open(full) as store:
        push_image(store, NAME, [Layer({"c": b"c"})], tags=["new"], note="new")
    said = json.loads(run(full, "--json", "--keep-tags", "some/*=1,*=all", "--untagged-older-than", "0")[1])
    assert said["freed"]["tags"] == said["freed"]["manifests"] == 1


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--grace", "soon", "length of time"),
        ("--untagged-older-than", "-1", "length of time"),
        ("--keep-tags", "many", "number of tags"),
        ("--keep-tags", "=3", "number of tags"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, option: str, value: str, why: str) -> None:
    found = CliRunner().invoke(gc, ["--data", str(tmp_path), option, value])
    assert found.exit_code == 2
    assert value in found.output.replace("\n", " ")
    assert why in " ".join(found.output.split())


def test_no_store_another_collector_and_damage(full: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match="holds no pagepool store"):
        run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with lock_collection(full), pytest.raises(BusyError, match=str(os.getpid())):
        run(full, "--no-wait")
    flip_record(full, records(full, Table.MANIFESTS)[0], 40)
    code, text = run(full, "--grace", "0")
    assert code == 5
    assert f"{NAME} keeps all its blobs and manifests" in text
    code, text = run(full, "--grace", "0", "--quiet")
    assert code == 5
    assert text.startswith(f"problem: {NAME} keeps all")
    assert len(text.splitlines()) == 1


def test_quiet(full: Path) -> None:
    """For cron: there is nothing to say of a collection that went well."""
    assert run(full, "--grace", "0", "-q") == (0, "")


def test_it_collects_by_itself_when_it_is_worth_it(full: Path) -> None:
    settings = Settings(full, gc_grace_s=0, gc_untagged_s=0, gc_garbage_bytes=1 << 30)
    with Store.open(full) as store:
        keeper = Keeper(store, settings)
        report = keeper.look()
        assert report is not None
        assert report.freed["blobs"] == 2, "the rules take them, however little that is"
        assert keeper.look() is None
        # What nothing refers to, and no rule sees: it has to be enough.
        layer = Layer({"c": noise(500_000, 2)})
        push_image(store, "x", [layer])
        ingest_all(store)
        store.registry.delete_manifest("x", _manifest_of(store, "x"))
        for digest in _blobs_of(store, "x"):
            store.registry.delete_blob("x", digest)
        assert not store.blobs.exists(layer.digest)
        assert keeper.look() is None
        eager = Keeper(store, Settings(full, gc_grace_s=0, gc_garbage_bytes=1000))
        report = eager.look()
        assert report is not None
        assert report.freed["layers"] == 1


def _manifest_of(store: Store, repository: str) -> Digest:
    with store.env.read() as txn:
        key, _ = next(txn.scan(Table.MANIFEST_LINKS, f"{repository}\0".encode()))
    return Digest.from_key(key.partition(b"\0")[2])


def _blobs_of(store: Store, repository: str) -> list[Digest]:
    prefix = f"{repository}\0".encode()
    with store.env.read() as txn:
        return [Digest.from_key(key[len(prefix) :]) for key, _ in txn.scan(Table.LINKS, prefix)]


def test_files_about_trees_that_are_gone_go(full: Path) -> None:
    with Store.open(full) as store:
        living = _manifest_of(store, NAME)
        gone, old = Digest.of(b"gone"), time.time() - 7200
        trees = {"alive": b"1" * 32, "gone": b"2" * 32, "leased": b"3" * 32}
        store.leases.take(NAME, trees["leased"], "node", 3600, (gone, []))
        name = blake3_raw(NAME.encode()).hex()
        files: dict[str, Path] = {}
        for what, tree in trees.items():
            files[what] = full / "trees" / tree.hex()
            files[f"{what} erofs"] = full / "trees" / "erofs" / tree.hex()
            files[f"{what} link"] = full / "trees" / "links" / f"{tree.hex()}-{name}"
            files[f"{what} profile"] = full / "profiles" / name / tree.hex()
        for what, digest in {"alive": living, "gone": gone}.items():
            files[f"{what} image"] = full / "trees" / "images" / blake3_raw(str(digest).encode()).hex()
        for what, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{living if what.startswith('alive') else gone}\n")
        assert not sweep_trees(store), "they are young"
        for path in files.values():
            os.utime(path, (old, old))
        told = sweep_trees(store, dry=True)
        assert all(path.exists() for path in files.values())
        assert sweep_trees(store) == told
    left = {what for what, path in files.items() if path.exists()}
    assert {what for what in files if what.startswith("alive")} <= left
    assert {"leased", "leased erofs", "leased profile"} <= left
    assert not {what for what in left if what.startswith("gone")}


def test_who_asks_for_something_renews_it(tmp_path: Path) -> None:
    """HEAD of a blob, and GET of a manifest by its digest; other requests do not."""
    options = {"PAGEPOOL_GC_GRACE": "0.2"}
    with running_service(tmp_path / "data", **options) as service, httpx.Client(base_url=service.url) as http:
        digest = push_over_http(http, NAME, "1")
        blob = http.get(f"/v2/{NAME}/manifests/1").json()["config"]["digest"]
        first = _times(service.data)
        assert http.get(f"/v2/{NAME}/blobs/{blob}").status_code == 200
        time.sleep(0.15)  # half of the grace time, after which a link is old
        assert _times(service.data) == first
        assert http.head(f"/v2/{NAME}/blobs/{blob}").status_code == 200
        second = _times(service.data)
        assert {key for key in first if second[key] != first[key]} == {("links", blob)}
        manifest = "manifest_links", str(digest)
        assert http.get(f"/v2/{NAME}/manifests/1").status_code == 200
        assert _times(service.data) == second
        assert http.get(f"/v2/{NAME}/manifests/{digest}").status_code == 200
        third = _times(service.data)
        assert third[manifest] > second[manifest]
        assert http.delete(f"/v2/{NAME}/manifests/1").status_code == 202
        assert _times(service.data)[manifest] > third[manifest]


def _times(data: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    prefix = f"{NAME}\0".encode()
    with Store.open(data, readonly=True, shared=True) as store, store.env.read() as txn:
        for table in (Table.LINKS, Table.MANIFEST_LINKS):
            for key, value in txn.scan(table, prefix):
                found[table.label, str(Digest.from_key(key[len(prefix) :]))] = link_time(value)
    return found


def test_settings() -> None:
    found = Settings.load(
        {
            "PAGEPOOL_DATA": "/x",
            "PAGEPOOL_GC_GRACE": "90m",
            "PAGEPOOL_GC_UNTAGGED": "never",
            "PAGEPOOL_GC_KEEP_TAGS": "ci/*=5, library/*=all,20",
            "PAGEPOOL_GC_INTERVAL": "2w",
        }
    )
    rules = (TagRule("ci/*", 5), TagRule("library/*", 0), TagRule("*", 20))
    assert policy_of(found) == Policy(5400, None, rules)
    assert found.gc_interval_s == 14 * 86_400
    assert [policy_of(found).most_tags(name) for name in ("ci/a", "library/a", "a")] == [5, 0, 20]
    with pytest.raises(SettingInvalidError, match="PAGEPOOL_GC_KEEP_TAGS=few"):
        Settings.load({"PAGEPOOL_GC_KEEP_TAGS": "few"})
    assert Settings.load({"PAGEPOOL_GC_GRACE": "10"}).renewed_after_ns == 5 * 10**9
    assert Settings.load({}).renewed_after_ns == 3600 * 10**9


def test_the_last_collection_is_in_the_figures(full: Path) -> None:
    run(full, "--grace", "0", "--untagged-older-than", "0")
    with Store.open(full) as store:
        collector = ServiceCollector(Settings(full), store, None, Roster(()))
        found: dict[tuple[str, str], Any] = {
            (sample.name, sample.labels.get("kind", "")): sample.value
            for family in collector.collect()
            for sample in family.samples
        }
    assert found["pagepool_collection_running", ""] == 0
    assert found["pagepool_collection_last_freed", "blobs"] == 2
    assert abs(found["pagepool_collection_last_end_timestamp_seconds", ""] - time.time()) < 600
    assert found["pagepool_collection_last_freed_content_bytes", ""] > 0
