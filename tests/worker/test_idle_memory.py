"""What idle workers return of the memory that their work has freed, by the kernel's figures."""

import ctypes
import gc
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.worker.processes import REPOSITORY, wait_for
from worker import idle_memory
from worker.contract.measures import Measures
from worker.idle_memory import IdleMemory
from worker.process import message_sender
from worker.runtime import open_runtime
from worker.settings import WorkerSettings

BLOCK, BLOCKS = 100_000, 2_000  # less than malloc takes from the system one by one
BYTES = BLOCK * BLOCKS

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library returns freed memory by itself"
)


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.fixture(autouse=True)
def _nothing_freed_before() -> None:
    """Return what earlier tests of this process have freed, which would hold the blocks of this one."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def freed_blocks():
    """Fill 200 MB and free them, but for one block at their end, which keeps the heap from shrinking."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:
        libc.free(block)
    yield
    libc.free(blocks[-1])


def test_what_work_has_freed_is_returned_once_idle(monkeypatch) -> None:
    monkeypatch.setattr(idle_memory, "IDLE_SECONDS", 0.0)
    memory = IdleMemory()
    before = resident()
    assert not memory.tend()  # nothing was done
    with memory.in_use(), freed_blocks():
        assert not memory.tend()
        assert resident() - before > 0.9 * BYTES  # kept for the work that goes on
        with memory.in_use():
            pass
        assert not memory.tend()  # the outer work goes on
    with freed_blocks():
        assert resident() - before > 0.9 * BYTES
        assert memory.tend()
        assert resident() - before < 0.1 * BYTES
        assert not memory.tend()  # once


def test_a_worker_with_work_keeps_its_memory(monkeypatch) -> None:
    memory = IdleMemory()
    with memory.in_use():
        pass
    with freed_blocks():
        kept = resident()
        assert not memory.tend()  # the next job may be there in a moment
        assert kept - resident() < 0.1 * BYTES


FAULTS = """
import resource, sys, threading, numpy as np, psutil
from worker import idle_memory
from worker.idle_memory import IdleMemory, keep_freed_memory, share_heap
if sys.argv[1] != "default":
    share_heap()
    keep_freed_memory(int(sys.argv[1]))
def fill(times):
    for _ in range(times):
        for megabytes in (100, 40, 70):
            np.empty(megabytes << 20, np.uint8).fill(1)
def in_a_thread(times):
    thread = threading.Thread(target=fill, args=(times,))
    thread.start()
    thread.join()
in_a_thread(1)  # as one job, and then three others
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_a_thread(3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
idle_memory.IDLE_SECONDS, memory = 0.0, IdleMemory()
with memory.in_use():
    pass
assert memory.tend()
print(psutil.Process().memory_info().rss)
"""


def test_arrays_of_a_job_take_the_memory_of_the_one_before() -> None:
    """Without it, each page of an array of more than 32 MiB is taken from the system anew."""
    faults, kept = {}, {}
    cases = {
        "keep": ("20000000", {}),
        "default": ("default", {}),
        "large": ("7000000000", {}),  # a window of 0.25 degrees
        "asked": ("20000000", {"MALLOC_MMAP_THRESHOLD_": "1048576"}),
    }
    for name, (argument, more) in cases.items():
        command, environment = [sys.executable, "-c", FAULTS, argument], {**os.environ, **more}
        ended = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        faults[name], kept[name] = map(int, ended.stdout.split())
    pages = 3 * 210 * 2**20 / 4096
    # A page fault may bring a huge page of 2 MiB.
    assert all(faults[name] > pages / 512 for name in ("default", "large", "asked"))
    assert faults["keep"] < 0.1 * faults["default"]
    assert kept["keep"] < kept["default"] + 20 * 2**20  # an idle process returns them all the same


class Part:
    """Counts how often it rested; fails to wake while `broken`."""

    def __init__(self) -> None:
        self.rested, self.awake, self.broken = 0, True, False

    def rest(self) -> None:
        assert self.awake
        self.rested, self.awake = self.rested + 1, False

    def wake(self) -> None:
        if self.broken:
            raise OSError("gone")
        self.awake = True


def test_parts_rest_between_works_and_wake_before_one(monkeypatch) -> None:
    monkeypatch.setattr(idle_memory, "IDLE_SECONDS", 0.0)
    memory, part = IdleMemory(), Part()
    memory.add(part.rest, part.wake)
    with memory.in_use(), memory.in_use():
        assert not memory.tend()
    for rested in (1, 2):
        assert memory.tend()
        assert not memory.tend()
        assert (part.rested, part.awake) == (rested, False)
        part.broken = True
        for _ in range(2):  # no work begins with a part that rests
            with pytest.raises(OSError, match="gone"), memory.in_use():
                raise AssertionError("begun")
        part.broken = False
        with memory.in_use():
            assert part.awake


WARM_UP = """
import sys
from datetime import UTC, datetime, timedelta
import torch
from lab.tiny_model import tiny_model
from model.background import around_forecast
from model.checkpoints.bundle import load_checkpoint
from model.nn.embedding import date_rows
from worker.loaded_models import warm_up
warm_up(tiny_model())
model = load_checkpoint("appa-t31")
times = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(24)]
around_forecast(model)(torch.zeros(12, *model.latent_shape), date_rows(times))
print(*sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_jobs_load_neither_symbolic_algebra_nor_a_compiler() -> None:
    """A second of processor and up to 70 MB: to compare two shapes in `torch.autograd.grad`, and to say
    that a cycle, which continues an analysis, computes without compiled functions."""
    command = [sys.executable, "-c", WARM_UP]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr[-2000:]


def test_the_thread_of_a_worker_returns_what_its_work_has_freed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(idle_memory, "IDLE_SECONDS", 0.0)
    settings = WorkerSettings(data_dir=tmp_path, report_seconds=0.05)
    runtime = open_runtime(settings, ["ingest"], "test", message_sender(settings))
    runtime.measures = Measures(None)
    before = resident()
    with freed_blocks():
        with runtime.busy_with("x"):
            runtime.start_measuring()
            time.sleep(0.5)
            assert resident() - before > 0.9 * BYTES
        wait_for(lambda: resident() - before < 0.1 * BYTES)
    runtime.end_measuring()
