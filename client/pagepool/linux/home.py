"""Where the user's own files are."""

from __future__ import annotations

from pathlib import Path


def home_directory() -> Path:
    """The user's home. One whom the system does not know, as in a container that runs as any number, has ``/``.

    That is what container engines give to such a user, where they say anything. He may hardly write there: what is
    only looked for is not found then, and what is to be written is refused with the place.
    """
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
