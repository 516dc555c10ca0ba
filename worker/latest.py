"""`latest.json` in the data folder: the newest result of each kind, for those who read files."""

import fcntl
import json
import os
from typing import Any

from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest

__all__ = ["update_latest"]


def update_latest(layout: Layout, manifest: AnalysisManifest) -> bool:
    """Replaces the entry of the result's kind, unless that is newer; returns whether it did.

    Newer is a later valid time, then a higher revision, then a later end of the job.
    """
    path = layout.latest_file
    with (layout.root / ".latest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        entry = {
            "id": manifest.id,
            "valid_time": manifest.valid_time.isoformat(),
            "revision": manifest.revision,
            "created": manifest.created.isoformat(),
            "flavour": manifest.flavour,
            "files": {
                file.name: {"sha256": file.sha256, "size": file.size} for file in manifest.files
            },
        }
        known = entries.get(manifest.kind, {"valid_time": "", "revision": 0, "created": ""})
        if _age(known) >= _age(entry):
            return False
        entries[manifest.kind] = entry
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as stream:
            json.dump(entries, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        return True


def _age(entry: dict[str, Any]) -> tuple[str, int, str]:
    return str(entry["valid_time"]), int(entry["revision"]), str(entry["created"])
