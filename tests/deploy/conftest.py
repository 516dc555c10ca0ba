"""A Valkey server of its own for tests that bring one, and `appa up` on a tiny model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.up import Up
from tests.worker.conftest import own_broker

__all__ = ["own_broker", "up"]


@pytest.fixture
def up(tmp_path: Path, checkpoint: Path) -> Iterator[Callable[..., Up]]:
    """Starts the stack on one data folder, with what it runs within and variables."""
    made: list[Up] = []

    def start(within: tuple[str, ...] = (), **environment: str) -> Up:
        model = ("--model", str(checkpoint))
        made.append(Up(tmp_path / "data", *model, within=within, **environment))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
