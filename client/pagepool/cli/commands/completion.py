"""``pagepool completion``: scripts that make shells complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pagepool.cli import output
from pagepool.errors import UnsupportedError

VARIABLE = "_PAGEPOOL_COMPLETE"

# click's own takes words as bash has them, and bash divides them at colons, too: what came behind app:1 was taken for
# the wrong argument.
_BASH = r"""%(complete_func)s() {
    local IFS=$'\n' rest=$COMP_LINE words=() index gap word current response type value

    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        gap=${rest%%%%"$word"*}
        rest=${rest#"$gap$word"}
        if ((${#words[@]} > 1)) && [[ -z $gap && ($word == :* || ${words[-1]} == *:) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    current=${words[-1]}

    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")

    COMPREPLY=()
    while IFS=',' read -r type value; do
        if [[ $type == dir ]]; then
            compopt -o dirnames
        elif [[ $type == file ]]; then
            compopt -o default
        elif [[ $type == plain ]]; then
            COMPREPLY+=("${value#"${current%%"${current##*:}"}"}")
        fi
    done <<< "$response"
}

complete -o nosort -F %(complete_func)s pagepool
"""


@click.command(name="completion", short_help="Print a shell completion script.")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL: bash (4.4 or newer), zsh or fish.

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
    template = _BASH if shell == "bash" else script.source_template
    # Not source(): for bash, that runs bash to ask for its version.
    output.print_line((template % script.source_vars()).rstrip())
