"""The fsspec file system: as everybody uses it, by URL; images, and overlays that can be written."""

from __future__ import annotations

import csv
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from pagepool.errors import BusyError, ManifestUnknownError, ReferenceInvalidError
from pagepool.fsspec import PagepoolFileSystem, service_url, split_url
from pagepool.image import Kind
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.transport import RegistryClient, RegistrySink, Session
from tests.oci.samples import Sample
from tests.overlay.layers import whole_layer
from tests.support.server import running_service
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = "sha256:" + "0" * 64
BIG = bytes(range(256)) * 2000
TABLE = b"a,b\n1,2\n3,4\n"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with ``team/app:1`` and ``team/app:latest``."""
    builder = TreeBuilder()
    builder.file("data/table.csv", TABLE, mtime_ns=1_700_000_000_500_000_000)
    builder.file("data/more/big.bin", BIG, mode=0o600, uid=7, gid=8)
    builder.file("data/empty")
    builder.symlink("link.csv", "data/table.csv")
    builder.symlink("all", "/data")
    builder.symlink("loop", ".")
    builder.symlink("nowhere", "gone")
    builder.device("null", Kind.CHAR, (1, 3))
    sample = Sample()
    sample.add_image([whole_layer(builder.file_system())])
    with running_service(tmp_path_factory.mktemp("service") / "data") as service, Session(service.url) as session:
        for tag in ("1", "latest"):
            sink = RegistrySink(RegistryClient(session), Reference.parse(f"team/app:{tag}"))
            run_copy(plan_copy(sample), sample, sink)
        yield service.host


@pytest.fixture
def options(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Storage options: a pool of the test's own. What fsspec has cached is closed at the end."""
    yield {"directory": str(tmp_path / "client")}
    for instance in list(PagepoolFileSystem._cache.values()):
        instance.close()


@pytest.fixture
def image(host: str, options: dict[str, Any]) -> PagepoolFileSystem:
    """The image."""
    found = fsspec.filesystem("pagepool", url=f"http://{host}", image="team/app:1", **options)
    assert isinstance(found, PagepoolFileSystem)
    return found


@pytest.fixture
def overlay(host: str, options: dict[str, Any], tmp_path: Path) -> PagepoolFileSystem:
    """An overlay over it."""
    found = fsspec.filesystem(
        "pagepool", url=f"http://{host}", image="team/app:1", upper=str(tmp_path / "upper"), **options
    )
    assert isinstance(found, PagepoolFileSystem)
    return found


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("pagepool://h:5000/app:1/etc/x", ("h:5000", "app:1", "/etc/x")),
        ("pagepool://h/team/app:1", ("h", "team/app:1", "/")),
        ("pagepool://h/team/app:1/a:b/c@d", ("h", "team/app:1", "/a:b/c@d")),
        (f"pagepool://h/app@{DIGEST}/x", ("h", f"app@{DIGEST}", "/x")),
        (f"pagepool://h/app:1@{DIGEST}/x", ("h", f"app:1@{DIGEST}", "/x")),
        ("pagepool://h/team/app!/etc/x", ("h", "team/app", "/etc/x")),
        ("pagepool://h/app:1!/etc/x", ("h", "app:1", "/etc/x")),
        ("pagepool://h/app!", ("h", "app", "/")),
        ("pagepool://h/app:1/it!s", ("h", "app:1", "/it!s")),
        ("pagepool:///etc/x", ("", "", "/etc/x")),
    ],
)
def test_urls_are_taken_apart(url: str, expected: tuple[str, str, str]) -> None:
    assert split_url(url) == expected


def test_a_url_without_an_image_is_refused() -> None:
    with pytest.raises(ReferenceInvalidError, match="NAME:TAG"):
        split_url("pagepool://h/app/etc/x")


def test_plain_http_is_for_this_machine() -> None:
    assert service_url("127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert service_url("localhost:5000") == "http://localhost:5000"
    assert service_url("registry.example.org") == "https://registry.example.org"


def test_open_by_url(host: str, options: dict[str, Any]) -> None:
    """As a program does it that knows nothing of pagepool: text, bytes, and a symlink."""
    url = f"pagepool://{host}/team/app:1"
    with fsspec.open(f"{url}/data/table.csv", "rt", newline="", **options) as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "2"], ["3", "4"]]
    with fsspec.open(f"{url}/link.csv", **options) as file:
        assert file.read() == TABLE
    with fsspec.open(f"pagepool://{host}/team/app!/data/more/big.bin", **options) as file:
        file.seek(-10, 2)
        assert file.read() == BIG[-10:]
    names = [file.path for file in fsspec.open_files(f"{url}/data/**/*.bin", **options)]
    assert names == ["/data/more/big.bin"]


def test_the_options_say_which_image(host: str, options: dict[str, Any]) -> None:
    more = {"url": f"http://{host}", "image": "team/app"} | options
    with fsspec.open("pagepool:///data/table.csv", **more) as file:
        assert file.read() == TABLE


def test_a_url_for_each_path(host: str, image: PagepoolFileSystem, options: dict[str, Any]) -> None:
    url = image.unstrip_protocol("/data/table.csv")
    assert url == f"pagepool://{host}/team/app:1/data/table.csv"
    latest = fsspec.filesystem("pagepool", url=f"http://{host}", image=f"{host}/team/app", **options)
    for found in (url, latest.unstrip_protocol("data/table.csv")):
        with fsspec.open(found, **options) as file:
            assert file.read() == TABLE


def test_no_image(host: str, options: dict[str, Any]) -> None:
    with pytest.raises(ManifestUnknownError):
        fsspec.filesystem("pagepool", url=f"http://{host}", image="team/app:none", **options)
    with pytest.raises(ReferenceInvalidError):
        fsspec.filesystem("pagepool", url=f"http://{host}", **options)


# -- reading -------------------------------------------------------------------------------------------------------


def test_listings(image: PagepoolFileSystem) -> None:
    assert image.ls("/", detail=False) == ["/all", "/data", "/link.csv", "/loop", "/nowhere", "/null"]
    types = {entry["name"]: (entry["type"], entry["size"], entry["islink"]) for entry in image.ls("")}
    assert types == {
        "/all": ("link", 0, True),
        "/data": ("directory", 0, False),
        "/link.csv": ("file", len(TABLE), True),
        "/loop": ("link", 0, True),
        "/nowhere": ("link", 4, True),
        "/null": ("other", 0, False),
    }
    assert image.ls("/data/table.csv", detail=False) == ["/data/table.csv"]
    assert image.ls("/all", detail=False) == ["/all/empty", "/all/more", "/all/table.csv"]
    with pytest.raises(FileNotFoundError):
        image.ls("/none")


def test_info(image: PagepoolFileSystem) -> None:
    found = image.info("/data/more/big.bin")
    assert (found["type"], found["size"], found["mode"]) == ("file", len(BIG), 0o100600)
    assert (found["uid"], found["gid"], found["nlink"]) == (7, 8, 1)
    assert image.info("all")["type"] == "directory"
    assert image.info("link.csv")["destination"] == "data/table.csv"
    assert image.modified("data/table.csv").timestamp() == 1_700_000_000.5
    with pytest.raises(FileNotFoundError):
        image.info("/nowhere/x")


def test_questions(image: PagepoolFileSystem) -> None:
    assert image.exists("/data")
    assert image.exists("pagepool:///link.csv")
    assert not image.exists("/nowhere")
    assert image.lexists("/nowhere")
    assert image.isdir("/all")
    assert not image.isdir("/data/table.csv")
    assert image.isfile("/link.csv")
    assert not image.isfile("/null")
    assert image.size("/link.csv") == len(TABLE)


def test_walks_end(image: PagepoolFileSystem) -> None:
    """Though a symlink leads to the directory that it is in."""
    everything = ["/all", "/data/empty", "/data/more/big.bin", "/data/table.csv"]
    assert image.find("/") == [*everything, "/link.csv", "/loop", "/nowhere", "/null"]
    assert image.glob("/data/*.csv") == ["/data/table.csv"]
    assert [here for here, _, _ in image.walk("/")] == ["/", "/data", "/data/more"]
    assert image.du("/data") == len(BIG) + len(TABLE)


def test_content(image: PagepoolFileSystem, tmp_path: Path) -> None:
    assert image.cat_file("/data/more/big.bin", 131_000, 131_200) == BIG[131_000:131_200]
    assert image.cat_file("/data/more/big.bin", -5) == BIG[-5:]
    assert image.cat_file("/data/more/big.bin", 5, 2) == b""
    assert image.cat(["/data/table.csv", "/data/empty"]) == {"/data/table.csv": TABLE, "/data/empty": b""}
    ranges = image.cat_ranges(["/data/table.csv", "/data/more/big.bin"], [0, 1000], [3, 1010])
    assert ranges == [TABLE[:3], BIG[1000:1010]]
    assert image.head("/data/table.csv", 2) == TABLE[:2]
    assert image.read_text("/data/table.csv") == TABLE.decode()
    image.get("/data", str(tmp_path / "copy"), recursive=True)
    assert (tmp_path / "copy" / "more" / "big.bin").read_bytes() == BIG
    with pytest.raises(IsADirectoryError):
        image.open("/data")


def test_an_image_is_read_only(image: PagepoolFileSystem) -> None:
    for change in (
        lambda: image.open("/new", "wb"),
        lambda: image.mkdir("/new"),
        lambda: image.rm("/data/table.csv"),
        lambda: image.touch("/data/table.csv"),
        lambda: image.mv("/data", "/moved"),
        lambda: image.pipe_file("/new", b"x"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()


def test_file_systems_are_kept_and_made_again(host: str, image: PagepoolFileSystem, options: dict[str, Any]) -> None:
    again = fsspec.filesystem("pagepool", url=f"http://{host}", image="team/app:1", **options)
    assert again is image
    assert pickle.loads(pickle.dumps(image)) is image
    assert image.ukey("/link.csv") == image.ukey("/data/table.csv") != image.ukey("/data/empty")
    image.close()
    with closing(fsspec.filesystem("pagepool", url=f"http://{host}", image="team/app:1", **options)) as other:
        assert other is not image
        assert other.cat("/data/table.csv") == TABLE


# -- writing -------------------------------------------------------------------------------------------------------


def test_an_overlay_is_written(overlay: PagepoolFileSystem, image: PagepoolFileSystem) -> None:
    key = overlay.ukey("/data/table.csv")
    with overlay.open("/data/table.csv", "ab") as file:
        file.write(b"5,6\n")
    with overlay.open("/data/table.csv", "r+b") as file:
        file.write(b"x")
    assert overlay.cat("/data/table.csv") == b"x" + TABLE[1:] + b"5,6\n"
    assert overlay.ukey("/data/table.csv") != key
    assert image.cat("/data/table.csv") == TABLE
    overlay.makedirs("/out/of")
    overlay.pipe_file("/out/of/nothing", b"new")
    with overlay.open("/out/text", "w") as file:
        file.write("ä")
    assert overlay.cat("/out/text") == "ä".encode()
    with pytest.raises(FileExistsError):
        overlay.open("/out/text", "xb")
    with pytest.raises(NotImplementedError), overlay.transaction:
        overlay.open("/out/text", "wb")
    assert overlay.cat("/out/text") == "ä".encode()


def test_names_in_an_overlay(overlay: PagepoolFileSystem, tmp_path: Path) -> None:
    overlay.mkdir("/made")
    with pytest.raises(FileExistsError):
        overlay.mkdir("/made")
    overlay.makedirs("/made", exist_ok=True)
    overlay.touch("/made/one")
    overlay.copy("/data/table.csv", "/made/two")
    overlay.copy("/data", "/made/all", recursive=True)
    assert overlay.cat("/made/all/more/big.bin") == BIG
    overlay.mv("/made/one", "/made/all")
    overlay.mv("/made/two", "/made/three")
    assert overlay.find("/made") == [
        *("/made/all/empty", "/made/all/more/big.bin", "/made/all/one", "/made/all/table.csv", "/made/three")
    ]
    with pytest.raises(OSError, match="not empty"):
        overlay.rm("/made/all")
    overlay.rm("/made/all", recursive=True)
    overlay.rm("/all", recursive=True)
    assert overlay.exists("/data/table.csv")
    overlay.rm("/made/t*")
    overlay.rmdir("/made")
    assert not overlay.lexists("/all")
    (tmp_path / "local").write_bytes(b"local")
    overlay.put(str(tmp_path / "local"), "/put")
    assert overlay.cat("/put") == b"local"


def test_an_overlay_is_there_again(overlay: PagepoolFileSystem) -> None:
    overlay.pipe_file("/kept", b"kept")
    before = overlay.modified("/kept")
    overlay.close()
    again = pickle.loads(pickle.dumps(overlay))
    assert again is not overlay
    assert again.cat("/kept") == b"kept"
    again.touch("/kept", truncate=False)
    assert again.modified("/kept") >= before


def test_an_overlay_is_shared(host: str, options: dict[str, Any], tmp_path: Path) -> None:
    """fsspec makes a file system for each thread, and for each order of the options; an overlay is open once."""
    more = options | {"upper": str(tmp_path / "upper")}
    url = f"pagepool://{host}/team/app:1"
    first = fsspec.filesystem("pagepool", url=f"http://{host}", image="team/app:1", **more)
    second = fsspec.filesystem("pagepool", **more, image="team/app:1", url=f"http://{host}")
    assert second is not first

    def write(number: int) -> PagepoolFileSystem:
        found, path = fsspec.url_to_fs(f"{url}/out/{number}", **more)
        found.makedirs("/out", exist_ok=True)
        found.pipe_file(path, b"%d" % number)
        assert isinstance(found, PagepoolFileSystem)
        return found

    with ThreadPoolExecutor(4) as threads:
        others = set(threads.map(write, range(40)))
    assert {int(first.cat(path)) for path in second.ls("/out", detail=False)} == set(range(40))
    for found in (first, *others):
        found.close()
        found.close()
    second.pipe_file("/out/last", b"still open")
    with pytest.raises(BusyError):
        fsspec.filesystem("pagepool", image="team/app:latest", url=f"http://{host}", **more)
    second.close()
    again = fsspec.filesystem("pagepool", image="team/app:latest", url=f"http://{host}", **more)
    assert again.cat("/out/last") == b"still open"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_does_not_get_the_overlay(overlay: PagepoolFileSystem) -> None:
    """What a fork copied is closed; the parent has it open, and goes on."""
    child = os.fork()
    if not child:
        try:
            fsspec.filesystem("pagepool", **overlay.storage_options)
        except BusyError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    overlay.pipe_file("/kept", b"kept")
    assert overlay.cat("/kept") == b"kept"
