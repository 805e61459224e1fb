"""``pagepool completion``: scripts that make shells complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pagepool.cli import output
from pagepool.errors import UnsupportedError

VARIABLE = "_PAGEPOOL_COMPLETE"


@click.command(name="completion", short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      pagepool completion bash > /etc/bash_completion.d/pagepool
      source <(pagepool completion zsh)
      pagepool completion fish > ~/.config/fish/completions/pagepool.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UnsupportedError(f"there is no completion for {shell}")
    script = kind(context.find_root().command, {}, "pagepool", VARIABLE)
    # Not source(): for bash, that runs bash to ask for its version.
    output.print_line((script.source_template % script.source_vars()).rstrip())
