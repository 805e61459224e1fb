"""The version of this distribution; a test compares it with pyproject.toml.

Written down here, because asking the installed metadata costs every start of the command line tens of
milliseconds.
"""

from __future__ import annotations

__version__ = "0.1.0"
