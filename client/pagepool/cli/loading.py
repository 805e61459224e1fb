"""Running load tests for the command line: putting the parts together, signals, progress, and cleaning up."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pagepool.cli import exits, output, plugins
from pagepool.cli.connect import credentials_for, server_url, verify_of
from pagepool.cli.loadreport import print_result, write_reports
from pagepool.cli.nodeclient import node_client
from pagepool.cli.progress import counting, watching
from pagepool.errors import InvalidError, UnsupportedError
from pagepool.library import Client
from pagepool.linux.signals import set_soon
from pagepool.load.access.opening import can_write, check_mode
from pagepool.load.client import ClientOptions, LoadClient
from pagepool.load.coordinator import Coordinator
from pagepool.load.link import CoordinatorLink
from pagepool.load.local import LocalClients
from pagepool.load.mix import Mix, MixInvalidError
from pagepool.load.observing import ServiceWatch
from pagepool.load.plan import LoadPlan
from pagepool.load.preparing import prepare, push_made_images
from pagepool.load.result import ERRORS, INTERRUPTED, WRONG, Surroundings
from pagepool.load.running import LoadRun, remove_tags, remove_versions
from pagepool.load.server import serving
from pagepool.load.trace import load_trace
from pagepool.samples.server import running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pagepool.cli.connect import AccessOptions
    from pagepool.load.result import LoadResult
    from pagepool.oci import Reference
    from pagepool.transport import Credentials

_STEPS = 300
_CODES = {ERRORS: exits.FAILURE, WRONG: exits.CORRUPT, INTERRUPTED: exits.INTERRUPTED}
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class LoadWish:
    """What `pagepool load run` was asked for; see its help."""

    service: str | None
    images: Sequence[Reference]
    reports: Sequence[Path]
    mix: Mix | None
    size: int
    clients: int
    seconds: float
    zipf: float
    mode: str
    rate: float
    seed: int
    trace: Path | None
    metrics: str
    listen: tuple[str, int] | None
    advertise: str
    join_s: float
    lost_s: float
    keep: bool
    plain_http: bool
    insecure: bool
    ca_certificate: Path | None
    username: str | None
    password_stdin: bool

    @property
    def access(self) -> AccessOptions:
        """Who we are."""
        return {
            "plain_http": self.plain_http,
            "insecure": self.insecure,
            "ca_certificate": self.ca_certificate,
            "username": self.username,
            "password_stdin": self.password_stdin,
        }

    def chosen_mix(self) -> Mix:
        """The mix; where nothing can be written, nobody may want that.

        Raises:
            MixInvalidError: somebody does.
        """
        # What users clients elsewhere run as is known to them alone.
        if can_write(self.mode) or (self.listen is not None and self.mode != "http"):
            return self.mix or Mix()
        if self.mix is not None and self.mix.write:
            why = "over http nothing is" if self.mode == "http" else "in mode fuse nothing but by root can be"
            raise MixInvalidError(f"write={self.mix.write:g}", f"{why} written: leave write out")
        return replace(self.mix or Mix(), write=0.0)


@dataclass(frozen=True, slots=True)
class ClientWish:
    """What `pagepool load client` was asked for; see its help."""

    coordinator: str
    service: str | None
    pool: Path | None
    wait_s: float
    work: Path | None
    attached: bool
    access: AccessOptions


def run_load(wish: LoadWish) -> int:
    """Run a load test, and print its report. Returns the exit code.

    Raises:
        PagepoolError, OSError: it could not begin.
    """
    mix = wish.chosen_mix()
    trace = None if wish.trace is None else load_trace(wish.trace)
    node = node_client()
    if wish.listen is None:
        check_mode(wish.mode, node)
    for report in wish.reports:
        if not report.absolute().parent.is_dir():
            raise InvalidError(str(report), f"there is no directory {report.absolute().parent}")
    run = secrets.token_hex(4)
    with ExitStack() as stack:
        interrupts = stack.enter_context(_Interrupts())
        directory = stack.enter_context(_temporary())
        stack.callback(interrupts.ignore)
        url, pid = _service(wish, stack, directory)
        password = ""
        credentials = None
        _, host = server_url({"server": url, **wish.access}, None)
        if pid == 0:
            credentials = credentials_for(wish.access, host, "")
            password = credentials.password if wish.username else ""
        client = stack.enter_context(
            Client(url, directory=directory / "own", credentials=credentials, verify=verify_of(wish.access, host))
        )
        if not client.service.available():
            raise UnsupportedError(f"{client.session.where} is not a pagepool service")
        surroundings = Surroundings(_now(), os.getloadavg()[0], pid != 0, url)
        references = list(wish.images)
        for reference in references:
            client.parse_reference(reference)
        if not references:
            references = push_made_images(client, directory, wish.size, run, counting)
            if not wish.keep:
                stack.callback(remove_tags, client, references)
        prepared = prepare(client, references, directory, trace=trace, seed=wish.seed, counting=counting)
        plan = LoadPlan(
            *(wish.advertise or url, prepared.images, prepared.base, run, wish.clients, wish.seconds, mix),
            *(wish.zipf, wish.mode, wish.seed, wish.rate, max(1.0, wish.seconds / _STEPS)),
        )
        result = _drive(wish, plan, client, prepared.truths, directory, (surroundings, pid, password), interrupts)
        if not wish.keep:
            result = replace(result, notes=remove_versions(client, result))
    write_reports(result, wish.reports)
    print_result(result)
    return _CODES.get(result.verdict, exits.OK)


def _drive(
    wish: LoadWish,
    plan: LoadPlan,
    client: Client,
    truths: dict[str, Path],
    directory: Path,
    found: tuple[Surroundings, int, str],
    interrupts: _Interrupts,
) -> LoadResult:
    surroundings, pid, password = found
    coordinator = Coordinator(plan, wish.lost_s)
    host, port = wish.listen or ("127.0.0.1", 0)
    watch = ServiceWatch(client, wish.metrics, pid)
    with ExitStack() as stack:
        port = stack.enter_context(serving(coordinator, host, port, truths))
        local: LocalClients | None = None
        if wish.listen is None:
            stack.enter_context(_running_node(wish.mode))
            command = _client_command(wish, f"http://127.0.0.1:{port}", directory, bool(password))
            local = stack.enter_context(LocalClients(command, plan.clients, directory, password))
        else:
            output.note(f"waiting for {output.counted(plan.clients, 'client')} at http://{_reached_by(host)}:{port}")
        with interrupts.asked() as stop, watching() as tell:
            return LoadRun(coordinator, watch, stop, join_s=wish.join_s, local=local, tell=tell).run(surroundings)


def _reached_by(host: str) -> str:
    """The name that clients may use, for people: of an address that stands for all, this machine's."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


def _client_command(wish: LoadWish, url: str, directory: Path, password: bool) -> Callable[[Path], list[str]]:
    places = node_client().places
    words = [sys.executable, "-P", "-m", "pagepool.cli", "load", "client", "--coordinator", url, "--attached"]
    words += ["--pool", str(directory / "pool"), "--node-run", str(places.run), "--node-state", str(places.state)]
    words += ["--insecure"] * wish.insecure + ["--plain-http"] * wish.plain_http
    words += [] if wish.ca_certificate is None else ["--ca-certificate", str(wish.ca_certificate)]
    if password:
        words += ["--username", str(wish.username), "--password-stdin"]
    return lambda work: [*words, "--work", str(work)]


def run_client(wish: ClientWish) -> int:
    """Be a client. Returns the exit code.

    Raises:
        PagepoolError, OSError: it could not begin, or the coordinator has gone.
    """
    link = CoordinatorLink(wish.coordinator)
    given = credentials_for(wish.access, "", "") if wish.access["username"] or wish.access["password_stdin"] else None

    def host(url: str) -> str:
        return server_url({"server": url, **wish.access}, None)[1]

    def find(url: str) -> Credentials:
        return given or credentials_for(wish.access, host(url), "")

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: set_soon(stop))
    if wish.attached:
        threading.Thread(target=_wait_input, args=(stop,), daemon=True).start()
    with ExitStack() as stack:
        work = wish.work or stack.enter_context(_temporary())
        options = ClientOptions(
            *(work, wish.pool or work / "pool", _address(wish.service, wish.access), find),
            *(lambda url: verify_of(wish.access, host(url)), wish.wait_s, node_client()),
        )
        measures = LoadClient(link, options, stop).run()
    if output.current().json:
        output.print_json({"operations": measures.count, "errors": measures.errors, "mismatches": measures.mismatches})
    else:
        found = ((measures.count, "operation"), (measures.errors, "error"), (measures.mismatches, "wrong page"))
        output.note(", ".join(output.counted(*one) for one in found))
    return exits.CORRUPT if measures.mismatches else exits.OK


def _address(service: str | None, access: AccessOptions) -> str | None:
    """A service's address as a URL, whether it was given as one or as HOST:PORT."""
    return None if service is None else server_url({"server": service, **access}, None)[0]


def _wait_input(stop: threading.Event) -> None:
    """Stop when whoever started this has gone, or wants it."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


def _service(wish: LoadWish, stack: ExitStack, directory: Path) -> tuple[str, int]:
    """The service to load: its URL, and its process if it was started here, else 0."""
    if wish.service is not None:
        return str(_address(wish.service, wish.access)), 0
    if wish.listen is not None:
        raise InvalidError("--listen", "clients elsewhere cannot reach a service that is started here: name a SERVICE")
    if not plugins.service_installed():
        raise UnsupportedError(f"to start a service {plugins.NEEDS}: pip install 'pagepool[service]'; or name one")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAGEPOOL_")}
    cache = directory / "cache"
    if os.access(_SHARED_MEMORY, os.W_OK):
        cache = Path(tempfile.mkdtemp(prefix="pagepool-load-", dir=_SHARED_MEMORY))
        stack.callback(shutil.rmtree, cache, ignore_errors=True)
    running = stack.enter_context(
        running_service(directory / "store", directory / "service.log", environment, cache / "pool", alone=True)
    )
    return running.url, running.pid


@contextmanager
def _running_node(mode: str) -> Iterator[None]:
    """In mode kernel, a node; it is ended if it was not running before."""
    if mode != "kernel":
        yield
        return
    node = node_client()
    started = node.ensure()
    try:
        yield
    finally:
        if started:
            node.stop()


@contextmanager
def _temporary() -> Iterator[Path]:
    """A directory for the length of a run."""
    directory = Path(tempfile.mkdtemp(prefix="pagepool-load-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            output.warn(f"cannot remove {directory}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class _Interrupts:
    """Ctrl-C and SIGTERM: they break off what is prepared, end a test early, and do not disturb cleaning up."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._stop: threading.Event | None = None
        self._asked = False
        self._before: list[object] = []

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._heed) for number in self._NUMBERS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._NUMBERS, self._before, strict=True):
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal.signal returned

    @contextmanager
    def asked(self) -> Iterator[threading.Event]:
        """The event is set by the first signal in this block; the second breaks it off."""
        self._stop, self._asked = threading.Event(), False
        try:
            yield self._stop
        finally:
            self._stop = None

    def ignore(self) -> None:
        """From now on only cleaning up is left."""
        for number in self._NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _heed(self, *_: object) -> None:
        if self._stop is not None and not self._asked:
            self._asked = True
            set_soon(self._stop)
            return
        self.ignore()
        raise KeyboardInterrupt
