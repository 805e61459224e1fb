"""Sizes, times, and addresses to listen on, as people write them."""

from __future__ import annotations

import re

from pagepool.errors import InvalidError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SHOWN = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_ADDRESS = re.compile(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]]*):)?([0-9]{1,5})")
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([kmgt]i?)?b?")


class SizeInvalidError(InvalidError):
    """No size."""

    what = "size"


class AddressInvalidError(InvalidError):
    """Nothing to listen on."""

    what = "address"


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``host:port``, ``[address]:port``, or a port alone, which is one of the loopback interface.

    Raises:
        AddressInvalidError: it is none of these.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match[2]) > 65535:
        raise AddressInvalidError(text, "is not host:port, [address]:port or a port")
    return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


def parse_size(text: str) -> int:
    """Parse ``10GB``, ``1.5 GiB`` or plain bytes; the units are SI's and IEC's, in any case.

    Raises:
        SizeInvalidError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise SizeInvalidError(text, "is not a size, such as 10GB, 512MiB or a number of bytes")
    number, unit = match[1], match[2] or ""
    return int(float(number) * _UNITS[unit]) if "." in number else int(number) * _UNITS[unit]


_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([smhdw]?)")


class DurationInvalidError(InvalidError):
    """No length of time."""

    what = "length of time"


def parse_duration(text: str) -> float:
    """Parse ``90s``, ``15m``, ``24h``, ``7d``, ``2w`` or plain seconds. Returns seconds.

    Raises:
        DurationInvalidError: it is no length of time.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise DurationInvalidError(text, "is not a length of time, such as 90s, 15m, 24h, 7d or a number of seconds")
    return float(match[1]) * _SECONDS[match[2]]


def human_size(size: float) -> str:
    """A number of bytes in SI units, as docker prints them."""
    for unit in _SHOWN:
        if abs(size) < 999.95 or unit == _SHOWN[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
