"""One group of `appa` subcommands per file; each exposes a Typer called `app`."""
