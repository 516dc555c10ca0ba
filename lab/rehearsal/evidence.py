"""Collect the evidence of a rehearsal (manifests, feedback, records, truth) as plain values.

The audit uses nothing else.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import xarray as xr

from lab.demo.world import Scorer, World, channel_fields
from lab.rehearsal.scenario import Scenario
from model.checkpoints.bundle import load_checkpoint
from model.latent_model import climatological_states
from worker.contract.clock import Clock
from worker.contract.layout import Layout
from worker.contract.store import Stores
from worker.observations.columns import SUPEROBSERVATIONS
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest

__all__ = [
    "AnalysisEvidence",
    "BatchUse",
    "CycleEvidence",
    "ErrorOf",
    "Evidence",
    "DeliveryRecord",
    "OutageRecord",
    "analyses",
    "climatology",
    "cycles",
    "error_of",
    "ingested",
    "read_use",
    "stored",
]


@dataclass(frozen=True)
class DeliveryRecord:
    """A sender's record of a delivery; all times are of the operational clock.

    Attributes:
        name: Of the delivery.
        batch_id: Id of its batch, from the gateway.
        tried: Start of the first try that may have been accepted.
        acknowledged: When the gateway's response had arrived.
        refused: Tries that certainly were not accepted.
    """

    name: str
    batch_id: str
    tried: datetime
    acknowledged: datetime
    refused: int = 0


@dataclass(frozen=True)
class OutageRecord:
    """When nothing ran: all was killed at `killed`, processes were started again from `restarted`
    on, and all of them were ready at `ready`.
    """

    killed: datetime
    restarted: datetime
    ready: datetime


@dataclass(frozen=True)
class BatchUse:
    """Rows of one upload in the feedback of one analysis.

    Attributes:
        rows: All.
        late: Came after the cut-off.
        entered: Passed on to the checks against window and background: in time and not corrupt.
        used: Assimilated, or merged into something assimilated.
        duplicates: Rejected as repeating another report.
    """

    rows: int
    late: int = 0
    entered: int = 0
    used: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class AnalysisEvidence:
    """A published analysis.

    Attributes:
        analysis_id, valid_time, flavour, revision, cut_off: As in its manifest.
        window_start, window_end: As in its manifest.
        flags, background, cycle: As in its manifest.
        counted: `used` in its manifest.
        used: Rows without a rejection in its feedback.
        repeated: Of these, values that are there more than once.
        batches: By upload.
        digest: Of the observations that entered, independent of the ids of their uploads.
        error: Standardised RMSE against the truth; None where there is no truth.
        created: When it was finished, real seconds since 1970.
    """

    analysis_id: str
    valid_time: datetime
    flavour: str
    revision: int
    cut_off: datetime | None
    window_start: datetime | None
    window_end: datetime | None
    flags: tuple[str, ...]
    background: Mapping[str, Any]
    cycle: Mapping[str, Any]
    counted: int
    used: int
    repeated: int
    batches: Mapping[str, BatchUse]
    digest: str
    error: float | None = None
    created: float = 0.0

    @property
    def key(self) -> str:
        """Return the key of the cycle, valid time and flavour, as findings name it."""
        return f"{self.valid_time:%Y%m%dT%H}Z_{self.flavour}"

    @property
    def identity(self) -> tuple[datetime, str, int, str]:
        """Fields that must not depend on how the day was run: time, flavour, revision, digest."""
        return self.valid_time, self.flavour, self.revision, self.digest


@dataclass(frozen=True)
class CycleEvidence:
    """A cycle's record at the end."""

    key: str
    state: str
    analysis_id: str
    caught_up: bool
    behind_seconds: float
    decided: datetime | None


@dataclass(frozen=True)
class Evidence:
    """All evidence of a day: deliveries, uploads, cycles and analyses.

    Attributes:
        analyses: Published with a flavour.
        cycles: By key.
        sendings: In order.
        stored: Values stored of each upload; -1 for one that was not ingested.
        ingested: When each upload was ingested, by the operational clock.
        outage: The outage as it was; None if there was none.
        climatology: Standardised RMSE of the climatology by valid time.
        speed: Operational seconds in a real one.
        kills: Model workers killed while at work, by the operational clock.
    """

    analyses: tuple[AnalysisEvidence, ...]
    cycles: Mapping[str, CycleEvidence]
    sendings: tuple[DeliveryRecord, ...]
    stored: Mapping[str, int] = field(default_factory=dict)
    ingested: Mapping[str, datetime] = field(default_factory=dict)
    outage: OutageRecord | None = None
    climatology: Mapping[datetime, float] = field(default_factory=dict)
    speed: float = 1.0
    kills: tuple[datetime, ...] = ()


CORRUPT = frozenset(
    [
        "late",
        "preqc",
        "missing",
        "domain",
        "bounds",
        "duplicate",
        "blocklist",
        "track",
        "stuck",
        "profile",
        "decode",
    ]
)
"""Outcomes of checks that look at reports alone; rows with another outcome entered the analysis'
own checks, those against background, surface and neighbours."""

_VALUE = ["report_type", "station_id", "time", "variable", "vertical", "lat", "lon"]

ErrorOf = Callable[[Path, datetime], float]
"""Standardised RMSE of the ensemble mean in a file against the truth at a time."""


def analyses(layout: Layout, error: ErrorOf | None) -> tuple[AnalysisEvidence, ...]:
    """Return all published analyses of cycles, by valid time and revision."""
    with Catalogue(layout) as catalogue:
        cycled = [m for m in catalogue.manifests(ResultFilter("filtering")) if m.flavour]
    order = sorted(cycled, key=lambda m: (m.valid_time, m.revision, m.id))
    return tuple(_analysis(layout, manifest, error) for manifest in order)


def _analysis(
    layout: Layout, manifest: AnalysisManifest, error: ErrorOf | None
) -> AnalysisEvidence:
    feedback = _file(layout, manifest, "feedback", ".parquet")
    batches, used, repeated, digest = read_use(feedback, manifest.cut_off)
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


def read_use(
    path: Path, cut_off: datetime | None = None
) -> tuple[dict[str, BatchUse], int, int, str]:
    """Return use by upload, numbers of used and of repeated values, and the digest of those entered.

    Values without an error are `passive` from ingest on, so that no later check marks them as late;
    they are late by their time of arrival.
    """
    columns = ["batch_id", "rejected_by", "received_time", "obs_value", *_VALUE]
    rows = pq.read_table(path, columns=columns).to_pandas(categories=[])
    for name in ("batch_id", "rejected_by", "report_type", "station_id", "variable"):
        rows[name] = rows[name].astype(object)
    used = rows["rejected_by"].isna()
    reports = rows[rows["batch_id"] != SUPEROBSERVATIONS]
    outcome = reports["rejected_by"]
    late = outcome == "late"
    if cut_off is not None:
        late |= (outcome == "passive") & (reports["received_time"] > cut_off)
    marks = pd.DataFrame(
        {
            "batch": reports["batch_id"],
            "rows": 1,
            "late": late,
            "entered": ~outcome.isin(CORRUPT) & ~late,
            # merged rows are used as part of a superobservation
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
    """Return the records of the cycles that exist, by key."""
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
    """Return the number of values stored of each upload; -1 for one that was not ingested."""
    found = {}
    for batch_id in batch_ids:
        summary = stores.batches.get(batch_id).summary
        found[batch_id] = summary.observations if summary else -1
    return found


def ingested(stores: Stores, batch_ids: Iterable[str], clock: Clock) -> dict[str, datetime]:
    """Return when each upload was ingested, by the operational clock."""
    ends = {batch_id: stores.batches.get(batch_id).finished for batch_id in batch_ids}
    return {batch: clock.at(end.timestamp()) for batch, end in ends.items() if end is not None}


def error_of(scenario: Scenario, world: World) -> ErrorOf | None:
    """Return the function that scores against the truth; None if the model has another grid."""
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
    """Return the standardised RMSE of the checkpoint's climatology at every cycle."""
    if scenario.checkpoint != scenario.world:
        return {}
    model = load_checkpoint(scenario.checkpoint)
    score = Scorer(world.grid, world.channels, model.state_normalisation.std)
    states = climatological_states(model, scenario.cycles)
    return {
        time: score(state, world.state(time)).standardised
        for time, state in zip(scenario.cycles, states, strict=True)
    }
