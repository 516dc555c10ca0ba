"""Keep an audit log: which key did what to which record, one JSON object a line.

Every request that changes something is written, also one that was refused for want of a key or a
scope; reading is not. Lines are appended whole by a thread of their own, so that a slow disk delays
no request and any number of gateway processes may write to one file. A line that cannot be written
is dropped and reported in the gateway's log: a failing audit log never fails a request.
"""

import fcntl
import json
import os
import queue
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

__all__ = ["AuditLog"]

log = structlog.get_logger()

_WAITING = 10_000
"""Maximum number of queued lines while the disk accepts none; further lines are dropped."""


class AuditLog:
    """Append lines to a file that is rotated once it is large.

    Arguments:
        path: The file, such as `audit.jsonl`; rotated files are `audit-<time>.jsonl` beside it.
        max_bytes: Size at which the file is rotated.
        kept: Number of rotated files to keep.
    """

    def __init__(self, path: Path, *, max_bytes: int = 50 * 2**20, kept: int = 40) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.kept = kept
        self._lines: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, **facts: Any) -> None:
        """Queue a line with the time and these facts."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **facts}).encode() + b"\n"
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            log.error("audit_line_lost", reason="too many wait", line=line.decode())
            return
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Wait until all queued lines are written or dropped."""
        self._lines.join()

    def _work(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._append(line)
            except OSError as error:
                log.error("audit_line_lost", reason=str(error), line=line.decode())
            finally:
                self._lines.task_done()

    def _append(self, line: bytes) -> None:
        with open(self.path.with_suffix(".lock"), "a", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if self.path.stat().st_size + len(line) > self.max_bytes:
                    self._set_aside()
            with open(self.path, "ab", buffering=0, opener=_private) as file:
                size = os.fstat(file.fileno()).st_size
                if file.write(line) < len(line):  # a partial write: the disk is full
                    os.ftruncate(file.fileno(), size)
                    raise OSError("no room for the whole line")

    def _set_aside(self) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.path.rename(self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}"))
        older = sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))
        for path in older[: -self.kept or None]:
            path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
