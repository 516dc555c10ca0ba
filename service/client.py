"""The Python client: upload, submit, watch, fetch, open as xarray.

    from service.client import AppaClient

    with AppaClient("http://127.0.0.1:8000") as appa:
        batch = appa.upload("synop.bufr")
        appa.wait_batch(batch.id)
        job = appa.submit({"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"})
        appa.wait(job.id)
        analysis = appa.open(job.analysis_id)          # an xarray.Dataset

`AsyncAppaClient` has the same methods for asyncio. Requests are repeated when a connection or the
gateway is lost for a moment; that is safe, as every write carries its own identity.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from service import client_calls as calls
from service.client_async import AsyncAppaClient
from service.client_base import (
    EVENT_TIMEOUT,
    cache_folder,
    choose_files,
    ended_batch,
    ended_job,
    lost,
    netcdf_name,
    open_dataset,
)
from service.client_calls import Call
from service.client_cycles import CycleMethods
from service.client_download import Download, OnBytes
from service.client_errors import (
    AuthenticationError,
    GatewayError,
    IntegrityError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
    raise_for_problem,
)
from service.client_events import EventParser, JobEvent
from service.client_feed import FeedEvent, FeedMethods
from service.client_uploads import Source, UploadBody
from service.client_verification import VerificationMethods
from service.client_webhooks import WebhookMethods
from service.webhook_message import BadSignature, read_webhook
from worker.jobs.batch import BatchRecord
from worker.jobs.job import JobRecord
from worker.jobs.manifest import AnalysisManifest, ManifestFile

__all__ = [
    "AppaClient",
    "AsyncAppaClient",
    "AuthenticationError",
    "BadSignature",
    "FeedEvent",
    "GatewayError",
    "IntegrityError",
    "InvalidRequestError",
    "JobEvent",
    "JobFailedError",
    "NotFoundError",
    "RateLimitedError",
    "UnavailableError",
    "read_webhook",
]


class AppaClient(CycleMethods, FeedMethods, VerificationMethods, WebhookMethods):
    """A gateway, seen from Python.

    Arguments:
        url: Of the gateway.
        key: API key, if it asks for one.
        timeout: Seconds to wait for an answer.
        attempts: How often a request is sent before a lost connection is an error.
    """

    # -- observations

    def upload(
        self,
        source: Source,
        *,
        file_name: str = "",
        report_type: str | None = None,
        errors: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> BatchRecord:
        """Sends a file of observations; returns when it is stored whole, before it is decoded.

        Arguments:
            source: A path, bytes, or an open binary file.
            file_name: For people; the path's own name when absent.
            report_type: Network of all reports, for forms that name none.
            errors: Observation errors of this upload.
            decoder: Options of the decoder.
            idempotency_key: The same key gives the same batch.
            on_bytes: Told about progress.
        """
        body = UploadBody(source, on_bytes)
        call = calls.upload(
            file_name=file_name or body.name,
            report_type=report_type,
            errors=errors,
            decoder=decoder,
            idempotency_key=idempotency_key,
        ).with_headers(**{"Content-Length": str(body.size)})
        return BatchRecord.model_validate(self._json(call, body.blocks))

    def batch(self, batch_id: str) -> BatchRecord:
        """The state of an upload."""
        return BatchRecord.model_validate(self._get(f"/v1/observations/{batch_id}"))

    def wait_batch(self, batch_id: str, timeout: float | None = None) -> BatchRecord:
        """The upload, once its observations are in the store or were rejected."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while not ended_batch(batch := self.batch(batch_id)):
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"Batch '{batch_id}' is still {batch.state} after {timeout} s.")
            time.sleep(pause)
            pause = min(1.5 * pause, 2.0)
        return batch

    def observations(self, format: str = "parquet", **filters: Any) -> bytes:
        """Stored observations that match, as Parquet, GeoJSON or CSV; see `docs/api.md`."""
        answer = self._call(calls.query_observations(format, **filters))
        return answer.content

    # -- jobs

    def submit(
        self, spec: BaseModel | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> JobRecord:
        """Queues a job: a mapping or one of the specifications of `worker.jobs.kinds`."""
        return JobRecord.model_validate(self._json(calls.submit(spec, idempotency_key)))

    def job(self, job_id: str) -> JobRecord:
        """The state of a job."""
        return JobRecord.model_validate(self._get(f"/v1/jobs/{job_id}"))

    def jobs(
        self, *, state: str | None = None, kind: str | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """The newest jobs."""
        page = self._json(calls.list_jobs(state, kind, limit))
        return [JobRecord.model_validate(item) for item in page["items"]]

    def cancel(self, job_id: str) -> JobRecord:
        """Asks for the end of a job."""
        return JobRecord.model_validate(self._json(Call("DELETE", f"/v1/jobs/{job_id}")))

    def watch(self, job_id: str) -> Iterator[JobEvent]:
        """What happens to a job, until it is done; taken up again after lost connections."""
        last: str | None = None
        failures = 0
        while True:
            try:
                for event in self._events(job_id, last):
                    failures, last = 0, event.id or last
                    yield event
                    if event.type == "done":
                        return
                error: GatewayError = lost(None)  # the stream ended early: a gateway that stops
            except httpx.TransportError as problem:
                error = lost(problem)
            except UnavailableError as problem:
                error = problem
            failures += 1
            if failures >= self._attempts:
                raise error
            time.sleep(calls.retry_pause(failures, None, None) or 0)

    def _events(self, job_id: str, last: str | None) -> Iterator[JobEvent]:
        headers = {"Last-Event-ID": last} if last else {}
        path = f"/v1/jobs/{job_id}/events"
        with self._http.stream("GET", path, headers=headers, timeout=EVENT_TIMEOUT) as answer:
            if answer.status_code == 204:
                yield JobEvent("done", self._get(f"/v1/jobs/{job_id}"), last)
                return
            if answer.status_code >= 400:
                answer.read()
            raise_for_problem(answer)
            parser = EventParser()
            for line in answer.iter_lines():
                if event := parser.feed(line):
                    yield event

    def wait(self, job_id: str, on_event: Callable[[JobEvent], None] | None = None) -> JobRecord:
        """The job, once it has succeeded.

        Raises:
            JobFailedError: If it failed or was cancelled, with the reason.
        """
        for event in self.watch(job_id):
            if on_event:
                on_event(event)
        return ended_job(self.job(job_id))

    # -- analyses

    def analyses(self, **filters: Any) -> list[AnalysisManifest]:
        """Published analyses: `kind`, `flavour`, `valid_from`, `valid_to`, `latest`, `limit`."""
        page = self._json(calls.list_analyses(**filters))
        return [AnalysisManifest.model_validate(item) for item in page["items"]]

    def analysis(self, analysis_id: str) -> AnalysisManifest:
        """The manifest of an analysis."""
        return AnalysisManifest.model_validate(self._get(f"/v1/analyses/{analysis_id}"))

    def fetch(
        self,
        analysis_id: str,
        folder: str | Path,
        *,
        names: list[str] | None = None,
        roles: list[str] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> list[Path]:
        """Downloads files of an analysis: resumed where a download stopped, checked by SHA-256.

        Arguments:
            analysis_id: From a job or a list.
            folder: Made if it is not there.
            names: Only these files.
            roles: Only files of these roles (`data`, `feedback`, `quicklook`).
            on_bytes: Told about progress.
        """
        wanted = choose_files(self.analysis(analysis_id), names, roles)
        return [self._fetch(analysis_id, f, Path(folder), on_bytes) for f in wanted]

    def open(self, analysis_id: str, folder: str | Path | None = None, **options: Any) -> Any:
        """The analysis as an `xarray.Dataset`, fetched into `folder` (default: a cache)."""
        manifest = self.analysis(analysis_id)
        target = folder or cache_folder(analysis_id)
        paths = self.fetch(analysis_id, target, names=[netcdf_name(manifest)])
        return open_dataset(paths[0], options)

    def _fetch(
        self, analysis_id: str, entry: ManifestFile, folder: Path, on_bytes: OnBytes | None
    ) -> Path:
        download = Download(entry, folder, on_bytes)
        for attempt in range(1, self._attempts + 1):
            if download.done:
                break
            path = f"/v1/analyses/{analysis_id}/{entry.name}"
            try:
                with self._http.stream("GET", path, headers=download.headers()) as answer:
                    if answer.status_code >= 400:
                        answer.read()
                    raise_for_problem(answer)
                    download.begin(answer)
                    for block in answer.iter_bytes(1 << 20):
                        download.write(block)
                return download.finish()
            except httpx.TransportError as error:
                download.pause()
                if attempt == self._attempts:
                    raise lost(error) from error
                time.sleep(calls.retry_pause(attempt, None, None) or 0)
        return download.target

    # -- the system

    def capabilities(self) -> dict[str, Any]:
        """Models, formats and networks of the workers that run."""
        found: dict[str, Any] = self._get("/v1/capabilities")
        return found

    def ready(self) -> bool:
        """Whether jobs can be done now."""
        try:
            return self._http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False
