"""`pagepool serve`: run the service."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.linux.notify import notify
from pagepool.transport.addresses import is_loopback
from pagepool_service import logs
from pagepool_service.commands.accessoptions import access_options, parsed
from pagepool_service.commands.dataoption import data_option
from pagepool_service.settings import Settings, parse_duration, parse_listen, parse_size, parse_trace_endpoint

if TYPE_CHECKING:
    from pagepool_service.supervisor import Supervisor

log = logging.getLogger("pagepool.supervisor")

_EPILOG = """
\b
Examples:
  pagepool serve
  pagepool serve --listen 127.0.0.1:5000 --data /var/lib/pagepool --workers 4
  pagepool serve --listen 127.0.0.1:0 --data ./data --quota 100GB
  pagepool serve --listen 0.0.0.0:5000 --tls-certificate site.pem --tls-key site.key --htpasswd users
"""


@click.command(epilog=_EPILOG)
@data_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=parsed(parse_listen),
    help="Address and port; port 0 lets the system choose. [127.0.0.1:5000]",
)
@click.option("--workers", type=click.IntRange(1, 256), help="HTTP worker processes. [1]")
@click.option("--ingest-processes", type=click.IntRange(1, 64), help="Processes that read layers. [2]")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the cache of file contents that workers and local clients share. [in /dev/shm]",
)
@click.option(
    "--cache-size",
    "cache_bytes",
    metavar="SIZE",
    callback=parsed(parse_size),
    help="Most bytes of that cache; 0: none. [a quarter of the memory, at most 4GiB]",
)
@click.option(
    "--quota",
    "quota_bytes",
    metavar="SIZE",
    callback=parsed(parse_size),
    help="Most bytes the store may take. [no limit]",
)
@click.option(
    "--max-blob-size",
    "max_blob_bytes",
    metavar="SIZE",
    callback=parsed(parse_size),
    help="Largest blob taken in. [512GiB]",
)
@click.option(
    "--max-layer-size",
    "max_layer_bytes",
    metavar="SIZE",
    callback=parsed(parse_size),
    help="Most plain bytes, holes included, of a layer that can be mounted. [256GiB]",
)
@click.option(
    "--max-layer-ratio",
    type=click.IntRange(2),
    help="Most plain bytes per compressed byte of such a layer, beyond 256 MiB. [200]",
)
@click.option(
    "--rebuild-compressed/--keep-compressed",
    default=None,
    help="Do not keep compressed layers that can be made again exactly, as those of docker, podman, buildah and skopeo "
    "can: less than half of the disk, and a pull of one begins with compressing it. [keep]",
)
@click.option(
    "--rebuilt-cache",
    "rebuilt_bytes",
    metavar="SIZE",
    callback=parsed(parse_size),
    help="Most that is kept of layers that were made again, for the next pull; 0: nothing. [2 GiB]",
)
@click.option("--max-uploads", type=click.IntRange(0), help="Most uploads open at a time; 0: any number. [10000]")
@click.option(
    "--upload-idle",
    "upload_idle_s",
    metavar="TIME",
    callback=parsed(parse_duration),
    help="How long an upload stays that nobody goes on with: 90s, 15m, 24h, or seconds. [24h]",
)
@click.option(
    "--graceful-timeout",
    "graceful_s",
    metavar="TIME",
    callback=parsed(parse_duration),
    help="How long requests may go on after the service was told to end. [10s]",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[text]")
@click.option("--access-log/--no-access-log", default=None, help="Log every request. [no]")
@click.option(
    "--metrics-listen",
    metavar="HOST:PORT",
    callback=parsed(parse_listen),
    help="Address and port that answer Prometheus, GET /metrics. [none: no figures are kept]",
)
@click.option(
    "--trace-endpoint",
    metavar="URL",
    callback=parsed(parse_trace_endpoint),
    help="Collector that gets OpenTelemetry traces by OTLP over HTTP; none: no traces. [none]",
)
@click.option("--read-only/--no-read-only", default=None, help="Serve what is there, refuse every write. [no]")
@access_options
def serve(listen: tuple[str, int] | None, **options: Any) -> None:
    """Run the registry and store, until SIGTERM or Ctrl-C.

    Every option can also be given as an environment variable (PAGEPOOL_DATA, PAGEPOOL_LISTEN, ...); options win.
    """
    host, port = listen or (None, None)
    settings = Settings.load(host=host, port=port, **options)
    logs.configure(settings)
    # Imported here: all of the web framework comes with it, and neither help nor an option that is wrong needs that.
    supervisor: type[Supervisor] = importlib.import_module("pagepool_service.supervisor").Supervisor
    supervisor(settings, announce).run()


def announce(settings: Settings, address: str) -> None:
    """Say on standard output, in one line, and to systemd, that the service takes requests, and where."""
    if not is_loopback(settings.host):
        if not settings.authenticates:
            log.warning(
                "listening on %s without authentication: everyone who reaches it can read and write", settings.host
            )
        elif settings.tls_certificate is None:
            log.warning(
                "listening on %s without TLS: passwords can be read on their way, unless a proxy with TLS is before it",
                settings.host,
            )
    mode = ", read-only" if settings.read_only else ""
    notify(os.environ.get("NOTIFY_SOCKET", ""), "READY=1")
    try:
        click.echo(f"pagepool serving on {address} data {settings.data} workers {settings.workers}{mode}")
    except OSError as error:  # its disk is full, or its reader has gone: clients are served all the same
        output.hush()
        log.warning("serving on %s cannot be said on standard output: %s", address, error)
