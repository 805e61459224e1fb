"""Prometheus itself, with the files of deploy/prometheus: it takes them, asks a real service and a real node, and has
an answer to every query of the dashboard and of the alerts."""

from __future__ import annotations

import json
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from pagepool.node.worker import WorkerOptions
from tests.fault.conftest import QUICK
from tests.fault.test_node import LAZILY, contents, point, push
from tests.support.nodeserver import running_node
from tests.support.server import running_service
from tests.support.tools import require, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Service

_DEPLOY = Path(__file__).parents[2] / "deploy"
_FILES = _DEPLOY / "prometheus"
_PATIENCE_S = 60.0
_OPTIONS: WorkerOptions = replace(QUICK, metrics_listen=("127.0.0.1", 0))
_GROWING = (
    "pagepool_http_requests_total",
    "pagepool_layer_ingest_seconds_count",
    "pagepool_node_fetched_bytes_total",
    'pagepool_node_wait_seconds_count{for="lookup"}',
    'pagepool_node_wait_seconds_count{for="read"}',
)
_ADDRESS = re.compile(r"metrics on http://(\S+)/metrics")


def test_the_files_are_taken_and_each_alert_fires_when_it_should() -> None:
    require("promtool", root=False)
    run(["promtool", "check", "config", _FILES / "prometheus.yml"])
    run(["promtool", "check", "rules", _FILES / "rules.yml"])
    run(["promtool", "test", "rules", _FILES / "rules-test.yml"])
    # The test of the rules has each of them, both firing and silent.
    alerts = {
        rule["alert"]
        for group in yaml.safe_load((_FILES / "rules.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    silent, firing = yaml.safe_load((_FILES / "rules-test.yml").read_text())["tests"]
    assert {one["alertname"] for one in silent["alert_rule_test"]} == alerts
    (fires,) = firing["promql_expr_test"]
    assert set(re.findall(r'alertname="(\w+)"', str(fires["exp_samples"]))) == alerts


def test_every_query_has_an_answer(tmp_path: Path) -> None:
    require("prometheus")
    files = contents(3, 40) | {f"large{number}": bytes([number, *range(256)]) * 8192 for number in range(8)}
    files = dict(sorted(files.items(), key=lambda item: item[1][:8]))
    at = point(tmp_path)
    with ExitStack() as stack:
        service = stack.enter_context(
            running_service(tmp_path / "data", "--workers", "1", "--quota", "1GB", "--metrics-listen", "127.0.0.1:0")
        )
        node = stack.enter_context(running_node(tmp_path, _OPTIONS))
        reference = push(service, "app", files)
        prometheus = Prometheus(tmp_path, {"pagepool": _metrics(service), "pagepool-node": node.status()["metrics"]})
        stack.enter_context(prometheus)
        prometheus.wait("count(up == 1) == 2")
        with node.mount(service.url, reference, at, LAZILY):
            names = iter(files)

            def work() -> None:
                """Rates are of what goes on while it is looked at."""
                httpx.get(f"{service.url}/v2/app/manifests/none")
                httpx.get(f"{service.url}/v2/app/tags/list")
                if (name := next(names, None)) is not None:
                    assert (at / name).read_bytes() == files[name]
                    push(service, f"app{len(name)}", {name: files[name]})

            for counted in _GROWING:
                prometheus.wait(f"sum(rate({counted}[30s])) > 0", work)
            for expr in dashboard():  # there is nothing for as long as a scrape has taken too long
                prometheus.wait(expr, work)
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 10
        assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []
        # What an alert compares is there: an alert on a name that nobody has would never fire.
        named = {
            name for rule in rules for name in re.findall(r"\b(?:pagepool_\w+|up)\b(?=[{\[ )])", rule["query"] + " ")
        }
        for name in sorted(named):
            prometheus.wait(f"count({name})")


def dashboard() -> list[str]:
    """The queries of all panels, as Grafana would send them for all services and nodes."""
    board = json.loads((_DEPLOY / "grafana/dashboards/pagepool.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(found) > 40
    for name, value in {"$__rate_interval": "30s", "$service": ".*", "$node": ".*"}.items():
        found = [expr.replace(name, value) for expr in found]
    assert not [expr for expr in found if "$" in expr]
    return found


def _metrics(service: Service) -> str:
    found = _ADDRESS.search(service.log())
    assert found
    return found[1]


class Prometheus:
    """A Prometheus with the configuration of deploy/, but for what is asked, and how often.

    Args:
        directory: for its files.
        targets: job -> address.
    """

    def __init__(self, directory: Path, targets: dict[str, str]) -> None:
        self._directory = directory / "prometheus"
        self._directory.mkdir()
        config = yaml.safe_load((_FILES / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(_FILES / "rules.yml")]
        for job in config["scrape_configs"]:
            for way in ("file_sd_configs", "dns_sd_configs"):
                job.pop(way, None)
            job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
        assert not targets
        (self._directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = self._directory / "log"
        self._url = ""

    def __enter__(self) -> Prometheus:
        words = ["prometheus", f"--config.file={self._directory}/prometheus.yml", "--web.listen-address=127.0.0.1:0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*words, f"--storage.tsdb.path={self._directory}/data"], stdout=log, stderr=log
            )
        for _ in self._until("it listens"):
            found = re.search(r'msg="?Listening on"? address=(\S+)', self._log.read_text())
            if found:
                self._url = f"http://{found[1]}/api/v1/"
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _until(self, what: str) -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            yield
            time.sleep(0.05)
        raise AssertionError(f"not {what} after {_PATIENCE_S:.0f} s:\n{self._log.read_text()[-3000:]}")

    def get(self, path: str, **query: str) -> Any:
        """What it answers."""
        answer = httpx.get(self._url + path, params=query).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, expr: str) -> list[Any]:
        """The samples that a query gives, but those that are no number."""
        result = self.get("query", query=expr)["result"]
        return [sample for sample in result if sample["value"][1] != "NaN"]

    def wait(self, expr: str, work: Callable[[], object] = lambda: None) -> None:
        """Wait until a query gives something; do something meanwhile."""
        for _ in self._until(expr):
            if self.ask(expr):
                return
            work()
