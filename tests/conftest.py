"""Shared fixtures: where outside data lie."""

import os
import sys
from pathlib import Path

# Before eccodes, which brings another PROJ: loaded after it in the same process, pyproj finds no
# database, and glibc reports a bad free at exit. No process of the system loads both.
import pyproj  # noqa: F401
import pytest

_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves without unloading libraries.

    With all of them in one process (netCDF4's and others' wheels bundle copies of the same native
    libraries) glibc can report a bad free while the interpreter unloads them, after every test has
    been judged and reported; the exit status must be that of the tests.
    """
    if _STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


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
