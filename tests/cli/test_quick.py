"""The short way into `run` and `mount`: what it reads it reads as click does, and it loads little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.cli import quick
from pagepool.cli.app import group
from pagepool.cli.state import State
from tests.cli.conftest import program_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.cli.quick import Syntax
    from pagepool.node.client import NodeClient

NAMES = sorted(quick.SYNTAXES)
HEAVY = (
    *(
        "click",
        "rich",
        "httpx",
        "asyncio",
        "dis",
        "tokenize",
        "logging",
        "tempfile",
        "shutil",
        "hashlib",
        "secrets",
    ),
    *("importlib.metadata", "zstandard", "pagepool.library", "pagepool.vfs", "pagepool.image.treefile"),
    *("pagepool.overlay.directory", "pagepool.upper.check", "pagepool.mount.kernel.probing", "pagepool.cli.target"),
)
"""What takes long to load, and what a command that only speaks to the node has no use for."""


def command_of(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def as_click_reads(name: str, arguments: list[str]) -> dict[str, Any]:
    """The parameters, and what options about the program as a whole have left, as `quick.read` has them."""
    state = State()
    context = command_of(name).make_context(name, list(arguments), obj=state)
    found = dict(context.params)
    words = [str(found.pop("reference")), *(map(str, found.pop("words", ())))]
    if "path" in found:
        words.append(str(found.pop("path")))
    return {
        **found,
        "words": words,
        **{field: getattr(state, field) for field in ("json", "quiet", "node_state", "node_run")},
    }


def as_read(name: str, arguments: list[str], environment: dict[str, str] | None = None) -> dict[str, Any] | None:
    read = quick.read(quick.SYNTAXES[name], arguments, environment or {})
    if read is None:
        return None
    found, words = read
    return {"json": False, "quiet": False, "node_state": None, "node_run": None, **found, "words": words}


def plain(syntax: Syntax) -> st.SearchStrategy[list[str]]:
    """Options, most of them right."""
    word = st.sampled_from(["a", "host", "none", "auto", "kernel", "own", "/nowhere", "", "-x", "--", "-", "A=b", "7"])
    value = st.tuples(st.sampled_from(sorted({**syntax.values, **syntax.lists})), word)
    joined = value.map(lambda pair: [f"{pair[0]}={pair[1]}"])
    flags = st.lists(st.sampled_from(sorted(syntax.flags)), min_size=1, max_size=2)
    short = sorted(flag[1:] for flag in syntax.flags if not flag.startswith("--"))
    cluster = st.lists(st.sampled_from(short), min_size=1, max_size=3).map(lambda letters: ["-" + "".join(letters)])
    return st.lists(st.one_of(flags, value.map(list), joined, cluster), max_size=4).map(
        lambda parts: [one for part in parts for one in part]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_those_of_the_command(name: str) -> None:
    """A spelling, a default or a variable that is another there would be read wrongly here."""
    syntax, command = quick.SYNTAXES[name], command_of(name)
    options = {spelling: one for one in command.params if isinstance(one, click.Option) for spelling in one.opts}
    for spelling, parameter in syntax.flags.items():
        assert options[spelling].is_flag, spelling
        assert options[spelling].name == parameter
    for spelling, parameter in (*syntax.values.items(), *syntax.lists.items()):
        option = options[spelling]
        assert (option.name, option.nargs, option.is_flag) == (parameter, 1, False)
        assert option.multiple == (spelling in syntax.lists)
        assert isinstance(option.type, click.Choice) == (parameter in syntax.choices)
        assert isinstance(option.type, click.Path) == (parameter in syntax.directories)
    variables = {one.name: one.envvar for one in command.params if one.envvar}
    assert variables == dict(syntax.variables)
    said = as_click_reads(name, ["app:1", "/nowhere"])
    assert {field: said[field] for field in syntax.defaults} == dict(syntax.defaults)
    about = {"words", "json", "quiet", "node_state", "node_run"}
    assert said.keys() - about == syntax.defaults.keys()
    assert command.context_settings.get("allow_interspersed_args", True) == syntax.interspersed


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_read_is_read_as_click_does(name: str, data: st.DataObject) -> None:
    options = data.draw(plain(quick.SYNTAXES[name]))
    after = data.draw(st.lists(st.sampled_from(["sh", "-c", "--", "-it", "--json", "/nowhere"]), max_size=3))
    arguments = [*options, "app:1", *after]
    read = as_read(name, arguments)
    if read is not None:
        assert read == as_click_reads(name, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-it", "app:1", "--", "sh"],
        ["--plain-http", "--network=none", "-e", "A=1", "--env", "B", "-v", "/a:/b", "app:1", "-q"],
        ["--rm", "--server", "http://there:5000", "--node-run", "/nowhere", "-u", "7", "app:1"],
    ],
)
def test_plain_lines_are_read(arguments: list[str]) -> None:
    read = as_read("run", arguments)
    assert read is not None
    assert read == as_click_reads("run", arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run", []),
        ("run", ["--help"]),
        ("run", ["-h"]),
        ("run", ["--", "app:1"]),
        ("run", ["--nework", "none", "app:1"]),
        ("run", ["--runtime", "other", "app:1"]),
        ("run", ["--quiet=1", "app:1"]),
        ("run", ["-d", "-i", "app:1"]),
        ("run", ["--platform", "local", "app:1"]),
        ("run", ["-e"]),
        ("run", ["--pool", "/dev/null", "app:1"]),
        ("mount", []),
        ("mount", ["app:1"]),
        ("mount", ["app:1", "/nowhere", "--help"]),
        ("mount", ["app:1", "/nowhere", "other"]),
        ("mount", ["app:1", "/dev/null"]),
        ("mount", ["--rw", "--ro", "app:1", "/nowhere"]),
    ],
)
def test_whatever_else_is_left_to_click(name: str, arguments: list[str]) -> None:
    assert as_read(name, arguments) is None


def test_variables() -> None:
    found = as_read(
        "run", ["app:1"], {"PAGEPOOL_SERVER": "http://there", "PAGEPOOL_BACKEND": "", "PAGEPOOL_POOL": "/p"}
    )
    assert found is not None
    assert (found["server"], found["backend"], str(found["pool"])) == ("http://there", "auto", "/p")
    assert as_read("run", ["--backend", "fuse", "app:1"], {"PAGEPOOL_BACKEND": "nonsense"}) is not None
    assert as_read("run", ["app:1"], {"PAGEPOOL_BACKEND": "nonsense"}) is None
    assert as_read("run", ["app:1"], {"PAGEPOOL_CA_CERTIFICATE": "/some.crt"}) is None


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program; the modules that it has loaded are at the end of its standard error."""
    code = (
        "import os, sys; from pagepool.cli import quick; end = os._exit\n"
        "def tell(code): print(*sorted(sys.modules), file=sys.stderr, flush=True); end(code)\n"
        "os._exit = tell\n"
        "try: quick.main()\n"
        "except SystemExit as ended: tell(ended.code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=program_environment() | {name: value for name, value in os.environ.items() if name.startswith("PAGEPOOL_")},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def heavy(loaded: Sequence[str]) -> list[str]:
    """What of `HEAVY` was loaded. From Python 3.15 on `contextlib.ExitStack` takes `inspect`, and with it `dis`."""
    given = {"dis"} if sys.version_info >= (3, 15) else set()
    return [name for name in HEAVY if name in loaded and name not in given]


def test_mounting_and_running_load_little(node: NodeClient, image: str, tmp_path: Path) -> None:
    """What a command costs before it does anything is paid by each of a hundred containers that start at once."""
    point = tmp_path / "point"
    point.mkdir()
    node.ensure()
    assert program("mount", image, point).returncode == 0  # of which the node then knows that it can be done
    node.unmount(point)
    mounted = program("mount", "-q", image, point)
    assert (mounted.returncode, mounted.stdout) == (0, f"{point}\n")
    loaded = mounted.stderr.split()
    assert "pagepool.cli.mounting" in loaded
    assert heavy(loaded) == []
    own = [word for name in ("usr", "lib", "lib64", "bin") if Path("/", name).exists() for word in _shown(name)]
    ran = program("run", "--network", "none", *own, image, "--", "/bin/echo", "ran")
    assert (ran.returncode, ran.stdout) == (0, "ran\n"), ran.stderr
    loaded = ran.stderr.split()
    assert "pagepool.cli.running" in loaded
    assert heavy(loaded) == []


def _shown(name: str) -> list[str]:
    return ["-v", f"/{name}:/{name}:ro"]


def test_a_failure_is_told_as_ever(node: NodeClient, image: str) -> None:
    node.ensure()
    failed = program("run", "--network", "none", image, "--", "/no/such/program")
    assert failed.returncode == 127
    assert "pagepool: error: " in failed.stderr
    assert program("run", "--name", "!", image).returncode == 125


def test_what_dataclasses_ask_loads_nothing() -> None:
    """For annotations of every class in Python 3.12 and 3.13, for what a function wraps from 3.14 on."""
    code = """
import functools, sys
from pagepool.cli import quick
quick._load_little()
import inspect
class Base:
    first: int
class Derived(Base):
    pass
def function(argument: str) -> None: pass
wrapper = functools.wraps(functools.wraps(function)(lambda: None))(lambda: None)
assert [inspect.unwrap(one) for one in (wrapper, function, Base)] == [function, function, Base]
if sys.version_info < (3, 14):
    inspect.get_annotations(Base)
assert not {"dis", "tokenize"} & set(sys.modules)
assert inspect.unwrap(wrapper, stop=lambda one: one is not wrapper) is wrapper.__wrapped__
assert [inspect.get_annotations(one) for one in (Base, Derived)] == [{"first": int}, {}]
assert inspect.get_annotations(function) == {"argument": str, "return": None}
assert inspect.get_annotations(Base, eval_str=True) == {"first": int}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
