"""A group whose commands are imported when they are called, so that the program starts fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from pagepool.cli import plugins


class HintingGroup(click.Group):
    """A group that says what there is instead of a command that there is not."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group`."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchOption:
            raise
        except click.UsageError as error:
            from pagepool.cli.elsewhere import unknown_command

            instead = unknown_command(args[0], self.list_commands(ctx), "" if self.name is None else self.name)
            raise click.UsageError(instead, error.ctx) from None


class LazyGroup(HintingGroup):
    """The commands of the client, by name: one line of help each; and those of the service.

    The command is the attribute `command` of the module ``pagepool.cli.commands.<name>``.

    Args:
        lazy: one line of help for each command of the client, in the order of `--help`.
    """

    def __init__(self, *args: object, lazy: Mapping[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. What prints by `click.echo`, and its help, ends as the others when nobody reads it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click itself would end the process, with 1
            from pagepool.cli.output import end_quietly

            end_quietly()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, the client's first."""
        return [*self.lazy, *sorted(plugins.names().keys() - self.lazy.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one."""
        if cmd_name not in self.lazy:
            return plugins.load(cmd_name)
        module = importlib.import_module(f"pagepool.cli.commands.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """The list of commands, without importing any."""
        served = {name: text for name, text in plugins.names().items() if name not in self.lazy}
        for title, lines in (("Commands", self.lazy), ("Service commands", served)):
            if lines:
                with formatter.section(title):
                    formatter.write_dl(list(lines.items()))
