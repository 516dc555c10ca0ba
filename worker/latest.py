"""`latest.json` in the data folder: the newest results, for those who read files.

An entry for each kind (`filtering`), and one for each kind and flavour (`filtering/early`,
`filtering/final`), so that a reader who wants final analyses alone is not given an early one.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest

__all__ = ["update_latest"]


def update_latest(layout: Layout, manifest: AnalysisManifest) -> bool:
    """Replaces the entries of the result's kind and flavour that are older; whether one was.

    Newer is a later valid time, then a higher revision, then a later end of the job. An entry
    whose result was deleted counts as none.
    """
    path = layout.latest_file
    with (layout.root / ".latest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        entry = _entry(manifest)
        names = [manifest.kind]
        names += [f"{manifest.kind}/{manifest.flavour}"] if manifest.flavour else []
        older = [name for name in names if _age(layout, entries.get(name)) < _age(None, entry)]
        if not older:
            return False
        _write(path, entries | dict.fromkeys(older, entry))
        return True


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
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as stream:
        json.dump(entries, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _age(layout: Layout | None, entry: dict[str, Any] | None) -> tuple[str, int, str]:
    """Sorts entries by age; with a layout, one whose result is gone is the oldest."""
    if entry is None or (layout is not None and not layout.manifest(entry["id"]).exists()):
        return "", 0, ""
    return str(entry["valid_time"]), int(entry["revision"]), str(entry["created"])
