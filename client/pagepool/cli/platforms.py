"""What is said of an image that is not for the platform that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.cli import output
from pagepool.errors import ImageInvalidError
from pagepool.layout.files import MAX_DOCUMENT
from pagepool.oci import Manifest, Platform
from pagepool.oci.config import parse_config
from pagepool.oci.platform import rank
from pagepool.oci.verify import read_verified

if TYPE_CHECKING:
    from pagepool.layout import ImageSource, Plan


def warn_of_platform(plan: Plan, source: ImageSource, wanted: Platform | None, name: str) -> None:
    """Say that an image is for other machines: one that is in no index is taken whatever --platform says.

    Args:
        plan: of the image, by `plan_copy`.
        source: where its config is.
        wanted: what --platform says; None: nothing.
        name: what the user calls it.
    """
    _, manifest = plan.root
    if wanted is None or not isinstance(manifest, Manifest) or not manifest.is_image:
        return
    if manifest.config.size > MAX_DOCUMENT:
        return
    try:
        found = parse_config(read_verified(source.open_blob(manifest.config), manifest.config)).platform
    except ImageInvalidError:
        return  # it says nothing that could be believed
    if found.architecture and rank(wanted, found) is None:
        output.warn(f"{name} is for {found}, not for {wanted}")
