"""Talk to a gateway from Python: upload, submit, watch, fetch, open as xarray.

    from appa_client import AppaClient

    with AppaClient("http://127.0.0.1:8000") as appa:
        batch = appa.upload("synop.bufr")
        appa.wait_batch(batch.id)
        job = appa.submit({"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"})
        appa.wait(job.id)
        analysis = appa.open(job.analysis_id)          # an xarray.Dataset

`AsyncAppaClient` has the same methods for asyncio. Requests are repeated while a connection or
the gateway is lost for a moment; that is safe, as every write carries its own identity.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel

from appa_client import _requests as calls
from appa_client._async.client import AsyncAppaClient
from appa_client._requests import (
    ATTEMPTS,
    DEFAULT_EVENTS,
    EVENT_TIMEOUT,
    EVENTS_PATH,
    TIMEOUT,
    WEBHOOKS_PATH,
    Call,
    client_options,
    create_webhook,
    cycle_path,
    ended_batch,
    ended_job,
    list_deliveries,
    lost,
    rerun_cycle,
)
from appa_client.errors import (
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
from appa_client.events import EventParser, FeedEvent, JobEvent, Subscription, read_webhook
from appa_client.files import (
    Download,
    OnBytes,
    Source,
    UploadBody,
    cache_folder,
    choose_files,
    netcdf_name,
    open_dataset,
)
from service.cycle_explanation import CycleExplanation
from service.schemas import CreatedWebhook, WebhookView
from worker.contract.batches import BatchRecord
from worker.contract.cycles import CycleRecord, Flavour
from worker.contract.jobs import JobRecord
from worker.contract.webhooks import BadSignature, Delivery
from worker.results.manifest import AnalysisManifest, ManifestFile
from worker.results.verification.series import SeriesRow

__all__ = [
    "AppaClient",
    "AsyncAppaClient",
    "AuthenticationError",
    "BadSignature",
    "CycleMethods",
    "FeedEvent",
    "FeedMethods",
    "GatewayConnection",
    "GatewayError",
    "IntegrityError",
    "InvalidRequestError",
    "JobEvent",
    "JobFailedError",
    "NotFoundError",
    "RateLimitedError",
    "UnavailableError",
    "VerificationMethods",
    "WebhookMethods",
    "read_webhook",
]


class GatewayConnection:
    """One gateway and how it is talked to: repeats, problem documents, closing."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._http = httpx.Client(**client_options(url, key, timeout))
        self._attempts = attempts

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _get(self, path: str) -> Any:
        return self._json(Call("GET", path))

    def _json(self, call: Call, content: Callable[[], Iterator[bytes]] | None = None) -> Any:
        answer = self._call(call, content)
        return answer.json()

    def _call(
        self, call: Call, content: Callable[[], Iterator[bytes]] | None = None
    ) -> httpx.Response:
        for attempt in range(1, self._attempts + 1):
            try:
                return raise_for_problem(
                    self._http.request(
                        call.method,
                        call.path,
                        params=dict(call.params),
                        headers=dict(call.headers),
                        json=call.json,
                        content=content() if content else None,
                    )
                )
            except httpx.TransportError as problem:
                error: GatewayError = lost(problem)
            except GatewayError as problem:
                error = problem
            pause = calls.retry_pause(attempt, error.status or None, error.retry_after)
            if pause is None or attempt == self._attempts:
                raise error
            time.sleep(pause)
        raise AssertionError("at least one attempt is made")


class CycleMethods(GatewayConnection):
    """Cycles, for `AppaClient`; a cycle is named by its key, or by a valid time and a flavour."""

    def cycles(self, **filters: Any) -> list[CycleRecord]:
        """Newest cycles: `state`, `flavour`, `valid_from`, `valid_to`, `limit`."""
        page = self._json(calls.list_cycles(**filters))
        return [CycleRecord.model_validate(item) for item in page["items"]]

    def cycle(self, cycle: str | datetime, flavour: str = Flavour.FINAL) -> CycleRecord:
        """How far a cycle is."""
        return CycleRecord.model_validate(self._get(cycle_path(cycle, flavour)))

    def explain_cycle(
        self, cycle: str | datetime, flavour: str = Flavour.FINAL
    ) -> CycleExplanation:
        """What its analysis used, what was late, what was rejected and why, what changed."""
        return CycleExplanation.model_validate(self._get(cycle_path(cycle, flavour, "/explain")))

    def rerun_cycle(
        self,
        cycle: str | datetime,
        cut_off: datetime | str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> CycleRecord:
        """Makes a final analysis again, by default with all that has arrived.

        Asked once more with the same `idempotency_key`, it is not made a second time.
        """
        call = rerun_cycle(cycle, cut_off, idempotency_key)
        return CycleRecord.model_validate(self._json(call))


class FeedMethods(GatewayConnection):
    """Events of the installation, for `AppaClient`."""

    def events(self, after: str | None = None, *, types: Sequence[str] = ()) -> Iterator[FeedEvent]:
        """New analyses and failed cycles, as they come; taken up again after lost connections.

        Arguments:
            after: The last event seen; without it the events begin now.
            types: Only these; all when empty.
        """
        following = Subscription(after, types, self._attempts)
        while True:
            try:
                for event in self._listen(following):
                    yield following.heard(event)
                error: GatewayError = lost(None)
            except httpx.TransportError as problem:
                error = lost(problem)
            except UnavailableError as problem:
                error = problem
            time.sleep(following.pause(error))

    def _listen(self, following: Subscription) -> Iterator[JobEvent]:
        with self._http.stream("GET", EVENTS_PATH, **following.request()) as answer:
            if answer.status_code >= 400:
                answer.read()
            raise_for_problem(answer)
            parser = EventParser()
            for line in answer.iter_lines():
                if event := parser.feed(line):
                    yield event


class VerificationMethods(GatewayConnection):
    """Verification, for `AppaClient`."""

    def verification(self, **filters: Any) -> list[SeriesRow]:
        """Numbers of the series, oldest first, all pages of them.

        Arguments:
            filters: `statistic`, `network`, `variable`, `layer` (one or a list), `flavour`,
                `valid_from`, `valid_to`, `revisions`.
        """
        rows: list[SeriesRow] = []
        cursor = None
        while True:
            page = self._json(calls.list_verification(cursor=cursor, **filters))
            rows += [SeriesRow.model_validate(item) for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                return rows


class WebhookMethods(GatewayConnection):
    """Webhooks, for `AppaClient`."""

    def webhooks(self) -> list[WebhookView]:
        """All subscriptions, oldest first."""
        return [WebhookView.model_validate(item) for item in self._get(WEBHOOKS_PATH)]

    def webhook(self, webhook_id: str) -> WebhookView:
        """One subscription."""
        return WebhookView.model_validate(self._get(f"{WEBHOOKS_PATH}/{webhook_id}"))

    def create_webhook(
        self,
        url: str,
        events: Sequence[str] = DEFAULT_EVENTS,
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> CreatedWebhook:
        """Subscribes an address to events from now on. Keep the secret of the answer.

        Arguments:
            url: Where events are posted to.
            events: What to tell.
            description: For people.
            idempotency_key: The same key gives the same webhook.
        """
        call = create_webhook(url, events, description, idempotency_key)
        return CreatedWebhook.model_validate(self._json(call))

    def delete_webhook(self, webhook_id: str) -> WebhookView:
        """Ends a subscription; what was not sent yet never is."""
        return WebhookView.model_validate(
            self._json(Call("DELETE", f"{WEBHOOKS_PATH}/{webhook_id}"))
        )

    def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """The newest messages of a webhook, each with its attempts."""
        return [Delivery.model_validate(d) for d in self._json(list_deliveries(webhook_id, limit))]


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
