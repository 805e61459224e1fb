"""What a service is told: from the environment (``PAGEPOOL_*``), overridden by the command line.

The only module of the service that reads environment variables. A `Settings` is a frozen value: the
supervisor makes one, and every process it forks has the same.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from pagepool import units
from pagepool.errors import InvalidError
from pagepool.linux.home import home_directory
from pagepool_service.store.collect.policy import DEFAULT_GRACE_S, DEFAULT_UNTAGGED_S, TagRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_PORT = 5000
_MOST = 1 << 62


class SettingInvalidError(InvalidError):
    """A setting that cannot be used; it names the variable, or the file, or says what was given for the option."""

    what = "setting"


class StandardEndpoint(str):
    """Where traces go if only variables of OpenTelemetry ask for them, which may have been set for all programs of a
    machine: a service that lacks what traces need makes none, and starts all the same."""

    __slots__ = ()


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
        max_layer_bytes: a layer with more plain bytes, holes included, is kept as a blob, and cannot be mounted.
        max_layer_ratio: so is one that grows by more than this factor (beyond the first 256 MiB).
        rebuild_compressed: drop compressed blobs that can be made again exactly, and make them again at each pull.
        rebuilt_bytes: most bytes of what was so made that are kept for the next pull; 0 keeps nothing.
        recompress: compress what was stored once more, thoroughly, while there is nothing else to do.
        gc: collect what nothing needs any more, while the service runs.
        gc_interval_s: between two looks at whether that is worth it.
        gc_garbage_bytes: about how much there must be.
        gc_grace_s: how long a blob stays that no manifest of its repository needs.
        gc_untagged_s: how long a manifest stays without a tag, an index or a subject that is kept; None for ever.
        gc_keep_tags: how many tags repositories keep.
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
        stuck_s: how long a process may be stopped, or keep the store's writer lock, before something is done about it;
            0 for ever.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``text`` or ``json``, one line for each event.
        access_log: log every request.
        read_only: serve what is there, and refuse every write.
        metrics_listen: address and port for Prometheus; None to keep no figures. Port 0 lets the system choose.
        tls_certificate: file of the certificate and its chain, PEM; None to serve without TLS.
        tls_key: file of its key; None if that is in the same file.
        htpasswd: file of users (`auth.htpasswd`).
        tokens: file of static tokens (`auth.tokens`).
        rights: file of rights (`auth.rights`); None to let everybody who has credentials do everything.
        anonymous_pull: whether everybody may pull everything. Not with `rights`, which say so themselves.
        challenge: ``bearer`` or ``basic``: how clients are asked for credentials. Both are always taken.
        trusted_proxies: addresses and networks of proxies: what these say of their clients counts.
        external_url: where clients reach the service, without a slash at the end; None for what they say.
        absolute_locations: whether `Location` headers have the address before the path.
        allowed_origins: web pages of these origins may use the service from browsers; ``*`` stands for all.
        token_service: what this service is called in tokens.
        token_realm: address of another server that makes the tokens; None to make them here.
        token_keys: file of its public keys.
        token_issuer: what its tokens say of their maker.
        max_uploads_per_user: most upload sessions that one user may have open; 0 for any number.
        repository_quota_bytes: most bytes that a repository may hold, unless `rights` say otherwise; 0 for no limit.
        share_pool: whether other users of this machine may read the pool; None for only where nobody authenticates.
        trace_endpoint: URL that traces are sent to by OTLP over HTTP; None to make none.
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
    rebuilt_bytes: int = 2 << 30
    recompress: bool = True
    gc: bool = True
    gc_interval_s: float = 600.0
    gc_garbage_bytes: int = 64 << 20
    gc_grace_s: float = DEFAULT_GRACE_S
    gc_untagged_s: float | None = DEFAULT_UNTAGGED_S
    gc_keep_tags: tuple[TagRule, ...] = ()
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
    stuck_s: float = 30.0
    log_level: str = "info"
    log_format: str = "text"
    access_log: bool = False
    read_only: bool = False
    metrics_listen: tuple[str, int] | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    htpasswd: Path | None = None
    tokens: Path | None = None
    rights: Path | None = None
    anonymous_pull: bool = False
    challenge: str = "bearer"
    trusted_proxies: tuple[str, ...] = ()
    external_url: str | None = None
    absolute_locations: bool = False
    allowed_origins: tuple[str, ...] = ()
    token_service: str = "pagepool"
    token_realm: str | None = None
    token_keys: Path | None = None
    token_issuer: str = ""
    max_uploads_per_user: int = 0
    repository_quota_bytes: int = 0
    share_pool: bool | None = None
    trace_endpoint: str | None = None

    @property
    def authenticates(self) -> bool:
        """Whether requests need credentials at all."""
        return any(path is not None for path in (self.htpasswd, self.tokens, self.token_keys))

    @property
    def shares_pool(self) -> bool:
        """Whether other users of this machine may read the pool: all that is in it, whatever they may pull."""
        return not self.authenticates if self.share_pool is None else self.share_pool

    @property
    def renewed_after_ns(self) -> int:
        """A link is renewed when somebody relies on it, if its time is so long ago: early enough for collection."""
        ages = [3600.0, self.gc_grace_s / 2]
        if self.gc_untagged_s is not None:
            ages.append(self.gc_untagged_s / 2)
        return int(min(ages) * 1e9)

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **chosen: Any) -> Settings:
        """Read the environment, then lay the options that were given (those not None) over it.

        Raises:
            SettingInvalidError: a value that cannot be used.
        """
        environment = os.environ if environment is None else environment
        found: dict[str, Any] = {"data": default_data(environment), **_standard_tracing(environment)}
        for variable, (name, parse) in _VARIABLES.items():
            text = environment.get(variable)
            if text is None or text == "":
                continue
            found |= _parsed(variable, name, parse, text)
        found |= {name: value for name, value in chosen.items() if value is not None}
        if found.get("trace_endpoint") == "":  # said to be none, whatever else asks for it
            found["trace_endpoint"] = None
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
            "max_layer_ratio": (2, _MOST),
            "max_manifest_bytes": (1 << 10, 1 << 30),
            "max_connections": (8, 1 << 20),
            "head_timeout_s": (1, 1 << 20),
            "transfer_bytes": (1 << 20, 1 << 40),
            "body_bytes": (1 << 20, 1 << 40),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = bounds.get(field.name, (0, _MOST))
            if isinstance(value, (int, float)) and not low <= value <= high:
                self._refuse(field.name, f"must be at least {low}" + (f", and at most {high}" if high < _MOST else ""))
        if self.log_level not in ("debug", "info", "warning", "error"):
            self._refuse("log_level", "must be debug, info, warning or error")
        if self.log_format not in ("text", "json"):
            self._refuse("log_format", "must be text or json")
        self._check_access()
        return self

    def _refuse(self, name: str, reason: str) -> NoReturn:
        """Refuse the value of a setting, by the variable that every one has."""
        variable = next((one for one, (field, _) in _VARIABLES.items() if field == name), "PAGEPOOL_LISTEN")
        value = getattr(self, name)
        text = ("no", "yes")[value] if isinstance(value, bool) else str(value)
        raise SettingInvalidError(f"{variable}={text}", reason)

    def _check_access(self) -> None:
        """See that what is said of TLS and credentials goes together."""
        if self.challenge not in ("bearer", "basic"):
            self._refuse("challenge", "must be bearer or basic")
        if self.tls_key is not None and self.tls_certificate is None:
            self._refuse("tls_key", "needs a certificate, too: --tls-certificate")
        if not re.fullmatch(r"[!#-\[\]-~]+", self.token_service):
            self._refuse("token_service", "has blanks or quotes")
        if not self.authenticates:
            for name in ("rights", "anonymous_pull"):
                if getattr(self, name):
                    self._refuse(name, "says who may do what, and nobody can log in: add --htpasswd or --tokens")
        if self.anonymous_pull and self.rights is not None:
            reason = f'is for services without a file of rights: say so in {self.rights}, who = ["anonymous"]'
            self._refuse("anonymous_pull", reason)
        theirs = {
            "PAGEPOOL_TOKEN_REALM": self.token_realm is not None,
            "PAGEPOOL_TOKEN_KEYS": self.token_keys is not None,
            "PAGEPOOL_TOKEN_ISSUER": bool(self.token_issuer),
        }
        if missing := [name for name, given in theirs.items() if not given and any(theirs.values())]:
            raise SettingInvalidError(", ".join(missing), "is missing: another server of tokens needs all three")


def default_data(environment: Mapping[str, str]) -> Path:
    """The data directory when none was chosen: the system's for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/pagepool")
    home = environment.get("XDG_DATA_HOME")
    return (Path(home) if home else home_directory() / ".local" / "share") / "pagepool"


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
    try:
        return units.parse_address(text)
    except units.AddressInvalidError as error:
        raise SettingInvalidError(text, error.reason) from error


def parse_trace_endpoint(text: str) -> str:
    """The URL that traces are sent to: ``/v1/traces`` of a collector, if it has no path; "" for ``none``.

    Raises:
        SettingInvalidError: it is no http URL.
    """
    if text.strip().lower() in ("none", "no", "off"):
        return ""
    try:
        url = urlsplit(text.strip())
        fits = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        fits = False
    if not fits:
        raise SettingInvalidError(text, "is no URL of a collector, as http://127.0.0.1:4318 is")
    return url.geturl() if url.path.strip("/") else urlunsplit(url._replace(path="/v1/traces"))


def _standard_tracing(environment: Mapping[str, str]) -> dict[str, Any]:
    """What OpenTelemetry's own variables ask for, if that can be had here."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").lower() not in ("", "otlp"):
        return {}
    exact = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not exact and not base:
        return {}
    endpoint = exact or f"{base.rstrip('/')}/v1/traces"
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if exact else "OTEL_EXPORTER_OTLP_ENDPOINT"
    return _parsed(name, "trace_endpoint", lambda text: StandardEndpoint(parse_trace_endpoint(text)), endpoint)


def parse_duration(text: str) -> float:
    """`units.parse_duration`, as a setting.

    Raises:
        SettingInvalidError: it is no length of time.
    """
    try:
        return units.parse_duration(text)
    except units.DurationInvalidError as error:
        raise SettingInvalidError(text, error.reason) from error


def parse_age(text: str) -> float | None:
    """A length of time in seconds, or None for ``never``.

    Raises:
        SettingInvalidError: it is neither.
    """
    return None if text.strip().lower() == "never" else parse_duration(text)


def parse_tag_rules(text: str) -> tuple[TagRule, ...]:
    """How many tags are kept: ``10``, or by repository ``ci/*=5,library/*=all,*=20``; the first that matches counts.

    Raises:
        SettingInvalidError: it is neither.
    """
    rules: list[TagRule] = []
    for part in text.split(","):
        pattern, separator, number = part.strip().rpartition("=")
        if not separator:
            pattern = "*"
        if number not in ("all", "0") and not (number.isdecimal() and pattern):
            raise SettingInvalidError(text, "is not a number of tags, nor a list such as ci/*=5,library/*=all,*=20")
        rules.append(TagRule(pattern, 0 if number == "all" else int(number)))
    return tuple(rules)


def parse_number(text: str) -> int:
    """A whole number, 0 or more.

    Raises:
        SettingInvalidError: it is none.
    """
    if not re.fullmatch(r"[0-9]{1,19}", text.strip()):
        raise SettingInvalidError(text, "is no whole number")
    return int(text)


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


def parse_url(text: str) -> str:
    """An address that clients are told, without a slash at its end.

    Raises:
        SettingInvalidError: it is none, or has a user, a query or a fragment.
    """
    if not re.fullmatch(r"https?://[A-Za-z0-9._\[\]:-]+(/[A-Za-z0-9._~/-]*)?", text):
        raise SettingInvalidError(text, "is no address, as https://registry.example is")
    return text.rstrip("/")


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, with commas between them, or ``*``.

    Raises:
        SettingInvalidError: one is no origin.
    """
    found = tuple(part.strip().lower() for part in text.split(","))
    for part in found:
        if part != "*" and not re.fullmatch(
            r"https?://[a-z0-9._-]+(:[0-9]+)?|https?://\[[0-9a-f:.]+\](:[0-9]+)?", part
        ):
            raise SettingInvalidError(text, "is no list of origins, as https://ui.example,http://127.0.0.1:8080 is")
    return found


def parse_proxies(text: str) -> tuple[str, ...]:
    """Addresses and networks, with commas between them.

    Raises:
        SettingInvalidError: one is neither.
    """
    found = tuple(part.strip() for part in text.split(","))
    try:
        for part in found:
            ipaddress.ip_network(part)
    except ValueError as error:
        raise SettingInvalidError(
            text, f"is no addresses and networks, as 10.0.0.7,192.168.1.0/24 is: {error}"
        ) from None
    return found


def _parsed(variable: str, name: str, parse: Callable[[str], Any], text: str) -> dict[str, Any]:
    try:
        value = parse(text)
    except SettingInvalidError as error:
        raise SettingInvalidError(f"{variable}={text}", error.reason) from error
    return dict(zip(("host", "port"), value, strict=True)) if name == "listen" else {name: value}


_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "PAGEPOOL_DATA": ("data", Path),
    "PAGEPOOL_LISTEN": ("listen", parse_listen),
    "PAGEPOOL_WORKERS": ("workers", parse_number),
    "PAGEPOOL_INGEST_PROCESSES": ("ingest_processes", parse_number),
    "PAGEPOOL_CACHE_DIR": ("cache_dir", Path),
    "PAGEPOOL_CACHE_SIZE": ("cache_bytes", parse_size),
    "PAGEPOOL_QUOTA": ("quota_bytes", parse_size),
    "PAGEPOOL_MAX_BLOB_SIZE": ("max_blob_bytes", parse_size),
    "PAGEPOOL_MAX_LAYER_SIZE": ("max_layer_bytes", parse_size),
    "PAGEPOOL_MAX_LAYER_RATIO": ("max_layer_ratio", parse_number),
    "PAGEPOOL_REBUILD_COMPRESSED": ("rebuild_compressed", parse_flag),
    "PAGEPOOL_REBUILT_CACHE": ("rebuilt_bytes", parse_size),
    "PAGEPOOL_RECOMPRESS": ("recompress", parse_flag),
    "PAGEPOOL_GC": ("gc", parse_flag),
    "PAGEPOOL_GC_INTERVAL": ("gc_interval_s", parse_duration),
    "PAGEPOOL_GC_GARBAGE": ("gc_garbage_bytes", parse_size),
    "PAGEPOOL_GC_GRACE": ("gc_grace_s", parse_duration),
    "PAGEPOOL_GC_UNTAGGED": ("gc_untagged_s", parse_age),
    "PAGEPOOL_GC_KEEP_TAGS": ("gc_keep_tags", parse_tag_rules),
    "PAGEPOOL_MAX_MANIFEST_SIZE": ("max_manifest_bytes", parse_size),
    "PAGEPOOL_CHUNK_MIN_SIZE": ("chunk_min_bytes", parse_size),
    "PAGEPOOL_MAX_UPLOADS": ("max_uploads", parse_number),
    "PAGEPOOL_UPLOAD_IDLE": ("upload_idle_s", parse_duration),
    "PAGEPOOL_BODY_TIMEOUT": ("body_timeout_s", parse_duration),
    "PAGEPOOL_MAX_CONNECTIONS": ("max_connections", parse_number),
    "PAGEPOOL_MAX_CONNECTIONS_PER_ADDRESS": ("max_connections_per_address", parse_number),
    "PAGEPOOL_HEAD_TIMEOUT": ("head_timeout_s", parse_duration),
    "PAGEPOOL_LEAST_RATE": ("least_rate_bytes", parse_size),
    "PAGEPOOL_TRANSFER_MEMORY": ("transfer_bytes", parse_size),
    "PAGEPOOL_BODY_MEMORY": ("body_bytes", parse_size),
    "PAGEPOOL_GRACEFUL_TIMEOUT": ("graceful_s", parse_duration),
    "PAGEPOOL_STUCK_AFTER": ("stuck_s", parse_duration),
    "PAGEPOOL_LOG_LEVEL": ("log_level", str),
    "PAGEPOOL_LOG_FORMAT": ("log_format", str),
    "PAGEPOOL_ACCESS_LOG": ("access_log", parse_flag),
    "PAGEPOOL_READ_ONLY": ("read_only", parse_flag),
    "PAGEPOOL_METRICS_LISTEN": ("metrics_listen", parse_listen),
    "PAGEPOOL_TLS_CERTIFICATE": ("tls_certificate", Path),
    "PAGEPOOL_TLS_KEY": ("tls_key", Path),
    "PAGEPOOL_HTPASSWD": ("htpasswd", Path),
    "PAGEPOOL_TOKENS": ("tokens", Path),
    "PAGEPOOL_RIGHTS": ("rights", Path),
    "PAGEPOOL_ANONYMOUS_PULL": ("anonymous_pull", parse_flag),
    "PAGEPOOL_CHALLENGE": ("challenge", str),
    "PAGEPOOL_TRUSTED_PROXIES": ("trusted_proxies", parse_proxies),
    "PAGEPOOL_EXTERNAL_URL": ("external_url", parse_url),
    "PAGEPOOL_ABSOLUTE_LOCATIONS": ("absolute_locations", parse_flag),
    "PAGEPOOL_ALLOWED_ORIGINS": ("allowed_origins", parse_origins),
    "PAGEPOOL_TOKEN_SERVICE": ("token_service", str),
    "PAGEPOOL_TOKEN_REALM": ("token_realm", parse_url),
    "PAGEPOOL_TOKEN_KEYS": ("token_keys", Path),
    "PAGEPOOL_TOKEN_ISSUER": ("token_issuer", str),
    "PAGEPOOL_MAX_UPLOADS_PER_USER": ("max_uploads_per_user", parse_number),
    "PAGEPOOL_REPOSITORY_QUOTA": ("repository_quota_bytes", parse_size),
    "PAGEPOOL_SHARE_POOL": ("share_pool", parse_flag),
    "PAGEPOOL_TRACE_ENDPOINT": ("trace_endpoint", parse_trace_endpoint),
}
