"""Traces reach a collector, from every process; one that is away, or absurd requests, do no harm; none cost nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from pagepool import Client
from pagepool.transport.tracecontext import trace_headers
from pagepool_service.settings import SettingInvalidError, Settings
from pagepool_service.tracing.exporting import Tracing
from pagepool_service.tracing.notes import PushNotes, SpanName
from tests.service.pushes import push_blob, push_image, tar_layer
from tests.service.test_images_api import settled
from tests.support.collector import Collector, running_collector
from tests.support.server import Service, ServiceError, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = 2
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """One for all tests."""
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    """A service with two workers that sends its traces there."""
    data = tmp_path_factory.mktemp("traced") / "data"
    arguments = ("--workers", "2", "--trace-endpoint", collector.url)
    with running_service(data, *arguments, **QUICK) as running:
        yield running


def test_a_request_continues_the_callers_trace(service: Service, collector: Collector) -> None:
    """With all that is known of it; what the client chose is an attribute, never a name."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "traced-1"}
    answer = httpx.get(f"{service.url}/v2/some/app/tags/list?n=5", headers=headers)
    (span,) = collector.wait(lambda span: span.attributes.get("pagepool.request_id") == "traced-1")
    assert (span.name, span.kind) == ("GET /v2/{name}/tags/list", SERVER)
    assert (span.trace, span.parent) == (TRACE, PARENT)
    expected = {
        "http.request.method": "GET",
        "http.route": "/v2/{name}/tags/list",
        "http.response.status_code": 404,
        "http.response.body.size": len(answer.content),
        "pagepool.repository": "some/app",
        "url.path": "/v2/some/app/tags/list",
        "client.address": "127.0.0.1",
    }
    assert expected.items() <= span.attributes.items()
    assert span.status == 0
    assert span.resource["service.name"] == "pagepool"
    assert span.resource["pagepool.process"] in ("worker 1", "worker 2")


def test_every_process_sends(service: Service, collector: Collector) -> None:
    """Both workers, and whichever process reads a layer: linked to the request that pushed it."""
    with httpx.Client(base_url=service.url) as http:
        blob = push_blob(http, "linked", tar_layer({"file": b"x" * 300_000}))
    (job,) = collector.wait(lambda span: span.attributes.get("pagepool.blob") == str(blob) and "ingest" in span.name)
    assert job.resource["pagepool.process"].startswith("maintenance ")
    assert job.attributes["pagepool.job_id"] >= 1
    puts = collector.wait(lambda span: span.name.startswith("PUT /v2/{name}/blobs/uploads/"))
    assert job.links in [[(span.trace, span.span)] for span in puts]
    assert job.trace not in {span.trace for span in puts}

    def workers() -> set[str]:
        return {str(span.resource["pagepool.process"]) for span in collector.spans if span.kind == SERVER}

    for _ in range(200):
        if workers() == {"worker 1", "worker 2"}:
            break
        before = len(collector.spans)  # that of this request may come before its answer is looked at
        httpx.get(f"{service.url}/v2/")
        collector.wait(lambda _span: True, before + 1)
    assert workers() == {"worker 1", "worker 2"}


@pytest.mark.parametrize(
    "given",
    ["", "00-zz-yy-01", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "x" * 5000, "00-" + TRACE, "\xff\xfe"],
)
def test_absurd_parents(service: Service, collector: Collector, given: str) -> None:
    """Begin a trace of their own."""
    name = f"absurd-{abs(hash(given))}"
    headers = {b"traceparent": given.encode("latin-1"), b"tracestate": b"=" * 700, b"x-request-id": name.encode()}
    assert httpx.get(f"{service.url}/v2/", headers=headers).status_code == 200
    (span,) = collector.wait(lambda span: span.attributes.get("pagepool.request_id") == name)
    assert span.parent == ""
    assert span.trace != TRACE


_READS = 50


def test_probes_leave_none_and_page_reads_if_asked(service: Service, collector: Collector) -> None:
    """A page read that is answered at once has a span only if it brings a trace."""
    with httpx.Client(base_url=service.url) as http:
        push_image(http, "pages", "1", {"file": b"page" * 1024})
        settled(http, "/v1/pages/images/1")
        tree = http.get("/v1/pages/images/1/tree").json()["tree"]
        (entry,) = http.get("/v1/pages/images/1/files?path=/file").json()["entries"]
        url = f"/v1/pages/trees/{tree}/objects/{entry['object']}"
        for _ in range(_READS):
            assert http.get(url).status_code == 200
        assert http.get("/readyz").status_code == 200
        assert http.get("/healthz").status_code == 200
        traced = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        assert http.get(url, headers=traced).content == b"page" * 1024
    (span,) = collector.wait(lambda span: span.parent == "00f067aa0ba902b7")
    assert span.name == "GET /v1/{name}/trees/{tree}/objects/{object}"
    # The first read fetches the object, and on a busy machine others may not be answered at once, either. What is left
    # of them was sent before: one connection has one worker.
    assert sum("objects" in span.name for span in collector.spans) < _READS / 2
    assert not any("healthz" in span.name or "readyz" in span.name for span in collector.spans)


def test_a_program_that_traces(service: Service, collector: Collector, tmp_path: Path) -> None:
    """The library's requests belong to the program's current span."""
    assert trace_headers() == {}
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("reading") as span:
        context = span.get_span_context()
        with Client(service.url, directory=tmp_path / "pool") as client, pytest.raises(Exception, match="nowhere"):
            client.image("nowhere:1")
        assert trace.get_current_span() is span
    mine = f"{context.trace_id:032x}"
    found = collector.wait(lambda received: received.trace == mine)
    assert {received.parent for received in found} == {f"{context.span_id:016x}"}


def test_what_is_left_is_sent_at_the_end(tmp_path: Path, collector: Collector) -> None:
    """By the standard variables, too; and the environment's name of the service counts."""
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"}
    late = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with (
        running_service(tmp_path / "data", "--access-log", **named, **late) as service,
        httpx.Client(base_url=service.url) as http,
    ):
        http.get("/v2/", headers={"X-Request-Id": "the-last", "traceparent": f"00-{TRACE}-{PARENT}-01"})
        blob = str(push_blob(http, "last", tar_layer({"last": b"last"})))
        while http.get("/v1/activity").json()["jobs"]:
            pass
    assert f"request_id=the-last trace_id={TRACE}\n" in service.log()
    of_request = collector.wait(lambda span: span.attributes.get("pagepool.request_id") == "the-last")
    of_job = collector.wait(lambda span: span.attributes.get("pagepool.blob") == blob)
    assert {span.resource["service.name"] for span in [*of_request, *of_job]} == {"mine"}


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_dead_collector_does_no_harm(tmp_path: Path, kind: str) -> None:
    """Requests are answered, the log has a line and not many, and the service ends as always."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if kind == "refuses":
            listener.close()
        few = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
        with running_service(tmp_path / "data", "--trace-endpoint", url, **few) as service:
            with httpx.Client(base_url=service.url, timeout=30) as http:
                for _ in range(300):
                    assert http.get("/v2/").status_code == 200
            assert service.stop() == 0
        lines = [line for line in service.log().splitlines() if "opentelemetry" in line]
        assert len(lines) <= 2, lines
        assert "killed" not in service.log()
        assert not service.faults()


def test_long_work_in_threads(tmp_path: Path, collector: Collector) -> None:
    """Leaves a span of what ran; short work leaves none. Spans of processes are told apart."""
    settings = Settings(tmp_path, trace_endpoint=f"{collector.url}/v1/traces")
    tracing = Tracing(settings, "here")

    def slow_read(seconds: float) -> str:
        time.sleep(seconds)
        return "read"

    assert tracing.watch("threads", slow_read)(0.06) == "read"
    assert tracing.watch("threads", slow_read)(0) == "read"
    tracing.close()
    (span,) = collector.wait(lambda span: span.resource["pagepool.process"] == "here")
    assert span.name.startswith("threads: ")
    assert span.name.endswith("slow_read")
    assert span.duration_s >= 0.06


def test_nothing_is_loaded_without() -> None:
    """A service that makes no traces imports nothing that makes or sends any. (FastAPI imports their interface.)"""
    code = (
        "import sys, pagepool, pagepool.transport.http, pagepool_service.app, pagepool_service.worker,"
        " pagepool_service.maintaining, pagepool_service.supervisor, pagepool_service.commands.serve\n"
        "print(sorted(name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter',"
        " 'google.protobuf', 'requests'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_packages(tmp_path: Path) -> None:
    """Who asks for traces is told what is missing; who only has a variable of the whole machine has none."""
    hidden = tmp_path / "hidden" / "opentelemetry" / "sdk"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not here')\n")
    root = Path(__file__).parents[2]
    without = {"PYTHONPATH": f"{tmp_path / 'hidden'}:{root / 'service'}:{root / 'client'}"}
    with pytest.raises(ServiceError, match=r"pip install 'pagepool\[tracing\]'"):
        Service(tmp_path / "data", ("--trace-endpoint", "http://127.0.0.1:1"), without).start()
    with running_service(tmp_path / "data", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **without) as service:
        assert httpx.get(f"{service.url}/v2/").status_code == 200
        assert "no traces are made" in service.log()


@pytest.mark.parametrize(
    ("environment", "options", "endpoint"),
    [
        ({}, {}, None),
        ({"PAGEPOOL_TRACE_ENDPOINT": "http://c:4318"}, {}, "http://c:4318/v1/traces"),
        ({"PAGEPOOL_TRACE_ENDPOINT": "http://c:4318/"}, {}, "http://c:4318/v1/traces"),
        ({"PAGEPOOL_TRACE_ENDPOINT": "https://c/own/path"}, {}, "https://c/own/path"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/base/"}, {}, "http://c:4318/base/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d:1/t"},
            {},
            "http://d:1/t",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, {}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, {}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"trace_endpoint": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "PAGEPOOL_TRACE_ENDPOINT": "none"}, {}, None),
    ],
)
def test_settings(tmp_path: Path, environment: dict[str, str], options: dict[str, Any], endpoint: str | None) -> None:
    """Ours go before OpenTelemetry's, options before both."""
    assert Settings.load({"PAGEPOOL_DATA": str(tmp_path), **environment}, **options).trace_endpoint == endpoint


@pytest.mark.parametrize("text", ["collector:4318", "ftp://c/x", "http://", "http://c:99999", "http://[::1"])
def test_no_url(text: str) -> None:
    """Is refused with its name."""
    with pytest.raises(SettingInvalidError, match="PAGEPOOL_TRACE_ENDPOINT"):
        Settings.load({"PAGEPOOL_TRACE_ENDPOINT": text})


def test_notes() -> None:
    """What was noted last is found; what was not, or was overwritten in the middle, is not."""
    notes = PushNotes()
    names = [SpanName(bytes([number]) * 16, bytes([number]) * 8, 1) for number in range(256)]
    for number, name in enumerate(names):
        notes.put(f"sha256:{number}", name)
    found = [notes.find(f"sha256:{number}") for number in range(256)]
    assert all(seen in (name, None) for seen, name in zip(found, names, strict=True))
    assert sum(seen is not None for seen in found) > 200
    assert notes.find("sha256:other") is None

    def write(number: int) -> None:
        for _ in range(2000):
            notes.put("sha256:same", names[number])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert notes.find("sha256:same") in (None, *names[:4])
