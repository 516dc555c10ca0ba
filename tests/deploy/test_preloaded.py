"""Forks of a process that has its modules loaded are as processes that were started: tests rely on it."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from deploy.preloaded import Preloaded
from tests.warm_start import Fork, start_warm

TELL = """
import os, sys, worker.process
print(sys.argv[1:], os.environ["SAID"], "HOME" in os.environ, __name__, flush=True)
print(sorted(int(n) for n in os.listdir("/proc/self/fd"))[:4], os.getsid(0) == os.getpid(), flush=True)
"""


def started(folder: Path, code: str, *arguments: str, session: bool = False) -> Fork:
    program = folder / "program.py"
    program.write_text(code)
    with (folder / "log").open("w") as log:
        return start_warm("stub", [str(program), *arguments], {"SAID": "a"}, log, session=session)


@pytest.mark.parametrize("session", [False, True])
def test_it_has_the_arguments_environment_log_and_session_asked_for(
    tmp_path: Path, session: bool
) -> None:
    process = started(tmp_path, TELL, "b", "--c", session=session)
    assert process.wait(60) == 0
    # The fourth descriptor is that of the folder being listed.
    said = f"['b', '--c'] a False __main__\n[0, 1, 2, 3] {session}\n"
    assert (tmp_path / "log").read_text() == said
    assert not psutil.pid_exists(process.pid) or process.poll() == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(3)", 3),
        ("raise ValueError('odd')", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_it_ends_with_the_code_of_a_process(tmp_path: Path, code: str, expected: int) -> None:
    process = started(tmp_path, code)
    assert process.wait(60) == process.poll() == process.returncode == expected
    assert ("ValueError: odd" in (tmp_path / "log").read_text()) is ("ValueError" in code)


def test_it_runs_until_it_is_told_to_end(tmp_path: Path) -> None:
    process = started(tmp_path, "import time; time.sleep(600)", session=True)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)  # its number is not free before its code was told
    assert process.wait(60) == -signal.SIGKILL
    process.terminate()  # nothing, as it has ended


LOADED = "import sys; print('colorsys' in sys.modules, __import__('gc').isenabled(), flush=True)"


def test_modules_of_later_processes_are_imported_when_these_start(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOADED)
    server = Preloaded(("wave",), os.environ)
    try:
        for name, modules in (("first", ()), ("second", ("colorsys",)), ("third", ())):
            with (tmp_path / name).open("w") as log:
                fork = server.start([str(program)], os.environ, log, modules=modules)
                assert fork.wait(60) == 0
    finally:
        server.close()
    said = [(tmp_path / name).read_text().split() for name in ("first", "second", "third")]
    assert said == [["False", "True"], ["True", "True"], ["True", "True"]]


def test_a_module_that_cannot_be_imported_ends_the_server_and_is_named(tmp_path: Path) -> None:
    """Its processes then start by themselves (`Supervisor`)."""
    log = tmp_path / "log"
    with log.open("w") as output:
        server = Preloaded((), os.environ, output=output)
        try:
            with pytest.raises(ChildProcessError):
                server.start(["program.py"], os.environ, output, modules=("no_such_module",))
        finally:
            server.close()
    assert "No module named 'no_such_module'" in log.read_text()
