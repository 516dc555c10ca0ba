"""What the client and its asyncio twin do alike without talking to the gateway."""

from pathlib import Path
from typing import Any

import httpx

from model.domain.errors import InvalidInput
from service.client_errors import JobFailedError, NotFoundError, UnavailableError
from worker.jobs.batch import ALLOWED_BATCH_MOVES, BatchRecord
from worker.jobs.job import JobRecord, JobState
from worker.jobs.manifest import AnalysisManifest, ManifestFile

TIMEOUT = 30.0
ATTEMPTS = 8
EVENT_TIMEOUT = httpx.Timeout(10.0, read=60.0)
"""The gateway sends something at least every 15 seconds."""


def client_options(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of both httpx clients."""
    headers = {"User-Agent": "appa-client"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout}


def lost(error: Exception | None) -> UnavailableError:
    """The gateway did not answer."""
    why = f"{type(error).__name__}: {error}" if error else "the connection ended early"
    problem = UnavailableError(
        f"Expected an answer of the gateway; {why}. Is it running (`appa up`), and is the address "
        "right?",
        code="unreachable",
    )
    problem.__cause__ = error  # a refused connection is not a lost answer
    return problem


def ended_batch(batch: BatchRecord) -> bool:
    """Whether the state of `batch` can no longer change."""
    return not ALLOWED_BATCH_MOVES[batch.state]


def ended_job(job: JobRecord) -> JobRecord:
    """The job.

    Raises:
        JobFailedError: If it did not succeed.
    """
    if job.state is JobState.SUCCEEDED:
        return job
    reason = f" {job.error.code}: {job.error.message}" if job.error else ""
    raise JobFailedError(
        f"Job '{job.id}' ended as {job.state}.{reason}",
        code=job.error.code if job.error else f"job_{job.state}",
    )


def choose_files(
    manifest: AnalysisManifest, names: list[str] | None, roles: list[str] | None
) -> list[ManifestFile]:
    """The files of `manifest` that are wanted.

    Raises:
        InvalidInput: If one of `names` is not there.
    """
    there = [f.name for f in manifest.files]
    if missing := sorted(set(names or ()) - set(there)):
        raise InvalidInput(
            f"Expected files of '{manifest.id}' ({', '.join(there)}); got {', '.join(missing)}."
        )
    return [
        f
        for f in manifest.files
        if (names is None or f.name in names) and (roles is None or f.role in roles)
    ]


def netcdf_name(manifest: AnalysisManifest) -> str:
    """Name of the file that holds the fields.

    Raises:
        NotFoundError: If the job was not asked for NetCDF.
    """
    for file in manifest.files:
        if file.name.endswith(".nc") and file.role == "data":
            return file.name
    raise NotFoundError(
        f"Expected a NetCDF file in '{manifest.id}'; its files: "
        f"{', '.join(f.name for f in manifest.files)}. Ask for the output 'netcdf'.",
        code="not_found",
    )


def cache_folder(analysis_id: str) -> Path:
    """Where files opened without a folder of the caller's are kept."""
    return Path.home() / ".cache" / "appa" / analysis_id


def open_dataset(path: Path, options: dict[str, Any]) -> Any:
    """The file as an `xarray.Dataset`."""
    import xarray  # heavy, and not needed to upload or to watch

    return xarray.open_dataset(path, **options)
