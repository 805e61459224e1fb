"""From a reference and the server options to a connection."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pagepool.cli.credentials import find_credentials
from pagepool.cli.usage import refuse
from pagepool.errors import NotFoundError, UnsupportedError
from pagepool.linux.home import home_directory
from pagepool.oci import Reference
from pagepool.transport.addresses import is_loopback, plain_host
from pagepool.transport.credentials import Credentials

if TYPE_CHECKING:
    from pagepool.transport import RegistryClient, ServiceClient, Session

_DOCKER_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class TrustOptions(TypedDict):
    """What `options.trust_options` hands to a command."""

    insecure: bool
    ca_certificate: Path | None
    username: str | None
    password_stdin: bool


class AccessOptions(TrustOptions):
    """What `options.access_options` hands to a command."""

    plain_http: bool


class ServerOptions(AccessOptions):
    """What `options.server_options` hands to a command."""

    server: str


class PoolOptions(ServerOptions):
    """What `options.pool_options` hands to a command."""

    pool: Path | None
    tree_timeout: float


@dataclass(frozen=True, slots=True)
class Connection:
    """A server, and the two ways to talk to it.

    Args:
        session: the connection itself.
        registry: its registry routes.
        service: pagepool's own routes; they may not be there.
    """

    session: Session
    registry: RegistryClient
    service: ServiceClient

    def explain(self, error: NotFoundError) -> Exception:
        """The error to show for a 404 on one of pagepool's own routes: other registries have none of them."""
        if self.service.available():
            return error
        return UnsupportedError(f"{self.session.where} is not a pagepool service")


@contextmanager
def connect(options: ServerOptions, reference: Reference | None = None) -> Iterator[Connection]:
    """Connect to the server that a reference names, or else to the default one.

    Raises:
        PagepoolError: an address or credentials that cannot be used. The server itself is not asked yet.
    """
    url, host = server_url(options, reference)
    from pagepool.cli import output
    from pagepool.transport import RegistryClient, ServiceClient, Session

    credentials = credentials_for(options, host, reference.repository if reference else "")
    session = Session(url, credentials=credentials, verify=verify_of(options, host), on_warning=output.note)
    try:
        yield Connection(session, RegistryClient(session), ServiceClient(session))
    finally:
        session.close()


def on_server(reference: Reference) -> Reference:
    """The reference as its server knows it: Docker Hub's own images lie below ``library/``."""
    if reference.host in _DOCKER_HUB and "/" not in reference.repository:
        return replace(reference, repository=f"library/{reference.repository}")
    return reference


def server_url(options: ServerOptions, reference: Reference | None) -> tuple[str, str]:
    """The address to connect to, and the host as credentials name it.

    A host in the reference wins over the default server. Without a scheme, this machine is spoken to by http,
    others by https, unless `--plain-http` says otherwise, or it is the default server and that has one.
    """
    host = reference.host if reference else None
    given = host or options["server"]
    if host is None and "://" in given:
        return given.rstrip("/"), host_of(given)[1]
    name = given.rstrip("/")
    address = _DOCKER_HUB.get(name, name)
    bare, _ = host_of(f"http://{address}")
    if options["server"].rstrip("/") == f"https://{address}":
        return f"https://{address}", name
    scheme = "http" if options["plain_http"] or is_loopback(bare) else "https"
    return f"{scheme}://{address}", name


def host_of(url: str) -> tuple[str, str]:
    """The host of an address, and the host with its port.

    Raises:
        InvalidError: not an address of a server.
    """
    plain = plain_host(url.rstrip("/"))
    if plain is not None:
        return plain
    from pagepool.transport.http import parse_base

    base = parse_base(url)
    return base.host, base.netloc.decode("ascii")


def verify_of(options: TrustOptions, host: str) -> bool | str:
    """Who vouches for a server's certificate: the system's authorities, one that was named, and docker's and podman's.

    Args:
        host: ``host[:port]``, as it was named.
    """
    if options["insecure"]:
        return False
    named = options["ca_certificate"]
    found = [] if named is None else [named]
    for directory in _certificate_directories():
        found += sorted((directory / host).glob("*.crt")) if "/" not in host else []
    return "\n".join(map(str, found)) or True


def _certificate_directories() -> Iterator[Path]:
    """Where docker and podman keep authorities of registries: HOST[:PORT]/*.crt below these."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    home = Path(configured) if configured else home_directory() / ".config"
    for directory in (home / "containers", home / "docker", Path("/etc/containers"), Path("/etc/docker")):
        yield directory / "certs.d"


def credentials_for(options: TrustOptions, host: str, repository: str) -> Credentials:
    """Who we are to a server: as the options say, or else as docker and podman know."""
    if options["password_stdin"]:
        username = options["username"] or refuse("--password-stdin needs --username.")
        return Credentials(username, sys.stdin.readline().rstrip("\r\n"))
    if options["username"]:
        refuse("--username needs --password-stdin.")
    return find_credentials(host, repository)
