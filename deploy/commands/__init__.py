"""Define the groups of `appa` subcommands; `deploy.cli` imports each when it is called."""
