"""Unfinished results of workers that died for good: removed once they are old."""

import re
import shutil
import time
from pathlib import Path

import structlog

from worker.jobs.layout import Layout

__all__ = ["sweep_leftovers"]

log = structlog.get_logger()
_STAGING = re.compile(r"an-.*\.\d+")


def sweep_leftovers(layout: Layout, older_than: float = 86_400.0) -> int:
    """Removes staging folders untouched for `older_than` seconds; returns how many.

    The time must be longer than any job, for a folder belongs to a job while it runs.
    """
    removed = 0
    for folder in layout.tmp.iterdir():
        try:
            if _STAGING.fullmatch(folder.name) and time.time() - _touched(folder) > older_than:
                shutil.rmtree(folder)
                log.info("leftover removed", folder=folder.name)
                removed += 1
        except FileNotFoundError:  # its own job was quicker
            continue
    return removed


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
