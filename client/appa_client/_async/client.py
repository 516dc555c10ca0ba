"""Talk to a gateway from asyncio: upload, submit, watch, fetch, open as xarray.

This is the written client; `appa_client/_sync/client.py` is generated from it (unasync).
Requests are repeated while a connection or the gateway is lost for a moment; that is safe, as
every write carries its own identity.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel

from appa_client import _requests as calls
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
from appa_client.errors import GatewayError, UnavailableError, raise_for_problem
from appa_client.events import EventParser, FeedEvent, JobEvent, Subscription
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
from worker.contract.webhooks import Delivery
from worker.results.manifest import AnalysisManifest, ManifestFile
from worker.results.verification.series import SeriesRow

__all__ = [
    "AsyncAppaClient",
    "AsyncCycleMethods",
    "AsyncFeedMethods",
    "AsyncGatewayConnection",
    "AsyncVerificationMethods",
    "AsyncWebhookMethods",
]


async def as_async(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks for asyncio; a block is read quickly enough not to need a thread."""
    for block in blocks:
        yield block


class AsyncGatewayConnection:
    """One gateway and how it is talked to: repeats, problem documents, closing."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._http = httpx.AsyncClient(**client_options(url, key, timeout))
        self._attempts = attempts

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _get(self, path: str) -> Any:
        return await self._json(Call("GET", path))

    async def _json(self, call: Call, content: Callable[[], Iterator[bytes]] | None = None) -> Any:
        answer = await self._call(call, content)
        return answer.json()

    async def _call(
        self, call: Call, content: Callable[[], Iterator[bytes]] | None = None
    ) -> httpx.Response:
        for attempt in range(1, self._attempts + 1):
            try:
                return raise_for_problem(
                    await self._http.request(
                        call.method,
                        call.path,
                        params=dict(call.params),
                        headers=dict(call.headers),
                        json=call.json,
                        content=as_async(content()) if content else None,
                    )
                )
            except httpx.TransportError as problem:
                error: GatewayError = lost(problem)
            except GatewayError as problem:
                error = problem
            pause = calls.retry_pause(attempt, error.status or None, error.retry_after)
            if pause is None or attempt == self._attempts:
                raise error
            await asyncio.sleep(pause)
        raise AssertionError("at least one attempt is made")


class AsyncCycleMethods(AsyncGatewayConnection):
    """Cycles, for `AsyncAppaClient`; see `CycleMethods`."""

    async def cycles(self, **filters: Any) -> list[CycleRecord]:
        """Newest cycles: `state`, `flavour`, `valid_from`, `valid_to`, `limit`."""
        page = await self._json(calls.list_cycles(**filters))
        return [CycleRecord.model_validate(item) for item in page["items"]]

    async def cycle(self, cycle: str | datetime, flavour: str = Flavour.FINAL) -> CycleRecord:
        """How far a cycle is."""
        return CycleRecord.model_validate(await self._get(cycle_path(cycle, flavour)))

    async def explain_cycle(
        self, cycle: str | datetime, flavour: str = Flavour.FINAL
    ) -> CycleExplanation:
        """What its analysis used, what was late, what was rejected and why, what changed."""
        return CycleExplanation.model_validate(
            await self._get(cycle_path(cycle, flavour, "/explain"))
        )

    async def rerun_cycle(
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
        return CycleRecord.model_validate(await self._json(call))


class AsyncFeedMethods(AsyncGatewayConnection):
    """Events of the installation, for `AsyncAppaClient`; see `FeedMethods`."""

    async def events(
        self, after: str | None = None, *, types: Sequence[str] = ()
    ) -> AsyncIterator[FeedEvent]:
        """New analyses and failed cycles, as they come."""
        following = Subscription(after, types, self._attempts)
        while True:
            try:
                async for event in self._listen(following):
                    yield following.heard(event)
                error: GatewayError = lost(None)
            except httpx.TransportError as problem:
                error = lost(problem)
            except UnavailableError as problem:
                error = problem
            await asyncio.sleep(following.pause(error))

    async def _listen(self, following: Subscription) -> AsyncIterator[JobEvent]:
        async with self._http.stream("GET", EVENTS_PATH, **following.request()) as answer:
            if answer.status_code >= 400:
                await answer.aread()
            raise_for_problem(answer)
            parser = EventParser()
            async for line in answer.aiter_lines():
                if event := parser.feed(line):
                    yield event


class AsyncVerificationMethods(AsyncGatewayConnection):
    """Verification, for `AsyncAppaClient`; see `VerificationMethods`."""

    async def verification(self, **filters: Any) -> list[SeriesRow]:
        """Numbers of the series, oldest first, all pages of them."""
        rows: list[SeriesRow] = []
        cursor = None
        while True:
            page = await self._json(calls.list_verification(cursor=cursor, **filters))
            rows += [SeriesRow.model_validate(item) for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                return rows


class AsyncWebhookMethods(AsyncGatewayConnection):
    """Webhooks, for `AsyncAppaClient`; see `WebhookMethods`."""

    async def webhooks(self) -> list[WebhookView]:
        """All subscriptions, oldest first."""
        return [WebhookView.model_validate(item) for item in await self._get(WEBHOOKS_PATH)]

    async def webhook(self, webhook_id: str) -> WebhookView:
        """One subscription."""
        return WebhookView.model_validate(await self._get(f"{WEBHOOKS_PATH}/{webhook_id}"))

    async def create_webhook(
        self,
        url: str,
        events: Sequence[str] = DEFAULT_EVENTS,
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> CreatedWebhook:
        """Subscribes an address to events from now on. Keep the secret of the answer."""
        call = create_webhook(url, events, description, idempotency_key)
        return CreatedWebhook.model_validate(await self._json(call))

    async def delete_webhook(self, webhook_id: str) -> WebhookView:
        """Ends a subscription; what was not sent yet never is."""
        return WebhookView.model_validate(
            await self._json(Call("DELETE", f"{WEBHOOKS_PATH}/{webhook_id}"))
        )

    async def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """The newest messages of a webhook, each with its attempts."""
        found = await self._json(list_deliveries(webhook_id, limit))
        return [Delivery.model_validate(d) for d in found]


class AsyncAppaClient(
    AsyncCycleMethods, AsyncFeedMethods, AsyncVerificationMethods, AsyncWebhookMethods
):
    """A gateway, seen from asyncio.

    Arguments:
        url: Of the gateway.
        key: API key, if it asks for one.
        timeout: Seconds to wait for an answer.
        attempts: How often a request is sent before a lost connection is an error.
    """

    # -- observations

    async def upload(
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
        return BatchRecord.model_validate(await self._json(call, body.blocks))

    async def batch(self, batch_id: str) -> BatchRecord:
        """The state of an upload."""
        return BatchRecord.model_validate(await self._get(f"/v1/observations/{batch_id}"))

    async def wait_batch(self, batch_id: str, timeout: float | None = None) -> BatchRecord:
        """The upload, once its observations are in the store or were rejected."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while not ended_batch(batch := await self.batch(batch_id)):
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"Batch '{batch_id}' is still {batch.state} after {timeout} s.")
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, 2.0)
        return batch

    async def observations(self, format: str = "parquet", **filters: Any) -> bytes:
        """Stored observations that match, as Parquet, GeoJSON or CSV; see `docs/api.md`."""
        answer = await self._call(calls.query_observations(format, **filters))
        return answer.content

    # -- jobs

    async def submit(
        self, spec: BaseModel | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> JobRecord:
        """Queues a job: a mapping or one of the specifications of `worker.jobs.kinds`."""
        return JobRecord.model_validate(await self._json(calls.submit(spec, idempotency_key)))

    async def job(self, job_id: str) -> JobRecord:
        """The state of a job."""
        return JobRecord.model_validate(await self._get(f"/v1/jobs/{job_id}"))

    async def jobs(
        self, *, state: str | None = None, kind: str | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """The newest jobs."""
        page = await self._json(calls.list_jobs(state, kind, limit))
        return [JobRecord.model_validate(item) for item in page["items"]]

    async def cancel(self, job_id: str) -> JobRecord:
        """Asks for the end of a job."""
        return JobRecord.model_validate(await self._json(Call("DELETE", f"/v1/jobs/{job_id}")))

    async def watch(self, job_id: str) -> AsyncIterator[JobEvent]:
        """What happens to a job, until it is done; taken up again after lost connections."""
        last: str | None = None
        failures = 0
        while True:
            try:
                async for event in self._events(job_id, last):
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
            await asyncio.sleep(calls.retry_pause(failures, None, None) or 0)

    async def _events(self, job_id: str, last: str | None) -> AsyncIterator[JobEvent]:
        headers = {"Last-Event-ID": last} if last else {}
        path = f"/v1/jobs/{job_id}/events"
        async with self._http.stream("GET", path, headers=headers, timeout=EVENT_TIMEOUT) as answer:
            if answer.status_code == 204:
                yield JobEvent("done", await self._get(f"/v1/jobs/{job_id}"), last)
                return
            if answer.status_code >= 400:
                await answer.aread()
            raise_for_problem(answer)
            parser = EventParser()
            async for line in answer.aiter_lines():
                if event := parser.feed(line):
                    yield event

    async def wait(
        self, job_id: str, on_event: Callable[[JobEvent], None] | None = None
    ) -> JobRecord:
        """The job, once it has succeeded.

        Raises:
            JobFailedError: If it failed or was cancelled, with the reason.
        """
        async for event in self.watch(job_id):
            if on_event:
                on_event(event)
        return ended_job(await self.job(job_id))

    # -- analyses

    async def analyses(self, **filters: Any) -> list[AnalysisManifest]:
        """Published analyses: `kind`, `flavour`, `valid_from`, `valid_to`, `latest`, `limit`."""
        page = await self._json(calls.list_analyses(**filters))
        return [AnalysisManifest.model_validate(item) for item in page["items"]]

    async def analysis(self, analysis_id: str) -> AnalysisManifest:
        """The manifest of an analysis."""
        return AnalysisManifest.model_validate(await self._get(f"/v1/analyses/{analysis_id}"))

    async def fetch(
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
        wanted = choose_files(await self.analysis(analysis_id), names, roles)
        return [await self._fetch(analysis_id, f, Path(folder), on_bytes) for f in wanted]

    async def open(self, analysis_id: str, folder: str | Path | None = None, **options: Any) -> Any:
        """The analysis as an `xarray.Dataset`, fetched into `folder` (default: a cache)."""
        manifest = await self.analysis(analysis_id)
        target = folder or cache_folder(analysis_id)
        paths = await self.fetch(analysis_id, target, names=[netcdf_name(manifest)])
        return open_dataset(paths[0], options)

    async def _fetch(
        self, analysis_id: str, entry: ManifestFile, folder: Path, on_bytes: OnBytes | None
    ) -> Path:
        download = Download(entry, folder, on_bytes)
        for attempt in range(1, self._attempts + 1):
            if download.done:
                break
            path = f"/v1/analyses/{analysis_id}/{entry.name}"
            try:
                async with self._http.stream("GET", path, headers=download.headers()) as answer:
                    if answer.status_code >= 400:
                        await answer.aread()
                    raise_for_problem(answer)
                    download.begin(answer)
                    async for block in answer.aiter_bytes(1 << 20):
                        download.write(block)
                return download.finish()
            except httpx.TransportError as error:
                download.pause()
                if attempt == self._attempts:
                    raise lost(error) from error
                await asyncio.sleep(calls.retry_pause(attempt, None, None) or 0)
        return download.target

    # -- the system

    async def capabilities(self) -> dict[str, Any]:
        """Models, formats and networks of the workers that run."""
        found: dict[str, Any] = await self._get("/v1/capabilities")
        return found

    async def ready(self) -> bool:
        """Whether jobs can be done now."""
        try:
            answer = await self._http.get("/health/ready")
            return answer.status_code == 200
        except httpx.TransportError:
            return False
