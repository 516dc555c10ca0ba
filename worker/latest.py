"""`latest.json` in the data folder: the newest results, for those who read files.

An entry for each kind (`filtering`), and one for each kind and flavour (`filtering/early`,
`filtering/final`), so that a reader who wants final analyses alone is not given an early one.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.domain.errors import StorageError
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, read_manifest
from worker.jobs.small_file import replace_text

__all__ = ["renew_latest", "update_latest"]


def update_latest(layout: Layout, manifest: AnalysisManifest) -> bool:
    """Replaces the entries of the result's kind and flavour that are older; whether one was.

    Newer is a later valid time, then a higher revision, then a later end of the job. An entry
    whose result was deleted counts as none.
    """
    path = layout.latest_file
    with _locked(layout) as entries:
        entry = _entry(manifest)
        names = _names(manifest)
        older = [name for name in names if _age(layout, entries.get(name)) < _age(None, entry)]
        if not older:
            return False
        _write(path, entries | dict.fromkeys(older, entry))
        return True


def renew_latest(layout: Layout) -> None:
    """Puts the newest result that is left in place of entries whose result was deleted."""
    with _locked(layout) as entries:
        gone = {name for name, e in entries.items() if not layout.manifest(e["id"]).exists()}
        if not gone:
            return
        left = {name: entry for name, entry in entries.items() if name not in gone}
        for path in layout.analyses.glob("*/manifest.json"):
            try:
                manifest = read_manifest(layout, path.parent.name)
            except (OSError, ValidationError, StorageError):
                continue
            for name in gone.intersection(_names(manifest)):
                entry = _entry(manifest)
                if _age(None, left.get(name)) < _age(None, entry):
                    left[name] = entry
        _write(layout.latest_file, left)


@contextmanager
def _locked(layout: Layout) -> Iterator[dict[str, Any]]:
    """The entries, while nobody else changes them."""
    with (layout.root / ".latest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = layout.latest_file
        yield json.loads(path.read_text()) if path.exists() else {}


def _names(manifest: AnalysisManifest) -> list[str]:
    flavoured = [f"{manifest.kind}/{manifest.flavour}"] if manifest.flavour else []
    return [manifest.kind, *flavoured]


def _entry(manifest: AnalysisManifest) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "valid_time": manifest.valid_time.isoformat(),
        "revision": manifest.revision,
        "created": manifest.created.isoformat(),
        "flavour": manifest.flavour,
        "files": {file.name: {"sha256": file.sha256, "size": file.size} for file in manifest.files},
    }


def _write(path: Path, entries: dict[str, Any]) -> None:
    replace_text(path, json.dumps(entries, indent=1))


def _age(layout: Layout | None, entry: dict[str, Any] | None) -> tuple[str, int, str]:
    """Sorts entries by age; with a layout, one whose result is gone is the oldest."""
    if entry is None or (layout is not None and not layout.manifest(entry["id"]).exists()):
        return "", 0, ""
    return str(entry["valid_time"]), int(entry["revision"]), str(entry["created"])
