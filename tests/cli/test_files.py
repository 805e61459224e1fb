"""Commands on the files of images and overlays: ls, find, cat, cp, diff, commit."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pagepool.image import Kind
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.transport import RegistryClient, RegistrySink, Session
from tests.cli.conftest import Result, Run, program_command, program_environment
from tests.image.umoci import read_tree
from tests.oci.samples import Sample
from tests.overlay.layers import whole_layer
from tests.support.trees import TreeBuilder

HOLE = bytes(4 << 20)

TIME_NS = 1_700_000_000_000_000_000
BIG = bytes(range(256)) * 6000


def _layer() -> bytes:
    builder = TreeBuilder()
    builder.directory("etc", mtime_ns=TIME_NS)
    builder.file("etc/passwd", b"root:x:0:0\n", mtime_ns=TIME_NS)
    builder.file("etc/shadow", b"", 0o600, mtime_ns=TIME_NS + 10**9)
    builder.file("usr/bin/tool", BIG, 0o4755, uid=7, gid=8, mtime_ns=TIME_NS - 10**9, xattrs={b"user.a": b"1"})
    builder.add("usr/bin/alias", builder.file("usr/bin/real", b"#!", 0o755))
    builder.symlink("bin", "usr/bin")
    builder.symlink("etc/tool", "/usr/bin/tool")
    builder.device("dev/null", Kind.CHAR, (1, 3), 0o666)
    builder.directory("empty", 0o1777)
    return whole_layer(builder.file_system())


@pytest.fixture(scope="module")
def image(service: str) -> str:
    """``host:port/files:1``, in the service."""
    sample = Sample()
    sample.add_image([_layer()])
    with Session(f"http://{service}") as session:
        sink = RegistrySink(RegistryClient(session), Reference.parse("files:1"))
        run_copy(plan_copy(sample), sample, sink)
    return f"{service}/files:1"


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool of the test's own."""
    monkeypatch.setenv("PAGEPOOL_POOL", str(tmp_path / "pool"))
    return tmp_path / "pool"


@pytest.fixture
def upper(run: Run, image: str, tmp_path: Path) -> str:
    """The directory of an overlay in which /etc/passwd was changed and /new made."""
    (tmp_path / "passwd").write_text("changed\n")
    (tmp_path / "new").write_text("new\n")
    directory = f"{tmp_path}/upper"
    assert run("cp", "--image", image, tmp_path / "passwd", f"{directory}:/etc/passwd").code == 0
    assert run("cp", tmp_path / "new", f"{directory}:/").code == 0
    return directory


def _ok(result: Result) -> str:
    assert result.code == 0, result.err
    return result.out


def _refused(result: Result, code: int) -> str:
    assert result.code == code, result.err
    assert result.err.startswith("pagepool: error: ")
    assert result.err.count("\n") == 1
    return result.err


# -- cat -----------------------------------------------------------------------------------------------------------


def test_cat(run: Run, image: str, upper: str) -> None:
    both = run("cat", f"{image}:/etc/passwd", f"{upper}:/etc/passwd", f"{upper}:/new")
    assert _ok(both) == "root:x:0:0\nchanged\nnew\n"


def test_cat_is_byte_for_byte(image: str, tmp_path: Path) -> None:
    command = program_command("cat", f"{image}:/etc/tool")
    environment = program_environment() | {"PAGEPOOL_POOL": str(tmp_path / "pool")}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout == BIG


def test_a_reader_that_goes_away(image: str, tmp_path: Path) -> None:
    """Ends the program as it ends others, without a word."""
    environment = program_environment() | {"PAGEPOOL_POOL": str(tmp_path / "pool")}
    command = program_command("cat", *[f"{image}:/etc/tool"] * 3)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == BIG[:1]
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_what_cat_refuses(run: Run, image: str, tmp_path: Path) -> None:
    assert "TARGET:/PATH" in _refused(run("cat", image), 2)
    assert f"path {image}:/none is unknown" in _refused(run("cat", f"{image}:/none"), 3)
    assert "Is a directory" in _refused(run("cat", f"{image}:/etc"), 1)
    assert "manifest files:none is unknown" in _refused(run("cat", f"{image.replace(':1', ':none')}:/x"), 3)
    assert str(tmp_path) in _refused(run("cat", f"{tmp_path}/none:/x"), 3)


# -- ls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://127.0.0.1:5000/app:1:/etc", "a reference has no scheme: leave http:// out"),
        ("docker://app:1", "a reference has no scheme: leave docker:// out"),
        ("app:1:etc", "a path begins with a slash: app:1:/etc"),
        ("host:5000/app:1:", "a path begins with a slash: host:5000/app:1:/"),
        ("app:1@sha256:12", "digest: sha256:12 is no"),
        ("app:x y", "tag: must be"),
    ],
)
def test_slips_in_targets_are_named(run: Run, target: str, said: str) -> None:
    result = run("ls", target)
    assert result.code == 4
    assert said in result.err.replace("\\u2026", "…")


def test_what_is_no_overlay(run: Run, tmp_path: Path) -> None:
    result = run("diff", tmp_path)
    assert (result.code, result.err) == (3, f"pagepool: error: {tmp_path} is not the directory of an overlay\n")
    result = run("cp", __file__, f"{tmp_path}:/file")
    assert (result.code, "is not the directory of an overlay: --image REF makes one" in result.err) == (3, True)


def test_ls_of_an_overlay_is_that_of_an_image(run: Run, image: str, upper: str) -> None:
    """But for what was changed."""
    for arguments in (("ls",), ("ls", "-R"), ("ls", "-l"), ("ls", "--json")):
        for path in ("/usr/bin", "/dev", "/usr/bin/tool"):
            ours, theirs = _ok(run(*arguments, f"{upper}:{path}")), _ok(run(*arguments, f"{image}:{path}"))
            if "--json" in arguments:
                found, expected = json.loads(ours)["entries"], json.loads(theirs)["entries"]
                assert [entry["path"] for entry in found] == [entry["path"] for entry in expected]
                assert all(
                    entry.items() <= {**other, **entry}.items() for entry, other in zip(found, expected, strict=True)
                )
            else:
                assert ours == theirs
    assert "/new" in _ok(run("ls", upper)).splitlines()
    assert _ok(run("ls", f"{upper}:/new", f"{image}:/dev")).splitlines() == [
        f"{upper}:/new:", "/new", f"{image}:/dev:", "/dev/null"
    ]  # fmt: skip


# -- find ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "/ /bin /dev /dev/null /empty /etc /etc/passwd /etc/shadow /etc/tool /usr /usr/bin /usr/bin/alias "
             "/usr/bin/real /usr/bin/tool"),
        ("-name tool", "/etc/tool /usr/bin/tool"),
        ("--name t*l --type f", "/usr/bin/tool"),
        ("-iname PASS*", "/etc/passwd"),
        ("-path */bin/*", "/usr/bin/alias /usr/bin/real /usr/bin/tool"),
        ("-type l,c", "/bin /dev/null /etc/tool"),
        ("-type f -size +1M", "/usr/bin/tool"),
        ("-type f -size 1k", "/etc/passwd /usr/bin/alias /usr/bin/real"),
        ("-type f -size -11c", "/etc/shadow /usr/bin/alias /usr/bin/real"),
        ("-type f -newer @1700000000", "/etc/shadow"),
        ("-type f -newer 2023-11-14T22:13:19+00:00", "/etc/passwd /etc/shadow"),
        ("-type f -older 2023-11-14T22:13:20 -size +0", "/usr/bin/alias /usr/bin/real /usr/bin/tool"),
        ("-perm 600", "/etc/shadow"),
        ("-perm -4000", "/usr/bin/tool"),
        ("-perm /5000", "/empty /usr/bin/tool"),
        ("-uid 7 -gid +7", "/usr/bin/tool"),
        ("-type f -links 2", "/usr/bin/alias /usr/bin/real"),
        ("-empty", "/empty /etc/shadow"),
        ("-maxdepth 1 -type d", "/ /dev /empty /etc /usr"),
        ("-mindepth 2 -maxdepth 2 -type d", "/usr/bin"),
        ("-maxdepth 0", "/"),
    ],
)  # fmt: skip
def test_find(run: Run, image: str, arguments: str, expected: str) -> None:
    assert _ok(run("find", image, *arguments.split())).split() == expected.split()


def test_find_below_a_path_and_in_overlays(run: Run, image: str, upper: str) -> None:
    assert _ok(run("find", f"{image}:/etc", f"{upper}:/etc", "-name", "pass*")).split() == ["/etc/passwd"] * 2
    newer = _ok(run("find", upper, "-type", "f", "-newer", f"{image}:/etc/shadow"))
    assert newer.split() == ["/etc/passwd", "/new"]
    assert _ok(run("find", f"{image}:/bin")).split() == ["/bin"]
    assert _ok(run("find", f"{image}:/etc/", "-mindepth", "1", "-0")) == "/etc/passwd\0/etc/shadow\0/etc/tool\0"
    assert _ok(run("find", f"{image}:/usr", "-name", "tool", "-l")).startswith("-rwsr-xr-x 1 7:8 1.5 MB 2023-11-14 ")
    (found,) = run("find", "--json", image, "-type", "c").json["entries"]
    assert (found["path"], found["target"], found["devmajor"]) == ("/dev/null", image, 1)


def test_names_that_are_no_text(run: Run, image: str, tmp_path: Path) -> None:
    """Every command writes them in the same way; only -print0 as they are."""
    directory = f"{tmp_path}/work"
    name = f"{tmp_path}/a\udcffb"
    Path(name).write_text("x")
    assert run("cp", "--image", image, name, f"{directory}:/empty/").code == 0
    assert _ok(run("find", directory, "-name", "a*b")) == "/empty/a\\xffb\n"
    assert _ok(run("diff", directory)).splitlines()[-1] == "A /empty/a\\xffb"
    assert _ok(run("ls", f"{directory}:/empty")) == "/empty/a\\xffb\n"
    files = run("find", "--json", directory, "-name", "a*b").json["entries"]
    for found in files, run("diff", "--json", directory).json["changes"][-1:]:
        assert [one["path"] for one in found] == ["/empty/a\\xffb"]


@pytest.mark.parametrize(
    "arguments",
    ["-type x", "-size 10x", "-size +", "-newer yesterday", "-perm 9", "-perm +644", "-uid root", "-links -"],
)
def test_conditions_that_are_none(run: Run, image: str, arguments: str) -> None:
    assert "invalid condition" in _refused(run("find", image, *arguments.split()), 4)


# -- cp ------------------------------------------------------------------------------------------------------------


def test_cp_out(run: Run, image: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "copied 1 file, 11 B" in run("cp", f"{image}:/etc/passwd", out).err
    assert out.read_bytes() == b"root:x:0:0\n"
    assert run("cp", f"{image}:/etc/tool", f"{image}:/etc/shadow", tmp_path / "none").code == 1
    (tmp_path / "both").mkdir()
    _ok(run("cp", f"{image}:/etc/tool", f"{image}:/etc/shadow", tmp_path / "both"))
    assert (tmp_path / "both" / "tool").read_bytes() == BIG
    assert (tmp_path / "both" / "tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "both" / "shadow").stat().st_mode & 0o7777 == 0o600


def test_cp_of_directories(run: Run, image: str, tmp_path: Path) -> None:
    assert "/etc: Is a directory; -r copies directories" in _refused(run("cp", f"{image}:/etc", tmp_path), 1)
    _ok(run("cp", "-r", f"{image}:/etc", tmp_path))
    assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == ["passwd", "shadow", "tool"]
    assert str((tmp_path / "etc" / "tool").readlink()) == "/usr/bin/tool"
    _ok(run("cp", "-r", f"{image}:/etc/.", tmp_path / "etc2"))
    _ok(run("cp", "-r", f"{image}:/usr/bin/.", tmp_path / "etc2"))
    assert len(list((tmp_path / "etc2").iterdir())) == 5
    assert (tmp_path / "etc2" / "tool").read_bytes() == BIG  # the symlink of that name was replaced
    (tmp_path / "all").mkdir()
    result = run("cp", "-rp", "--json", f"{image}:/", tmp_path / "all")
    assert result.json == {"destination": str(tmp_path / "all"), "files": 7, "size": len(BIG) + 15, "skipped": 1}
    assert "/dev/null is neither file" in result.err
    status = (tmp_path / "all" / "usr" / "bin" / "tool").stat()
    assert status.st_mtime_ns == TIME_NS - 10**9
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o4755)
    assert (tmp_path / "all" / "etc").stat().st_mtime_ns == TIME_NS


def test_cp_follows_no_symlink_that_it_wrote_before(run: Run, image: str, tmp_path: Path) -> None:
    """What an image brought must not lead the next copy out of the destination."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "file").write_text("mine")
    (inside / "etc").symlink_to(outside)
    assert "File exists" in _refused(run("cp", "-r", f"{image}:/etc", inside), 1)
    assert list(outside.iterdir()) == [outside / "file"]
    (inside / "etc").unlink()
    (inside / "etc").mkdir()
    (inside / "etc" / "passwd").symlink_to(outside / "file")
    _ok(run("cp", "-r", f"{image}:/", inside))
    assert (outside / "file").read_text() == "mine"
    assert (inside / "etc" / "passwd").read_bytes() == b"root:x:0:0\n"


def test_every_json_is_an_object_with_names(run: Run, image: str, tmp_path: Path) -> None:
    """Lists are in it, so that more can be said beside them one day."""
    (filled,) = run("cache", "fill", "--json", image).json["images"]
    assert filled["image"] == image
    (tmp_path / "users").write_text("alice:$2b$05$" + "a" * 53 + "\n")
    (tmp_path / "users").chmod(0o600)
    checked = run("auth", "check", "--htpasswd", tmp_path / "users", "--json")
    assert checked.code == 0, checked.err
    assert checked.json.keys() == {"users"}


def test_cp_keeps_holes(run: Run, image: str, tmp_path: Path) -> None:
    """What is all zeros takes no room, on this machine and in an overlay: a file may be mostly that, and large."""
    upper, source = f"{tmp_path}/upper", tmp_path / "source"
    parts = (HOLE, b"x" * 5000, HOLE, b"y", bytes(70_000))
    with source.open("wb") as file:
        for part in parts:
            file.write(part)
    with (tmp_path / "hole").open("wb") as file:
        file.write(HOLE)
    _ok(run("cp", "--image", image, source, tmp_path / "hole", f"{upper}:/usr/bin"))
    assert (tmp_path / "upper" / "blocks").stat().st_blocks * 512 < len(HOLE)
    (tmp_path / "out").mkdir()
    _ok(run("cp", f"{upper}:/bin/source", f"{upper}:/bin/hole", tmp_path / "out"))
    assert (tmp_path / "out" / "source").read_bytes() == b"".join(parts)
    assert (tmp_path / "out" / "hole").read_bytes() == HOLE
    assert (tmp_path / "out" / "source").stat().st_blocks * 512 < len(HOLE)
    assert (tmp_path / "out" / "hole").stat().st_blocks == 0
    os.mkfifo(tmp_path / "pipe")
    counting = ["sh", "-c", 'wc -c <"$1"', "-", str(tmp_path / "pipe")]
    with subprocess.Popen(counting, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        _ok(run("cp", f"{upper}:/bin/hole", tmp_path / "pipe"))
        assert int(reader.stdout.read()) == len(HOLE)


def test_cp_in(run: Run, image: str, tmp_path: Path) -> None:
    upper, source = f"{tmp_path}/upper", tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(BIG)
    (source / "link").symlink_to("sub/file")
    (source / "run").write_text("#!")
    (source / "run").chmod(0o4755)
    os.mkfifo(source / "pipe")
    first = run("cp", "-r", "--image", image, source, f"{upper}:/srv")
    assert "pipe is neither" in first.err
    assert _ok(run("find", f"{upper}:/srv")).split() == [
        "/srv", "/srv/link", "/srv/run", "/srv/sub", "/srv/sub/file"
    ]  # fmt: skip
    _ok(run("cp", f"{upper}:/srv/link", f"{upper}:/srv/sub/copy"))
    found = {entry["path"]: entry for entry in run("find", "--json", f"{upper}:/srv").json["entries"]}
    assert found["/srv/sub/copy"]["size"] == len(BIG)
    assert (found["/srv/run"]["mode"], found["/srv/run"]["uid"]) == (0o755, 0)
    assert found["/srv/link"]["linkname"] == "sub/file"
    _ok(run("cp", "-p", source / "run", f"{upper}:/bin/"))
    (kept,) = run("find", "--json", f"{upper}:/usr/bin/run").json["entries"]
    assert (kept["mode"], kept["mtime_ns"]) == (0o4755, (source / "run").stat().st_mtime_ns)
    _ok(run("cp", "-rp", f"{image}:/usr/bin", f"{upper}:/copied"))
    (kept,) = run("find", "--json", f"{upper}:/copied/tool").json["entries"]
    assert (kept["mode"], kept["uid"], kept["gid"], kept["mtime_ns"]) == (0o4755, 7, 8, TIME_NS - 10**9)


def test_what_cp_refuses(run: Run, image: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be changed" in _refused(run("cp", tmp_path / "file", f"{image}:/etc"), 2)
    assert "--image is for" in _refused(run("cp", "--image", image, f"{image}:/etc/passwd", tmp_path), 2)
    assert str(tmp_path) in _refused(run("cp", tmp_path / "file", f"{tmp_path}/none:/x"), 3)
    assert "/none is unknown" in _refused(run("cp", f"{image}:/none", tmp_path), 3)
    assert f"error: {tmp_path}/none/x: No such" in _refused(run("cp", f"{image}:/etc/passwd", f"{tmp_path}/none/x"), 1)
    assert "Not a directory" in _refused(run("cp", f"{image}:/etc/passwd", f"{tmp_path}/none/"), 1)
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    assert "pagepool cat prints files" in _refused(run("cp", f"{image}:/etc/passwd", tmp_path / "stdout"), 2)
    assert (tmp_path / "stdout").is_symlink()


# -- diff ----------------------------------------------------------------------------------------------------------


def test_diff(run: Run, image: str, upper: str) -> None:
    assert _ok(run("diff", upper)) == "C /\nC /etc/passwd\nA /new\n"
    assert _ok(run("diff", "-q", upper)) == "/\n/etc/passwd\n/new\n"
    assert run("diff", "--json", upper).json["changes"] == [
        {"path": "/", "change": "modified", "letter": "C", "type": "directory", "size": 0},
        {"path": "/etc/passwd", "change": "modified", "letter": "C", "type": "regular", "size": 8},
        {"path": "/new", "change": "added", "letter": "A", "type": "regular", "size": 4},
    ]
    assert _ok(run("diff", image, upper)) == _ok(run("diff", upper))
    assert _ok(run("diff", upper, image)) == "C /\nC /etc/passwd\nD /new\n"
    assert _ok(run("diff", image, image)) == ""


def test_diff_as_a_layer(run: Run, upper: str, tmp_path: Path) -> None:
    _ok(run("diff", "--tar", tmp_path / "layer.tar", upper))
    data = (tmp_path / "layer.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [".", "etc", "etc/passwd", "new"]
    command = program_command("diff", "--tar", "-", upper)
    environment = program_environment() | {"PAGEPOOL_POOL": str(tmp_path / "pool")}
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == data
    found = read_tree([_layer(), data])
    assert (found[b"etc/passwd"][5], found[b"new"][5]) == (b"changed\n", b"new\n")


def test_what_diff_refuses(run: Run, image: str, upper: str, tmp_path: Path) -> None:
    assert "name a second one" in _refused(run("diff", image), 2)
    assert "has a path" in _refused(run("diff", f"{upper}:/etc"), 2)
    (tmp_path / "bad").write_text("")
    _ok(run("cp", tmp_path / "bad", f"{upper}:/.wh.bad"))
    assert "begins with .wh." in _refused(run("diff", "--tar", tmp_path / "layer.tar", upper), 4)
    assert not (tmp_path / "layer.tar").exists()


# -- commit --------------------------------------------------------------------------------------------------------


def test_commit(run: Run, upper: str, service: str) -> None:
    name = f"{service}/committed:1"
    result = run("commit", "-m", "by hand", "-c", 'CMD ["tool"]', "--json", upper, name)
    assert result.code == 0, result.err
    said = result.json
    assert said["changes"] == {"added": 1, "modified": 2, "deleted": 0}
    assert said["letters"] == {"A": 1, "C": 2, "D": 0}
    assert (said["state"], said["blobs"]["copied"], said["blobs"]["total"]) == ("ready", 2, 3)
    assert said["layer"]["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
    assert _ok(run("cat", f"{name}:/etc/passwd", f"{name}:/new")) == "changed\nnew\n"
    assert _ok(run("diff", upper, name)) == ""
    shown = run("inspect", "--json", name).json
    assert "tool" in json.dumps(shown)
    assert "committed" in run("commit", upper, name).err


def test_commit_to_another_registry(run: Run, upper: str, peer: str) -> None:
    """All layers go along, the new one compressed, as that registry is none of pagepool's."""
    said = run("commit", "--json", upper, f"{peer}/committed:1").json
    assert (said["blobs"]["copied"], said["state"]) == (3, None)
    assert said["layer"]["mediaType"].endswith("+gzip")


def test_what_commit_refuses(run: Run, image: str, service: str, tmp_path: Path) -> None:
    upper = f"{tmp_path}/upper"
    (tmp_path / "file").write_text("x")
    assert "has to begin with '/' or '.'" in _refused(run("commit", image, "x:1"), 2)
    assert str(upper) in _refused(run("commit", upper, f"{service}/x:1"), 3)
    assert run("cp", "--image", image, tmp_path / "none", f"{upper}:/x").code == 1  # makes it, and copies nothing
    assert "nothing was changed" in _refused(run("commit", upper, f"{service}/x:1"), 4)
    assert "invalid change 'RUN x'" in _refused(run("commit", "-c", "RUN x", upper, f"{service}/x:1"), 4)
    assert run("commit", "--allow-empty", "--json", upper, f"{service}/x:1").json["layer"] is None


@pytest.mark.parametrize(
    ("words", "expected"), [("ls ./up", "dir,./up"), ("ls app", ""), ("cp lo", "file,lo"), ("cp a:1:/e", "")]
)
def test_completion(words: str, expected: str) -> None:
    """Directories where an overlay may be, files where one of this machine may."""
    count = str(len(words.split()))
    variables = {"_PAGEPOOL_COMPLETE": "bash_complete", "COMP_WORDS": f"pagepool {words}", "COMP_CWORD": count}
    command = [sys.executable, "-m", "pagepool.cli"]
    done = subprocess.run(command, env=program_environment() | variables, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected.split()


def test_an_overlay_needs_no_service(run: Run, image: str, tmp_path: Path, service: str) -> None:
    """What is in the pool is read without; another server may be named in place of one that has moved."""
    upper = f"{tmp_path}/upper"
    (tmp_path / "file").write_text("x")
    _ok(run("cp", "--image", image, tmp_path / "file", f"{upper}:/x"))
    journal = next(path for path in Path(upper).iterdir() if b"127.0.0.1" in path.read_bytes())
    journal_bytes = journal.read_bytes()
    assert service.encode() in journal_bytes
    assert _ok(run("cat", f"{upper}:/x")) == "x"
    assert run("cat", "--server", "http://127.0.0.1:1", f"{upper}:/x").code == 0
    assert run("cat", "--server", "http://127.0.0.1:1", f"{upper}:/etc/passwd").code == 6
    assert _ok(run("cat", "--server", f"http://{service}", f"{upper}:/etc/passwd")) == "root:x:0:0\n"


def test_locales_without_letters_for_all_names(service: str) -> None:
    """What cannot be written is escaped, and JSON is the same as elsewhere."""
    sample = Sample()
    builder = TreeBuilder()
    builder.file("\u5b57 \U0001f600")
    sample.add_image([whole_layer(builder.file_system())])
    with Session(f"http://{service}") as session:
        run_copy(plan_copy(sample), sample, RegistrySink(RegistryClient(session), Reference.parse("letters:1")))

    def listed(*options: str, **variables: str) -> str:
        command = program_command("ls", *options, f"{service}/letters:1")
        done = subprocess.run(
            command, env=program_environment() | variables, capture_output=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    # Without what Python does for the locale C, as it is with those of eight bits.
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert listed(LC_ALL="C.UTF-8") == "/\u5b57 \U0001f600\n"
    assert listed(**ascii_only) == "/\\u5b57 \\U0001f600\n"
    assert json.loads(listed("--json", **ascii_only)) == json.loads(listed("--json", LC_ALL="C.UTF-8"))
