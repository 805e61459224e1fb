"""OCI and Docker documents as frozen values: parse, validate, encode."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.oci.config import Config, RunConfig, parse_config
    from pagepool.oci.descriptor import REF_NAME, Descriptor
    from pagepool.oci.manifest import (
        MAX_INDEX_DEPTH,
        Index,
        Manifest,
        encode_index,
        encode_manifest,
        parse_manifest,
    )
    from pagepool.oci.platform import Platform, select_platform
    from pagepool.oci.reference import DEFAULT_TAG, Reference, validate_repository, validate_tag
    from pagepool.oci.verify import Readable, VerifyingReader, read_verified
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "config": "Config RunConfig parse_config",
            "descriptor": "REF_NAME Descriptor",
            "manifest": "MAX_INDEX_DEPTH Index Manifest encode_index encode_manifest parse_manifest",
            "platform": "Platform select_platform",
            "reference": "DEFAULT_TAG Reference validate_repository validate_tag",
            "verify": "Readable VerifyingReader read_verified",
        },
    )

__all__ = [
    "Config",
    "RunConfig",
    "parse_config",
    "Descriptor",
    "REF_NAME",
    "Manifest",
    "Index",
    "MAX_INDEX_DEPTH",
    "parse_manifest",
    "encode_manifest",
    "encode_index",
    "Platform",
    "select_platform",
    "Reference",
    "DEFAULT_TAG",
    "validate_repository",
    "validate_tag",
    "Readable",
    "VerifyingReader",
    "read_verified",
]
