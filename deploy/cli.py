"""The `appa` command: one group of subcommands per file in `deploy/commands/`, loaded when used."""

import importlib
import sys
from typing import Any

import click
import typer
from typer.core import TyperGroup

from model.domain.errors import AppaError

__all__ = ["main"]

GROUPS: dict[str, tuple[str, str]] = {
    "up": ("deploy.commands.up", "Run the whole system on this machine."),
    "demo": ("deploy.commands.demo", "Observations to analyses against a simulated truth."),
    "rehearse": ("deploy.commands.rehearse", "A simulated day of cycles, and an audit of it."),
    "observations": ("deploy.commands.observations", "Inspect, ingest, query, compact."),
    "checkpoint": ("deploy.commands.checkpoint", "Import, check and compare weights."),
    "train": ("deploy.commands.train", "Nature run, autoencoder, denoiser."),
    "verify": ("deploy.commands.verify", "Skill against truth and observations."),
    "submit": ("deploy.commands.submit", "Submit a job to a running system."),
    "upload": ("deploy.commands.upload", "Upload observations to a running system."),
    "watch": ("deploy.commands.watch", "Follow a job to its end."),
    "fetch": ("deploy.commands.fetch", "Download the files of an analysis."),
    "cycles": ("deploy.commands.cycles", "List, watch, explain and rerun hourly analyses."),
    "reanalyse": ("deploy.commands.reanalyse", "A past period in windows side by side."),
    "replay": ("deploy.commands.replay", "Make an analysis again: is it identical?"),
    "retention": ("deploy.commands.retention", "What is kept for how long; pins."),
    "keys": ("deploy.commands.keys", "Create, list and revoke API keys."),
    "webhooks": ("deploy.commands.webhooks", "Who is told of events over HTTP; messages sent."),
    "worker": ("deploy.commands.worker", "Run one worker process of a larger system."),
    "gateway": ("deploy.commands.gateway", "Run the gateway alone."),
}
"""Name of each command or group, the module that holds its Typer `app`, and one line of help."""


class LazyGroup(TyperGroup):
    """Imports a subcommand's module when it is called, so that `appa --help` needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in GROUPS:
            return None
        module, _ = GROUPS[cmd_name]
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in GROUPS.items()])


# Without markup the list of commands comes from GROUPS; rich help would import every module.
app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Operational data assimilation with latent diffusion."""


def main(*args: Any, **kwargs: Any) -> None:
    """Entry point of the `appa` command."""
    try:
        app(*args, **kwargs)
    except AppaError as error:
        typer.secho(f"error: {error.message}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
