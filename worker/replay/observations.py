"""Are the observations of a result still there, and which have come since."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.domain.windows import AssimilationWindow
from worker.columns import codes
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest
from worker.jobs.observation_files import StoreFiles
from worker.observation_store.store import ObservationStore
from worker.qc.superobbing import SUPEROBSERVATIONS
from worker.replay.verdict import Finding

__all__ = ["StoredRows", "compare_rows", "feedback_in", "feedback_table", "stored_rows"]


@dataclass(frozen=True)
class StoredRows:
    """The uploads that a result saw, looked up again.

    Attributes:
        batches: Their ids.
        missing: Rows that are gone, one sentence for each upload.
        finding: What is to be said of them.
    """

    batches: tuple[str, ...]
    missing: tuple[str, ...]
    finding: Finding


def stored_rows(manifest: AnalysisManifest, layout: Layout) -> StoredRows:
    """Looks up the uploads of `manifest` in the observation store."""
    if manifest.window_start is None or manifest.window_end is None:
        return StoredRows((), (), Finding("uploads", True, note="no observations were asked for"))
    window = AssimilationWindow(manifest.window_start, manifest.window_end)
    recorded, how = _recorded(manifest, layout)
    counts = _count(window, manifest, layout)
    files = StoreFiles(str(layout.observations))
    if recorded is None:
        recorded = {name: {} for name in counts if _known_then(files, name, manifest)}
    missing, changed = [], []
    for name, about in recorded.items():
        there, wanted = counts.get(name, 0), about.get("rows")
        if wanted is not None and there < wanted:
            missing.append(f"{wanted - there} of {wanted} observations of the upload '{name}'")
        stored = files.manifest(name)
        known = about.get("content_hash")
        if stored is not None and known is not None and stored.content_hash != known:
            changed.append(name)
    since = sorted(set(counts) - set(recorded))
    notes = [how] if how else []
    notes += [f"content changed: {', '.join(changed)}"] if changed else []
    if since:
        rows = sum(counts[name] for name in since)
        notes.append(f"left out: {rows} observations of {len(since)} uploads that came since")
    finding = Finding(
        "uploads",
        same=not (missing or changed),
        recorded=len(recorded),
        found=len(set(counts) & set(recorded)),
        note="; ".join(notes),
    )
    return StoredRows(tuple(sorted(recorded)), tuple(missing), finding)


def _recorded(
    manifest: AnalysisManifest, layout: Layout
) -> tuple[Mapping[str, Mapping[str, Any]] | None, str]:
    """Uploads and rows as recorded, or as the feedback shows them; and how they are known."""
    batches = manifest.provenance.get("batches")
    if batches is not None:
        return batches, ""
    feedback = feedback_table(manifest, layout)
    if feedback is None:
        return None, "uploads were not recorded: taken by the time of their publication"
    names = Counter(feedback["batch_id"].cast(pa.string()).to_pylist())
    names.pop(SUPEROBSERVATIONS, None)
    return {n: {"rows": c} for n, c in names.items()}, "uploads were taken from the feedback"


def _known_then(files: StoreFiles, name: str, manifest: AnalysisManifest) -> bool:
    stored = files.manifest(name)
    return stored is not None and stored.created <= manifest.created


def _count(
    window: AssimilationWindow, manifest: AnalysisManifest, layout: Layout
) -> dict[str, int]:
    """Rows of each upload that the job would be given now."""
    selection = manifest.spec.observations
    table = ObservationStore(str(layout.observations)).read_window(
        window,
        columns=("batch_id",),
        report_types=selection.networks or (),
        batches=selection.batches or (),
    )
    code, names = codes(table, "batch_id")
    counts = np.bincount(code, minlength=len(names)) if len(names) else []
    return {name: int(n) for name, n in zip(names, counts, strict=True) if n}


def feedback_table(manifest: AnalysisManifest, layout: Layout) -> pa.Table | None:
    """The published feedback, if the result has one and it is still there."""
    return feedback_in(layout.analysis(manifest.id), manifest)


def feedback_in(folder: Path, manifest: AnalysisManifest) -> pa.Table | None:
    """The feedback of `manifest` in `folder`, if there is one."""
    for file in manifest.files:
        path = folder / file.name
        if file.role == "feedback" and path.suffix == ".parquet" and path.exists():
            return pq.read_table(path)
    return None


def compare_rows(recorded: pa.Table, found: pa.Table) -> str:
    """How two feedback tables differ in what went in: rows, values, errors, outcomes."""
    keys = ["batch_id", "observation_id"]
    columns = ["obs_value", "obs_error", "rejected_by"]
    frames = []
    for table in (recorded, found):
        table = table.select([*keys, *columns])
        for name in ("batch_id", "rejected_by"):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table[name].cast(pa.string()))
        frames.append(table.to_pandas())
    both = frames[0].merge(frames[1], on=keys, how="outer", indicator=True, suffixes=("", "_now"))
    matched = both[both["_merge"] == "both"]
    words = {
        "rows missing": int((both["_merge"] == "left_only").sum()),
        "rows added": int((both["_merge"] == "right_only").sum()),
    }
    for column, word in zip(columns, ("values", "errors", "outcomes"), strict=True):
        one, other = matched[column], matched[f"{column}_now"]
        words[f"{word} changed"] = int((~((one == other) | (one.isna() & other.isna()))).sum())
    return ", ".join(f"{count} {word}" for word, count in words.items() if count)
