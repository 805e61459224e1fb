"""Servers that are not there or misbehave, disks and streams that take nothing, Ctrl-C, and wrong usage."""

from __future__ import annotations

import importlib.abc
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from pagepool.cli import app, elsewhere, output, start
from pagepool_service.store.store import Store
from tests.cli.conftest import Run, program_command, program_environment
from tests.oci.samples import Sample
from tests.support.groups import counted_group
from tests.transport.scripted import Reply, Request, scripted_server


def _host(url: str) -> str:
    return url.removeprefix("http://")


@pytest.mark.parametrize(
    "arguments", [["images"], ["tags", "a"], ["inspect", "a:1"], ["ls", "a:1"], ["stats"], ["rm", "a:1"]]
)
def test_nothing_listens(run: Run, arguments: list[str]) -> None:
    with scripted_server(lambda _: Reply()) as server:
        url = server.url
    result = run(*arguments, "--server", url)
    assert result.code == 6
    assert result.err == f"pagepool: error: cannot reach {_host(url)}: Connection refused\n"


def test_nothing_listens_where_a_service_is_looked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(lambda _: Reply()) as server:
        url = server.url
    monkeypatch.setattr(app, "_DEFAULT_WHERE", _host(url))
    result = run("images", "--server", url)
    assert result.code == 6
    assert "Connection refused; pagepool serve starts a service there; --server or PAGEPOOL_SERVER" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["images"], "pagepool: error: {host} is no registry, or lists no repositories\n"),
        (["stats"], "pagepool: error: {host} is not a pagepool service\n"),
    ],
)
def test_a_server_that_is_no_registry(run: Run, arguments: list[str], said: str) -> None:
    with scripted_server(lambda _: Reply(404, b"<h1>not here</h1>")) as server:
        result = run(*arguments, "--server", server.url)
        assert (result.code, result.err) == (1, said.format(host=_host(server.url)))


@pytest.mark.parametrize(
    "words",
    [
        b'{"errors":[{"code":"UNSUPPORTED","message":"this port speaks TLS: its address begins with https://"}]}',
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
    ],
)
@pytest.mark.parametrize("arguments", [["images"], ["ls", "a:1"], ["pull", "a:1", "never"]])
def test_http_to_a_port_that_speaks_tls(run: Run, arguments: list[str], words: bytes) -> None:
    """As a service of pagepool, a server in Go (docker-registry) and nginx answer it."""
    with scripted_server(lambda _: Reply(400, words)) as server:
        result = run(*arguments, "--server", server.url)
        host = _host(server.url)
    assert result.code == 6
    assert result.err == f"pagepool: error: cannot reach {host}: this port speaks TLS: its address is https://{host}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["kill", "web"], 2, "No such command 'kill': it is pagepool stop --time 0 (see pagepool --help)"),
        (["rmi", "a:1"], 2, "No such command 'rmi': it is pagepool rm REF"),
        (["comit"], 2, "No such command 'comit': did you mean commit?"),
        (["serv"], 2, "No such command 'serv': did you mean serve?"),
        (["help", "run"], 2, "No such command 'help': it is pagepool --help, or --help behind a command"),
        (["ps", "--format", "{{.Names}}"], 2, "No such option '--format': --json prints all of it"),
        (["pull", "a:1"], 2, "Missing argument 'PATH[:NAME]': where to write the image; run and mount fetch"),
        (["xyzzy"], 2, "No such command 'xyzzy' (see"),
        (["run", "-P", "a:1"], 125, "No such option '-P': it is -p HOST:CONTAINER"),
        (["run", "--restart=always", "a:1"], 125, "No such option '--restart': nothing starts a container again"),
        (
            ["exec", "--privileged", "web", "true"],
            125,
            "No such option '--privileged': there is no more than --cap-add",
        ),
        (["container", "ls"], 2, "No such command 'ls': it is pagepool ps"),
        (["container", "start", "x"], 2, "No such command 'start': a container that has ended is not started again"),
        (["container", "remove", "x"], 2, "No such command 'remove'"),
        (["load", "-i", "image.tar"], 2, "No such option '-i': this is a load test; pagepool push FILE REF"),
    ],
)
def test_what_docker_has_and_this_has_not(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)
    assert (result.code, said in result.err) == (code, True), result.err


def test_what_is_said_of_what_docker_has_names_what_there_is() -> None:
    context = click.Context(app.group)
    there = set(app.group.list_commands(context))
    assert not there & elsewhere.COMMANDS.keys()
    for name in ("run", "exec"):
        command = app.group.get_command(context, name)
        assert command is not None
        taken = {spelling for option in command.params for spelling in option.opts}
        assert not taken & elsewhere.OPTIONS.keys()
    below = app.group.get_command(context, "container")
    assert isinstance(below, click.Group)
    assert not below.commands.keys() & elsewhere.CONTAINER_COMMANDS.keys()
    for text in (*elsewhere.COMMANDS.values(), *elsewhere.CONTAINER_COMMANDS.values()):
        named = re.findall(r"pagepool ([a-z]+)", text)
        assert set(named) <= there, text


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(403), 7),
        (Reply(401), 7),
        (Reply(418, b"\x1b[2J<html>"), 1),
        (Reply(200, b"<html>"), 1),
        (Reply(507, b'{"errors":[{"code":"STORE_FULL","message":"the store is full: quota"}]}'), 8),
        (Reply(409, b'{"errors":[{"code":"BUSY","message":"busy"}]}'), 9),
    ],
)
def test_servers_that_refuse(run: Run, reply: Reply, code: int) -> None:
    with scripted_server(lambda _: reply) as server:
        result = run("tags", "a", "--server", server.url)
    assert result.code == code
    assert result.err.startswith("pagepool: error: ")
    assert result.err[:-1].isprintable()
    assert "is full: the store is full" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["images", "--json", "--nope"],
        ["find", "--json", "app:1", "-name"],
        ["nope", "--json"],
        ["fsck", "--json", "--data", "/nonexistent"],
        ["gc", "--json", "--data", "/nonexistent"],
        ["gc", "--keep-tags", "x", "--json"],
    ],
)
def test_with_json_every_error_is_json(run: Run, arguments: list[str]) -> None:
    """Also of a command line that could not be understood, and of commands of the service."""
    result = run(*arguments)
    assert json.loads(result.err)["error"]["exit_code"] == result.code != 0
    assert result.out == ""


@pytest.mark.parametrize("arguments", [["gc", "--dry-run"], ["fsck", "--help"]])
def test_output_that_nobody_reads_ends_every_command_alike(tmp_path: Path, arguments: list[str]) -> None:
    """Also the commands that print by click, which makes 1 of it."""
    Store.open(tmp_path / "data").close()
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        program_command(*arguments),
        env=program_environment() | {"PAGEPOOL_DATA": str(tmp_path / "data")},
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_json_of_the_program_in_a_container_is_not_ours(run: Run) -> None:
    assert run("run", "--nope", "app:1", "--", "jq", "--json").err.startswith("pagepool: error: ")


_STRANGER = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
_CAN_BE_STRANGER = subprocess.run([*_STRANGER, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _CAN_BE_STRANGER, reason="needs user namespaces, and unshare (util-linux 2.36)")
@pytest.mark.parametrize("words", [["tags", "a"], ["cat", "a:/b"], ["serve", "--listen", "127.0.0.1:nope"]])
def test_a_user_without_a_home(words: list[str]) -> None:
    """As programs in a container that runs as any number are: they get an answer, and no traceback."""
    environment = {name: value for name, value in program_environment().items() if name != "HOME"}
    with scripted_server(lambda _: Reply(404, b"{}")) as server:
        where = [] if "serve" in words else ["--server", server.url]
        ended = subprocess.run(
            [*_STRANGER, *program_command(*words, *where)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.stderr.startswith("pagepool: error: ")
    assert "home" not in ended.stderr


@pytest.mark.skipif(not _CAN_BE_STRANGER, reason="needs user namespaces, and unshare (util-linux 2.36)")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory to another user")
@pytest.mark.parametrize(("command", "given"), [("fsck", True), ("gc", False)])
def test_a_store_of_another_user(tmp_path: Path, command: str, *, given: bool) -> None:
    """As the service's own user has it under systemd: whose it is is said, by option and by variable alike."""
    data = tmp_path / "data"
    Store.open(data).close()
    data.chmod(0o700)
    os.chown(data, 1, 1)
    words = [
        command,
        *(["--data", str(data)] if given else []),
        *([str(tmp_path / "to")] if command == "backup" else []),
    ]
    ended = subprocess.run(
        [*_STRANGER, *program_command(*words)],
        env=program_environment() | {"PAGEPOOL_DATA": str(data)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 7
    assert re.fullmatch(
        rf"pagepool: error: {data} may not be read: it belongs to the user \S+, as whom this has to be run\n",
        ended.stderr,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """Standard streams that the caller has closed are no bug of ours, and no number of theirs becomes a socket's."""
    with scripted_server(lambda _: Reply(200, b'{"tags":["x"]}')) as server:
        command = ["sh", "-c", f'exec "$@" {closed}', "-", *program_command("tags", "a", "--server", server.url)]
        ended = subprocess.run(
            command, env=program_environment(), capture_output=True, text=True, timeout=60, check=False
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == ("" if " >" in f" {closed}" else "x\n")


def test_remarks_that_cannot_be_written(layout: tuple[Path, Sample], peer: str) -> None:
    """What was done is done, also where a log of remarks is on a full disk."""
    command = ["sh", "-c", 'exec "$@" 2>/dev/full', "-", *program_command("push", layout[0], f"{peer}/full:1")]
    ended = subprocess.run(command, env=program_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.startswith("sha256:")) == (0, True)


def test_no_more_threads(layout: tuple[Path, Sample]) -> None:
    with scripted_server(lambda _: Reply(404)) as server, counted_group() as group:
        group.joinpath("pids.max").write_text("1")
        command = program_command("push", "--no-wait", layout[0], f"{_host(server.url)}/a:1")
        enter = ["sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "-"]
        ended = subprocess.run(
            [*enter, *command], env=program_environment(), capture_output=True, text=True, timeout=60, check=False
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (9, 1), ended.stderr
    assert ended.stderr.startswith("pagepool: error: no more threads can be started: see ulimit -u")


def test_interrupted_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pagepool.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "pagepool.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        start.main(["images"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "pagepool: error: interrupted\n"


@pytest.mark.parametrize(
    "arguments", [[], ["--port", "80", "a:1"], ["--pids-limit", "0", "a:1"], ["-d", "-i", "a:1"], ["--log", "x", "a:1"]]
)
def test_a_container_that_was_asked_for_wrongly(run: Run, arguments: list[str]) -> None:
    """As with docker and podman: 2 may be the program's own code."""
    found = run("run", *arguments)
    assert found.code == 125
    assert found.err.startswith("pagepool: error: ")
    assert run("ps", *arguments, "--no-such").code == 2


def test_login_where_nobody_can_be_asked() -> None:
    ended = subprocess.run(
        program_command("login", "--username", "u"),
        env=program_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,  # without a terminal that the password could be read from
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "pagepool: error: Nobody can be asked here: give --username and --password-stdin (see pagepool login --help)\n"
    )


def test_environment_names_the_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(lambda _: Reply(200, b'{"tags":["x"]}')) as server:
        monkeypatch.setenv("PAGEPOOL_SERVER", server.url)
        assert run("tags", "a").out == "x\n"


def test_full_disk(run: Run, layout: tuple[Path, Sample]) -> None:
    def fail(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(404)
        return Reply(507, b'{"errors":[{"code":"STORE_FULL","message":"the store is full: quota of 1 MB"}]}')

    with scripted_server(fail) as server:
        result = run("push", "--no-wait", layout[0], f"{_host(server.url)}/a:1")
    assert result.code == 8
    assert result.err == "pagepool: error: the store is full: quota of 1 MB\n"


@pytest.mark.parametrize(
    ("command", "error"),
    [("push {0}/none {1}/a:1", 4), ("pull {1}/a:1 {0}/none/out", 4), ("push {0} {1}/a:1", 4), ("push {0} {1}/A:1", 4)],
)
def test_bad_paths_and_names(run: Run, tmp_path: Path, command: str, error: int) -> None:
    body = b'{"schemaVersion":2,"manifests":[]}'
    with scripted_server(lambda _: Reply(200, body)) as server:
        result = run(*command.format(tmp_path, _host(server.url)).split())
    assert result.code == error, result.err
    assert result.err.count("\n") == 1


def test_unwritable_place_is_one_line(run: Run, tmp_path: Path, layout: tuple[Path, Sample], peer: str) -> None:
    name = f"{peer}/unwritable:1"
    assert run("push", layout[0], name).code == 0
    result = run("pull", name, "/proc/none")
    assert result.code == 1
    assert result.err.startswith("pagepool: error: /proc")
    assert result.err.count("\n") == 1
    assert tmp_path.exists()


def test_an_error_of_a_call_on_a_descriptor_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/null").open() as file:
        code = app.guard(output.State(), lambda: os.scandir(file.fileno()))
    assert (code, capsys.readouterr().err) == (1, "pagepool: error: Not a directory\n")


@pytest.mark.parametrize("path", ["-", "oci-archive:-"])
def test_pull_does_not_take_a_dash_for_a_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Whoever writes that means standard output."""
    monkeypatch.chdir(tmp_path)
    result = run("pull", "127.0.0.1:1/a:1", path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_two_formats(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("pull", "--format", "oci", "127.0.0.1:1/a:1", "docker-archive:a.tar")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "docker-archive:a.tar" in result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_interrupt_is_clean_and_prompt(
    tmp_path: Path, layout: tuple[Path, Sample], direction: str, number: signal.Signals
) -> None:
    """Nothing is left of what was not whole. Whoever sent another signal sees that the program ended by it."""
    reached, leave = threading.Event(), threading.Event()
    path, sample = layout

    def script(request: Request) -> Reply:
        if "/manifests/" in request.path:
            return Reply(200, sample.content[sample.root().digest], {"Content-Type": sample.root().media_type})
        if "/blobs/" in request.path:
            reached.set()
            leave.wait(120)
        return Reply(404)

    with scripted_server(script) as server:
        name = f"{_host(server.url)}/a:1"
        arguments = ("push", path, name) if direction == "push" else ("pull", name, tmp_path / "out")
        process = subprocess.Popen(
            program_command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=program_environment(),
            cwd="/",
        )
        try:
            assert reached.wait(30)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
            leave.set()
    interrupted = number == signal.SIGINT
    assert process.returncode == (130 if interrupted else -number)
    assert out == b""
    assert err.strip() == (b"pagepool: error: interrupted" if interrupted else b"")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["home", "layout"]


def test_progress_on_a_terminal_only(layout: tuple[Path, Sample], peer: str) -> None:
    leader, follower = pty.openpty()
    environment = program_environment() | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        program_command("push", layout[0], f"{peer}/progress:1"),
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environment,
        cwd="/",
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    out, _ = process.communicate(timeout=30)
    os.close(leader)
    assert process.returncode == 0
    assert b"pushing" in shown
    assert out.decode() == f"{layout[1].root().digest}\n"
