"""Shared fixtures: where outside data lie, and a tiny checkpoint; the order of the files; their skips."""

import gc
import os
from collections.abc import Generator
from functools import cache
from pathlib import Path

import httpx._transports.default as http_transports

# Before eccodes. The wheels of pyproj (libproj 9.5) and of eckitlib, which eccodes loads (libproj 9.8),
# export the same symbols: loaded second, pyproj finds no database and glibc reports a bad free when
# the interpreter exits; loaded first, both work. Only tests have both in one process: the gateway
# serves EDR (pyproj) without eccodes, and workers decode (eccodes) without pyproj.
import pyproj  # noqa: F401
import pytest

from worker.contract.loading import loading

# Workers of pytest-xdist are told the width of its terminal, which is nobody's wish for our tables.
os.environ.pop("COLUMNS", None)

# Each call of `httpx.get` makes a client, and each client reads the certificates of all authorities: 30 to
# 60 ms of processor, which a test that polls takes from the processes it waits for. Here once is enough.
http_transports.create_ssl_context = cache(http_transports.create_ssl_context)

_SKIPPED = pytest.StashKey[list[str]]()
ALLOWED_SKIPS = tuple((Path(__file__).parent / "allowed_skips.txt").read_text().split("\n"))
"""Reasons, one a line, for which a test may be skipped where CI is set."""

LONGEST = tuple((Path(__file__).parent / "longest_files.txt").read_text().split())
"""The files that take longest, the longest first, below this folder."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SKIPPED] = []


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests with the garbage collector off, and spare it what the imports made.

    Those are a million objects that stay until the end. Looking through them every so often takes a
    third of the processor time of collection or more, and a second each time later.
    """
    try:
        with loading():
            return (yield)
    finally:
        gc.collect()  # full collections come when a quarter of what the last one left was added


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: begun last, one keeps a worker busy while the others wait."""
    folder = Path(__file__).parent
    turn = {folder / name: i for i, name in enumerate(LONGEST)}
    if gone := [str(path) for path in turn if not path.exists()]:
        raise pytest.UsageError(f"longest_files.txt names files that do not exist: {gone}")
    items.sort(key=lambda item: turn.get(item.path, len(turn)))


class SkipRecorder:
    """Collect the skips that no line of `allowed_skips.txt` names."""

    def __init__(self, config: pytest.Config) -> None:
        self.unexpected = config.stash[_SKIPPED]

    def record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(known and reason.startswith(known) for known in ALLOWED_SKIPS):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    pytest_runtest_logreport = record
    pytest_collectreport = record


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(SkipRecorder(session.config), "skip-recorder")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") and session.config.stash[_SKIPPED] and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name the skips that make a run with CI set fail."""
    if os.environ.get("CI") and config.stash[_SKIPPED]:
        terminalreporter.section("skips that tests/allowed_skips.txt does not name", red=True)
        for line in config.stash[_SKIPPED]:
            terminalreporter.line(line)


REPOSITORY = Path(__file__).resolve().parents[1]


def _shared(part: str) -> Path:
    root = Path(os.environ.get("APPA_SHARED", REPOSITORY.parent / "shared"))
    path = root / part
    if not path.exists():
        pytest.skip(f"outside data absent: {part} (set APPA_SHARED to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Return the outputs of the reference implementation under seeded random weights."""
    return Path(__file__).parent / "data" / "parity"


@pytest.fixture(scope="session")
def realdata_dir() -> Path:
    """Real observation files."""
    return _shared("realdata")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny model with random weights, to be read."""
    from model.checkpoints.bundle import save_checkpoint
    from tests.model.checkpoint_parts import tiny_model

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(tiny_model(), folder)
    return folder
