"""What is deployed by the files in deploy/: that they agree with each other, and with the program.

Tools judge each file by itself; here is what no tool knows: that a setting exists, that a port is the one that is
listened on, that a volume's user is the one who runs, that the version is today's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pagepool.version import __version__
from pagepool_service import settings
from tests.support.certificates import TestAuthority
from tests.support.server import running_service
from tests.support.tools import require, run

if TYPE_CHECKING:
    from types import ModuleType

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_SERVICE, _CLIENT = "10001", "10002"
_CLIENTS_OWN = {"PAGEPOOL_SERVER", "PAGEPOOL_POOL", "PAGEPOOL_NODE_STATE", "PAGEPOOL_NODE_RUN"}
_NODES_OWN = {"PAGEPOOL_NODE_METRICS_LISTEN", "PAGEPOOL_NODE_ARGUMENTS"}


def load(path: str) -> Any:
    """A file of one document; compose's own tags are left out."""
    text = re.sub(r"!(reset|override)\b", "", (_DEPLOY / path).read_text())
    return yaml.safe_load(text)


def documents() -> list[dict[str, Any]]:
    """Everything that Kubernetes is told."""
    files = load("kubernetes/kustomization.yaml")["resources"]
    return [found for name in files for found in yaml.safe_load_all((_DEPLOY / "kubernetes" / name).read_text())]


def one(kind: str, name: str = "pagepool") -> dict[str, Any]:
    """One document of Kubernetes."""
    (found,) = (item for item in documents() if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return found


def compose() -> dict[str, Any]:
    """The services of compose.yaml."""
    found: dict[str, Any] = load("compose.yaml")["services"]
    return found


def test_every_variable_is_a_setting() -> None:
    """What is misspelled would silently do nothing."""
    used: dict[str, set[str]] = {}
    for path in [_ROOT / "Dockerfile", *_DEPLOY.rglob("*.y*ml"), *_DEPLOY.rglob("*.service")]:
        text = path.read_text()
        # Compose's own variables stand in ${...}: they are listed in deploy/README.md.
        own = set(re.findall(r"\$\{(PAGEPOOL_\w+)", text))
        used |= {name: {path.name} for name in set(re.findall(r"PAGEPOOL_\w+", text)) - own}
    known = set(settings._VARIABLES) | _CLIENTS_OWN | _NODES_OWN
    readme = (_DEPLOY / "README.md").read_text()
    # Comments of compose files may name variables of their own.
    assert {name: files for name, files in used.items() if name not in known and f"`{name}`" not in readme} == {}


def test_every_variable_of_compose_is_documented() -> None:
    readme = (_DEPLOY / "README.md").read_text()
    text = "".join((_DEPLOY / name).read_text() for name in ("compose.yaml", "compose.host.yaml"))
    used = set(re.findall(r"\$\{(\w+)", text)) - {"CLIENTS", "SECONDS_OF_LOAD", "MODE", "MIX"}
    assert {name for name in used if f"`{name}`" not in readme} == set()


def test_the_version_is_todays() -> None:
    names = [f"pagepool:{__version__}"]
    for path in ("compose.yaml", "load-test", "README.md"):
        found = set(re.findall(r"pagepool:\d+\.\d+\.\d+", (_DEPLOY / path).read_text(), re.MULTILINE))
        assert sorted(found) == names, path
    assert f"ARG VERSION={__version__}\n" in (_ROOT / "Dockerfile").read_text()
    assert load("kubernetes/kustomization.yaml")["images"] == [{"name": "pagepool", "newTag": __version__}]
    for kind, name in (("Deployment", "pagepool"), ("DaemonSet", "pagepool-node")):
        (container,) = one(kind, name)["spec"]["template"]["spec"]["containers"]
        assert container["image"] == names[0]


def test_clients_by_the_library_have_no_privilege() -> None:
    client = compose()["client"]
    assert client["user"] == _CLIENT
    assert client["read_only"]
    assert client["cap_drop"] == ["ALL"]
    assert client["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "devices", "pid"} & client.keys()
    # They read the very pages of the service, at the path that it tells them, and cannot write to them.
    assert client["volumes"] == ["cache:/var/cache/pagepool:ro"]
    service = compose()["pagepool"]
    assert "cache:/var/cache/pagepool" in service["volumes"]
    assert service["environment"]["PAGEPOOL_CACHE_DIR"] == "/var/cache/pagepool"
    options = load("compose.yaml")["volumes"]["cache"]["driver_opts"]
    assert options["type"] == "tmpfs"
    assert {f"uid={_SERVICE}", "mode=0755"} <= set(options["o"].split(","))
    dockerfile = (_ROOT / "Dockerfile").read_text()
    assert f"--uid {_SERVICE} " in dockerfile
    assert f"\nUSER {_SERVICE}\n" in dockerfile  # of a name Kubernetes does not know that it is not root


def test_nobody_is_privileged_under_compose_and_only_who_mounts_is_root() -> None:
    for name, service in compose().items():
        assert not service.get("privileged"), name
        mounts = name in ("client-fuse", "client-kernel", "node")
        assert (service.get("user") == "root") == mounts, name
        assert ("SYS_ADMIN" in service.get("cap_add", [])) == mounts, name
        assert "mem_limit" in service, name


def test_the_host_network_has_the_same_commands() -> None:
    """compose.host.yaml changes addresses, and nothing else."""
    for name, there in load("compose.host.yaml")["services"].items():
        here = compose()[name]
        if "command" in there:
            strip = re.compile(r"http://[^/\"]+?(?=/metrics|$)|\d[\d.]+:\$?\{?[\w:-]+\}?$")
            assert [strip.sub("@", word) for word in there["command"]] == [
                strip.sub("@", word) for word in here["command"]
            ]
        added = {"PAGEPOOL_LISTEN", "GF_SERVER_HTTP_ADDR", "GF_SERVER_HTTP_PORT"}
        assert set(there.get("environment", {})) <= set(here.get("environment", {})) | added


def test_the_host_network_is_the_loopback_interface_alone() -> None:
    """Where no port is published, what listens on all addresses is reached by everybody: nobody has to log in."""
    services = load("compose.host.yaml")["services"]
    words = [word for service in services.values() for word in service.get("command", [])]
    values = [value for service in services.values() for value in service.get("environment", {}).values()]
    listening = [text for text in (*words, *values) if re.search(r"\d+\.\d+\.\d+\.\d+", text)]
    assert len(listening) > 8
    assert [text for text in listening if "127.0.0.1" not in text] == []
    assert any(word.startswith("--web.listen-address=127.0.0.1:") for word in services["prometheus"]["command"])
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_kubernetes_asks_where_the_program_answers() -> None:
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert ports["http"] == settings.parse_listen(environment["PAGEPOOL_LISTEN"])[1] == settings.DEFAULT_PORT
    assert ports["metrics"] == settings.parse_listen(environment["PAGEPOOL_METRICS_LISTEN"])[1]
    (volume,) = (item for item in one("Deployment")["spec"]["template"]["spec"]["volumes"] if item["name"] == "cache")
    cache, room = (settings.parse_size(text) for text in (environment["PAGEPOOL_CACHE_SIZE"], "1200MiB"))
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1200Mi"}
    assert cache < room < settings.parse_size(container["resources"]["limits"]["memory"])
    assert settings.parse_size(environment["PAGEPOOL_QUOTA"]) < settings.parse_size(
        one("PersistentVolumeClaim", "pagepool-data")["spec"]["resources"]["requests"]["storage"]
    )
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in ("/readyz", "/healthz")
    assert {port["port"] for port in one("Service")["spec"]["ports"]} == set(ports.values())


def test_kubernetes_confines_the_service_and_limits_both() -> None:
    pod = one("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert str(pod["securityContext"]["runAsUser"]) == str(pod["securityContext"]["fsGroup"]) == _SERVICE
    assert one("Deployment")["spec"]["strategy"]["type"] == "Recreate"
    for kind, name in (("Deployment", "pagepool"), ("DaemonSet", "pagepool-node")):
        (container,) = one(kind, name)["spec"]["template"]["spec"]["containers"]
        assert container["resources"].keys() == {"requests", "limits"}
        assert container["securityContext"]["readOnlyRootFilesystem"]
    (node,) = one("DaemonSet", "pagepool-node")["spec"]["template"]["spec"]["containers"]
    (mounts,) = (volume for volume in node["volumeMounts"] if volume["name"] == "mounts")
    assert mounts["mountPropagation"] == "Bidirectional"
    assert node["securityContext"]["privileged"]  # Kubernetes asks for it


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """In a root directory of their own, where nothing else is wrong."""
    require("systemd-analyze", "systemd-sysusers", root=False)
    units = tmp_path / "etc/systemd/system"
    for directory in (units, tmp_path / "usr/lib/systemd", tmp_path / "opt/pagepool/bin", tmp_path / "bin"):
        directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    for program in ("opt/pagepool/bin/pagepool", "bin/kill"):
        shutil.copy("/bin/true", tmp_path / program)
    names = []
    for unit in _DEPLOY.glob("systemd/*.service"):
        shutil.copy(unit, units)
        names.append(unit.name)
    assert len(names) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", *names], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = run(
        ["systemd-analyze", "security", "--offline=true", f"--root={tmp_path}", "--threshold=20", "pagepool.service"]
    )
    exposure = re.search(r"exposure level for pagepool.service: (\d+\.\d)", said)
    assert exposure
    assert float(exposure[1]) < 2


def test_pages_that_end_compose_end_what_its_profiles_started() -> None:
    """Compose's `down` lets that go on whose profile it is not given: Prometheus, Grafana, a node."""
    pages = [_DEPLOY / "README.md", *_ROOT.glob("docs/*.md")]
    lines = [line for page in pages for line in re.findall(r"docker compose [^`\n]*\bdown\b", page.read_text())]
    assert len(lines) > 1
    assert [line for line in lines if '--profile "*"' not in line] == []


def test_what_the_units_need_is_what_has_to_be_removed() -> None:
    """What systemd-sysusers and systemd-tmpfiles find at the next boot would be made again."""
    section = (_DEPLOY / "README.md").read_text().partition("\n## systemd\n")[2].partition("\n## ")[0]
    installed = set(re.findall(r" (/usr/lib/\S+\.conf|/opt/\w+)(?=[\s/])", section))
    assert len(installed) == 3
    removal = (_ROOT / "docs/questions.md").read_text().partition("\n## How do I remove it?\n")[2].partition("\n## ")[0]
    assert {path for path in installed if f"`{path}`" not in removal} == set()


def test_the_dashboard_is_provisioned_and_whole() -> None:
    board = json.loads((_DEPLOY / "grafana/dashboards/pagepool.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["targets"] and panel["title"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    (provider,) = load("grafana/provisioning/dashboards/pagepool.yml")["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose()["grafana"]["volumes"]


def test_what_the_image_is_built_of_is_all_that_there_is(tmp_path: Path) -> None:
    """The first stage's pip gets what is copied, of what .dockerignore lets through; and the wheel that it makes of
    that has every file of both packages, and the program."""
    context = (_ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        source
        for line in (_ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert sorted(sources) == sorted(line[1:] for line in context if line.startswith("!"))
    left_out = [line.removeprefix("**/") for line in context if line.startswith("**/")]
    for source in sources:
        place = tmp_path / "src" / source
        place.parent.mkdir(parents=True, exist_ok=True)
        if (_ROOT / source).is_dir():
            shutil.copytree(_ROOT / source, place, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy(_ROOT / source, place)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "src"])
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (entries,) = (archive.read(name).decode() for name in held if name.endswith("/entry_points.txt"))
    assert "pagepool = pagepool.cli" in entries
    packages = (tmp_path / "src/client/pagepool", tmp_path / "src/service/pagepool_service")
    files = {str(file.relative_to(top.parent)) for top in packages for file in top.rglob("*") if file.is_file()}
    assert len(files) > 300
    assert files <= held


@pytest.fixture
def health() -> ModuleType:
    """deploy/health.py."""
    spec = importlib.util.spec_from_file_location("health", _DEPLOY / "health.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_health_check_asks_the_service_that_runs(health: ModuleType, tmp_path: Path) -> None:
    with running_service(tmp_path / "data", "--workers", "1") as service:
        words = ["serve", "--workers", "1", "--listen", service.host]
        assert health.check_service(words) is None
        assert health.check_service(["serve", f"--listen={service.host}"]) is None
        service.stop()
        assert service.host in health.check_service(words)


def test_the_health_check_asks_by_tls_where_the_service_has_it(
    health: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options and variables say whether it has, also half and half. Its certificate is for others to judge."""
    certificate, key = map(str, TestAuthority(tmp_path / "authority").issue("service"))
    options = ("--workers", "1", "--tls-certificate", certificate, "--tls-key", key)
    with running_service(tmp_path / "data", *options) as service:
        listen = ["serve", "--listen", service.host]
        assert health.check_service([*listen, *options]) is None
        assert health.check_service([*listen, f"--tls-certificate={certificate}"]) is None
        assert service.host in health.check_service(listen)  # it would be asked without
        monkeypatch.setenv("PAGEPOOL_TLS_CERTIFICATE", certificate)
        assert health.check_service(listen) is None
        monkeypatch.setenv("PAGEPOOL_LISTEN", service.host.replace("127.0.0.1", "0.0.0.0"))
        assert health.check_service(["serve"]) is None
        service.stop()
        assert service.host.partition(":")[2] in health.check_service(["serve"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--clients"], "--clients needs a value"),
        (["--clients", "0"], "--clients 0 is no number from 1 to 9999"),
        (["--seconds", "x"], "--seconds x is no number of seconds"),
        (["--mode", "nfs"], "--mode nfs is not library, fuse or kernel"),
        (["--clinets=4"], "unknown option --clinets=4"),
    ],
)
def test_the_load_test_names_what_it_does_not_take(words: list[str], said: str) -> None:
    done = subprocess.run([_DEPLOY / "load-test", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_load_test_names_what_it_needs(tmp_path: Path) -> None:
    """Docker without compose takes its options for its own, and says nothing of compose."""
    (tmp_path / "docker").write_text("#!/bin/sh\necho \"unknown shorthand flag: 'f' in -f\" >&2; exit 125\n")
    (tmp_path / "docker").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([_DEPLOY / "load-test"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "load-test: docker has no compose here: it needs docker with compose 2.24 or newer\n"
