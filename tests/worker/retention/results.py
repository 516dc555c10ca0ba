"""Published results of any age, with a data file and a restart file."""

import os
from datetime import UTC, datetime, timedelta

from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.contract.layout import Layout
from worker.contract.records import utc_now
from worker.results.manifest import AnalysisManifest, describe_file
from worker.results.publication import update_latest, write_manifest

BASE = datetime(2025, 1, 1, tzinfo=UTC)
DATA = b"d" * 1000
RESTART = b"r" * 500


def publish(
    layout: Layout,
    name: str,
    *,
    age_days: float,
    kind: str = "filtering",
    flavour: str = "",
    hour: int = 0,
    now: datetime | None = None,
) -> AnalysisManifest:
    """A result finished `age_days` ago, of the `hour` after `BASE`."""
    time = BASE + timedelta(hours=hour)
    created = (now or utc_now()) - timedelta(days=age_days)
    folder = layout.tmp / f"stage-{name}"
    folder.mkdir(parents=True)
    (folder / "a.nc").write_bytes(DATA)
    (folder / "restart.safetensors").write_bytes(RESTART)
    spec = ForecastSpec(valid_time=time) if kind == "forecast" else FilteringSpec(valid_time=time)
    manifest = AnalysisManifest(
        id=name,
        job_id="job-x",
        kind=kind,
        flavour=flavour,
        valid_time=time,
        times=[time],
        created=created,
        files=[
            describe_file(folder / "a.nc"),
            describe_file(folder / "restart.safetensors", "restart"),
        ],
        members=1,
        spec=spec,
    )
    write_manifest(folder, manifest)
    folder.rename(layout.analysis(name))
    update_latest(layout)
    return manifest


def upload(layout: Layout, name: str, age_days: float) -> None:
    """The bytes of an upload that came in `age_days` ago."""
    layout.raw_batch(name).mkdir(parents=True)
    layout.raw_file(name).write_bytes(DATA)
    stamp = (utc_now() - timedelta(days=age_days)).timestamp()
    for path in (layout.raw_file(name), layout.raw_batch(name)):
        os.utime(path, (stamp, stamp))


def waiting(spec: FilteringSpec | ForecastSpec) -> JobRecord:
    """A job in the queue."""
    return JobRecord(id="job-1", spec=spec, analysis_id="an-new")
