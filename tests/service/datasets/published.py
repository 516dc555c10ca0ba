"""Analyses written by the real output writers and published the way a worker does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import acting_worker
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from model.domain.grids import Grid
from model.domain.observations import FEEDBACK_SCHEMA, empty_table
from model.domain.variables import channels
from model.domain.windows import AssimilationWindow
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, describe_file
from worker.results.outputs.background import write_product as write_background
from worker.results.outputs.cf import write_netcdf_product as write_netcdf
from worker.results.outputs.cf import write_zarr_product as write_zarr
from worker.results.outputs.product import Product

GRID = Grid("small", "regular", 13, 24)
LEVELS = (500, 850)
NOON = datetime(2025, 3, 20, 12, tzinfo=UTC)


def product(kind: str, valid: datetime, seed: int) -> Product:
    """Random states: three members, two levels, dry everywhere; no sea surface at five columns."""
    if kind == "forecast":
        spec = ForecastSpec(valid_time=valid, lead_hours=3, members=3)
        times = tuple(valid + timedelta(hours=h) for h in (1, 2, 3))
    else:
        spec = FilteringSpec(valid_time=valid, members=3)
        times = (valid,)
    names = channels(LEVELS)
    rng = np.random.default_rng(seed)
    states = rng.normal(280.0, 5.0, (3, len(times), len(names), *GRID.shape)).astype(np.float32)
    for c, channel in enumerate(names):
        if channel.variable == "total_precipitation":
            states[:, :, c] = 0.0
        if channel.variable == "sea_surface_temperature":
            states[:, :, c, :, :5] = np.nan
    return Product(
        job=JobRecord(id="job-x", spec=spec, analysis_id="an-x"),
        times=times,
        states=states,
        background=None,
        grid=GRID,
        channels=names,
        window=None
        if kind == "forecast"
        else AssimilationWindow(valid - timedelta(hours=6), valid),
        feedback=empty_table(FEEDBACK_SCHEMA),
        counts={"used": 3, "background_check": 1},
        provenance={"seeds": [1, 2, 3], "configuration": {"quoted": 'a "b" \\ c'}},
    )


def publish(
    layout: Layout,
    analysis_id: str,
    folder: Path,
    *,
    kind: str = "filtering",
    valid: datetime = NOON,
    seed: int = 0,
    form: str = "netcdf",
    flavour: str = "",
) -> Path:
    """The data file of a published analysis."""
    folder.mkdir(parents=True, exist_ok=True)
    write = write_zarr if form == "zarr" else write_netcdf
    [(path, _)] = write(product(kind, valid, seed), folder)
    target = acting_worker.publish(
        layout,
        analysis_id,
        {path.name: path.read_bytes()},
        valid=valid,
        kind=kind,
        flavour=flavour,
    )
    return target / path.name


@dataclass(frozen=True)
class Wanted:
    """A result to publish with everything that its manifest says."""

    seed: int = 0
    kind: str = "filtering"
    valid: datetime = NOON
    flavour: str = ""
    fields: str = "members_and_mean"
    flags: Sequence[str] = ()
    checkpoint: str = ""
    feedback: pa.Table | None = None


def publish_result(layout: Layout, analysis_id: str, folder: Path, wanted: Wanted) -> Path:
    """The data file of a published result that has its background, times, flags and checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    made = product(wanted.kind, wanted.valid, wanted.seed)
    spec = made.job.spec.model_copy(update={"fields": wanted.fields})
    made = replace(made, job=made.job.model_copy(update={"spec": spec}))
    [(path, _)] = write_netcdf(made, folder)
    written = [(path, "data")]
    if wanted.flags:
        first_guess = product(wanted.kind, wanted.valid, wanted.seed + 1000).states
        written += write_background(replace(made, background=first_guess), folder)
    if wanted.feedback is not None:
        table = folder / f"appa_obsfb_{wanted.valid:%Y%m%dT%H}Z_v1.parquet"
        pq.write_table(wanted.feedback, table, compression="zstd")
        written.append((table, "feedback"))
    manifest = AnalysisManifest(
        id=analysis_id,
        job_id="job-x",
        kind=wanted.kind,
        valid_time=wanted.valid,
        times=list(made.times),
        files=[describe_file(p, role) for p, role in written],
        members=made.members,
        flavour=wanted.flavour,
        flags=list(wanted.flags),
        provenance={"checkpoint": wanted.checkpoint} if wanted.checkpoint else {},
        spec=spec,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    folder.rename(layout.analysis(analysis_id))
    return layout.analysis(analysis_id) / path.name


def opened(path: Path) -> xr.Dataset:
    """The contents of a data file."""
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=False) as dataset:
        return dataset.load()


def publish_all(
    layout: Layout, folder: Path, wanted: Mapping[str, Wanted]
) -> dict[str, xr.Dataset]:
    """Publish results by their ids; the contents of their data files."""
    return {
        name: opened(publish_result(layout, name, folder / name, asked))
        for name, asked in wanted.items()
    }
