"""The real stack of a rehearsal: looked after, killed and started again as the scenario says."""

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from deploy.local import LocalStack, StackOptions, free_port
from model.domain.errors import AppaError
from worker.jobs.store import Stores

__all__ = ["RehearsalStack"]

_TEND_SECONDS = 0.1


class RehearsalStack:
    """The one-machine stack under a thread that looks after it.

    Arguments:
        options: What to run; the port stays the same over restarts.
    """

    def __init__(self, options: StackOptions) -> None:
        self.options = replace(options, port=options.port or free_port(options.host))
        self.url = f"http://{options.host}:{self.options.port}"
        self._stack: LocalStack | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="tend", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.stop()

    @property
    def stores(self) -> Stores:
        """Records of the running stack."""
        return self._running.stores

    @property
    def _running(self) -> LocalStack:
        if self._stack is None:
            raise AppaError("Expected the stack to run; it was stopped.")
        return self._stack

    def start(self, seconds: float) -> float:
        """Starts all processes; returns after how many real seconds they were ready.

        Raises:
            AppaError: If they are not within `seconds`.
        """
        began = time.monotonic()
        stack = LocalStack(self.options)
        stack.__enter__()
        ready = False
        try:
            ready = stack.wait_ready(seconds)
        finally:
            if not ready:
                stack.__exit__(None, None, None)
        if not ready:
            log = (stack.layout.logs / "appa.log").read_text()[-2000:]
            raise AppaError(f"Expected the system to be ready within {seconds:.0f} s.\n{log}")
        with self._lock:  # until here, waiting looked after it
            self._stack = stack
        return time.monotonic() - began

    def stop(self) -> None:
        """Stops all processes in good order."""
        with self._lock:
            stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(None, None, None)

    def kill_all(self) -> None:
        """As a power cut: every process is gone at once and nobody restarts it."""
        with self._lock:
            stack = self._running
            self._stack = None
        for child in stack.supervisor.children.values():
            _kill_group(child.process.pid)
        for child in stack.supervisor.children.values():
            child.process.wait()
        stack.__exit__(None, None, None)  # closes log, lock and connections

    def kill(self, part: str) -> int:
        """Kills one part, which the supervisor then starts again; returns the process id."""
        with self._lock:
            pid = self._running.supervisor.pid(part)
            _kill_group(pid)
        return pid

    def part_of(self, worker: str) -> str | None:
        """The part whose process registered as `worker` (`gpu.<pid>@<host>`)."""
        with self._lock:
            children = self._running.supervisor.children
            pids = {child.process.pid: name for name, child in children.items()}
        number = worker.partition("@")[0].rpartition(".")[2]
        return pids.get(int(number)) if number.isdigit() else None

    def _tend(self) -> None:
        while not self._ended.wait(_TEND_SECONDS):
            with self._lock:
                if self._stack is not None:
                    self._stack.supervisor.tend()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
