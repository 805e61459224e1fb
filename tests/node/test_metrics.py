"""What a node tells Prometheus: read with Prometheus' own parser, from a real node with a real mount."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pagepool.errors import CorruptError, UnreachableError
from pagepool.node.control import converse
from pagepool.node.exposition import Family, Sample, encode
from pagepool.node.figures import READ, Figures
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.places import NodePlaces
from pagepool.node.start import ensure_node
from pagepool.node.worker import WorkerOptions
from pagepool.scrapes import MOST
from tests.fault.test_node import LAZILY, contents, point, push
from tests.node.guarded import wait_post
from tests.support.nodeserver import require_kernel_mounts, running_node
from tests.support.scraping import idle_connections, is_ended
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.node.client import NodeClient

_OPTIONS = WorkerOptions(timeout_s=5.0, fill=False, profiles=False, large=1 << 20, metrics_listen=("127.0.0.1", 0))


def parse(text: str) -> dict[str, float]:
    """Every figure by its name and labels, as they stand in a query."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def scrape(node: NodeClient) -> dict[str, float]:
    """What a node says."""
    answer = httpx.get(f"http://{node.status()['metrics']}/metrics")
    assert answer.status_code == 200
    return parse(answer.text)


def test_any_text_is_read_as_it_was_meant() -> None:
    """Labels are words of ours today; what is written stays readable whatever they are."""
    labels = {"a": 'quo"te', "b": "back\\slash\nline"}
    family = Family("pagepool_x_total", "counter", "Help,\nwith \\ in it.", (Sample(2.5, labels), Sample(1e300)))
    (found,) = text_string_to_metric_families(encode([family]).decode())
    assert (found.type, found.documentation) == ("counter", "Help,\nwith \\ in it.")
    assert [(sample.labels, sample.value) for sample in found.samples] == [(labels, 2.5), ({}, 1e300)]


def test_what_is_fetched_is_counted_and_what_fails_by_its_reason() -> None:
    figures = Figures()

    def fetch(wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview]]:
        for digest in wanted:
            if digest == b"bad":
                raise CorruptError("extent", "bad", "is wrong")
            if digest == b"gone":
                raise UnreachableError("http://service", "is gone")
            yield digest, memoryview(bytes(100))

    counted = figures.counted(fetch)
    assert len(list(counted([b"a", b"b"]))) == 2
    for wanted in ([b"a", b"bad"], [b"gone"]):
        with pytest.raises((CorruptError, UnreachableError)):
            list(counted(wanted))
    with pytest.raises(UnreachableError), figures.waiting(READ):
        list(counted([b"gone"]))
    with figures.waiting(READ):
        pass
    found = parse(encode(figures.families()).decode())
    assert found["pagepool_node_fetched_bytes_total{}"] == 300
    assert found["pagepool_node_fetch_seconds_count{}"] == found["pagepool_node_fetch_seconds_bucket{le=+Inf}"] == 4
    reasons = ("corrupt", "unreachable", "denied", "unknown", "other")
    errors = [found[f"pagepool_node_fetch_errors_total{{reason={reason}}}"] for reason in reasons]
    assert errors == [1, 2, 0, 0, 0]
    assert found["pagepool_node_wait_seconds_count{for=read}"] == 2
    assert found["pagepool_node_wait_errors_total{for=read}"] == 1


def test_a_node_is_scraped_whatever_becomes_of_its_processes(tmp_path: Path) -> None:
    files = contents(1, 6) | {"large": os.urandom(2 << 20)}
    at = point(tmp_path)
    with (
        running_service(tmp_path / "data", "--workers", "1") as service,
        running_node(tmp_path, _OPTIONS) as node,
        node.mount(service.url, push(service, "app", files), at, LAZILY),
    ):
        before = scrape(node)
        assert {name: (at / name).read_bytes() for name in files} == files
        after = scrape(node)
        assert after["pagepool_node_mounts{}"] == after["pagepool_node_images{}"] == 1
        assert (
            after["pagepool_node_lazy_requests_total{operation=lookup}"]
            > before["pagepool_node_lazy_requests_total{operation=lookup}"]
        )
        assert after["pagepool_node_wait_seconds_count{for=lookup}"] >= 1
        assert after["pagepool_node_wait_seconds_count{for=read}"] >= 1
        assert after["pagepool_node_fetched_bytes_total{}"] >= sum(map(len, files.values()))
        assert after["pagepool_node_pool_objects{}"] >= 6
        assert 0 < after["pagepool_node_pool_used_bytes{}"] <= after["pagepool_node_pool_budget_bytes{}"]
        assert all(after[f"pagepool_node_process_up{{process={name}}}"] == 1 for name in (SUPERVISOR, WORKER))
        node.scrub()
        assert scrape(node)["pagepool_node_scrub_objects_total{}"] >= 6

        url = f"http://{node.status()['metrics']}"
        assert httpx.get(f"{url}/").status_code == 404
        assert httpx.post(f"{url}/metrics").status_code == 501

        worker = node.status()["pid"]
        with socket.create_connection(_address(node)) as slow:
            slow.sendall(b"GET /met")  # and no more: nobody else waits for the node because of it
            assert converse(node.places.control, {"op": "status"})["pid"] == worker
        os.kill(worker, signal.SIGKILL)
        wait_post(node.places.run, WORKER, worker)
        again = scrape(node)
        assert again["pagepool_node_process_starts_total{process=worker}"] == 2
        assert again["pagepool_node_process_starts_total{process=supervisor}"] == 1
        assert again["pagepool_node_mounts{}"] == 1


def test_connections_that_do_nothing(tmp_path: Path) -> None:
    """They take few of the worker's descriptors and threads, and keep Prometheus from nothing."""
    files = "pagepool_node_process_open_fds{process=worker}"
    with running_node(tmp_path, _OPTIONS) as node:
        before = scrape(node)[files]
        with idle_connections(str(node.status()["metrics"])) as idle:
            assert scrape(node)[files] <= before + MOST
            threads = re.search(r"(?m)^Threads:\s(\d+)$", Path(f"/proc/{node.status()['pid']}/status").read_text())
            assert threads
            assert int(threads[1]) < len(idle)
            assert all(map(is_ended, idle))


def _address(node: NodeClient) -> tuple[str, int]:
    host, _, port = str(node.status()["metrics"]).rpartition(":")
    return host, int(port)


def test_an_address_that_is_taken_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    require_kernel_mounts()
    places = NodePlaces(tmp_path / "node", tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{port}: .*in use \(metrics\)"):
            ensure_node(places, WorkerOptions(metrics_listen=("127.0.0.1", port)))
    assert not os.path.ismount(places.lazy)
    assert Post(places.run, SUPERVISOR).holder() is None
