"""A service without users loads nothing of cryptography."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.conftest import program_environment


def test_nothing_is_loaded_that_is_not_needed() -> None:
    program = (
        "import sys; import pagepool_service.supervisor, pagepool_service.commands.serve;"
        "found = {'bcrypt', 'jwt', 'cryptography', 'pagepool_service.auth.authority'} & set(sys.modules);"
        "assert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=program_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
