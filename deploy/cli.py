"""Define the `appa` command; the modules of its subcommands are imported when they are called."""

import importlib
import os
import sys
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from model.domain.errors import AppaError, ConfigurationError

__all__ = ["main"]

GROUPS: dict[str, tuple[str, str]] = {
    "up": ("deploy.commands.stack:up_app", "Run the whole system on this machine."),
    "demo": (
        "deploy.commands.demo:demo_app",
        "Observations to analyses against a simulated truth.",
    ),
    "rehearse": (
        "deploy.commands.demo:rehearse_app",
        "A simulated day of cycles, and an audit of it.",
    ),
    "chaos": (
        "deploy.commands.demo:chaos_app",
        "Uploads and jobs under kills, full disks and cuts, and an audit.",
    ),
    "observations": ("deploy.commands.observations:app", "Inspect, ingest, query, compact, retry."),
    "sources": ("deploy.commands.sources:app", "WIS2 feeds and archives: add, list, test, pull."),
    "checkpoint": ("deploy.commands.checkpoint:app", "Import, check and compare weights."),
    "train": ("deploy.commands.train:app", "Nature run, autoencoder, denoiser."),
    "verify": ("deploy.commands.verify:app", "Skill against truth and observations."),
    "status": ("deploy.commands.status:status_app", "What runs, what is late, the last analysis."),
    "jobs": ("deploy.commands.records:jobs_app", "List, show and cancel jobs."),
    "uploads": ("deploy.commands.records:uploads_app", "List uploads of observations."),
    "analyses": ("deploy.commands.records:analyses_app", "List and show analyses."),
    "doctor": ("deploy.commands.doctor:doctor_app", "Examine this machine: what to mend, and how."),
    "submit": ("deploy.commands.client:submit_app", "Submit a job to a running system."),
    "upload": ("deploy.commands.client:upload_app", "Upload observations to a running system."),
    "watch": ("deploy.commands.client:watch_app", "Follow a job to its end."),
    "fetch": ("deploy.commands.client:fetch_app", "Download the files of an analysis."),
    "export": ("deploy.commands.export:export_app", "Give an analysis to another weather model."),
    "cycles": ("deploy.commands.cycles:app", "List, watch, explain and rerun hourly analyses."),
    "challenger": (
        "deploy.commands.challenger:app",
        "A second suite on trial: how it compares; promote, drop.",
    ),
    "deny": ("deploy.commands.cycles:deny_app", "A cycle without a network: what was it worth?"),
    "reanalyse": ("deploy.commands.reanalyse:app", "A past period in windows side by side."),
    "replay": ("deploy.commands.results:replay_app", "Make an analysis again: is it identical?"),
    "catalogue": ("deploy.commands.results:catalogue_app", "Published results: show, rebuild."),
    "policies": ("deploy.commands.policies:policies_app", "Check policy files before they count."),
    "retention": ("deploy.commands.results:retention_app", "What is kept for how long; pins."),
    "backup": ("deploy.commands.backup:backup_app", "Copy records, keys, policies; not the bulk."),
    "restore": ("deploy.commands.backup:restore_app", "Put a backup back; is all there?"),
    "recover": ("deploy.commands.backup:recover_app", "Rebuild what Redis lost from the disk."),
    "keys": ("deploy.commands.admin:keys_app", "Create, list, change, rotate and revoke API keys."),
    "webhooks": (
        "deploy.commands.admin:webhooks_app",
        "Who is told of events over HTTP; messages sent.",
    ),
    "worker": ("deploy.commands.stack:worker_app", "Run one worker process of a larger system."),
    "probe": ("deploy.commands.probe:probe_app", "Is a worker of this machine well?"),
    "workers": ("deploy.commands.workers:app", "List, drain, resume and stop worker processes."),
    "gateway": ("deploy.commands.stack:gateway_app", "Run the gateway alone."),
    "mcp": ("deploy.commands.assistant:mcp_app", "Let an assistant ask a gateway (MCP)."),
}
"""Name of each command or group, where its Typer app is (`module:name`), and one line of help."""

EXTRAS: dict[str, str] = {
    **dict.fromkeys(("up", "demo", "rehearse", "chaos"), "local"),
    **dict.fromkeys(("verify", "checkpoint", "replay", "worker gpu"), "model"),
    **dict.fromkeys(("observations", "sources", "worker", "workers", "policies"), "ingest"),
    **dict.fromkeys(("restore", "recover", "export", "deny"), "ingest"),
    "train": "lab",
    "gateway": "data",
    "mcp": "mcp",
}
"""Extra of the distribution that a command needs; commands not listed need none."""

PRIVATE = frozenset(
    {"up", "gateway", "worker", "keys", "sources", "cycles", "reanalyse", "retention", "catalogue"}
    | {"backup", "restore", "recover"}
)
"""Commands that write only into the data folder: they create files with umask 077."""

OWN_PACKAGES = ("model", "worker", "service", "deploy", "appa_client")


# Contexts and commands are Any: typer vendors click, whose types are private there.
class LazyGroup(TyperGroup):
    """Import a subcommand's module when it is called, so that `appa --help` needs no torch."""

    only_names = False
    """Whether commands are looked up for their names and help alone."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        ctx.meta["appa.arguments"] = args
        found = super().resolve_command(ctx, args)
        if found[0] in PRIVATE:
            ctx.call_on_close(partial(os.umask, os.umask(0o077)))
        return found

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in OWN_PACKAGES:
                raise
            raise missing_extra(ctx.meta.get("appa.arguments", []), error) from error

    def list_commands(self, ctx: Any) -> list[str]:
        return list(GROUPS)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete names of commands from `GROUPS`, without importing what they name."""
        self.only_names = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self.only_names = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in GROUPS:
            return None
        if self.only_names:
            return TyperCommand(cmd_name, help=GROUPS[cmd_name][1])
        module, _, name = GROUPS[cmd_name][0].partition(":")
        command = typer.main.get_command(getattr(importlib.import_module(module), name))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in GROUPS.items()])


def missing_extra(arguments: list[str], error: ModuleNotFoundError) -> ConfigurationError:
    """Return the error of a command whose libraries are not installed.

    Arguments:
        arguments: The command line after `appa`.
        error: The import that failed.
    """
    command = arguments[0] if arguments else "appa"
    words = f"{command} gpu" if command == "worker" and "gpu" in arguments else command
    extra = EXTRAS.get(words, "local")
    module = (error.name or "").partition(".")[0]
    return ConfigurationError(
        f"'appa {words}' needs the module '{module}', which the extra '{extra}' brings. Install "
        f"it with: pip install 'appa-service[{extra}]'",
        command=words,
        extra=extra,
    )


# Without markup the list of commands comes from GROUPS; rich help would import every module.
app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Operational data assimilation with latent diffusion."""


def main(*args: Any, **kwargs: Any) -> None:
    """Run the `appa` command; an error of ours ends it with a sentence and exit status 2."""
    try:
        app(*args, **kwargs)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        typer.secho(f"error: {message}", fg="red", err=True)
        sys.exit(2)


def _message(error: Exception) -> str | None:
    """Return the message of an expected error; None for any other, which is shown with a traceback."""
    if isinstance(error, AppaError):
        return error.message
    client = sys.modules.get("appa_client")  # `appa --help` does not import it
    return str(error) if client is not None and isinstance(error, client.AppaClientError) else None


if __name__ == "__main__":
    main()
