"""Real OCI images for tests and benchmarks: Debian 12 bases, and applications installed on top of them.

Owns the recipes, and a cache directory with one OCI image layout per image: tag ``latest``, layers gzipped as
buildah emits them. Knows nothing of pagepool. A module, ``build(names, cache_dir)``, and a script::

    python tests/support/images.py [--set ci|bench|all] [--dir DIR] [NAME...]

Each image exists twice: ``-old`` sees the main suite of the Debian release only, ``-new`` its updates and
security suites too. That gives pairs of near-identical images, the case content addressing is for. An image
on another one starts with the layers of that one, byte for byte; each install step adds one layer.

Layout of the cache directory::

    NAME/               an OCI image layout, complete or absent
    NAME/recipe-stamp   hash of the recipe, digest of the parent's manifest: says when NAME must be rebuilt
    .build-*/           a build in progress: buildah's storage, package lists, the layout to be published
    .lock               held while building, by the tools too; a second builder waits, and finds the images

A layout is published by one rename. A crash leaves a ``.build-*`` directory, which the next build removes,
and no mount: buildah runs in mount namespaces of its own. Blocks for minutes when images are missing.

Where packages come from is read out of this machine's apt configuration at run time and mounted into the
build, never copied: the images name no package mirror. Package versions are those of the archive on the day
of the build; two builds from the same archive have the same files, but not the same digests.

Follows the OCI image layout, image-spec v1.1.0, ``image-layout.md``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

RELEASE = "bookworm"
"""The Debian release all images are made of."""

SUITES = {"old": (RELEASE,), "new": (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")}
"""Which suites an image of that flavour may take packages from."""

EPOCH = 1735689600
"""Upper bound for the time stamps of files that the build itself made, in seconds: 2025-01-01."""

_TOOLS = {
    "apt-get": "apt",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "unshare": "util-linux",
}
"""Tool -> the Debian package that has it."""

_STAMP = "recipe-stamp"

# Lists, archives and configuration of apt lie in one directory, mounted here: every Debian base has /mnt, and
# a mount point made for the purpose would stay in the layer.
_APT_DIR = "/mnt"

# buildah keeps notes on every blob it copies below /var/lib/containers, whatever its --root is. In a mount
# namespace of its own it leaves behind neither them nor the mounts of its storage driver, even when killed.
#
# It also makes a name out of the path of a layout it reads, and a name cannot have ".cache" or capitals in it:
# so it finds the layouts of the cache at a path that can be one.
_PRIVATELY = """
set -e
mkdir -p "$0"
mount -t tmpfs tmpfs "$0"
mkdir "$0/layouts"
mount --bind "$1" "$0/layouts"
shift
exec "$@"
"""
_CONTAINERS_DIR = "/var/lib/containers"

# No device nodes, as in Docker's Debian images: not everyone who unpacks a layer may make them.
_BASE_OPTIONS = ("--quiet", "--mode=root", "--variant=minbase", "--skip=output/dev")

# Without policy-rc.d, installing nginx or redis would start it, on the host's network. The other files name
# the machine that built the image, or its mirror. They stay, empty, because buildah mounts over some of them.
_BASE_HOOK = r"""
set -eu
printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d"
chmod 0755 "$1/usr/sbin/policy-rc.d"
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"
for file in resolv.conf hostname hosts apt/sources.list; do
    rm -f "$1/etc/$file"
    : > "$1/etc/$file"
done
"""

# Only files younger than the build are moved back to EPOCH. Those out of a package keep their time, because
# Python's byte code files record it: setting all of them (buildah commit --timestamp) would make those stale.
# No SOURCE_DATE_EPOCH for the same files: with it, Python writes byte code that is checked by a hash of the
# source, and each import reads the source too, as it does on nobody's Debian.
_INSTALL = r"""
set -eu
export APT_CONFIG={apt_dir}/apt.conf DEBIAN_FRONTEND=noninteractive
apt-get update -qq
{before}
apt-get install -qq --yes {packages}
rm -rf /var/log/*.log /var/log/apt/* /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /tmp/* /var/tmp/*
find / -xdev -path {apt_dir} -prune -o -newer {apt_dir}/started -exec touch -h --date=@{epoch} {{}} +
"""

# As in the PostgreSQL project's own image: a cluster is data, and belongs into a volume.
_NO_CLUSTER = """
apt-get install -qq --yes postgresql-common
sed -i 's/^#\\?create_main_cluster .*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
"""


class ImageBuildError(Exception):
    """An image could not be built; the message ends with what the failing tool said."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one image: a base system (no parent), or one install step on another image."""

    name: str
    flavour: str
    parent: str | None = None
    packages: tuple[str, ...] = ()
    before: str = ""
    command: tuple[str, ...] = ("bash",)

    def digest(self) -> str:
        """Return the hash, in hex, of all that decides the image's content but the state of the archive."""
        method = [_INSTALL] if self.parent else [*_BASE_OPTIONS, _BASE_HOOK]
        parts = [asdict(self), SUITES[self.flavour], EPOCH, method]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _recipes() -> Iterator[Recipe]:
    for flavour in SUITES:
        base, python = f"debian-{flavour}", f"python-{flavour}"
        nginx = ("nginx", "-g", "daemon off;")
        server = "/usr/lib/postgresql/15/bin/postgres"
        yield Recipe(base, flavour)
        yield Recipe(python, flavour, base, ("python3-minimal", "python3"), command=("python3",))
        yield Recipe(f"numpy-{flavour}", flavour, python, ("python3-numpy",), command=("python3",))
        yield Recipe(f"nginx-{flavour}", flavour, base, ("nginx",), command=nginx)
        yield Recipe(f"redis-{flavour}", flavour, base, ("redis-server",), command=("redis-server",))
        yield Recipe(f"postgres-{flavour}", flavour, base, ("postgresql-15",), _NO_CLUSTER, (server,))
        yield Recipe(f"node-{flavour}", flavour, base, ("nodejs",), command=("node",))


RECIPES = {recipe.name: recipe for recipe in _recipes()}
"""Every image there is a recipe for; a parent comes before its children."""

SETS: dict[str, tuple[str, ...]] = {
    "ci": ("debian-old", "debian-new", "python-new", "numpy-new", "nginx-new"),
    "bench": (
        *("debian-old", "debian-new", "numpy-old", "numpy-new", "nginx-old", "nginx-new"),
        *("redis-old", "redis-new", "postgres-new", "node-new"),
    ),
    "all": tuple(RECIPES),
}


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Number of layers of an image, and the bytes of all of them as stored and as tar streams."""

    layers: int
    compressed_size: int
    plain_size: int


def build(names: Iterable[str], cache_dir: Path) -> dict[str, Path]:
    """Return the OCI layouts of images, building those that the cache lacks. Blocks.

    Args:
        names: keys of RECIPES; the images they stand on are built too, but not returned.
        cache_dir: created if missing. Concurrent builds in it wait for each other.

    Returns:
        Name -> directory, in the order asked for. The layouts are shared: treat them as read-only.

    Raises:
        ImageBuildError: unknown name, missing tool, no usable package source, or a tool failed. Images that
            were finished before stay in the cache.
    """
    wanted = list(names)
    if unknown := sorted(set(wanted) - RECIPES.keys()):
        raise ImageBuildError(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    cache_dir = cache_dir.resolve()
    if not all(is_current(name, cache_dir) for name in wanted):
        if missing := missing_tools():
            raise ImageBuildError(f"building images needs {', '.join(missing)}")
        with _builder(cache_dir) as builder:
            for name in wanted:
                builder.ensure(RECIPES[name])
    return {name: cache_dir / name for name in wanted}


def missing_tools() -> list[str]:
    """Return what a build needs and this machine lacks, as reasons to skip; empty if it lacks nothing."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    missing = [f"{tool} (apt-get install {_TOOLS[tool]})" for tool in absent]
    if os.geteuid() != 0:
        missing.append("root (mmdebstrap and buildah mount file systems)")
    return missing


def default_cache_dir() -> Path:
    """Return $PAGEPOOL_TEST_IMAGES, or else pagepool/test-images below the user's cache directory."""
    if chosen := os.environ.get("PAGEPOOL_TEST_IMAGES"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pagepool" / "test-images"


def is_current(name: str, cache_dir: Path) -> bool:
    """Tell whether the cache has an image, made by today's recipe on the parent that is in the cache now."""
    recipe = RECIPES[name]
    if recipe.parent is not None and not is_current(recipe.parent, cache_dir):
        return False
    try:
        return (cache_dir / name / _STAMP).read_text() == _stamp(recipe, cache_dir)
    except FileNotFoundError:
        return False


def layers(layout: Path) -> list[Path]:
    """Return the blobs of the layers of a layout's only image, lowest first."""
    return [_blob(layout, descriptor) for descriptor in _manifest(layout)["layers"]]


def measure(layout: Path) -> ImageSize:
    """Return the number of layers and the sizes of a layout's only image."""
    blobs = layers(layout)
    return ImageSize(len(blobs), sum(blob.stat().st_size for blob in blobs), sum(map(_plain_size, blobs)))


def _plain_size(blob: Path) -> int:
    """Return the plain size of a gzip blob: buildah writes one member, which ends in it, modulo 2^32."""
    with blob.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")


def _manifest_digest(layout: Path) -> str:
    (descriptor,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return str(descriptor["digest"])


def _manifest(layout: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(_blob(layout, {"digest": _manifest_digest(layout)}).read_bytes())
    return manifest


def _blob(layout: Path, descriptor: Mapping[str, Any]) -> Path:
    return layout / "blobs" / Path(*str(descriptor["digest"]).split(":"))


def _stamp(recipe: Recipe, cache_dir: Path) -> str:
    # With the parent's digest in it, a rebuilt base drags its children along: they must share its blob.
    parent = _manifest_digest(cache_dir / recipe.parent) if recipe.parent else "none"
    return f"{recipe.digest()} {parent}\n"


def _run(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Run a tool to its end and return what it printed; on failure raise with the end of what it said."""
    command = [str(word) for word in argv]
    # It inherits the builder's lock: should this process be killed, its work must not be swept away under it.
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, close_fds=False)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise ImageBuildError(f"{' '.join(command)[:500]}: exit status {done.returncode}\n{said}")
    return done.stdout


def _buildah(cache_dir: Path, work: Path, driver: str, *argv: str | Path) -> str:
    """Run buildah on a storage of its own in work, and on nothing else of this machine but the cache's layouts."""
    namespace = ("unshare", "--mount", "--propagation", "private")
    privately = (*namespace, "sh", "-c", _PRIVATELY, _CONTAINERS_DIR, cache_dir)
    storage = ("--root", work / "storage", "--runroot", work / "run", "--storage-driver", driver)
    command = [*privately, "buildah", *storage, *argv]
    return _run(command, {**os.environ, "TMPDIR": str(work)}).strip()


def _storage_driver(cache_dir: Path, work: Path) -> str:
    """Return overlay where it works; below another overlayfs, as in most CI containers, only vfs does."""
    probe = work / "probe"
    probe.mkdir()
    try:
        _buildah(cache_dir, probe, "overlay", "from", "scratch")
    except ImageBuildError:
        return "vfs"
    return "overlay"


def _append_directory(tar: Path, name: str) -> None:
    # Not `tar --delete` of what is too much: GNU tar 1.34 then loses members at the end of the archive.
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, EPOCH
    with tarfile.open(tar, "a") as archive:
        archive.addfile(member)


@contextmanager
def _builder(cache_dir: Path) -> Iterator[_Builder]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        # Whoever holds the lock is the only builder, so these are what a killed one left.
        for stale in cache_dir.glob(".build-*"):
            shutil.rmtree(stale)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache_dir))
        try:
            yield _Builder(cache_dir, work, _storage_driver(cache_dir, work))
        finally:
            shutil.rmtree(work)


@dataclass(frozen=True)
class _Builder:
    """One run of builds with a storage of its own. Not thread-safe; the caller holds the cache's lock."""

    cache_dir: Path
    work: Path
    driver: str
    apts: dict[str, _Apt] = field(default_factory=dict)

    def ensure(self, recipe: Recipe) -> None:
        """Build and publish an image, and before it those it stands on, unless the cache has them."""
        if recipe.parent is not None:
            self.ensure(RECIPES[recipe.parent])
        if is_current(recipe.name, self.cache_dir):
            return
        begin = time.monotonic()
        container = self._base(recipe) if recipe.parent is None else self._install(recipe, recipe.parent)
        self._publish(recipe, self._commit(recipe, container))
        log.info("built %s in %.1f s", recipe.name, time.monotonic() - begin)

    def _base(self, recipe: Recipe) -> str:
        """Make a base system, and return the buildah container that holds it."""
        apt = self._apt(recipe.flavour)
        tar = self.work / f"{recipe.name}.tar"
        options = [*_BASE_OPTIONS, f"--customize-hook={_BASE_HOOK}"]
        options += [f"--aptopt={line}" for line in apt.host_options]
        variables = {"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(self.work)}
        _run(["mmdebstrap", *options, RELEASE, tar, *apt.sources], {**os.environ, **variables})
        _append_directory(tar, "./dev")
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, tar, "/")
        tar.unlink()
        search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._buildah("config", "--env", f"PATH={search}", "--env", "LANG=C.UTF-8", container)
        return container

    def _install(self, recipe: Recipe, parent: str) -> str:
        """Install packages on an image of the cache, and return the buildah container with the result."""
        apt = self._apt(recipe.flavour)
        container = self._buildah("from", "--quiet", f"oci:{_CONTAINERS_DIR}/layouts/{parent}:latest")
        packages = " ".join(recipe.packages)
        script = _INSTALL.format(before=recipe.before, packages=packages, apt_dir=_APT_DIR, epoch=EPOCH)
        (apt.directory / "started").touch()
        self._buildah(
            *("run", "--isolation", "chroot", "--volume", f"{apt.directory}:{_APT_DIR}"),
            *(f"--env={name}={value}" for name, value in _proxy_variables().items()),
            *(container, "--", "sh", "-c", script),
        )
        return container

    def _commit(self, recipe: Recipe, container: str) -> Path:
        """Turn a container into an image, and return the layout, not published yet, that it was pushed to."""
        step = f"apt-get install {' '.join(recipe.packages)}" if recipe.parent else f"mmdebstrap {RELEASE}"
        command = shlex.join(recipe.command)
        self._buildah("config", "--cmd", command, "--created-by", f"{step} # {recipe.flavour}", container)
        self._buildah("commit", "--quiet", "--rm", "--format", "oci", container, recipe.name)
        layout = self.work / "layouts" / recipe.name
        layout.parent.mkdir(exist_ok=True)
        self._buildah("push", "--quiet", "--format", "oci", recipe.name, f"oci:{layout}:latest")
        return layout

    def _publish(self, recipe: Recipe, layout: Path) -> None:
        below = layers(self.cache_dir / recipe.parent) if recipe.parent else []
        # Another version of buildah may compress differently than the one that made the parent.
        if any(ours.name != parents.name for ours, parents in zip(layers(layout), below, strict=False)):
            raise ImageBuildError(f"{recipe.name} does not share the layers of {recipe.parent}; remove both")
        (layout / _STAMP).write_text(_stamp(recipe, self.cache_dir))
        published = self.cache_dir / recipe.name
        if published.exists():
            published.rename(self.work / f"{recipe.name}.outdated")
        layout.rename(published)

    def _buildah(self, *argv: str | Path) -> str:
        return _buildah(self.cache_dir, self.work, self.driver, *argv)

    def _apt(self, flavour: str) -> _Apt:
        if flavour not in self.apts:
            self.apts[flavour] = _make_apt(self.work / f"apt-{flavour}", SUITES[flavour])
        return self.apts[flavour]


@dataclass(frozen=True, slots=True)
class _Apt:
    """Package sources for one flavour, and the directory that an install step sees at _APT_DIR."""

    directory: Path
    sources: tuple[str, ...]
    host_options: tuple[str, ...]


def _make_apt(directory: Path, suites: Sequence[str]) -> _Apt:
    sources, options = _host_sources(suites), _host_options()
    for name in ("archives", "lists"):
        (directory / name / "partial").mkdir(parents=True)
    (directory / "sources.list").write_text("".join(f"{line}\n" for line in sources))
    inside = [
        *options,
        f'Dir::Etc::SourceList "{_APT_DIR}/sources.list";',
        'Dir::Etc::SourceParts "/dev/null";',
        f'Dir::State::Lists "{_APT_DIR}/lists";',
        f'Dir::Cache::Archives "{_APT_DIR}/archives";',
        # The directory is the builder's: the unprivileged user _apt of the image cannot write to it.
        'APT::Sandbox::User "root";',
        'APT::Install-Recommends "false";',
        'Acquire::Languages "none";',
    ]
    authorities = _certificate_authorities(options)
    if authorities and any("https:" in line for line in sources):
        # A minimal Debian has none of its own. The last setting in apt.conf counts.
        shutil.copyfile(authorities, directory / "ca.crt")
        inside.append(f'Acquire::https::CAInfo "{_APT_DIR}/ca.crt";')
    (directory / "apt.conf").write_text("".join(f"{line}\n" for line in inside))
    return _Apt(directory, sources, options)


def _certificate_authorities(apt_options: Sequence[str]) -> str | None:
    for option in apt_options:
        if option.startswith("Acquire::https::CAInfo "):
            return option.split('"')[1]
    return ssl.get_default_verify_paths().cafile


def _host_sources(suites: Sequence[str]) -> tuple[str, ...]:
    """Return one-line sources for suites, from the mirrors that this machine itself uses."""
    columns = "$(RELEASE) $(REPO_URI) $(COMPONENT)"
    query = ["apt-get", "indextargets", "--format", columns, "Created-By: Packages"]
    if chosen := os.environ.get("PAGEPOOL_TEST_APT_SOURCES"):
        query += ["-o", f"Dir::Etc::SourceList={chosen}", "-o", "Dir::Etc::SourceParts=/dev/null"]
    found: dict[str, str] = {}
    for line in _run(query).splitlines():
        suite, uri, component = line.split()
        if component == "main" and uri.startswith(("http:", "https:")):
            found.setdefault(suite, f"deb {uri} {suite} main")
    if lacking := [suite for suite in suites if suite not in found]:
        raise ImageBuildError(
            f"apt on this machine has no http source for {', '.join(lacking)}; "
            "name a file of 'deb URI SUITE main' lines in PAGEPOOL_TEST_APT_SOURCES"
        )
    return tuple(found[suite] for suite in suites)


def _host_options() -> tuple[str, ...]:
    """Return how this machine's apt reaches its mirrors (proxies, certificates), as lines of apt.conf."""
    wanted = [f"Acquire::{name}" for name in ("http", "https", "Retries", "Check-Valid-Until", "Check-Date")]
    return tuple(_run(["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', *wanted]).splitlines())


def _proxy_variables() -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in names if name in os.environ}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the images named on the command line; print name, path, compressed and plain size of each."""
    parser = argparse.ArgumentParser(description="Build real OCI images for tests and benchmarks.")
    parser.add_argument("--set", choices=SETS, dest="chosen", help="build this set of images")
    parser.add_argument("--dir", type=Path, default=default_cache_dir(), help="cache (default: %(default)s)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = list(dict.fromkeys([*SETS.get(options.chosen, ()), *options.names])) or list(SETS["ci"])
    try:
        built = build(names, options.dir)
    except ImageBuildError as error:
        print(f"images.py: {error}", file=sys.stderr)
        return 1
    for name, layout in built.items():
        size = measure(layout)
        print(f"{name}\t{layout}\t{size.compressed_size}\t{size.plain_size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
