"""Limits of the child process: each broken on purpose, the parent goes on."""

import contextlib
import ctypes
import errno
import importlib.util
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from model.domain.errors import AppaError, DecodeError, InvalidInput, StorageError
from tests.faults.full_disk import can_mount
from tests.worker.processes import REPOSITORY, wait_for
from worker import fork_server
from worker.confinement import program_files
from worker.fork_server import CANNOT_START
from worker.fork_server import Ended as End
from worker.protections import attempts, protections
from worker.sandbox import (
    Interrupted,
    Limits,
    _environment,
    run_limited,
    sweep_scratch,
    warm_up,
)
from worker.sandbox import _interruption as interruption
from worker.sandbox import _result as result_of

SHORT = Limits(cpu_seconds=2, wall_seconds=20.0)


def add(a, b):
    return a + b


def table_and_report(rows):
    return pa.table({"x": list(range(rows))}), {"rows": rows}


def only_a_table():
    return pa.table({"x": [1.5]})


def half_of_a_pair():
    return {"name\ud800": ["\ud83d\ude00", "\udcff"]}


def refuse_half_of_a_pair():
    raise DecodeError("Expected Point; got \ud800.", reason="invalid_table")


def hold_memory():
    return len(bytearray(20_000_000_000))


def spin():
    while True:
        pass


def sleep_long():
    time.sleep(60)


def crash():
    ctypes.string_at(0)


def abort():
    os.abort()


def refuse():
    raise DecodeError("Expected more.", reason="too_large", offset=7)


def refuse_otherwise():
    raise InvalidInput("Expected other input.", field="x")


def fail_unexpectedly():
    raise RuntimeError("a bug")


def parent_of_child():
    return os.getppid()


def open_files():
    targets = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    found = [os.readlink(path) for path in targets if os.path.exists(path)]
    return [path for path in found if not path.endswith("/log") and "/proc/" not in path]


def environment():
    return dict(os.environ)


def surroundings():
    Path("scratch").write_text("x")
    return {
        "folder": os.getcwd(),
        "session": os.getsid(0),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "modules": sorted(sys.modules),
    }


def leave_a_grandchild(mark):
    if not os.fork():
        time.sleep(3)
        Path(mark).touch()
        os._exit(0)
    return "left"


def write_much():
    with open("big", "wb") as file:
        file.write(b"\0" * 50_000_000)


def be_killed(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def be_killed_holding(size):
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    os.kill(os.getpid(), signal.SIGKILL)


def tell_and_sleep(path):
    part = Path(path).with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(path)
    time.sleep(60)


def meet_a_full_disk():
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def log_to_the_full_disk():
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)
    meet_a_full_disk()


def blame_the_file_for_a_full_disk():
    try:
        meet_a_full_disk()
    except OSError as error:
        raise DecodeError("Expected ODB-2.", reason="undecodable") from error


def load_a_module_of_an_older_version():
    from worker.observations.decoders.decode import of_an_older_version  # noqa: F401


def load_a_module_that_may_not_be_read(path):
    spec = importlib.util.spec_from_file_location("kept_from_decoders", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_module_that_may_not_be_read_is_not_the_files_fault(tmp_path):
    module = tmp_path / "kept_from_decoders.py"
    module.write_text("")
    with pytest.raises(StorageError, match="Permission denied: .*kept_from_decoders.py"):
        run_limited(load_a_module_that_may_not_be_read, str(module), limits=SHORT)


def blame_the_file_for_a_module():
    try:
        load_a_module_of_an_older_version()
    except Exception as error:
        raise DecodeError("Expected ODB-2.", reason="undecodable") from error


def fill_the_disk_and_fail_vaguely():
    with open("ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    raise RuntimeError("HDF error")


def reason(function, limits=SHORT):
    with pytest.raises(DecodeError) as caught:
        run_limited(function, limits=limits)
    return caught.value.context["reason"]


def test_values_and_tables_come_back():
    assert run_limited(add, 2, 3) == 5
    table, report = run_limited(table_and_report, 4)
    assert table["x"].to_pylist() == [0, 1, 2, 3] and report == {"rows": 4}
    assert run_limited(only_a_table)["x"].to_pylist() == [1.5]


def test_what_comes_back_can_be_written():
    # A pair of surrogates is one character, as JSON has it; a half is none.
    assert run_limited(half_of_a_pair) == {"name?": ["\U0001f600", "?"]}
    with pytest.raises(DecodeError) as caught:
        run_limited(refuse_half_of_a_pair)
    assert caught.value.message == "Expected Point; got ?."


def test_memory():
    assert reason(hold_memory) == "out_of_memory"


def test_processor_time():
    assert reason(spin, Limits(cpu_seconds=1, wall_seconds=30.0)) == "timeout"


def test_time_on_the_clock():
    assert reason(sleep_long, Limits(wall_seconds=2.0)) == "timeout"


@pytest.mark.parametrize("function", [crash, abort])
def test_crashes(function):
    assert reason(function) == "crashed"


def test_errors_keep_their_reason_and_context():
    with pytest.raises(DecodeError) as caught:
        run_limited(refuse)
    assert caught.value.message == "Expected more."
    assert caught.value.context == {"reason": "too_large", "offset": 7}
    with pytest.raises(AppaError) as other:
        run_limited(refuse_otherwise)
    assert other.value.context == {"field": "x"}


def test_a_bug_is_a_crash_with_its_last_line():
    with pytest.raises(DecodeError, match="RuntimeError: a bug") as caught:
        run_limited(fail_unexpectedly)
    assert caught.value.context["reason"] == "crashed"


def test_secrets_of_the_parent_stay_there(monkeypatch):
    monkeypatch.setenv("APPA_SECRET_KEY", "do not pass on")
    assert "APPA_SECRET_KEY" not in run_limited(environment)


def test_surroundings(tmp_path):
    found = run_limited(surroundings, limits=Limits(temp_dir=str(tmp_path)))
    assert found["folder"].startswith(str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert found["session"] != os.getsid(0)
    assert found["core"] == 0
    assert not {"torch", "pandas", "xarray"} & set(found["modules"])


def test_nothing_it_started_survives(tmp_path):
    mark = tmp_path / "mark"
    assert run_limited(leave_a_grandchild, str(mark), writes=[tmp_path]) == "left"
    time.sleep(4)
    assert not mark.exists()


def test_files_it_writes_are_bounded():
    assert reason(write_much, Limits(file_bytes=1_000_000)) == "crashed"


def test_the_parent_keeps_its_own_limits():
    before = resource.getrlimit(resource.RLIMIT_AS)
    run_limited(add, 1, 1)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_killed_from_outside_says_nothing_about_the_file(number):
    with pytest.raises(Interrupted, match=f"ended from outside .{number.name}.") as caught:
        run_limited(be_killed, number, limits=SHORT)
    assert caught.value.retryable
    assert not caught.value.context["large"]


def test_a_child_killed_while_it_holds_much_memory_may_have_been_the_cause():
    # In a process of its own: the kernel counts a child's peak from that of its parent, and
    # whoever runs these tests may have held more than the child will.
    script = (
        "from tests.worker import test_sandbox as t\n"
        "try: t.run_limited(t.be_killed_holding, 550_000_000,"
        " limits=t.Limits(address_space=1_000_000_000))\n"
        "except t.Interrupted as error: print(error.context['large'])"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert ended.stdout.split() == ["True"], ended.stderr


def test_a_child_that_the_machine_kept_waiting_did_not_take_too_long():
    with pytest.raises(Interrupted, match="kept waiting for 2 s by a busy machine"):
        run_limited(sleep_long, limits=Limits(wall_seconds=2.0))


def test_a_child_that_worked_all_its_time_on_the_clock_took_too_long():
    limits = Limits(cpu_seconds=600, wall_seconds=300.0)
    worked, waited = (End(-signal.SIGKILL, True, seconds, 0) for seconds in (290.0, 30.0))
    assert interruption(worked, "", limits) is None
    assert isinstance(interruption(waited, "", limits), Interrupted)


def test_a_full_disk_is_not_the_files_fault():
    with pytest.raises(StorageError, match="the disk is full.*No space left on device"):
        run_limited(meet_a_full_disk, limits=SHORT, writes=["/dev/full"])


@pytest.mark.parametrize("meet", [log_to_the_full_disk, blame_the_file_for_a_full_disk])
def test_a_full_disk_that_is_not_told_plainly_is_not_the_files_fault_either(meet):
    with pytest.raises(StorageError, match="the disk is full"):
        run_limited(meet, limits=SHORT, writes=["/dev/full"])


def test_a_child_that_found_no_room_for_its_log_is_not_the_files_fault(tmp_path):
    with pytest.raises(StorageError, match="the disk is full"):
        result_of(tmp_path, End(CANNOT_START, False, 0.0, 0), Limits())


_ON_A_SMALL_DISK = """
from tests.worker.test_sandbox import *
with pytest.raises(StorageError, match="the disk is full"):
    run_limited(fill_the_disk_and_fail_vaguely, limits=Limits(temp_dir="{folder}"))
"""


@pytest.mark.skipif(not can_mount(), reason="file systems cannot be mounted here")
def test_a_vague_error_on_a_full_disk_is_not_the_files_fault(tmp_path):
    mounted = f'mount -t tmpfs -o size=4m none {tmp_path} && exec "$@"'
    program = [sys.executable, "-c", _ON_A_SMALL_DISK.format(folder=tmp_path)]
    command = ["unshare", "-m", "sh", "-c", mounted, "-", *program]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_program_replaced_under_a_running_worker_is_not_the_files_fault(monkeypatch):
    monkeypatch.setattr(add, "__qualname__", "of_an_older_version")
    with pytest.raises(StorageError, match="replaced: AttributeError"):
        run_limited(add, 1, 2, limits=SHORT)


@pytest.mark.parametrize("load", [load_a_module_of_an_older_version, blame_the_file_for_a_module])
def test_a_module_replaced_while_a_file_is_decoded_is_not_the_files_fault(load):
    with pytest.raises(StorageError, match="replaced: .*cannot import name 'of_an_older_version'"):
        run_limited(load, limits=SHORT)


def test_a_killed_parent_leaves_no_child_and_its_folder_is_swept(tmp_path):
    program = (
        "from worker.sandbox import Limits, run_limited\n"
        "from tests.worker.test_sandbox import tell_and_sleep\n"
        f"run_limited(tell_and_sleep, {str(tmp_path / 'child')!r}, "
        f"limits=Limits(temp_dir={str(tmp_path)!r}), writes=[{str(tmp_path)!r}])"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_for((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    (left,) = tmp_path.glob("appa-limited-*")
    assert sweep_scratch(str(tmp_path)) == 0  # its process lives
    parent.kill()
    parent.wait()
    wait_for(lambda: not psutil.pid_exists(child))
    assert left.exists()
    assert sweep_scratch(str(tmp_path)) == 1
    assert not left.exists()


# -- the process that forks the children


def test_children_are_forked_by_one_small_process(tmp_path):
    warm_up()
    server = psutil.Process(fork_server.shared_server(_environment()).pid)
    assert run_limited(parent_of_child) == server.pid
    assert run_limited(parent_of_child) == server.pid
    assert server.num_threads() == 1
    assert not server.net_connections("inet")
    assert "APPA_SECRET_KEY" not in server.environ()


def test_a_server_that_was_killed_is_started_again():
    first = run_limited(parent_of_child)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(first))
    assert run_limited(parent_of_child) not in (first, os.getpid())


def test_a_server_that_is_ended_leaves_no_process_and_the_next_request_starts_another():
    first = run_limited(parent_of_child)
    wait_for(psutil.Process(first).children)  # the spare child
    family = [first, *(child.pid for child in psutil.Process(first).children())]
    fork_server.end_shared_server()
    fork_server.end_shared_server()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in family))
    assert run_limited(parent_of_child) not in (first, os.getpid())


def test_a_child_whose_server_is_killed_ends_and_says_nothing_about_the_file(tmp_path):
    path = tmp_path / "child"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(
            run_limited, tell_and_sleep, str(path), limits=SHORT, writes=[tmp_path]
        )
        wait_for(path.exists)
        child = int(path.read_text())
        os.kill(psutil.Process(child).ppid(), signal.SIGKILL)
        with pytest.raises(Interrupted, match="ended from outside"):
            running.result()
    wait_for(lambda: not psutil.pid_exists(child))


def test_children_run_side_by_side_and_see_nothing_of_each_other():
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run_limited, [open_files] * 8))
    assert all(files == ["/dev/null"] for files in found)


def test_a_process_forked_from_ours_has_a_server_of_its_own():
    mine = run_limited(parent_of_child)
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, str(run_limited(parent_of_child)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert int(os.read(read, 100)) != mine
    assert run_limited(parent_of_child) == mine


def test_the_peak_of_a_child_is_its_own():
    """A parent that has held a gigabyte says nothing about a child that holds little."""
    held = bytearray(1_000_000_000)
    held[::4096] = b"x" * len(held[::4096])
    del held
    with pytest.raises(Interrupted) as caught:
        run_limited(be_killed, signal.SIGKILL, limits=Limits(address_space=1_000_000_000))
    assert not caught.value.context["large"]


# -- what a child must not reach


def escape(keys, upload, unix_socket):
    """Do what an exploit in a decoder library would; return what it got by name."""
    got = {}
    tries = {
        "keys": lambda: Path(keys).read_text(),
        "keys by another way": lambda: Path(f"/proc/self/cwd/../{Path(keys).name}").read_text(),
        "list": lambda: os.listdir(Path(keys).parent),
        "other upload": lambda: Path(upload).read_bytes(),
        "its mode": lambda: os.chmod(upload, 0o000),
        "link": lambda: os.link(keys, "mine"),
        "move": lambda: os.rename(keys, "mine"),
        "home": lambda: Path("/etc/passwd").read_text(),
        "broker": lambda: _talk(socket.AF_UNIX, unix_socket),
        "datagram": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "internet": lambda: _talk(socket.AF_INET, ("1.1.1.1", 53)),
        "parent's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb").close(),
        "parent's life": lambda: os.kill(os.getppid(), signal.SIGTERM),
        "namespaces": lambda: _call("unshare", 0x1000_0000),
        "program": lambda: subprocess.run(["/bin/cat", keys], check=True),
    }
    for name, attempt in tries.items():
        with contextlib.suppress(OSError):
            got[name] = repr(attempt())
    return got


def _talk(family, address):
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect(address)


def _call(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


SHARED = {"shmget": (0, 4096, 0o600), "semget": (0, 1, 0o600), "msgget": (0, 0o600)}
"""Arguments that create a private segment, semaphore and queue of System V (IPC_PRIVATE is 0)."""


def disturb(process, segment, semaphore, queue):
    """Do what needs no file, socket or signal to disturb a process; return the error of each, or "".

    Nothing changes where it succeeds: values that are set are those that hold.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    same = os.sched_param(0)
    tries = {
        "processors": lambda: os.sched_setaffinity(process, os.sched_getaffinity(process)),
        "own processors": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "priority": lambda: os.setpriority(
            os.PRIO_PROCESS, process, os.getpriority(os.PRIO_PROCESS, process)
        ),
        "own priority": lambda: os.setpriority(
            os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)
        ),
        "scheduler": lambda: os.sched_setscheduler(process, os.sched_getscheduler(process), same),
        "parameters": lambda: os.sched_setparam(process, same),
        "segment": lambda: _call("shmctl", segment, 2, ctypes.create_string_buffer(256)),
        "semaphore": lambda: _call("semctl", semaphore, 0, 16, 0),
        "queue": lambda: _call("msgsnd", queue, struct.pack("@l8s", 1, b"message"), 8, 0o4000),
    }
    found = {name: _error(attempt) for name, attempt in tries.items()}
    missing = _error(lambda: _call("mq_open", b"/appa-that-nobody-made", os.O_RDONLY))
    found["queue of POSIX"] = "" if missing == "ENOENT" else missing
    for name, arguments in SHARED.items():
        created = getattr(libc, name)(*arguments)
        found[name] = errno.errorcode[ctypes.get_errno()] if created < 0 else ""
        if created >= 0:
            remove(name, created)
    return found


def _error(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""


def remove(made_by, number):
    """Remove what a call of `SHARED` made (IPC_RMID is 0)."""
    more = (0, 0) if made_by == "semget" else (0, None)
    _call(made_by.replace("get", "ctl"), number, *more)


@pytest.fixture
def shared():
    """A segment, a semaphore and a queue of System V, as numbers."""
    libc = ctypes.CDLL(None, use_errno=True)
    made = {name: getattr(libc, name)(*arguments) for name, arguments in SHARED.items()}
    yield list(made.values())
    for name, number in made.items():
        remove(name, number)


@pytest.fixture
def installation(tmp_path):
    """Keys, two uploads and the broker's socket, as in a data folder."""
    files = {name: tmp_path / name for name in ("keys.json", "mine.bufr", "other.bufr")}
    for name, path in files.items():
        path.write_text(f"content of {name}")
    with socket.socket(socket.AF_UNIX) as broker:
        broker.bind(str(tmp_path / "broker.sock"))
        broker.listen()
        yield files | {"broker": tmp_path / "broker.sock"}


def read_own(path):
    try:
        Path(path).write_text("changed")
    except PermissionError:
        return Path(path).read_text()
    return "changed"


def test_an_exploited_decoder_reads_no_keys_no_other_upload_and_reaches_no_broker(installation):
    """The same attempts from this process show that it is the child's confinement that stops them."""
    places = [str(installation[name]) for name in ("keys.json", "other.bufr", "broker")]
    limits = Limits(temp_dir=str(installation["broker"].parent), wall_seconds=60.0)
    assert run_limited(escape, *places, limits=limits, reads=[installation["mine.bufr"]]) == {}
    assert Path(places[0]).read_text() == "content of keys.json"
    _talk(socket.AF_UNIX, places[2])
    assert subprocess.run(["/bin/cat", places[0]], check=True, capture_output=True).stdout


def test_a_child_neither_slows_other_processes_nor_shares_memory_or_queues(shared):
    """The same attempts from this process show that it is the child's confinement that stops them."""
    found = run_limited(disturb, os.getpid(), *shared)
    assert set(found.values()) == {"EPERM"}, found
    assert set(disturb(os.getpid(), *shared).values()) == {""}


def test_a_child_reads_what_it_is_given_and_cannot_change_it(installation):
    own = installation["mine.bufr"]
    assert run_limited(read_own, str(own), reads=[own]) == "content of mine.bufr"
    assert run_limited(read_own, str(own), writes=[own]) == "changed"


def test_the_folder_that_one_works_in_is_no_part_of_the_program(tmp_path, monkeypatch):
    """`python -m` puts it on the path of modules; the data folder is there by default."""
    (tmp_path / "appa-data").mkdir()
    keys = tmp_path / "appa-data" / "keys.json"
    keys.write_text("{}")
    (tmp_path / "station_notes.py").write_text("WORD = 'read'")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DecodeError, match="PermissionError"):
        run_limited(read_own, str(keys))
    assert [p for p in program_files() if p.startswith(str(tmp_path))] == [
        str(tmp_path / "station_notes.py")
    ]


def test_the_protections_are_found_by_trying(installation):
    assert [p.name for p in protections() if not p.active] == []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        places = (str(installation["keys.json"]), str(installation["broker"]))
        found = attempts(*places, server.getsockname()[1], os.getpid())
    assert all(found.values())  # in this process, which nothing confines


ELSEWHERE = """
from pathlib import Path
from worker.observations.decoders.decode import decode_limited
decoded = decode_limited(Path("temperatures.csv"))
print(decoded.table.num_rows, decoded.report.model_dump_json())
"""


def test_a_program_that_is_started_elsewhere_reads_its_decoders(tmp_path):
    """In an editable installation no entry of the module search path holds the packages."""
    (tmp_path / "temperatures.csv").write_text(
        "time,lat,lon,report_type,station_id,variable,obs_value\n"
        "2024-03-01T00:00:00Z,50.0,5.0,synop,06610,2m_temperature,280.0\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, env=kept, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("1 "), ended.stdout
