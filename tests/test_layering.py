"""Who may import what: the layers of docs/design.md as rules, each with its reason.

Imports are read off the syntax trees, wherever they stand: at the top, inside of a function, under
TYPE_CHECKING, or by `import_module` with a name that can be read. Every rule is also shown a violation planted
for it, and must find exactly that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.imports import ENVIRONMENT, PACKAGES, Module, Use, parse_module, parse_modules, read_modules


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of layering.

    Args:
        name: what it is called in test ids.
        reason: what goes wrong without it.
        find: the uses in a module that break it.
        planted: a module that breaks it, its name and source.
    """

    name: str
    reason: str
    find: Callable[[Module], Iterator[Use]]
    planted: tuple[str, str]


def _below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _never(who: str, *what: str, but: tuple[str, ...] = ()) -> Callable[[Module], Iterator[Use]]:
    """Modules below `who`, except those below `but`, do not import anything below `what`."""

    def find(module: Module) -> Iterator[Use]:
        if _below(module.name, who) and not _below(module.name, *but):
            yield from (use for use in module.imports if _below(use.name, *what))

    return find


_LAZILY = "pagepool.lazily"  # how a package offers its own names, and nothing else


def _only(who: str, *allowed: str) -> Callable[[Module], Iterator[Use]]:
    """Modules below `who` import, of this project, only themselves and what is below `allowed`."""

    def find(module: Module) -> Iterator[Use]:
        if _below(module.name, who):
            ours = (use for use in module.imports if _below(use.name, *PACKAGES))
            yield from (use for use in ours if not _below(use.name, who, _LAZILY, *allowed))

    return find


def _nobody_but(holders: tuple[str, ...], what: str) -> Callable[[Module], Iterator[Use]]:
    """Only modules below `holders` import what is below `what`."""

    def find(module: Module) -> Iterator[Use]:
        if not _below(module.name, *holders):
            yield from (use for use in module.imports if _below(use.name, what))

    return find


def _through(doors: tuple[str, ...], package: str, but: tuple[str, ...]) -> Callable[[Module], Iterator[Use]]:
    """Who is not below `package` or `but` imports of it only what is below its modules `doors`."""
    allowed = tuple(f"{package}.{door}" for door in doors)

    def find(module: Module) -> Iterator[Use]:
        if not _below(module.name, package, *but):
            yield from (use for use in module.imports if _below(use.name, package) and not _below(use.name, *allowed))

    return find


def _all(*finds: Callable[[Module], Iterator[Use]]) -> Callable[[Module], Iterator[Use]]:
    """Several rules that have one reason."""
    return lambda module: (use for find in finds for use in find(module))


def _environment(module: Module) -> Iterator[Use]:
    # prometheus_client is told in a variable where figures are kept, and in no other way.
    # A node's processes hand descriptors to each other in a variable that is no setting: nobody else sets it. And a
    # node is started with little of the environment of whoever needed it first.
    # So is the one that the demo starts.
    node = ("pagepool.node.handover", "pagepool.node.start", "pagepool_service.demo.kernelmount")
    told = ("pagepool_service.metrics.recording",)
    allowed = ("pagepool_service.settings", "pagepool.cli", "pagepool_service.commands", *told, *node)
    if not _below(module.name, *allowed):
        yield from (use for use in module.chains if use.name in ENVIRONMENT)
        yield from (use for use in module.imports if use.name in ENVIRONMENT)


_WORKER = ("pagepool.node.worker", "pagepool.node.operations")
"""What puts a node together, and stands above all of its parts."""


def _transactions(module: Module) -> Iterator[Use]:
    if _below(module.name, "pagepool_service.routes"):
        yield from (use for use in module.chains if use.name.endswith((".env.read", ".env.write")))


RULES = (
    Rule(
        "the client never imports the server's packages",
        "`pip install pagepool` installs none of them; the library would not even import",
        _never("pagepool", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "lmdb", "isal"),
        ("pagepool.extents.fast", "def f():\n    from isal import isal_zlib\n"),
    ),
    Rule(
        "the client never imports the service",
        "the service is built on the client; the other way round neither could be used or tested alone. Commands of "
        "the service are found by their entry points, and by name only where nothing is installed (cli.plugins)",
        _never("pagepool", "pagepool_service", but=("pagepool.cli.plugins",)),
        ("pagepool.layout.stored", "import importlib\nimportlib.import_module('pagepool_service.store.store')\n"),
    ),
    Rule(
        "errors stand below everything",
        "everything raises them; whatever they imported would be imported by all",
        _only("pagepool.errors"),
        ("pagepool.errors", "from pagepool.digest import Digest\n"),
    ),
    Rule(
        "digests stand on errors alone",
        "every layer names content by them",
        _only("pagepool.digest", "pagepool.errors"),
        ("pagepool.digest", "from pagepool import oci\n"),
    ),
    Rule(
        "oci imports nothing above it",
        "its documents are values that service, client and tests share; parsing must not drag in transport or store",
        _only("pagepool.oci", "pagepool.digest", "pagepool.errors"),
        ("pagepool.oci.fetch", "from pagepool.transport import Session\n"),
    ),
    Rule(
        "extents import nothing above them",
        "frames are a format: they are read by the store, on the wire and in a node's pool, which must agree",
        _only("pagepool.extents", "pagepool.digest", "pagepool.errors"),
        (
            "pagepool.extents.frame",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pagepool.image import Tree\n",
        ),
    ),
    Rule(
        "image stands on oci and extents",
        "layers, recipes and trees are computed from bytes, wherever those come from",
        _only("pagepool.image", "pagepool.oci", "pagepool.extents", "pagepool.digest", "pagepool.errors"),
        ("pagepool.image.tree", "from pagepool.layout import open_source\n"),
    ),
    Rule(
        "an EROFS image is made of a tree file alone",
        "the same tree has to become the same bytes, wherever it is written",
        _only(
            "pagepool.image.erofs",
            *(f"pagepool.image.{name}" for name in ("treefile", "treescan", "xattrs")),
            "pagepool.errors",
        ),
        ("pagepool.image.erofs.writer", "from pagepool.image.merge import TreeMerger\n"),
    ),
    Rule(
        "vfs stands on image",
        "an image and an overlay are file systems for whoever shows files: mounts, fsspec, commands stand on it",
        _only("pagepool.vfs", "pagepool.image", "pagepool.extents", "pagepool.digest", "pagepool.errors"),
        ("pagepool.vfs.remote", "from pagepool.transport import Session\n"),
    ),
    Rule(
        "overlay stands on vfs",
        "it is a file system over any other; who fetches the image's bytes, and who shows it, are above and beside it",
        _only("pagepool.overlay", "pagepool.vfs", "pagepool.image", "pagepool.digest", "pagepool.errors"),
        ("pagepool.overlay.remote", "from pagepool.transport import Session\n"),
    ),
    Rule(
        "a pool knows content, not where it comes from",
        "service, clients and mounts share it, each with its own way to fill it: what it needs is given to it, and it "
        "is verified by digests alone",
        _only("pagepool.pool", "pagepool.extents", "pagepool.linux", "pagepool.digest", "pagepool.errors"),
        ("pagepool.pool.fetch", "from pagepool.transport.extents import fetch_extents\n"),
    ),
    Rule(
        "mount serves whatever is a file system",
        "an image, an overlay and a test's own are mounted alike; what opens them is handed in by whoever mounts",
        _only(
            *("pagepool.mount", "pagepool.upper", "pagepool.vfs", "pagepool.image.member", "pagepool.linux"),
            *("pagepool.digest", "pagepool.errors"),
        ),
        ("pagepool.mount.open", "from pagepool.overlay import OverlayFileSystem\n"),
    ),
    Rule(
        "kernel mounts know nothing of FUSE",
        "they are there to go on when every process of ours is gone; what serves files is mounted by others",
        _never("pagepool.mount.kernel", "pagepool.mount.fuse", "pagepool.mount.device", "pagepool.vfs"),
        ("pagepool.mount.kernel.served", "from pagepool.mount.fuse import FuseServer\n"),
    ),
    Rule(
        "a node stands on what it fetches, keeps and mounts",
        "it outlives the command that started it, and serves others: it prints nothing, reads nobody's settings, and "
        "does not know which programs run on its mounts. Of the library it has the default budget alone",
        _only(
            *("pagepool.node", "pagepool.content", "pagepool.image", "pagepool.mount", "pagepool.upper"),
            *("pagepool.pool", "pagepool.linux", "pagepool.transport", "pagepool.vfs.interface", "pagepool.oci"),
            *("pagepool.extents", "pagepool.library.client", "pagepool.scrapes", "pagepool.version"),
            *("pagepool.digest", "pagepool.errors", "pagepool.units"),
        ),
        ("pagepool.node.running", "from pagepool.container import run_container\n"),
    ),
    Rule(
        "a node is asked through its client",
        "whoever worked on its pool or records beside it would be a second owner, and a container's start waits for "
        "these imports. The commands that start a node and measure its memory have what they need beside; what is left "
        "of one that does not answer is shown from its records",
        _through(
            ("client", "places", "alive"),
            "pagepool.node",
            but=("pagepool.cli.commands.node", "pagepool.cli.commands.memory"),
        ),
        ("pagepool.library.near", "from pagepool.node.sources import Sources\n"),
    ),
    Rule(
        "a snapshotter is a client of the node",
        "it may die, hang and be replaced at any time: whatever a container needs is held by the node and the kernel",
        _only(
            *("pagepool.snapshotter", "pagepool.node.client", "pagepool.node.alive", "pagepool.mount"),
            *("pagepool.linux", "pagepool.transport", "pagepool.oci", "pagepool.digest", "pagepool.errors"),
        ),
        ("pagepool.snapshotter.pools", "from pagepool.pool import Pool\n"),
    ),
    Rule(
        "gRPC is for those who have it",
        "it is an extra: the snapshotter's commands have to load without it, and say what is missing",
        _nobody_but(
            ("pagepool.snapshotter.serving", "pagepool.snapshotter.messages", "pagepool_service.bench.cri"), "grpc"
        ),
        ("pagepool.snapshotter.claims", "import grpc\n"),
    ),
    Rule(
        "a node's client knows the conversation, not the work",
        "it is loaded for each mount; what works is loaded by `start` alone, in a process of its own, when none runs",
        _only(
            *("pagepool.node.client", "pagepool.node.control", "pagepool.node.ending", "pagepool.node.places"),
            *("pagepool.node.start", "pagepool.mount", "pagepool.transport", "pagepool.oci", "pagepool.errors"),
            "pagepool.node.ending",  # by `stop` alone, when it is called
            "pagepool.linux.superblocks",
        ),
        ("pagepool.node.client", "from pagepool.node.sources import Sources\n"),
    ),
    Rule(
        "the conversation with a node is about nothing",
        "both ends load it, also of different versions: operations are names and fields to it",
        _only("pagepool.node.control", "pagepool.errors"),
        ("pagepool.node.control", "from pagepool.node.operations import Operations\n"),
    ),
    Rule(
        "a node's places and records stand alone",
        "they are read after a death, by another version, before anything else works",
        _all(
            _only("pagepool.node.places", "pagepool.errors"),
            _only("pagepool.node.records", "pagepool.errors"),
        ),
        ("pagepool.node.records", "from pagepool.node.sources import Source\n"),
    ),
    Rule(
        "what brings objects knows of no mounts",
        "a lookup in a container waits for it: it must not wait in turn for whoever mounts or unmounts",
        _all(
            *(
                _never(f"pagepool.node.{name}", "pagepool.node.mounts", *_WORKER)
                for name in (
                    "sources",
                    "images",
                    "filling",
                    "leases",
                    "recording",
                    "guessing",
                    "scrubbing",
                    "forgetting",
                    "lazy",
                )
            )
        ),
        ("pagepool.node.filling", "from pagepool.node.mounts import NodeMounts\n"),
    ),
    Rule(
        "mounting asks nobody",
        "an image is unmounted, and its mounts are found, though the service is away: its tree was fetched before",
        _never("pagepool.node.mounts", "pagepool.transport", "pagepool.content", "pagepool.pool", *_WORKER),
        ("pagepool.node.mounts", "from pagepool.transport import Session\n"),
    ),
    Rule(
        "the worker is put together in one place",
        "its parts know each other's small interfaces; a part that knew the worker could not be tested without it",
        _all(
            _nobody_but(
                (*_WORKER, "pagepool.node.start", "pagepool.node.staying", "pagepool.cli.commands.node"),
                "pagepool.node.worker",
            ),
            _nobody_but(_WORKER, "pagepool.node.operations"),
        ),
        ("pagepool.node.leases", "from pagepool.node.worker import Worker\n"),
    ),
    Rule(
        "a node's figures need nothing installed",
        "the client is installed without the service's packages, and a node is to be seen into all the same",
        _all(_never("pagepool", "prometheus_client"), _only("pagepool.node.exposition")),
        ("pagepool.node.exposition", "from prometheus_client import Histogram\n"),
    ),
    Rule(
        "the recorder only listens to the kernel",
        "it must never make anything be fetched, or wait for whoever fetches",
        _only("pagepool.node.recorder", "pagepool.image"),
        ("pagepool.node.recorder", "from pagepool.mount import list_mounts\n"),
    ),
    Rule(
        "the memory of containers is looked at from outside",
        "it opens what is there and fetches nothing; what is mounted is handed in",
        _only("pagepool.node.memory", "pagepool.pool", "pagepool.image", "pagepool.linux", "pagepool.errors"),
        ("pagepool.node.memory", "from pagepool.node import mounts\n"),
    ),
    Rule(
        "system calls know nothing of their users",
        "pool, mounts and uppers share them: what they imported would be imported by all",
        _only("pagepool.linux", "pagepool.errors"),
        ("pagepool.linux.pools", "from pagepool.pool import Pool\n"),
    ),
    Rule(
        "uppers of the kernel are read without being mounted",
        "they are checked before a mount and made into layers after it, also where nothing can be mounted",
        _only(
            "pagepool.upper", "pagepool.vfs", "pagepool.image", "pagepool.linux", "pagepool.digest", "pagepool.errors"
        ),
        ("pagepool.upper.mounted", "from pagepool.mount.kernel import mount_overlay\n"),
    ),
    Rule(
        "the lazy mount knows objects by digest alone",
        "whose they are and where they come from is for who hands it the source: the node, and a test's script",
        _only(
            *("pagepool.node.lazy", "pagepool.mount", "pagepool.vfs.interface", "pagepool.image.member"),
            *("pagepool.digest", "pagepool.errors"),
        ),
        ("pagepool.node.lazy.fetch", "from pagepool.content import TreeContent\n"),
    ),
    Rule(
        "what keeps a node alive does nothing else",
        "a supervisor that imports what the worker does can die of the same",
        _only(
            *("pagepool.node.supervisor", "pagepool.node.handover", "pagepool.linux.signals", "pagepool.errors"),
        ),
        ("pagepool.node.supervisor", "from pagepool.node.lazy import LazyServer\n"),
    ),
    Rule(
        "container runs programs on a root, wherever that comes from",
        "who mounts or unpacks it, and takes it away, is above; our own init must load little, and nothing installed",
        _only("pagepool.container", "pagepool.oci", "pagepool.linux", "pagepool.digest", "pagepool.errors"),
        ("pagepool.container.mounting", "from pagepool.mount import mount_fuse\n"),
    ),
    Rule(
        "layout knows files, not the network",
        "registries and files are two ends of one interface, which layout defines and transport implements",
        _only("pagepool.layout", "pagepool.oci", "pagepool.digest", "pagepool.errors"),
        ("pagepool.layout.remote", "import pagepool.transport.registry\n"),
    ),
    Rule(
        "commit makes images, and sends none",
        "a new image is a source like any other: registries and files take it by the same interface",
        _only(
            *("pagepool.commit", "pagepool.overlay", "pagepool.vfs", "pagepool.image", "pagepool.extents"),
            *("pagepool.layout", "pagepool.oci", "pagepool.digest", "pagepool.errors"),
        ),
        ("pagepool.commit.push", "from pagepool.transport import RegistrySink\n"),
    ),
    Rule(
        "content finds bytes, and is handed who fetches them",
        "a service reads its store and a client asks a service, by the same code",
        _only(
            *("pagepool.content", "pagepool.vfs", "pagepool.image", "pagepool.extents", "pagepool.digest"),
            "pagepool.errors",
        ),
        ("pagepool.content.remote", "from pagepool.transport import Session\n"),
    ),
    Rule(
        "the library stands below the command line and fsspec",
        "programs import it; what a program does not need must not come along",
        _never("pagepool.library", "pagepool.cli", "pagepool.fsspec", "click", "rich"),
        ("pagepool.library.bars", "from pagepool.cli import progress\n"),
    ),
    Rule(
        "a load test is a program of the library's",
        "it does what containers do, by the doors that they have; whoever starts clients and prints reports is above",
        _only(
            *("pagepool.load", "pagepool.samples", "pagepool.library", "pagepool.transport", "pagepool.layout"),
            *("pagepool.node.client", "pagepool.mount", "pagepool.image", "pagepool.oci", "pagepool.vfs"),
            *("pagepool.linux", "pagepool.units", "pagepool.version", "pagepool.digest", "pagepool.errors"),
        ),
        ("pagepool.load.bars", "from pagepool.cli import progress\n"),
    ),
    Rule(
        "what a load test compares with is computed by other means",
        "a fault of pagepool's own digests, layers or trees would be in the answer and in what it is compared with",
        _all(
            _only(
                "pagepool.load.layertruth",
                *("pagepool.load.truth", "pagepool.layout.inflate", "pagepool.oci", "pagepool.errors"),
            ),
            _only("pagepool.load.truth", "pagepool.errors"),
        ),
        ("pagepool.load.truth", "from pagepool.image.treefile import TreeFile\n"),
    ),
    Rule(
        "samples are files of this machine in a layout",
        "the demo and load tests make images of them; neither is known here",
        _only(
            *("pagepool.samples", "pagepool.layout", "pagepool.oci", "pagepool.linux", "pagepool.digest"),
            "pagepool.errors",
        ),
        ("pagepool.samples.pushed", "from pagepool.transport import RegistrySink\n"),
    ),
    Rule(
        "fsspec is for those who have it",
        "it is an extra: the library and its commands have to load without it",
        _nobody_but(("pagepool.fsspec",), "fsspec"),
        ("pagepool.library.remote", "import fsspec\n"),
    ),
    Rule(
        "transport does not know the command line",
        "it is a library: no output, no exit codes, no reading of the user's settings",
        _only(
            *("pagepool.transport", "pagepool.layout", "pagepool.oci", "pagepool.extents"),
            *("pagepool.digest", "pagepool.errors"),
        ),
        ("pagepool.transport.bars", "from pagepool.cli import progress\n"),
    ),
    Rule(
        "only commands import the command line",
        "it decides what is printed and how a process ends; code that serves or stores must not",
        _nobody_but(
            (
                *("pagepool.cli", "pagepool.__main__"),
                *("pagepool_service.commands", "pagepool_service.demo", "pagepool_service.bench"),
            ),
            "pagepool.cli",
        ),
        ("pagepool_service.ingest", "from pagepool.cli import output\n"),
    ),
    Rule(
        "only store.environment imports lmdb, and store.transactions, which it hands out",
        "they check every record's checksum, count the quota and translate errors: a second door would go round that; "
        "the benchmark's prototype is a store of its own, and shows what one without all this is worth",
        _nobody_but(
            (
                *("pagepool_service.store.environment", "pagepool_service.store.transactions"),
                "pagepool_service.bench.prototype",
            ),
            "lmdb",
        ),
        ("pagepool_service.store.fast", "import lmdb\n"),
    ),
    Rule(
        "routes touch no records",
        "they translate HTTP into calls of the store and back; a record layout known to both changes in two places",
        _never(
            "pagepool_service.routes",
            "lmdb",
            *(
                f"pagepool_service.store.{name}"
                for name in ("environment", "schema", "extents", "jobs", "totals", "rebuild")
            ),
        ),
        ("pagepool_service.routes.raw", "from pagepool_service.store.environment import Table\n"),
    ),
    Rule(
        "routes begin no transaction",
        "a route may wait for the network, and a transaction held meanwhile keeps the store from reusing any page",
        _transactions,
        ("pagepool_service.routes.raw", "def f(service):\n    with service.store.env.read() as txn:\n        pass\n"),
    ),
    Rule(
        "the store does not know HTTP",
        "ingest, fsck and tests use it without a server",
        _never(
            "pagepool_service.store",
            *("fastapi", "starlette", "uvicorn", "httpx"),
            *(f"pagepool_service.{name}" for name in ("routes", "app", "worker", "supervisor", "uploads", "commands")),
            *("pagepool_service.repair", "pagepool_service.backup"),
        ),
        ("pagepool_service.store.answers", "from pagepool_service.routes.errors import render\n"),
    ),
    Rule(
        "who may do what is decided without HTTP and without the store",
        "rights are values: routes, commands and tests ask them alike, and a fast path can without going by the routes",
        _never(
            "pagepool_service.auth",
            *("fastapi", "starlette", "uvicorn", "httpx", "lmdb"),
            *(f"pagepool_service.{name}" for name in ("routes", "app", "worker", "store", "uploads", "commands")),
        ),
        ("pagepool_service.auth.deciding", "from pagepool_service.store.registry import Registry\n"),
    ),
    Rule(
        "cryptography is loaded only where somebody can log in, and where layers are read",
        "workers of a service without users have no use for it, and it takes time and memory in each process",
        _all(
            *(
                _nobody_but(("pagepool_service.auth", "pagepool_service.commands.auth"), name)
                for name in ("bcrypt", "jwt")
            ),
            _nobody_but(
                ("pagepool_service.auth", "pagepool_service.commands.auth", "pagepool_service.streamtag"),
                "cryptography",
            ),
        ),
        ("pagepool_service.app", "import jwt\n"),
    ),
    Rule(
        "figures are loaded only where they are kept",
        "a service without metrics loads no prometheus_client: its processes import these modules when they need them",
        _nobody_but(("pagepool_service.metrics",), "prometheus_client"),
        ("pagepool_service.app", "from prometheus_client import Counter\n"),
    ),
    Rule(
        "traces are loaded only where they are made",
        "a service without them loads none of OpenTelemetry's packages, and they need not be installed",
        _nobody_but(("pagepool_service.tracing.exporting",), "opentelemetry"),
        ("pagepool_service.app", "from opentelemetry import trace\n"),
    ),
    Rule(
        "what is seen is looked up, not served",
        "figures are looked at by routes, by a worker's clock and by tests; what they are on the wire is for routes",
        _never("pagepool_service.seeing", "fastapi", "starlette", "pagepool_service.routes", "pagepool_service.app"),
        ("pagepool_service.seeing.figures", "from pagepool_service.routes.context import Context\n"),
    ),
    Rule(
        "ingest does not know HTTP",
        "layers are read by processes without a server, by the benchmark and by tests",
        _never(
            "pagepool_service.ingest",
            "fastapi",
            "starlette",
            "uvicorn",
            "pagepool_service.routes",
            "pagepool_service.app",
        ),
        ("pagepool_service.ingest", "import fastapi\n"),
    ),
    Rule(
        "only settings and commands read the environment",
        "a variable read elsewhere is a setting that nobody documents, and that tests cannot see",
        _environment,
        ("pagepool_service.store.blobs", "import os\nLEVEL = int(os.environ.get('LEVEL', '3'))\n"),
    ),
)


def violations(rule: Rule, modules: Iterable[Module]) -> list[str]:
    """Where a rule is broken: ``module:line uses name``."""
    return [f"{module.name}:{use.line} uses {use.name}" for module in modules for use in rule.find(module)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule(rule: Rule) -> None:
    """The project keeps the rule."""
    assert violations(rule, parse_modules()) == [], rule.reason


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_finds_a_planted_violation(rule: Rule) -> None:
    """A rule that finds nothing where there is something would keep nothing."""
    name, source = rule.planted
    known = frozenset({name, *(module.name for module in parse_modules())})
    others = (module for module in parse_modules() if module.name != name)
    found = violations(rule, [*others, parse_module(name, source, False, known)])
    assert len(found) == 1, rule.name
    assert found[0].startswith(f"{name}:")


def test_all_modules_are_read() -> None:
    """The rules look at every file, and at every form of import."""
    modules = read_modules()
    assert {"pagepool", "pagepool.oci.manifest", "pagepool_service.store.environment"} <= set(modules)
    source = "from . import a\nfrom ..b import c\nimport d.e as f\n__import__('g')\nimport_module(f'h.{i}')\n"
    parsed = parse_module("p.q.r", source, False, frozenset({"p.q.a", "p.b"}))
    assert [use.name for use in parsed.imports] == ["p.q.a", "p.b", "d.e", "g", "h"]
    assert [use.name for use in parse_module("p.q", "from . import a\n", True, frozenset({"p.q.a"})).imports] == [
        "p.q.a"
    ]


_CLIENT = PACKAGES["pagepool"]


@pytest.mark.parametrize("package", sorted(path.parent.name for path in _CLIENT.glob("pagepool/*/__init__.py")))
def test_the_client_loads_without_the_service(package: str) -> None:
    """What the rules say about source must be true of a running program, too."""
    blocked = ("fastapi", "starlette", "uvicorn", "lmdb", "isal", "pagepool_service")
    program = (
        f"import sys; sys.modules |= dict.fromkeys({blocked!r}); sys.path.insert(0, {str(_CLIENT)!r});"
        f" import pagepool.{package}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
