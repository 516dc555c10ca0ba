"""The supervisor with real processes: order, log, restarts, a clean end, no orphans."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from redis import Redis

from deploy.local import LocalStack, StackOptions, embedded_broker
from deploy.supervisor import Process, StackLog, Supervisor
from worker.confinement import die_with_parent

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


def test_a_part_whose_folder_is_lost_comes_back(supervised, lines, tmp_path):
    """Valkey refuses to start where its folder is missing."""
    folder = tmp_path / "broker"
    code = f"import os, time; os.chdir({str(folder)!r}); print('up', flush=True); time.sleep(600)"
    supervisor = supervised(python("broker", code, folder=folder))
    supervisor.start_all()
    wait_for(lambda: ("broker", "up") in lines)
    folder.rmdir()
    os.kill(supervisor.pid("broker"), signal.SIGKILL)

    def back():
        supervisor.tend()
        return lines.count(("broker", "up")) == 2

    wait_for(back)
    assert folder.stat().st_mode & 0o077 == 0


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


@pytest.fixture
def forking(lines, tmp_path):
    """A supervisor of parts that run FOREVER as forks of a process that has `json` loaded."""
    (tmp_path / "forever.py").write_text("import os\nprint(os.getppid())\n" + FOREVER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = (sys.executable, "-m", "forever")
    parts = [Process("base", command), Process("a", command, forked=True)]
    supervisor = Supervisor(
        [*parts, Process("b", command, forked=True)],
        environment,
        lambda name, text: lines.append((name, text)),
        ["json"],
    )
    supervisor.start_all()
    wait_for(lambda: all((name, "up") in lines for name in ("base", "a", "b")))
    yield supervisor
    supervisor.stop()


def test_forked_parts_look_like_any_other_and_come_back(forking, lines):
    a = psutil.Process(forking.pid("a"))
    assert a.ppid() == forking.preloaded_pid
    assert psutil.Process(forking.pid("base")).ppid() == os.getpid()
    assert " ".join(a.cmdline()).strip() == f"{sys.executable} -m forever"
    a.kill()

    def back():
        forking.tend()
        return lines.count(("a", "up")) == 2

    wait_for(back)
    assert ("appa", "a ended with -9; restart in 0.5 s") in lines
    assert psutil.Process(forking.pid("a")).ppid() == forking.preloaded_pid


def test_parts_outlive_what_they_were_forked_from_as_new_interpreters(forking, lines):
    before = [forking.pid("a"), forking.pid("b")]
    os.kill(forking.preloaded_pid, signal.SIGKILL)

    def back():
        forking.tend()
        return all(lines.count((name, "up")) == 2 for name in ("a", "b"))

    wait_for(back)
    wait_for(lambda: not any(_alive(pid) for pid in before))
    assert {psutil.Process(forking.pid(name)).ppid() for name in ("a", "b")} == {os.getpid()}


def test_stop_ends_forked_parts_in_good_order(forking, lines):
    pids = [forking.pid(name) for name in ("base", "a", "b")] + [forking.preloaded_pid]
    forking.stop()
    wait_for(lambda: not any(_alive(pid) for pid in pids))
    assert not any("killed" in text for name, text in lines if name == "appa")


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


@pytest.mark.parametrize("forked", [False, True])
def test_a_killed_supervisor_leaves_no_children(tmp_path, monkeypatch, forked):
    # It tells its number itself: it may be told before the supervisor has noted the part.
    (tmp_path / "forever.py").write_text(FOREVER.replace("'up'", "__import__('os').getpid()"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from deploy.supervisor import Process, Supervisor\n"
        f"part = Process('sleeper', (sys.executable, '-m', 'forever'), forked={forked})\n"
        "def say(n, t): print(n, t, flush=True)\n"
        "s = Supervisor([part], dict(os.environ), say, ['json'])\n"
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


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_child_whose_parent_has_ended_already_does_not_begin():
    parent = subprocess.Popen([sys.executable, "-c", ""])
    parent.wait()
    command = [sys.executable, "-c", "print('begun')"]
    begun = subprocess.run(command, stdout=-1, preexec_fn=partial(die_with_parent, parent.pid))
    assert (begun.returncode, begun.stdout) == (1, b"")


def test_a_stack_that_cannot_start_leaves_nothing_that_runs_and_a_free_data_folder(tmp_path):
    stack = LocalStack(StackOptions(tmp_path / "data", quiet=True))
    stack.layout.broker.rmdir()
    stack.layout.broker.touch()  # no folder for the broker's files
    before = psutil.Process().children()
    with pytest.raises(FileExistsError):
        stack.__enter__()
    assert psutil.Process().children() == before
    stack.layout.broker.unlink()
    stack.layout.create()
    with embedded_broker(stack.layout) as url, Redis.from_url(url) as redis:
        assert redis.ping()


def test_feeds_that_cannot_be_started_now_are_started_later(tmp_path):
    stack, program = LocalStack(StackOptions(tmp_path / "data", quiet=True)), tmp_path / "feeds"
    stack.layout.sources_file.touch()
    stack.supervisor.parts = (Process("sources", (str(program),)),)
    stack._start_optional()
    assert not stack.supervisor.children
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    stack._start_optional()
    assert _alive(stack.supervisor.pid("sources"))
    stack.supervisor.stop()


def test_a_full_disk_ends_nothing_and_the_log_says_what_it_missed(supervised, tmp_path):
    path = tmp_path / "appa.log"
    path.symlink_to("/dev/full")  # every write fails with ENOSPC, as on a full disk
    log = StackLog(path, None)
    chatty = (
        "import time\nn = 0\nwhile True: n += 1; print('line', n, flush=True); time.sleep(0.05)"
    )
    supervisor = Supervisor(
        (python("talker", chatty), python("weak", "exit(3)")), dict(os.environ), log.write
    )
    supervisor.start_all()
    try:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            supervisor.tend()
            time.sleep(0.02)
        assert log.dropped > 10
        path.unlink()  # room again
        wait_for(lambda: path.exists() and path.read_text().count("talker") > 10)
    finally:
        supervisor.stop()
        log.close()
    first, *others = path.read_text().splitlines()
    assert "log lines were dropped: [Errno 28] No space left on device" in first
    assert all(" line " in text for text in others if "talker" in text)


def test_a_part_that_cannot_be_started_is_tried_again(supervised, lines):
    supervisor = supervised(python("first", FOREVER), python("weak", "print('up'); exit(3)"))
    supervisor.start_all()
    spawn, refused = supervisor._spawn, []

    def no_memory(part):
        if len(refused) < 2:
            refused.append(part.name)
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return spawn(part)

    supervisor._spawn = no_memory

    def tended():
        supervisor.tend()
        return lines.count(("weak", "up")) >= 2

    wait_for(tended)
    assert refused == ["weak", "weak"]
    told = [text for name, text in lines if name == "appa"]
    assert told[1].startswith("weak cannot be started ([Errno 12]")


def test_a_line_torn_by_a_full_disk_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "appa.log"
    log = StackLog(path, None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        log.write("one", "x" * 100)  # the first 50 bytes are written
        assert log.dropped == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.write("two", "whole")
    log.close()
    torn, told, whole = path.read_text().splitlines()
    assert len(torn) == 50
    assert "1 log lines were dropped: [Errno 27] File too large" in told
    assert whole.endswith("two       whole")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
