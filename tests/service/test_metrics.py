"""What Prometheus is told: by a real service with two workers, read with Prometheus' own parser."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from blake3 import blake3
from prometheus_client.parser import text_string_to_metric_families

from pagepool.scrapes import MOST
from pagepool_service.bench.pagereads import page_request, warm
from pagepool_service.metrics.directory import make_directory, remove_directory
from pagepool_service.settings import Settings
from tests.service.pushes import push_image
from tests.service.test_images_api import settled
from tests.support.scraping import idle_connections, is_ended, trickle
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ADDRESS = re.compile(r"metrics on (http://\S+)/metrics")
_PATIENCE_S = 30.0

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers that keeps figures."""
    directory = tmp_path_factory.mktemp("metrics") / "data"
    with running_service(directory, "--workers", "2", "--quota", "1GB", "--metrics-listen", "127.0.0.1:0") as running:
        yield running


def scrape(service: Service) -> Figures:
    """Every figure, by name and labels."""
    found = _ADDRESS.search(service.log())
    assert found, service.log()
    answer = httpx.get(f"{found[1]}/metrics")
    assert answer.status_code == 200
    families = list(text_string_to_metric_families(answer.text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def figure(figures: Figures, name: str, **labels: str) -> float:
    """One of them, 0 if there is none."""
    return figures.get((name, tuple(sorted(labels.items()))), 0.0)


def wait_for(service: Service, ready: Callable[[Figures], bool]) -> Figures:
    """Scrape until something is so."""
    deadline = time.monotonic() + _PATIENCE_S
    while not ready(figures := scrape(service)):
        assert time.monotonic() < deadline, figures
        time.sleep(0.1)
    return figures


def get_often(service: Service, path: str, count: int) -> None:
    """Ask again and again, each time on a new connection, so that both workers get some."""
    for _ in range(count):
        assert httpx.get(f"{service.url}{path}").status_code == 200


def test_requests_of_all_workers_are_added_up(counted: Service) -> None:
    """By the route's template, never by what the client sent."""
    labels = {"route": "/v2/", "method": "GET", "status": "2xx"}
    before = figure(scrape(counted), "pagepool_http_requests_total", **labels)
    get_often(counted, "/v2/", 20)
    httpx.get(f"{counted.url}/v2/some/name/manifests/none")
    httpx.request("PROPFIND", f"{counted.url}/no/such/path")
    figures = wait_for(counted, lambda found: figure(found, "pagepool_http_requests_total", **labels) == before + 20)
    count = figure(figures, "pagepool_http_request_duration_seconds_count", route="/v2/", method="GET")
    assert count == before + 20
    missing = {"route": "/v2/{name}/manifests/{reference}", "method": "GET", "status": "4xx"}
    assert figure(figures, "pagepool_http_requests_total", **missing) == 1
    assert figure(figures, "pagepool_http_requests_total", route="none", method="other", status="4xx") == 1
    assert "some/name" not in repr(figures)


def test_an_image_is_seen(counted: Service) -> None:
    """Pushed, read as a layer, stored, and read page by page: in bulk, some seconds later."""
    with httpx.Client(base_url=counted.url) as http:
        push_image(http, "seen/image", "1", {"file": b"x" * 10_000})
        http.post("/v2/seen/image/blobs/uploads/")
        settled(http, "/v1/seen/image/images/1")
        tree = http.get("/v1/seen/image/images/1/tree").json()["tree"]
        path = f"/v1/seen/image/trees/{tree}/objects/{blake3(b'x' * 10_000).hexdigest()}"
        assert len(http.get(path).content) == 10_000
    host, port = counted.host.rsplit(":", 1)
    for _ in range(9):  # as the library asks, on a connection each: there are two workers
        warm(host, int(port), [page_request(path)])
    page_reads = "pagepool_page_reads_total"
    slow = {"route": "/v1/{name}/trees/{tree}/objects/{object}", "method": "GET", "status": "2xx"}
    figures = wait_for(
        counted,
        lambda found: figure(found, page_reads) + figure(found, "pagepool_http_requests_total", **slow) == 10,
    )
    assert figure(figures, page_reads) >= 7
    assert figure(figures, "pagepool_page_read_bytes_total") == 10_000 * figure(figures, page_reads)
    assert figure(figures, "pagepool_layer_ingest_seconds_count", result="ready") == 1
    assert figure(figures, "pagepool_layer_ingest_seconds_sum", result="ready") > 0
    assert figure(figures, "pagepool_http_received_bytes_total", route="/v2/{name}/manifests/{reference}") > 0
    assert figure(figures, "pagepool_store_bytes", kind="files") > 0
    assert figure(figures, "pagepool_store_quota_bytes") == 10**9
    assert figure(figures, "pagepool_uploads_open") == 1
    assert figure(figures, "pagepool_cache_bytes") >= 10_000
    assert 0 < figure(figures, "pagepool_cache_bytes") <= figure(figures, "pagepool_cache_budget_bytes")
    for state in ("waiting", "running"):
        assert ("pagepool_jobs", (("kind", "ingest"), ("state", state))) in figures


def test_processes_are_seen(counted: Service) -> None:
    """Each by its name, whatever its number is."""
    figures = scrape(counted)
    for name in ("worker 1", "worker 2", "maintenance 1", "maintenance 2", "pool keeper", "metrics"):
        assert figure(figures, "pagepool_process_up", process=name) == 1
        assert figure(figures, "pagepool_process_resident_memory_bytes", process=name) > 1 << 20
        assert figure(figures, "pagepool_process_open_fds", process=name) > 3
    for part in ("store", "jobs", "cache", "processes"):
        assert figure(figures, "pagepool_collect_success", part=part) == 1


def test_only_metrics_are_there(counted: Service) -> None:
    """And they are nowhere else."""
    found = _ADDRESS.search(counted.log())
    assert found
    assert httpx.get(f"{found[1]}/v2/").status_code == 404
    assert httpx.get(f"{counted.url}/metrics").status_code == 404


def test_connections_that_do_nothing(counted: Service) -> None:
    """They take few descriptors and threads, and keep Prometheus from nothing. Those that have not made room for
    others end by themselves."""
    found = _ADDRESS.search(counted.log())
    assert found
    files = figure(scrape(counted), "pagepool_process_open_fds", process="metrics")
    with idle_connections(found[1].removeprefix("http://")) as idle:
        assert figure(scrape(counted), "pagepool_process_open_fds", process="metrics") <= files + MOST
        trickle(idle[-1])
        assert all(map(is_ended, idle[:-1]))
    assert not counted.faults()


def test_counters_outlive_a_worker(counted: Service) -> None:
    """One that is started again goes on where the one that was killed left off, in the same files."""
    labels = {"route": "/healthz", "method": "GET", "status": "2xx"}
    get_often(counted, "/healthz", 10)
    before = wait_for(counted, lambda found: figure(found, "pagepool_http_requests_total", **labels) >= 10)
    counted_before = figure(before, "pagepool_http_requests_total", **labels)
    workers = {pid for pid in counted.children() if _is_worker(pid)}
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for(counted, lambda _: len({pid for pid in counted.children() if _is_worker(pid)} - workers) == 2)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            get_often(counted, "/healthz", 10)
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline
    wait_for(counted, lambda found: figure(found, "pagepool_http_requests_total", **labels) >= counted_before + 10)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """By the next service over the same data directory, and by no other."""
    settings = Settings(tmp_path / "data")
    left = make_directory(settings, alone=True)
    other = make_directory(Settings(tmp_path / "other"), alone=True)
    beside = make_directory(settings, alone=False)
    assert left.is_dir()
    made = make_directory(settings, alone=True)
    assert [directory.is_dir() for directory in (left, other, beside, made)] == [False, True, False, True]
    assert made.stat().st_mode & 0o777 == 0o700
    for directory in (other, made):
        remove_directory(directory)


def test_no_figures_are_kept_unless_asked(tmp_path: Path) -> None:
    """There is no process for them, and no file."""
    with running_service(tmp_path / "data") as service:
        assert "metrics" not in service.log()
        for pid in service.children():
            assert "pagepool-metrics" not in _maps(pid)


def _maps(pid: int) -> str:
    with open(f"/proc/{pid}/maps") as file:  # noqa: PTH123  (a file of the kernel's)
        return file.read()


def _is_worker(pid: int) -> bool:
    """Whether a process is a worker of a service that keeps figures."""
    try:
        return "/counter_worker-" in _maps(pid)
    except OSError:
        return False
