"""A worker's side of the contract, played by the test: reports, moves of a job, a published result.

Only calls of `worker.contract`: what a real worker process does in Redis and in the data folder.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from worker.contract.jobs import JobRecord, Phase, Progress
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.queues import Capabilities, ModelInfo, WorkerReport
from worker.contract.store import Stores
from worker.results.manifest import AnalysisManifest, describe_file

LEASE = timedelta(seconds=30)
MODEL = ModelInfo(
    name="t31",
    grid="T31",
    shape=(48, 96),
    blanket=6,
    default_steps=32,
    samplers=["zeab", "ddim"],
    guidance=["mmps"],
    precisions=["float32"],
    max_members=64,
)
CAN = Capabilities(
    models=[MODEL],
    formats={"netcdf": "CF NetCDF4", "feedback": "Parquet", "quicklook": "PNG", "grib2": "GRIB 2"},
    decoders={"bufr": "WMO BUFR"},
    networks=["synop", "temp"],
)


def report(stores: Stores, *, ready: bool = True, seconds: float = 120, queue: str = "gpu") -> None:
    """Registers a worker of `queue`."""
    worker = WorkerReport(
        name=f"test.{queue}.1", queues=[queue], ready=ready, device="cpu", capabilities=CAN
    )
    stores.workers.register(worker, timedelta(seconds=seconds))


def start(stores: Stores, job_id: str) -> JobRecord:
    """Claims the job."""
    return stores.jobs.claim(job_id, "test.gpu.1", LEASE)


def step(stores: Stores, job: JobRecord, i: int, n: int) -> str:
    """Tells that diffusion step `i` of `n` is done; the state comes back."""
    progress = Progress(phase=Phase.SAMPLING, step=i, steps=n, eta_seconds=float(n - i))
    return stores.jobs.report(job.id, job.token, progress)


def finish(stores: Stores, job: JobRecord) -> None:
    """The result is visible."""
    stores.jobs.begin_publication(job.id, job.token)
    stores.jobs.succeed(job.id, job.token, Progress(phase=Phase.DONE))


def publish(
    layout: Layout,
    analysis_id: str,
    files: dict[str, bytes],
    *,
    valid: datetime = datetime(2025, 1, 1, 6, tzinfo=UTC),
    kind: str = "filtering",
    revision: int = 1,
    flavour: str = "",
    manifest: bool = True,
) -> Path:
    """Publishes a result the way a worker does: staged whole, manifest last, then renamed."""
    folder = layout.staging(analysis_id, 1)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    described = [describe_file(folder / name) for name in files]
    if manifest:
        text = AnalysisManifest(
            id=analysis_id,
            job_id="job-x",
            kind=kind,
            valid_time=valid,
            times=[valid],
            files=described,
            members=2,
            revision=revision,
            flavour=flavour,
            spec=FilteringSpec(valid_time=valid),
        ).model_dump_json()
        (folder / "manifest.json").write_text(json.dumps(json.loads(text)))
    target = layout.analysis(analysis_id)
    folder.rename(target)
    return target
