"""What a service is told: from the environment (``PAGEPOOL_*``), overridden by the command line.

The only module of the service that reads environment variables. A `Settings` is a frozen value: the
supervisor makes one, and every process it forks has the same.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool import units
from pagepool.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LISTEN = re.compile(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]]*):)?([0-9]{1,5})")
DEFAULT_PORT = 5000


class SettingInvalidError(InvalidError):
    """A setting that cannot be used; it names the variable or option."""

    what = "setting"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a service can be told.

    Args:
        data: the data directory.
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        workers: HTTP worker processes.
        ingest_processes: processes that read layers, each one layer at a time.
        cache_dir: where the pool is that objects are read from, which all workers and clients on this machine share;
            None for that of `pools.cache_directory`.
        cache_bytes: most bytes of it; None for `pools.default_budget`, 0 for no pool.
        quota_bytes: most bytes that the store may take, uploads and spool included; 0 for no limit.
        max_blob_bytes: largest blob taken in.
        max_layer_bytes: a layer with more plain bytes is kept as a blob, and cannot be mounted.
        max_layer_ratio: so is one that grows by more than this factor (beyond the first 256 MiB).
        rebuild_compressed: drop compressed blobs that can be made again exactly, and make them again at each pull.
        recompress: compress what was stored once more, thoroughly, while there is nothing else to do.
        max_manifest_bytes: largest manifest taken in.
        chunk_min_bytes: what `OCI-Chunk-Min-Length` asks of clients; 0 sends no such header.
        max_uploads: most upload sessions open at a time; 0 for any number.
        upload_idle_s: an upload that nobody wrote to for so long is removed.
        body_timeout_s: longest wait for the next bytes of a request.
        max_connections: most connections of a worker at a time.
        max_connections_per_address: of these, most from one address but loopback; 0 for any number.
        head_timeout_s: longest time for the head of a request to come.
        least_rate_bytes: bytes a second that a client has to move, over `body_timeout_s`, when it is its turn to send
            or to take; 0 asks nothing.
        transfer_bytes: memory of a worker for answers on their way, about.
        body_bytes: memory of a worker for documents on their way in, about.
        graceful_s: how long requests may go on after the service was told to stop.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``text`` or ``json``, one line for each event.
        access_log: log every request.
        read_only: serve what is there, and refuse every write.
        metrics_listen: address and port for Prometheus; None to keep no figures. Port 0 lets the system choose.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    workers: int = 1
    ingest_processes: int = 2
    cache_dir: Path | None = None
    cache_bytes: int | None = None
    quota_bytes: int = 0
    max_blob_bytes: int = 512 << 30
    max_layer_bytes: int = 256 << 30
    max_layer_ratio: int = 200
    rebuild_compressed: bool = False
    recompress: bool = True
    max_manifest_bytes: int = 4 << 20
    chunk_min_bytes: int = 0
    max_uploads: int = 10_000
    upload_idle_s: float = 24 * 3600.0
    body_timeout_s: float = 300.0
    max_connections: int = 2048
    max_connections_per_address: int = 512
    head_timeout_s: float = 30.0
    least_rate_bytes: int = 1 << 10
    transfer_bytes: int = 256 << 20
    body_bytes: int = 64 << 20
    graceful_s: float = 10.0
    log_level: str = "info"
    log_format: str = "text"
    access_log: bool = False
    read_only: bool = False
    metrics_listen: tuple[str, int] | None = None

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **chosen: Any) -> Settings:
        """Read the environment, then lay the options that were given (those not None) over it.

        Raises:
            SettingInvalidError: a value that cannot be used.
        """
        environment = os.environ if environment is None else environment
        found: dict[str, Any] = {"data": default_data(environment)}
        for variable, (name, parse) in _VARIABLES.items():
            text = environment.get(variable)
            if text is None or text == "":
                continue
            found |= _parsed(variable, name, parse, text)
        found |= {name: value for name, value in chosen.items() if value is not None}
        return cls(**found).checked()

    def checked(self) -> Settings:
        """These settings, if each is within its bounds.

        Raises:
            SettingInvalidError: one is not.
        """
        bounds = {
            "port": (0, 65535),
            "workers": (1, 256),
            "ingest_processes": (1, 64),
            "max_manifest_bytes": (1 << 10, 1 << 30),
            "max_connections": (8, 1 << 20),
            "head_timeout_s": (1, 1 << 20),
            "transfer_bytes": (1 << 20, 1 << 40),
            "body_bytes": (1 << 20, 1 << 40),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = bounds.get(field.name, (0, 1 << 62))
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise SettingInvalidError(f"{field.name}={value}", f"must be between {low} and {high}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingInvalidError(f"log_level={self.log_level}", "is debug, info, warning or error")
        if self.log_format not in ("text", "json"):
            raise SettingInvalidError(f"log_format={self.log_format}", "is text or json")
        return self


def default_data(environment: Mapping[str, str]) -> Path:
    """The data directory when none was chosen: the system's for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/pagepool")
    home = environment.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "pagepool"


def parse_size(text: str) -> int:
    """`units.parse_size`, as a setting.

    Raises:
        SettingInvalidError: it is not a size.
    """
    try:
        return units.parse_size(text)
    except units.SizeInvalidError as error:
        raise SettingInvalidError(text, error.reason) from error


def parse_listen(text: str) -> tuple[str, int]:
    """Parse ``host:port``, ``[address]:port``, or a port alone.

    Raises:
        SettingInvalidError: it is none of these.
    """
    match = _LISTEN.fullmatch(text.strip())
    if match is None or int(match[2]) > 65535:
        raise SettingInvalidError(text, "is not host:port, [address]:port or a port")
    return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


def parse_flag(text: str) -> bool:
    """Parse ``1``/``true``/``yes``/``on``, or their opposites.

    Raises:
        SettingInvalidError: it is none of these.
    """
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise SettingInvalidError(text, "is neither yes nor no")


def _parsed(variable: str, name: str, parse: Callable[[str], Any], text: str) -> dict[str, Any]:
    try:
        value = parse(text)
    except ValueError as error:
        raise SettingInvalidError(f"{variable}={text}", str(error)) from error
    except SettingInvalidError as error:
        raise SettingInvalidError(f"{variable}={text}", error.reason) from error
    return dict(zip(("host", "port"), value, strict=True)) if name == "listen" else {name: value}


_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "PAGEPOOL_DATA": ("data", Path),
    "PAGEPOOL_LISTEN": ("listen", parse_listen),
    "PAGEPOOL_WORKERS": ("workers", int),
    "PAGEPOOL_INGEST_PROCESSES": ("ingest_processes", int),
    "PAGEPOOL_CACHE_DIR": ("cache_dir", Path),
    "PAGEPOOL_CACHE_SIZE": ("cache_bytes", parse_size),
    "PAGEPOOL_QUOTA": ("quota_bytes", parse_size),
    "PAGEPOOL_MAX_BLOB_SIZE": ("max_blob_bytes", parse_size),
    "PAGEPOOL_MAX_LAYER_SIZE": ("max_layer_bytes", parse_size),
    "PAGEPOOL_MAX_LAYER_RATIO": ("max_layer_ratio", int),
    "PAGEPOOL_REBUILD_COMPRESSED": ("rebuild_compressed", parse_flag),
    "PAGEPOOL_RECOMPRESS": ("recompress", parse_flag),
    "PAGEPOOL_MAX_MANIFEST_SIZE": ("max_manifest_bytes", parse_size),
    "PAGEPOOL_CHUNK_MIN_SIZE": ("chunk_min_bytes", parse_size),
    "PAGEPOOL_MAX_UPLOADS": ("max_uploads", int),
    "PAGEPOOL_UPLOAD_IDLE": ("upload_idle_s", float),
    "PAGEPOOL_BODY_TIMEOUT": ("body_timeout_s", float),
    "PAGEPOOL_MAX_CONNECTIONS": ("max_connections", int),
    "PAGEPOOL_MAX_CONNECTIONS_PER_ADDRESS": ("max_connections_per_address", int),
    "PAGEPOOL_HEAD_TIMEOUT": ("head_timeout_s", float),
    "PAGEPOOL_LEAST_RATE": ("least_rate_bytes", parse_size),
    "PAGEPOOL_TRANSFER_MEMORY": ("transfer_bytes", parse_size),
    "PAGEPOOL_BODY_MEMORY": ("body_bytes", parse_size),
    "PAGEPOOL_GRACEFUL_TIMEOUT": ("graceful_s", float),
    "PAGEPOOL_LOG_LEVEL": ("log_level", str),
    "PAGEPOOL_LOG_FORMAT": ("log_format", str),
    "PAGEPOOL_ACCESS_LOG": ("access_log", parse_flag),
    "PAGEPOOL_READ_ONLY": ("read_only", parse_flag),
    "PAGEPOOL_METRICS_LISTEN": ("metrics_listen", parse_listen),
}
