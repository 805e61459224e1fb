"""Images in and out, listed, looked into and deleted, on real registries."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pagepool.cli.exits import exit_code
from pagepool.errors import DiskFullError, PagepoolError
from pagepool.layout import open_source, plan_copy
from pagepool.layout.publish import translated
from pagepool.oci import Descriptor, mediatypes
from tests.cli.conftest import Result, Run, program_command, program_environment, spawn
from tests.ingest.sparse import sparse_tar
from tests.oci.samples import Sample, multi_platform, simple, tar
from tests.support.server import Service, running_service


def _name() -> str:
    return f"cli/{uuid.uuid4().hex}"


def _root(path: Path, name: str | None = None) -> str:
    source = open_source(path, name)
    found = str(source.root().digest)
    source.close()
    return found


def _error(result: Result) -> str:
    """The one line of a failure, which must be all there is."""
    assert result.out == ""
    assert result.err.startswith("pagepool: error: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_push_and_pull(run: Run, server: str, layout: tuple[Path, Sample], tmp_path: Path, form: str) -> None:
    path, sample = layout
    name = f"{server}/{_name()}:1"
    pushed = run("push", path, name)
    assert pushed.code == 0, pushed.err
    assert pushed.out == f"{sample.root().digest}\n"
    assert "3 of 3 blobs sent" in pushed.err
    pulled = run("pull", "--format", form, name, tmp_path / "out")
    assert pulled.code == 0, pulled.err
    assert pulled.out == pushed.out
    if form != "docker-archive":
        assert _root(tmp_path / "out", "1") == str(sample.root().digest)
    again = run("push", tmp_path / "out", f"{server}/{_name()}")
    assert again.code == 0, again.err


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_formats_as_skopeo_has_them(
    run: Run, server: str, layout: tuple[Path, Sample], tmp_path: Path, form: str
) -> None:
    name = f"{server}/{_name()}:1"
    pushed = run("push", f"oci:{layout[0]}", name)
    assert pushed.code == 0, pushed.err
    pulled = run("pull", "--json", name, f"{form}:{tmp_path / 'out'}:example.org/a:2")
    assert pulled.code == 0, pulled.err
    assert (pulled.json["format"], pulled.json["name"]) == (form, "example.org/a:2")
    assert pulled.json["path"] == str(tmp_path / "out")
    assert (tmp_path / "out").is_dir() == (form == "oci")
    again = run("push", f"{form}:{tmp_path / 'out'}:example.org/a:2", f"{server}/{_name()}")
    assert again.code == 0, again.err


def test_second_push_sends_nothing(run: Run, server: str, layout: tuple[Path, Sample]) -> None:
    name = f"{server}/{_name()}:1"
    assert run("push", "--json", layout[0], name).json["blobs"]["copied"] == 3
    assert run("push", "--json", layout[0], name).json["blobs"] == {"total": 3, "copied": 0, "copied_size": 0}


def test_json_of_push_and_pull(run: Run, server: str, layout: tuple[Path, Sample], tmp_path: Path) -> None:
    path, sample = layout
    name = f"{server}/{_name()}:1"
    pushed = run("push", "--json", path, name)
    assert pushed.err == ""
    assert pushed.json.keys() == {"reference", "digest", "media_type", "size", "blobs", "state", "reason"}
    assert pushed.json["reference"] == name
    pulled = run("pull", "--json", name, tmp_path / "x.tar").json
    assert pulled["digest"] == str(sample.root().digest)
    assert (pulled["format"], pulled["name"], pulled["path"]) == ("oci-archive", "1", str(tmp_path / "x.tar"))
    assert pulled["size"] == pushed.json["size"] == sum(map(len, sample.content.values()))


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_a_pull_that_cannot_write_leaves_nothing(
    run: Run, service: str, layout: tuple[Path, Sample], form: str, tmp_path: Path
) -> None:
    """From the first byte on, as on a full disk: here no file may have any."""
    name = f"{service}/{_name()}:1"
    assert run("push", layout[0], name).code == 0
    (tmp_path / "out").mkdir()
    command = program_command("pull", "--format", form, name, str(tmp_path / "out" / "image"))
    ended = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "-", *command],
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "File too large" in ended.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_a_pull_puts_no_file_in_the_place_of_what_is_none(
    run: Run, server: str, layout: tuple[Path, Sample], form: str, tmp_path: Path
) -> None:
    """As /dev/stdout is, whose link would be a file from then on, for everybody."""
    name = f"{server}/{_name()}:1"
    assert run("push", layout[0], name).code == 0
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for place in ("stdout", "pipe"):
        result = run("pull", "--format", form, name, tmp_path / place)
        assert result.code != 0
        assert str(tmp_path / place) in result.err
    assert (tmp_path / "stdout").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(tmp_path.iterdir()) == before


def test_quiet(run: Run, server: str, layout: tuple[Path, Sample], tmp_path: Path) -> None:
    name = f"{server}/{_name()}:1"
    for result in (run("push", "-q", layout[0], name), run("pull", "-q", name, tmp_path / "out")):
        assert result == Result(0, f"{layout[1].root().digest}\n", "")


def test_an_index_for_other_machines_is_shown(run: Run, server: str, tmp_path: Path) -> None:
    sample = Sample()
    other = sample.add_image([tar({"f": b"1"})], "linux/s390x")
    sample.add_index([other])
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    name = f"{server}/{_name()}:1"
    run("push", tmp_path / "layout", name)
    found = run("inspect", name)
    assert found.code == 0
    assert str(sample.root().digest) in found.out
    assert str(other.digest) in found.out
    assert "linux/s390x" in found.out


def test_index_goes_whole_or_by_platform(run: Run, server: str, tmp_path: Path) -> None:
    sample, arm = multi_platform()
    sample.write_layout(tmp_path / "all", {"": sample.root()})
    name = f"{server}/{_name()}"
    assert run("push", tmp_path / "all", f"{name}:all").out.strip() == str(sample.root().digest)
    assert run("pull", f"{name}:all", tmp_path / "whole").code == 0
    source = open_source(tmp_path / "whole", None)
    assert {entry.digest for entry, _ in plan_copy(source).manifests} | {
        blob.digest for blob in plan_copy(source).blobs
    } == sample.content.keys()
    for platform in ("linux/arm64", "linux/aarch64"):
        out = tmp_path / platform.replace("/", "-")
        assert run("pull", "--platform", platform, f"{name}:all", out).out.strip() == str(arm.digest)
        assert _root(out) == str(arm.digest)
    pushed = run("push", "--platform", "linux/arm64", tmp_path / "all", f"{name}:arm")
    assert pushed.out.strip() == str(arm.digest)
    missing = run("pull", "--platform", "linux/s390x", f"{name}:all", tmp_path / "none")
    assert missing.code == 3
    assert "linux/s390x" in _error(missing)
    assert not (tmp_path / "none").exists()


def test_an_image_for_another_platform_is_taken_with_a_warning(run: Run, server: str, tmp_path: Path) -> None:
    sample, _ = multi_platform()
    sample.write_layout(tmp_path / "all", {"": sample.root()})
    name = f"{server}/{_name()}:arm"
    assert "warning" not in run("push", "--platform", "linux/arm64", tmp_path / "all", name).err
    for platform, warned in (("linux/arm64", False), ("linux/s390x", True)):
        result = run("pull", "--quiet", "--platform", platform, name, tmp_path / "one")
        warning = f"pagepool: warning: {name} is for linux/arm64, not for {platform}\n"
        assert (result.code, result.err) == (0, warning if warned else "")
    pushed = run("push", "--quiet", "--no-wait", "--platform", "linux/s390x", tmp_path / "one", name)
    assert (pushed.code, pushed.err) == (
        0,
        f"pagepool: warning: {tmp_path}/one is for linux/arm64, not for linux/s390x\n",
    )


def test_push_by_digest(run: Run, server: str, layout: tuple[Path, Sample]) -> None:
    path, sample = layout
    name = f"{server}/{_name()}"
    assert run("push", path, f"{name}@{sample.root().digest}").code == 0
    wrong = run("push", path, f"{name}@sha256:{'0' * 64}")
    assert wrong.code == 5
    assert "digest mismatch" in _error(wrong)


def test_layout_collects_images(run: Run, server: str, tmp_path: Path) -> None:
    name = f"{server}/{_name()}"
    digests = {}
    for tag in ("one", "two"):
        sample = simple(1 if tag == "one" else 3)
        sample.write_layout(tmp_path / tag, {"": sample.root()})
        digests[tag] = str(sample.root().digest)
        assert run("push", tmp_path / tag, f"{name}:{tag}").code == 0
        assert run("pull", f"{name}:{tag}", tmp_path / "both").code == 0
    assert run("pull", f"{name}:two", f"{tmp_path}/both:other").code == 0
    assert _root(tmp_path / "both", "one") == digests["one"]
    assert _root(tmp_path / "both", "two") == _root(tmp_path / "both", "other") == digests["two"]
    assert run("push", f"{tmp_path}/both:other", f"{name}:again").out.strip() == digests["two"]
    assert "name one as PATH:NAME" in _error(run("push", tmp_path / "both", f"{name}:x"))


def test_push_from_standard_input(server: str, layout: tuple[Path, Sample], tmp_path: Path, run: Run) -> None:
    name = f"{server}/{_name()}"
    run("push", layout[0], f"{name}:1")
    run("pull", "--format", "docker-archive", f"{name}:1", tmp_path / "a.tar")
    with subprocess.Popen(["gzip", "-c", tmp_path / "a.tar"], stdout=subprocess.PIPE) as packed:
        done = spawn("push", "-", f"{name}:piped", stdin=packed.stdout)
    assert done.returncode == 0, done.stderr
    assert sorted(run("tags", name).out.split()) == ["1", "piped"]


def test_mount_from(run: Run, server: str, layout: tuple[Path, Sample]) -> None:
    first, second = _name(), _name()
    run("push", layout[0], f"{server}/{first}:1")
    mounted = run("push", "--json", "--mount-from", first, layout[0], f"{server}/{second}:1")
    assert mounted.json["blobs"]["copied"] == 0


def test_further_names(run: Run, server: str, layout: tuple[Path, Sample]) -> None:
    """In the same repository and in another one; the blobs of that are its own."""
    path, sample = layout
    first, second = f"{server}/{_name()}", f"{server}/{_name()}"
    run("push", path, f"{first}:1")
    tagged = run("tag", f"{first}:1", f"{first}:stable", f"{second}:2")
    assert (tagged.code, tagged.out) == (0, f"{sample.root().digest}\n"), tagged.err
    assert run("tags", first).out.split() == ["1", "stable"]
    run("rm", f"{first}@{sample.root().digest}")
    assert run("pull", f"{second}:2", path.parent / "pulled").code == 0
    assert run("tag", "--json", f"{second}:2", f"{second}:3").json["names"] == [f"{second}:3"]
    assert run("tag", f"{second}:none", f"{second}:4").code == 3
    elsewhere = run("tag", f"{second}:2", "registry.example.org/app:1")
    assert (elsewhere.code, "is on another server" in elsewhere.err) == (2, True)


def test_list_inspect_delete(run: Run, server: str, layout: tuple[Path, Sample]) -> None:
    path, sample = layout
    repository = _name()
    name, option = f"{server}/{repository}", ("--server", server)
    run("push", path, f"{name}:1")
    run("push", path, f"{repository}:2", *option)
    # docker-registry lists tags in no order.
    assert sorted(run("tags", name).out.split()) == ["1", "2"]
    tags = run("tags", "--json", repository, *option).json
    assert (tags["name"], sorted(tags["tags"])) == (repository, ["1", "2"])
    assert f"{repository}:1" in run("images", "-q", *option).out.split()
    row = next(row for row in run("images", "--json", *option).json["images"] if row["name"] == repository)
    assert row["digest"] == str(sample.root().digest)
    assert {"name", "tag", "digest", "media_type", "size", "platform", "created", "state"} <= row.keys()
    assert repository in run("images", *option).out
    found = run("inspect", "--json", f"{name}:1").json
    assert [layer["size"] for layer in found["layers"]] == [blob.size for blob in plan_copy(sample).blobs[1:]]
    assert found["config"]["config"]["Cmd"] == ["sh"]
    assert found["size"] == sum(blob.size for blob in plan_copy(sample).blobs)
    assert run("inspect", "-q", f"{name}:1").out == f"{sample.root().digest}\n"
    text = run("inspect", f"{name}:1").out
    assert 'Cmd:        ["sh"]' in text
    assert "linux/amd64" in text
    deleted = run("rm", f"{name}@{sample.root().digest}")
    assert deleted == Result(0, f"{name}@{sample.root().digest}\n", "")
    assert run("inspect", f"{name}:1").code == 3


def test_rm_of_a_tag(run: Run, service: str, peer: str, layout: tuple[Path, Sample]) -> None:
    name = _name()
    for host in (service, peer):
        run("push", layout[0], f"{host}/{name}:1")
        run("push", layout[0], f"{host}/{name}:2")
    deleted = run("rm", "--json", f"{service}/{name}:1").json
    assert deleted == {"deleted": [{"reference": f"{service}/{name}:1", "kind": "tag"}]}
    assert run("tags", f"{service}/{name}").out == "2\n"
    refused = run("rm", f"{peer}/{name}:1")
    assert refused.code == 1
    assert f"pagepool rm {peer}/{name}@{layout[1].root().digest}" in _error(refused)
    for host in (service, peer):
        assert run("rm", f"{host}/{name}:none").code == 3


def test_what_only_the_service_has(run: Run, service: str, peer: str, layout: tuple[Path, Sample]) -> None:
    name = _name()
    for host in (service, peer):
        assert run("push", layout[0], f"{host}/{name}:1").code == 0
    for arguments in (("ls", f"{peer}/{name}:1"), ("stats", "--server", peer)):
        refused = run(*arguments)
        assert refused.code == 1
        assert "is not a pagepool service" in _error(refused)
    assert run("push", "--wait", layout[0], f"{peer}/{name}:2").code == 1
    assert run("tags", f"{peer}/{name}").out == "1\n"  # found out before anything was pushed
    ready = run("push", "--json", layout[0], f"{service}/{name}:2").json
    assert (ready["state"], ready["reason"]) == ("ready", "")
    assert run("push", "--json", "--no-wait", layout[0], f"{service}/{name}:3").json["state"] is None


def test_ls(run: Run, service: str, tmp_path: Path) -> None:
    sample = Sample()
    sample.add_image([tar({"etc/a": b"x" * 1234, "etc/\x1b[31mred": b"", "top": b""}), tar({"etc/b": b""})])
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    name = f"{service}/{_name()}:1"
    assert run("push", tmp_path / "layout", name).code == 0
    assert run("ls", name).out == "/etc\n/top\n"
    assert run("ls", f"{name}:/etc").out == "/etc/\\x1b[31mred\n/etc/a\n/etc/b\n"
    assert run("ls", f"{name}:/top").out == "/top\n"
    assert run("ls", "-R", f"{name}:/").out.split()[:3] == ["/", "/etc", "/etc/\\x1b[31mred"]
    long = run("ls", "-l", f"{name}:/etc/a").out
    assert long == "-rw-r--r-- 1 0:0 1.2 kB 1970-01-01 00:00 /etc/a\n"
    listed = run("ls", "--json", f"{name}:/etc").json
    assert listed["path"] == "/etc"
    assert [entry["path"] for entry in listed["entries"]][1:] == ["/etc/a", "/etc/b"]
    two = run("ls", "--json", name, f"{name}:/etc").json
    assert [one["path"] for one in two["listings"]] == ["/", "/etc"]
    assert run("ls", name, f"{name}:/etc").out.startswith(f"{name}:/:\n/etc\n")
    missing = run("ls", f"{name}:/nowhere")
    assert missing.code == 3
    assert "/nowhere" in _error(missing)


def test_ls_goes_on_over_pages(run: Run, service: str, tmp_path: Path) -> None:
    sample = Sample()
    sample.add_image([tar({f"many/{number:05}": b"" for number in range(3500)})])
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    name = f"{service}/{_name()}:1"
    run("push", tmp_path / "layout", name)
    assert len(run("ls", f"{name}:/many").out.splitlines()) == 3500
    assert len(run("ls", "-l", f"{name}:/many").out.splitlines()) == 3500
    assert len(run("ls", "-R", "--json", name).json["entries"]) == 3502


def test_ls_waits_until_layers_are_read(tmp_path: Path, layout: tuple[Path, Sample]) -> None:
    """As `cat` and `mount` do: docker and podman end with their push, and the service reads on."""
    with running_service(tmp_path / "data", "--access-log") as service:
        readers = _processes_that_read(service)
        for pid in readers:
            os.kill(pid, signal.SIGSTOP)
        try:
            name = f"{service.host}/app:1"
            assert spawn("push", "--no-wait", layout[0], name).returncode == 0
            command = program_command("ls", name)
            with subprocess.Popen(command, env=program_environment(), stdout=subprocess.PIPE, text=True) as listing:
                while "/v1/app/images/1/files" not in service.log() and listing.poll() is None:
                    time.sleep(0.01)
                for pid in readers:
                    os.kill(pid, signal.SIGCONT)
                out, _ = listing.communicate(timeout=30)
            assert listing.returncode == 0
            assert out
        finally:
            for pid in readers:
                os.kill(pid, signal.SIGCONT)


def _processes_that_read(service: Service) -> list[int]:
    """Those processes of the service that have one of their own, which verifies, as soon as they have."""
    found: list[int] = []
    while len(found) < 2:
        time.sleep(0.01)
        found = [pid for pid in service.children() if Path(f"/proc/{pid}/task/{pid}/children").read_text()]
    return found


def test_stats(run: Run, service: str, layout: tuple[Path, Sample]) -> None:
    run("push", layout[0], f"{service}/{_name()}:1")
    found = run("stats", "--json", "--server", service).json
    assert {"total", "images"} <= found.keys()
    text = run("stats", "--server", service).out
    assert "stored:" in text
    assert "disk" in text
    assert "blobs that are no layer" in text
    assert "unmountable" not in text.partition("\n\n")[0]
    assert ("last collection:" in text) is bool(found["total"]["last_collection"])
    quiet = run("stats", "-q", "--server", service).out
    assert quiet == text.partition("\n\n")[0] + "\n"


def test_unmountable_image_is_pushed_with_a_warning(run: Run, service: str, tmp_path: Path) -> None:
    sample = Sample()
    sample.add_image([b"this is no tar" * 100], media_type=mediatypes.OCI_LAYER)
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    name = f"{service}/{_name()}:1"
    pushed = run("push", tmp_path / "layout", name)
    assert pushed.code == 0
    assert "cannot be mounted" in pushed.err
    assert "unmountable" in run("inspect", name).out
    assert run("push", "--json", tmp_path / "layout", name).json["state"] == "unmountable"
    listed = run("ls", name)
    assert listed.code == 4
    assert "not a tar" in _error(listed)


def test_artifact_is_pushed(run: Run, server: str, tmp_path: Path) -> None:
    from pagepool.oci import encode_manifest

    sample = Sample()
    config = sample.add(mediatypes.OCI_EMPTY, b"{}")
    document = encode_manifest(config, [sample.add("text/plain", b"hello")], artifact_type="application/vnd.example")
    sample.top = sample.add(document.media_type, document.raw)
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    name = f"{server}/{_name()}:1"
    assert run("push", tmp_path / "layout", name).code == 0
    assert run("inspect", name).code == 0
    assert run("pull", name, tmp_path / "out").out.strip() == str(sample.root().digest)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_damaged_layout_is_not_pushed(run: Run, server: str, layout: tuple[Path, Sample], damage: str) -> None:
    path, sample = layout
    victim: Descriptor = plan_copy(sample).blobs[-1]
    blob = path / "blobs/sha256" / victim.digest.hex
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(b"?" + blob.read_bytes()[1:])
    name = f"{server}/{_name()}"
    result = run("push", path, f"{name}:1")
    assert result.code == (4 if damage == "missing" else 5)
    assert victim.digest.hex in _error(result)
    assert run("inspect", f"{name}:1").code == 3


def test_skopeo_sees_the_same_image(run: Run, server: str, layout: tuple[Path, Sample]) -> None:
    import shutil

    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo (apt-get install skopeo)")
    name = f"{server}/{_name()}:1"
    run("push", layout[0], name)
    done = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["Digest"] == str(layout[1].root().digest)


def test_broken_pipe_is_quiet(run: Run, service: str, tmp_path: Path) -> None:
    sample = Sample()
    sample.add_image([tar({f"{number:05}": b"" for number in range(9000)})])
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    name = f"{service}/{_name()}:1"
    run("push", tmp_path / "layout", name)
    process = subprocess.Popen(
        program_command("ls", name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=program_environment(), cwd="/"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141
    process.stderr.close()


def test_errors_as_json(run: Run, server: str) -> None:
    result = run("inspect", "--json", f"{server}/{_name()}:1")
    assert result.out == ""
    error = json.loads(result.err)["error"]
    assert error["exit_code"] == result.code == 3
    assert error["class"] in ("ManifestUnknownError", "NameUnknownError")
    assert issubclass(getattr(sys.modules["pagepool.errors"], error["class"]), PagepoolError)


def test_a_full_disk_here_is_not_called_the_store(tmp_path: Path) -> None:
    """Whoever pulls onto a full disk must not look for the fault at the service."""
    with (
        pytest.raises(DiskFullError, match=f"^the disk is full: {tmp_path}: No space left"),
        translated(tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert exit_code(DiskFullError("x")) == 8


def test_a_layer_over_the_limit_names_what_sets_it(run: Run, tmp_path: Path) -> None:
    sample = Sample()
    sample.add_image([sparse_tar("disk.img", 3 << 20, [(0, b"x")])])
    sample.write_layout(tmp_path / "layout", {"": sample.root()})
    with running_service(tmp_path / "data", "--max-layer-size", "2MiB") as limited:
        name = f"{limited.host}/{_name()}:1"
        assert run("push", "-q", tmp_path / "layout", name).code == 0
        said = "'disk.img' claims 3145728 bytes, holes included, over the limit of 2097152 (PAGEPOOL_MAX_LAYER_SIZE)"
        assert said in run("inspect", name).out
