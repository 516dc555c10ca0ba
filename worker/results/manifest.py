"""Describe published results: their manifest, and the pins that exempt them from retention.

A manifest lists the files of a result and everything needed to reproduce it. Manifests are the source
of truth about published results; `worker.results.catalogue` is the index over them.

A pin is a small file named after the result. It is written before the result is looked up, and
retention checks for it after hiding a result (and restores it), so a result that was pinned
successfully is never deleted.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from model.domain.errors import InvalidInput, StorageError
from model.domain.files import file_digest, write_atomic
from worker.contract.kinds import JobSpec
from worker.contract.layout import Layout
from worker.contract.records import Record, utc_now
from worker.results.store import result_store

__all__ = [
    "AnalysisManifest",
    "ManifestFile",
    "NoSuchAnalysis",
    "Pin",
    "RESTART_ROLE",
    "describe_file",
    "is_pinned",
    "pin",
    "pins",
    "read_manifest",
    "unpin",
]

_MEDIA = {
    ".nc": "application/netcdf",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".grib2": "application/x-grib",
    ".zip": "application/zip",
    ".odb": "application/octet-stream",
    ".json": "application/json",
}


RESTART_ROLE = "restart"
"""Role of the restart file with the latent states."""

_DATASETS = (".nc", ".zarr.zip")
"""File names that can be served as a data set, in order of preference."""


class ManifestFile(Record):
    """One published file: its name, size, hash and purpose."""

    name: str = Field(description="File name.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(description="Of the file's bytes.")
    media_type: str = Field(description="For HTTP.")
    role: str = Field(default="data", description="`data`, `feedback`, `quicklook` …")


class AnalysisManifest(Record):
    """A published result. It is written last: a folder without it holds no result."""

    id: str = Field(description="Name of the result.")
    job_id: str = Field(description="The job that made it.")
    kind: str = Field(description="The kind of its job: `filtering`, `forecast`, `reanalysis` …")
    valid_time: datetime = Field(description="Analysis time; start of a forecast or reanalysis.")
    times: list[datetime] = Field(description="Valid times in the files (UTC).")
    flavour: str = Field(
        default="", description="`early`, `final`, `challenger`, or empty outside the cycles."
    )
    revision: int = Field(default=1, ge=1, description="Revision for this valid time.")
    cycle: dict[str, Any] = Field(
        default={},
        description=(
            "Of a cycled result: `key`, `decided`, `caught_up`, `behind_seconds`, `attempt`, "
            "`policy` (hash), `suite` if it is not the installation's own."
        ),
    )
    created: datetime = Field(default_factory=utc_now, description="When it was finished (UTC).")
    files: list[ManifestFile] = Field(description="All files but this one.")
    members: int = Field(ge=1, description="Ensemble members.")
    mirrored: bool = Field(
        default=False,
        description=(
            "Whether members 0 and 1, 2 and 3 … have opposite perturbations: the spread is then the "
            "root mean square deviation, with M in place of M - 1, and ranks count every other member."
        ),
    )
    window_start: datetime | None = Field(
        default=None, description="Observation window, exclusive."
    )
    window_end: datetime | None = Field(default=None, description="Observation window, inclusive.")
    cut_off: datetime | None = Field(default=None, description="Last arrival accepted.")
    observations: dict[str, int] = Field(
        default={}, description="Values by outcome; `used` and checks."
    )
    background: dict[str, Any] = Field(
        default={}, description="First guess used, its source and age."
    )
    flags: list[str] = Field(default=[], description="`zero_observations`, `cold_start`, …")
    scores: dict[str, Any] = Field(default={}, description="Departure statistics and chi-square.")
    provenance: dict[str, Any] = Field(
        default={}, description="Checkpoint hash, code version, seeds, settings, observation hash."
    )
    spec: JobSpec = Field(description="What was asked.")

    @property
    def dataset_file(self) -> ManifestFile | None:
        """Return the file that is served as a data set: NetCDF where there is one, else Zarr."""
        data = [file for file in self.files if file.role == "data"]
        found = (file for suffix in _DATASETS for file in data if file.name.endswith(suffix))
        return next(found, None)

    @property
    def feedback_name(self) -> str | None:
        """Return the name of the feedback table among the files; None without one."""
        tables = (
            f.name for f in self.files if f.role == "feedback" and f.name.endswith(".parquet")
        )
        return next(tables, None)


def describe_file(path: Path, role: str = "data") -> ManifestFile:
    """Return name, size, SHA-256 and media type of a finished file."""
    size = path.stat().st_size
    media = _MEDIA.get(path.suffix, "application/octet-stream")
    return ManifestFile(
        name=path.name, size=size, sha256=file_digest(path), media_type=media, role=role
    )


def read_manifest(layout: Layout, analysis_id: str) -> AnalysisManifest:
    """Return the manifest of a published result.

    Raises:
        StorageError: If there is no such result.
    """
    path = layout.manifest(analysis_id)
    try:
        if path.exists() or result_store(layout).fetch_manifest(analysis_id):
            return AnalysisManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:  # deleted just now
        pass
    raise StorageError(
        f"Expected a published result '{analysis_id}'; there is none.", analysis_id=analysis_id
    )


class NoSuchAnalysis(InvalidInput):
    """An id, or the name of a file, that no published result has."""

    code = "not_found"


class Pin(Record):
    """A mark that keeps a result from retention, and the reason."""

    analysis_id: str = Field(description="The result.")
    created: datetime = Field(default_factory=utc_now, description="When it was pinned (UTC).")
    by: str = Field(default="", description="API key that pinned it; empty for the command line.")
    note: str = Field(default="", max_length=500, description="What for.")


def pin(layout: Layout, new: Pin) -> Pin:
    """Exempt a result from retention, and return its pin: the first one if there are several.

    Raises:
        NoSuchAnalysis: If there is no such result.
    """
    path = layout.pin(new.analysis_id)
    layout.pins.mkdir(exist_ok=True)
    known = _read_pin(layout, new.analysis_id)
    if known is None:
        write_atomic(path, new.model_dump_json(indent=1))
    if not result_store(layout).fetch_manifest(new.analysis_id):
        path.unlink(missing_ok=True)
        raise NoSuchAnalysis(
            f"Expected the id of a published analysis; got '{new.analysis_id}'.",
            analysis_id=new.analysis_id,
        )
    return known or new


def unpin(layout: Layout, analysis_id: str) -> bool:
    """Remove the pin of a result; return whether there was one."""
    try:
        layout.pin(analysis_id).unlink()
    except FileNotFoundError:
        return False
    return True


def is_pinned(layout: Layout, analysis_id: str) -> bool:
    """Return whether retention must keep a result."""
    return layout.pin(analysis_id).exists()


def pins(layout: Layout) -> list[Pin]:
    """Return the pins of all results, oldest first."""
    if not layout.pins.is_dir():
        return []
    names = [path.name for path in layout.pins.iterdir() if not path.name.startswith(".")]
    found = (_read_pin(layout, name) for name in names)
    return sorted((pin for pin in found if pin is not None), key=lambda pin: pin.created)


def _read_pin(layout: Layout, analysis_id: str) -> Pin | None:
    """Return a pin, or None; a pin with damaged content still counts."""
    try:
        return Pin.model_validate_json(layout.pin(analysis_id).read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        return Pin(analysis_id=analysis_id, note="(unreadable)")
