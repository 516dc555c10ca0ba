"""The supervisor with real processes: order, log, restarts, a clean end, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.local import Process, Supervisor

REPOSITORY = Path(__file__).resolve().parents[2]


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def python(name: str, code: str, **values) -> Process:
    return Process(name, (sys.executable, "-u", "-c", code), **values)


FOREVER = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def lines():
    return []


@pytest.fixture
def supervised(lines):
    made = []

    def make(*parts: Process) -> Supervisor:
        made.append(Supervisor(parts, dict(os.environ), lambda n, text: lines.append((n, text))))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def test_lines_carry_the_name_of_their_process(supervised, lines):
    supervisor = supervised(python("one", "print('hello')"), python("two", FOREVER))
    supervisor.start_all()
    wait_for(lambda: ("one", "hello") in lines and ("two", "up") in lines)


def test_a_crashed_child_comes_back_after_growing_pauses(supervised, lines):
    supervisor = supervised(python("first", FOREVER), python("weak", "print('up'); exit(3)"))
    supervisor.start_all()

    def tended():
        supervisor.tend()
        return lines.count(("weak", "up")) >= 3

    wait_for(tended)
    told = [text for name, text in lines if name == "appa"]
    assert told[0] == "weak ended with 3; restart in 0.5 s"
    assert told[1] == "weak ended with 3; restart in 1.0 s"
    assert lines.count(("first", "up")) == 1


def test_stop_ends_everything_even_what_will_not(supervised, lines):
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    supervisor = supervised(python("base", FOREVER), python("mule", stubborn, stop_seconds=0.5))
    supervisor.start_all()
    wait_for(lambda: ("base", "up") in lines and any(n == "mule" for n, _ in lines))
    grandchild = next(int(text) for name, text in lines if name == "mule")
    pids = [supervisor.pid("base"), supervisor.pid("mule"), grandchild]
    supervisor.stop()
    wait_for(lambda: not any(_alive(pid) for pid in pids))
    assert ("appa", "mule did not stop in time: killed") in lines


def test_a_killed_supervisor_leaves_no_children(tmp_path):
    script = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from deploy.local import Process, Supervisor\n"
        f"part = Process('sleeper', (sys.executable, '-c', {FOREVER!r}))\n"
        "s = Supervisor([part], dict(os.environ), lambda n, t: print(n, t, s.pid('sleeper'), flush=True))\n"
        "s.start_all()\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    line = parent.stdout.readline()
    child = int(line.split()[-1])
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
