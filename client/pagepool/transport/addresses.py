"""What addresses of servers say by themselves."""

from __future__ import annotations

import ipaddress
import re

# A host and a port that mean what they seem to. Everything else takes a parser of URLs.
_PLAIN = re.compile(r"(?:https?://)?([a-z0-9](?:[a-z0-9-]|\.(?=[a-z0-9]))*)(?::([1-9][0-9]{2,4}))?", re.ASCII)

_LAST_PORT = 65535


def plain_host(address: str) -> tuple[str, str] | None:
    """Take an address apart that is simple: a name in lower case or an IPv4 address, a port of three digits or more.

    Args:
        address: with or without a scheme.

    Returns:
        the host, and the host with the port; None if it is not simple, or wrong.
    """
    match = _PLAIN.fullmatch(address)
    if match is None or match[2] == "443" or int(match[2] or 0) > _LAST_PORT:  # 443 goes without saying
        return None
    host, port = match[1], match[2]
    if "xn--" in host or (host.replace(".", "").isdigit() and not _is_address(host)):
        return None
    return host, host if port is None else f"{host}:{port}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
