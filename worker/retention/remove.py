"""Removal: one rename takes a thing out of everybody's sight, then its bytes go.

A result is its folder: index, catalogue and data sets are read from the folders, so all of them
lose it with that rename. Readers with open files go on reading. Whatever a killed run left under
`tmp/deleted-…` goes at the next one.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from model.domain.errors import AppaError
from worker.jobs.layout import Layout
from worker.jobs.manifest import read_manifest
from worker.jobs.pins import is_pinned
from worker.jobs.small_file import replace_text
from worker.latest import renew_latest
from worker.pipeline.publication import sync_folder
from worker.retention.plan import RESTART_ROLE, Item, RetentionPlan

__all__ = ["remove", "remove_all", "sweep_removed"]

log = structlog.get_logger()
_REMOVED = "deleted-"


def remove_all(
    layout: Layout, plan: RetentionPlan, told: Callable[[Item], None] = lambda item: None
) -> list[Item]:
    """Removes what is planned; what fails is logged and tried again at the next run.

    Arguments:
        layout: The data folder.
        plan: What goes.
        told: Hears of each thing after it went.

    Returns:
        What was removed.
    """
    sweep_removed(layout)
    gone = []
    for item in plan.items:
        try:
            if remove(layout, item):
                gone.append(item)
                told(item)
                log.info("removed", what=item.what, name=item.name, bytes=item.size)
        except (OSError, AppaError) as error:
            log.warning("not removed", what=item.what, name=item.name, error=str(error))
    if any(item.what == "analysis" for item in gone):
        renew_latest(layout)
    return gone


def remove(layout: Layout, item: Item) -> bool:
    """Removes one thing; returns whether it was there and may go."""
    if item.what == "analysis":
        return _remove_analysis(layout, item.name)
    if item.what == "restart":
        return _remove_restart(layout, item.name)
    if item.what == "log":
        (layout.logs / item.name).unlink(missing_ok=True)
        return True
    day = layout.observations / f"date={item.name}"
    return _take_out(layout, layout.raw_batch(item.name) if item.what == "upload" else day)


def sweep_removed(layout: Layout) -> int:
    """Finishes what a killed run began; returns how many folders."""
    left = list(layout.tmp.glob(f"{_REMOVED}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def _remove_analysis(layout: Layout, analysis_id: str) -> bool:
    folder = layout.analysis(analysis_id)
    if is_pinned(layout, analysis_id):
        return False
    hidden = _hide(layout, folder)
    if hidden is None:
        return False
    if is_pinned(layout, analysis_id):  # in the moment before the rename
        hidden.rename(folder)
        sync_folder(layout.analyses)
        return False
    _forget_restart(layout, analysis_id)
    shutil.rmtree(hidden, ignore_errors=True)
    return True


def _remove_restart(layout: Layout, analysis_id: str) -> bool:
    """The manifest without the file first, then the marker, then the file."""
    if is_pinned(layout, analysis_id):
        return False
    manifest = read_manifest(layout, analysis_id)
    files = [file for file in manifest.files if file.role == RESTART_ROLE]
    rest = [file for file in manifest.files if file.role != RESTART_ROLE]
    changed = manifest.model_copy(
        update={"files": rest, "flags": [*manifest.flags, "restart_removed"]}
    )
    replace_text(layout.manifest(analysis_id), changed.model_dump_json(indent=2))
    os.utime(layout.analyses)  # gateways look at a manifest again when the folder was touched
    _forget_restart(layout, analysis_id)
    for file in files:
        layout.analysis_file(analysis_id, file.name).unlink(missing_ok=True)
    return bool(files)


def _forget_restart(layout: Layout, analysis_id: str) -> None:
    for marker in layout.restarts.glob(f"*__*__{analysis_id}"):
        marker.unlink(missing_ok=True)


def _hide(layout: Layout, folder: Path) -> Path | None:
    hidden = layout.tmp / f"{_REMOVED}{folder.name}"
    try:
        folder.rename(hidden)
    except FileNotFoundError:
        return None
    sync_folder(folder.parent)
    return hidden


def _take_out(layout: Layout, folder: Path) -> bool:
    hidden = _hide(layout, folder)
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)
    return hidden is not None
