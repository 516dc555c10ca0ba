"""Evidence from the data folder and the records: manifests, feedback, truth."""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import xarray as xr

from deploy.demo.scores import Scorer, channel_fields
from deploy.demo.world import World
from deploy.rehearsal.evidence import AnalysisEvidence, BatchUse, CycleEvidence
from deploy.rehearsal.scenario import Scenario
from model.checkpoints.load import load_checkpoint
from model.osse.climate import climatological_states
from worker.jobs.clock import Clock
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, read_manifest
from worker.jobs.store import Stores
from worker.qc.superobbing import SUPEROBSERVATIONS

__all__ = [
    "ErrorOf",
    "analyses",
    "climatology",
    "cycles",
    "error_of",
    "read_use",
    "stored",
    "taken_in",
]

SPOILT = frozenset(
    "late preqc missing domain bounds duplicate blocklist track stuck profile decode".split()
)
"""Outcomes of checks that look at reports alone; rows with another outcome entered the analysis'
own checks, those against background, surface and neighbours."""

_VALUE = ["report_type", "station_id", "time", "variable", "vertical", "lat", "lon"]

ErrorOf = Callable[[Path, datetime], float]
"""Standardised RMSE of the ensemble mean in a file against the truth at a time."""


def analyses(layout: Layout, error: ErrorOf | None) -> tuple[AnalysisEvidence, ...]:
    """All published analyses of cycles, by valid time and revision."""
    found = [read_manifest(layout, p.parent.name) for p in layout.analyses.glob("*/manifest.json")]
    cycled = [m for m in found if m.flavour and m.kind == "filtering"]
    order = sorted(cycled, key=lambda m: (m.valid_time, m.revision, m.id))
    return tuple(_analysis(layout, manifest, error) for manifest in order)


def _analysis(
    layout: Layout, manifest: AnalysisManifest, error: ErrorOf | None
) -> AnalysisEvidence:
    feedback = _file(layout, manifest, "feedback", ".parquet")
    batches, used, repeated, digest = read_use(feedback)
    fields = _file(layout, manifest, "data", ".nc")
    return AnalysisEvidence(
        analysis_id=manifest.id,
        valid_time=manifest.valid_time,
        flavour=manifest.flavour,
        revision=manifest.revision,
        cut_off=manifest.cut_off,
        window_start=manifest.window_start,
        window_end=manifest.window_end,
        flags=tuple(manifest.flags),
        background=manifest.background,
        cycle=manifest.cycle,
        counted=manifest.observations.get("used", 0),
        used=used,
        repeated=repeated,
        batches=batches,
        digest=digest,
        error=error(fields, manifest.valid_time) if error else None,
        created=manifest.created.timestamp(),
    )


def _file(layout: Layout, manifest: AnalysisManifest, role: str, suffix: str) -> Path:
    name = next(f.name for f in manifest.files if f.role == role and f.name.endswith(suffix))
    return layout.analysis_file(manifest.id, name)


def read_use(path: Path) -> tuple[dict[str, BatchUse], int, int, str]:
    """Use by upload, values in use, of these repeated ones, and the digest of what entered."""
    columns = ["batch_id", "rejected_by", "obs_value", *_VALUE]
    rows = pq.read_table(path, columns=columns).to_pandas(categories=[])
    for name in ("batch_id", "rejected_by", "report_type", "station_id", "variable"):
        rows[name] = rows[name].astype(object)
    used = rows["rejected_by"].isna()
    reports = rows[rows["batch_id"] != SUPEROBSERVATIONS]
    outcome = reports["rejected_by"]
    marks = pd.DataFrame(
        {
            "batch": reports["batch_id"],
            "rows": 1,
            "late": outcome == "late",
            "entered": ~outcome.isin(SPOILT),
            # what was merged is used, under another name
            "used": outcome.isna(),
            "duplicates": outcome == "duplicate",
        }
    )
    sums = marks.groupby("batch").sum().astype(int) if len(marks) else marks[:0].set_index("batch")
    lines = zip(sums.index, sums.to_numpy(int), strict=True)
    batches = {str(batch): BatchUse(*map(int, line)) for batch, line in lines}
    entered = reports[marks["entered"].to_numpy(bool)]
    places = entered[_VALUE].assign(lat=entered["lat"].round(4), lon=entered["lon"].round(4))
    return batches, int(used.sum()), int(places.duplicated().sum()), _digest(entered)


def _digest(rows: pd.DataFrame) -> str:
    values = rows[[*_VALUE, "obs_value"]].sort_values([*_VALUE, "obs_value"])
    hashed = pd.util.hash_pandas_object(values, index=False).to_numpy()
    return hashlib.sha256(np.ascontiguousarray(hashed).tobytes()).hexdigest()


def cycles(stores: Stores, keys: Iterable[str]) -> dict[str, CycleEvidence]:
    """Records of the cycles that exist."""
    return {
        record.key: CycleEvidence(
            record.key,
            record.state,
            record.analysis_id,
            record.caught_up,
            record.behind_seconds,
            record.decided,
        )
        for record in stores.cycles.load(keys)
    }


def stored(stores: Stores, batch_ids: Iterable[str]) -> dict[str, int]:
    """Values that each upload left in the store; -1 for one that was not taken in."""
    found = {}
    for batch_id in batch_ids:
        summary = stores.batches.get(batch_id).summary
        found[batch_id] = summary.observations if summary else -1
    return found


def taken_in(stores: Stores, batch_ids: Iterable[str], clock: Clock) -> dict[str, datetime]:
    """When each upload was in the store, by the operational clock."""
    ends = {batch_id: stores.batches.get(batch_id).finished for batch_id in batch_ids}
    return {batch: clock.at(end.timestamp()) for batch, end in ends.items() if end is not None}


def error_of(scenario: Scenario, world: World) -> ErrorOf | None:
    """Compares with the truth; None where the model has another grid than the truth."""
    if scenario.checkpoint != scenario.world:
        return None
    model = load_checkpoint(scenario.checkpoint)
    score = Scorer(world.grid, world.channels, model.state_normalisation.std)

    def error(path: Path, time: datetime) -> float:
        with xr.open_dataset(path) as dataset:
            fields = channel_fields(dataset, world.channels, 0)
        return score(fields, world.state(time)).standardised

    return error


def climatology(scenario: Scenario, world: World) -> dict[datetime, float]:
    """Standardised RMSE of the checkpoint's climatology at every cycle."""
    if scenario.checkpoint != scenario.world:
        return {}
    model = load_checkpoint(scenario.checkpoint)
    score = Scorer(world.grid, world.channels, model.state_normalisation.std)
    states = climatological_states(model, scenario.cycles)
    return {
        time: score(state, world.state(time)).standardised
        for time, state in zip(scenario.cycles, states, strict=True)
    }
