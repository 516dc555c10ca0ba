"""Shared fixtures: where outside data lie."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _shared(part: str) -> Path:
    root = Path(os.environ.get("APPA_SHARED", REPOSITORY.parent / "shared"))
    path = root / part
    if not path.exists():
        pytest.skip(f"outside data absent: {part} (set APPA_SHARED to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Outputs of the reference implementation under seeded random weights."""
    return _shared("parity")


@pytest.fixture(scope="session")
def realdata_dir() -> Path:
    """Real observation files."""
    return _shared("realdata")
