"""Build every path and file name in the data folder; no other module does."""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from model.domain.errors import InvalidInput

__all__ = [
    "HIDDEN",
    "OBSERVATIONS_CACHE_BYTES",
    "RESULTS_CACHE_BYTES",
    "Layout",
    "analysis_file_name",
]

HIDDEN = "deleted-"
"""Prefix of folders in `tmp` that have been unpublished and are about to be deleted."""

RESULTS_CACHE_BYTES = 10 * 2**30
"""Default size limit of the disk cache of results in a bucket."""

OBSERVATIONS_CACHE_BYTES = 10 * 2**30
"""Default size limit of the disk cache of observations in a bucket."""

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def _safe(name: str) -> str:
    """Return `name`; raise InvalidInput when it could leave its folder."""
    if not _SAFE.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"Expected a name of letters, digits, '.', '_' and '-'; got {name!r}.", name=name
        )
    return name


def analysis_file_name(
    product: str,
    time: datetime,
    *,
    revision: int = 1,
    flavour: str = "",
    lead_hour: int | None = None,
    extension: str = "nc",
) -> str:
    """Return a name such as `appa_an_20250101T06Z_early_v1.nc` or `appa_fc_20250101T06Z_f024_v1.nc`.

    Arguments:
        product: The tag of a job kind (`an`, `fc`, `ra`), `obsfb` feedback, `ql` quick-look.
        time: Valid time of an analysis, reference time of a forecast (UTC).
        revision: Revision of the analysis of this valid time; each recomputation increases it.
        flavour: `early`, `final`, or empty for a job outside the cycles.
        lead_hour: Lead time of a single forecast step in hours.
        extension: Suffix of the file, without the dot.
    """
    parts = ["appa", product, f"{time:%Y%m%dT%H}Z"]
    parts += [flavour] if flavour else []
    parts += [f"f{lead_hour:03d}"] if lead_hour is not None else []
    return _safe("_".join([*parts, f"v{revision}"]) + f".{extension}")


@dataclass(frozen=True)
class Layout:
    """Paths of the data folder `root`.

    Attributes:
        root: The data folder.
        results_url: Where results are published, such as `s3://bucket/prefix`; empty: in `root`.
        results_cache_bytes: Size limit of the disk cache in `root` of results in a bucket.
        uploads_url: Where uploads are kept as they were received; empty: in `root`.
        observations_url: Where the observation store is; empty: in `root`.
        observations_cache_bytes: Size limit of the disk cache in `root` of observations in a bucket.
    """

    root: Path
    results_url: str = ""
    results_cache_bytes: int = RESULTS_CACHE_BYTES
    uploads_url: str = ""
    observations_url: str = ""
    observations_cache_bytes: int = OBSERVATIONS_CACHE_BYTES

    @property
    def raw(self) -> Path:
        """Folder of the uploads as they were received, unless they lie in a bucket.

        `worker.contract.uploads` reads and writes it.
        """
        return self.root / "raw"

    @property
    def observations(self) -> Path:
        """Folder of the observation store: commits and Parquet files by hour.

        With the store in a bucket this is a cache of its Parquet files.
        """
        return self.root / ("observations-cache" if self.observations_url else "observations")

    @property
    def analyses(self) -> Path:
        """Folder of published results, one complete folder each.

        With results in a bucket this is a cache: of every manifest, and of the most recently used
        files (`worker.results.bucket`).
        """
        return self.root / ("results-cache" if self.results_url else "analyses")

    @property
    def results_listed(self) -> Path:
        """Marker last touched when the copies in `analyses` were compared with the bucket."""
        return self.tmp / "results.listed"

    @property
    def catalogue_file(self) -> Path:
        """`catalogue.sqlite`: the index of the published results, built from their manifests."""
        return self.root / "catalogue.sqlite"

    @property
    def records_file(self) -> Path:
        """`records.sqlite`: uploads, jobs and cycles that have ended, and what Redis must not lose."""
        return self.root / "records.sqlite"

    @property
    def verification(self) -> Path:
        """Time series of verification, a folder for each month of valid times."""
        return self.root / "verification"

    @property
    def verification_file(self) -> Path:
        """`verification.yaml`: this installation's control limits, if there are any."""
        return self.root / "verification.yaml"

    @property
    def tmp(self) -> Path:
        """Unfinished uploads and results; same file system as the rest, so that moves are atomic."""
        return self.root / "tmp"

    @property
    def broker(self) -> Path:
        """Files of the embedded Redis-compatible server."""
        return self.root / "broker"

    @property
    def broker_socket(self) -> Path:
        """Where the embedded server listens, unless the path is too long for a socket."""
        return self.broker / "broker.sock"

    @property
    def logs(self) -> Path:
        """Log files of the one-machine stack."""
        return self.root / "logs"

    @property
    def audit_file(self) -> Path:
        """`logs/audit.jsonl`: who changed what over HTTP, and keys on this machine."""
        return self.logs / "audit.jsonl"

    @property
    def keys_file(self) -> Path:
        """`keys.json`: the API keys, as hashes."""
        return self.root / "keys.json"

    @property
    def sources_file(self) -> Path:
        """`sources.json`: the sources of observations of the feeds; absent while there are none."""
        return self.root / "sources.json"

    @property
    def backlog_file(self) -> Path:
        """`backlog.sqlite`: notifications that the feeds received, and the outcome of each."""
        return self.root / "backlog.sqlite"

    @property
    def pulls(self) -> Path:
        """Folder of pulls from archives: partial downloads, and lists of finished files."""
        return self.root / "pulls"

    @property
    def errors_file(self) -> Path | None:
        """`errors.yaml`: this installation's observation errors, if there are any."""
        path = self.root / "errors.yaml"
        return path if path.exists() else None

    @property
    def checks_file(self) -> Path | None:
        """`checks.yaml`: this installation's parameters of quality control, if there are any."""
        path = self.root / "checks.yaml"
        return path if path.exists() else None

    @property
    def cycles_file(self) -> Path:
        """`cycles.yaml`: the policy of the cycles; without it nothing is cycled."""
        return self.root / "cycles.yaml"

    @property
    def suites_file(self) -> Path:
        """`suites.sqlite`: which suite the cycles run, and all trials; absent before the first."""
        return self.root / "suites.sqlite"

    @property
    def latest_file(self) -> Path:
        """`latest.json`: the newest result of each kind, replaced atomically."""
        return self.root / "latest.json"

    @property
    def retention_file(self) -> Path:
        """`retention.yaml`: what this installation keeps for how long; the defaults if absent."""
        return self.root / "retention.yaml"

    @property
    def pins(self) -> Path:
        """Folder of markers of the results that are never deleted by age."""
        return self.root / "pins"

    def pin(self, analysis_id: str) -> Path:
        """Marker that pins one result; absent while it is not pinned."""
        return self.pins / _safe(analysis_id)

    @property
    def disk_low_file(self) -> Path:
        """Marker that exists while less space is free than the disk watermark asks for."""
        return self.root / ".disk_low"

    @property
    def announced_file(self) -> Path:
        """Marker that exists once results were announced, so that a loss of their list is noticed."""
        return self.root / ".announced"

    def raw_batch(self, batch_id: str) -> Path:
        """Folder of one upload, with its bytes as received."""
        return self.raw / _safe(batch_id)

    def raw_file(self, batch_id: str, name: str = "content") -> Path:
        """File with the bytes of an upload as received."""
        return self.raw_batch(batch_id) / _safe(name)

    def raw_record(self, batch_id: str) -> Path:
        """Record of an upload as received, from which it is restored if Redis loses it."""
        return self.raw_batch(batch_id) / "batch.json"

    def upload(self, batch_id: str) -> Path:
        """Where an upload is received before it is complete and moved to `raw_batch`."""
        return self.tmp / f"upload-{_safe(batch_id)}"

    def analysis(self, analysis_id: str) -> Path:
        """Folder of one published result; absent until it is complete."""
        return self.analyses / _safe(analysis_id)

    def analysis_file(self, analysis_id: str, name: str) -> Path:
        """One file of a published result."""
        return self.analysis(analysis_id) / _safe(name)

    def manifest(self, analysis_id: str) -> Path:
        """Manifest of a result, written last: a folder without one is no result."""
        return self.analysis(analysis_id) / "manifest.json"

    def hidden(self, name: str) -> Path:
        """Place of a folder that has been unpublished and not yet deleted."""
        return self.tmp / f"{HIDDEN}{_safe(name)}"

    def staging(self, analysis_id: str, token: int) -> Path:
        """Folder in which the holder of lease `token` writes a result before it is published."""
        return self.tmp / f"{_safe(analysis_id)}.{token}"

    def create(self) -> "Layout":
        """Create the folders that do not exist; return the layout.

        A new data folder is readable by its user only. In an existing one, access by others is
        removed from the folders of uploads, logs, and the broker's files with webhook secrets.
        """
        if not self.root.exists():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.observations, self.analyses):
            folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.raw, self.tmp, self.broker, self.logs):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_mode & 0o077:
                with suppress(PermissionError):  # owned by another user
                    folder.chmod(0o700)
        return self
