"""Rebuild a compressed layer from its tar, where a known encoder makes exactly the bytes that were pushed.

Two kinds are known. *zlib*, as Python has it (`zlibs`), with which Python, Java and libarchive write gzip. And those of
the Go clients (`frozen`): what docker, podman, buildah and skopeo compress with, compiled once to WebAssembly and kept.

An encoder's output is no part of any standard and changes with its version. So the parameters name the version, or the
program by its digest, and every 128 KiB that are rebuilt are compared with the digest taken when the blob was pushed
before they are handed out: what is not the same is unreadable, never wrong. Rebuilding also runs at the encoder's
speed, not the disk's. Therefore it is done only when asked for.

Parameters as stored: docs/format/store.md, "Encoders".
"""

from pagepool_service.encoders.base import (
    PROBE_SIZE,
    Encoder,
    EncoderDiedError,
    EncoderMissingError,
    checked,
    in_background,
    remake,
)
from pagepool_service.encoders.frozen import can_run_programs, keep_compiled
from pagepool_service.encoders.identify import candidates, decode, probe, tried

__all__ = [
    "PROBE_SIZE",
    "Encoder",
    "EncoderDiedError",
    "EncoderMissingError",
    "can_run_programs",
    "candidates",
    "checked",
    "decode",
    "in_background",
    "keep_compiled",
    "probe",
    "remake",
    "tried",
]
