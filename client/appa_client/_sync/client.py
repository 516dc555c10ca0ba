# Generated from appa_client/_async by `make client`. Do not edit.
"""Talk to a gateway: upload observations, submit jobs, follow them, download analyses.

Requests are retried while the connection or the gateway is lost for a moment; that is safe,
because every write carries its own Idempotency-Key.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
from httpx_sse import ServerSentEvent, connect_sse
from pydantic import BaseModel

from appa_client import _requests as calls
from appa_client._requests import FAILURES, Call, Retry
from appa_client.errors import raise_for_problem
from appa_client.events import CreatedWebhook, Delivery, EventType, FeedEvent, JobEvent, Webhook
from appa_client.files import (
    BLOCK,
    Download,
    OnBytes,
    Source,
    UploadBody,
    cache_folder,
    choose_files,
    netcdf_name,
    open_dataset,
)
from appa_client.plots import FieldMap
from appa_client.records import (
    Analysis,
    AnalysisFile,
    Batch,
    Challengers,
    Cycle,
    CycleExplanation,
    Flavour,
    Job,
    Readiness,
    Reign,
    SeriesRow,
    SourceStatus,
    Trial,
)

__all__ = ["AppaClient"]


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_error:
        response.read()  # a streamed response has not read its body yet
        raise_for_problem(response)


class AppaClient:
    """A connection to one gateway.

    Every method raises `GatewayError` when the gateway refuses the request, and
    `UnavailableError`, a kind of it, when it cannot be reached.

    Arguments:
        url: Address of the gateway.
        key: API key, if the gateway requires one.
        timeout: Seconds to wait for a response.
        attempts: Number of times a request is sent before a lost connection is an error.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = calls.TIMEOUT,
        attempts: int = calls.ATTEMPTS,
    ) -> None:
        self._http = httpx.Client(**calls.client_options(url, key, timeout))
        self._attempts = attempts

    def close(self) -> None:
        """Close the connections; leaving the context of the client does the same."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # -- requests

    def _get(self, path: str) -> Any:
        return self._json(Call("GET", path))

    def _json(self, call: Call, body: UploadBody | None = None) -> Any:
        response = self._send(call, body)
        return response.json()

    def _send(self, call: Call, body: UploadBody | None = None) -> httpx.Response:
        retry = Retry(self._attempts)
        while True:
            try:
                response = self._http.request(
                    call.method,
                    call.path,
                    params=dict(call.params),
                    headers=dict(call.headers),
                    json=call.json,
                    content=body.blocks() if body else None,
                )
                return raise_for_problem(response)
            except FAILURES as failure:
                pause = retry.pause(failure)
            time.sleep(pause)

    def _follow(
        self, path: str, after: str | None = None, types: Sequence[str] = ()
    ) -> Generator[ServerSentEvent, None]:
        """Yield the events of a stream after `after`; reconnect until the response is 204."""
        retry = Retry(self._attempts)
        options: dict[str, Any] = {"params": {"type": list(types)}, "timeout": calls.EVENT_TIMEOUT}
        while True:
            options["headers"] = {"Last-Event-ID": after} if after else {}
            try:
                with connect_sse(self._http, "GET", path, **options) as source:
                    if source.response.status_code == 204:
                        return
                    _raise_for_problem(source.response)
                    for event in source.iter_sse():
                        if event.data:  # blank after a keep-alive comment
                            retry.reset()
                            after = event.id or after
                            yield event
            except FAILURES as failure:
                pause = retry.pause(failure)
            else:
                pause = retry.pause(None)  # the stream ended early: a gateway that stops
            time.sleep(pause)

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
    ) -> Batch:
        """Upload a file of observations; return when it is stored, before it is decoded.

        Arguments:
            source: A path, the content, or an open binary file.
            file_name: A name for people; by default that of the path.
            report_type: Network of all reports, for formats that name none.
            errors: Observation errors of this upload.
            decoder: Options of the decoder.
            idempotency_key: The same key gives the same batch.
            on_bytes: Called after every block.
        """
        body = UploadBody(source, on_bytes)
        call = calls.upload(
            body.size,
            file_name=file_name or body.name,
            report_type=report_type,
            errors=errors,
            decoder=decoder,
            idempotency_key=idempotency_key,
        )
        return Batch.model_validate(self._json(call, body))

    def batch(self, batch_id: str) -> Batch:
        """Return an upload in its present state."""
        return Batch.model_validate(self._get(f"/v1/observations/{batch_id}"))

    def batches(self, **filters: Any) -> list[Batch]:
        """Return uploads, newest first.

        Arguments:
            filters: `state`, `sender` (id of an API key, or `-` for what came without one),
                `arrived_from`, `arrived_to`, `limit`.
        """
        page = self._json(calls.list_batches(**filters))
        return [Batch.model_validate(item) for item in page["items"]]

    def retry_batch(self, batch_id: str) -> Batch:
        """Retry the ingest of an upload that failed, was rejected, or waits after a fault."""
        return Batch.model_validate(self._json(Call("POST", f"/v1/observations/{batch_id}/retry")))

    def wait_batch(self, batch_id: str, timeout: float | None = None) -> Batch:
        """Return an upload once its observations are stored or were rejected.

        Raises:
            TimeoutError: If that takes longer than `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while not (batch := self.batch(batch_id)).done:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"Batch '{batch_id}' is still {batch.state} after {timeout} s.")
            time.sleep(pause)
            pause = min(1.5 * pause, 2.0)
        return batch

    def sources(self) -> list[SourceStatus]:
        """Return the subscriptions that deliver observations, by name."""
        return [SourceStatus.model_validate(item) for item in self._get("/v1/sources")]

    def observations(self, format: str = "parquet", **filters: Any) -> bytes:
        """Return stored observations as Parquet, GeoJSON or CSV.

        Arguments:
            format: `parquet`, `geojson` or `csv`.
            filters: `start` and `end` are required; see `GET /v1/observations` for the others.
        """
        response = self._send(calls.query_observations(format, **filters))
        return response.content

    # -- jobs

    def submit(
        self, spec: BaseModel | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Job:
        """Queue a job.

        Arguments:
            spec: What to compute, such as `{"kind": "filtering", "valid_time": …}`.
            idempotency_key: The same key gives the same job.
        """
        return Job.model_validate(self._json(calls.submit(spec, idempotency_key)))

    def job(self, job_id: str) -> Job:
        """Return a job in its present state."""
        return Job.model_validate(self._get(f"/v1/jobs/{job_id}"))

    def jobs(
        self, *, state: str | None = None, kind: str | None = None, limit: int = 50
    ) -> list[Job]:
        """Return the newest jobs, newest first."""
        page = self._json(calls.list_jobs(state, kind, limit))
        return [Job.model_validate(item) for item in page["items"]]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that runs is `cancelling` until its worker has stopped."""
        return Job.model_validate(self._json(Call("DELETE", f"/v1/jobs/{job_id}")))

    def watch(self, job_id: str) -> Iterator[JobEvent]:
        """Yield the events of a job until it is done, resuming after lost connections."""
        last: str | None = None
        with closing(self._follow(f"/v1/jobs/{job_id}/events")) as events:
            for sent in events:
                event = JobEvent.of(sent)
                last = event.id
                yield event
                if event.type == "done":
                    return
        # The connection was lost after the last event, before `done`.
        yield JobEvent("done", self._get(f"/v1/jobs/{job_id}"), last)

    def wait(self, job_id: str, on_event: Callable[[JobEvent], None] | None = None) -> Job:
        """Return a job once it has succeeded.

        Raises:
            JobFailedError: If it failed or was cancelled, with the reason.
        """
        for event in self.watch(job_id):
            if on_event:
                on_event(event)
        return calls.require_success(self.job(job_id))

    # -- analyses

    def analyses(self, **filters: Any) -> list[Analysis]:
        """Return published analyses, latest valid time first.

        Arguments:
            filters: `kind`, `flavour`, `valid_from`, `valid_to`, `latest`, `limit`.
        """
        page = self._json(calls.list_analyses(**filters))
        return [Analysis.model_validate(item).owned(self) for item in page["items"]]

    def analysis(self, analysis_id: str) -> Analysis:
        """Return an analysis: its files, window, counts, scores and provenance."""
        found = Analysis.model_validate(self._get(f"/v1/analyses/{analysis_id}"))
        return found.owned(self)

    def fetch(
        self,
        analysis_id: str,
        folder: str | Path,
        *,
        names: list[str] | None = None,
        roles: list[str] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> list[Path]:
        """Download files of an analysis, resuming partial ones, and check their SHA-256.

        Arguments:
            analysis_id: From a job or a list.
            folder: Target folder; created if it does not exist.
            names: Only these files.
            roles: Only files with these roles (`data`, `feedback`, `quicklook`).
            on_bytes: Called after every block.
        """
        files = choose_files(self.analysis(analysis_id), names, roles)
        return [self._download(analysis_id, f, Path(folder), on_bytes) for f in files]

    def open(self, analysis_id: str, folder: str | Path | None = None, **options: Any) -> Any:
        """Open an analysis as an `xarray.Dataset`.

        Arguments:
            analysis_id: From a job or a list.
            folder: Where the file is downloaded to; by default a cache in the home folder.
            options: Passed on to `xarray.open_dataset`.
        """
        analysis = self.analysis(analysis_id)
        target = folder or cache_folder(analysis_id)
        paths = self.fetch(analysis_id, target, names=[netcdf_name(analysis)])
        return open_dataset(paths[0], options)

    def plot(
        self,
        analysis_id: str,
        field: str,
        level: float | None = None,
        *,
        time: datetime | str | None = None,
        statistic: str = "mean",
        view: str = "global",
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """Draw a field of a result and return the matplotlib figure; needs the extra `plot`.

        Arguments:
            analysis_id: From a job or a list, or `latest-final` and the like.
            field: Such as `t2m`, `msl`, `t`, `gh`, `ws`, `r`.
            level: hPa, of a field on levels.
            time: Valid time; by default that of the analysis.
            statistic: `mean`, `spread`, `member:N`, `increment`, `difference:ID`, `probability`.
            view: `global`, `north` or `south`.
            ax: Axes to draw into; by default those of a new figure.
            options: Others of `GET /v1/fields`, such as `box`, `threshold`, `direction`, `width`.
        """
        asked = {"level": level, "time": time, "statistic": statistic, "view": view, **options}
        response = self._send(calls.read_field(analysis_id, field, **asked))
        coastlines = self._get("/v1/fields/coastlines")
        return FieldMap(response.content).draw(coastlines, ax)

    def feedback(self, analysis_id: str, **filters: Any) -> dict[str, Any]:
        """Return observed values of an analysis: `rows` with departures, outcome and its meaning.

        Arguments:
            analysis_id: From a list.
            filters: `stations`, `networks`, `variables`, `layers`, `rejected_by` (one or a list),
                `outcome` (`used`, `rejected`), `limit` (100).
        """
        found: dict[str, Any] = self._json(calls.read_feedback(analysis_id, **filters))
        return found

    def position(self, collection: str, lon: float, lat: float, **options: Any) -> dict[str, Any]:
        """Return values at a place as CoverageJSON, from the OGC API EDR.

        Arguments:
            collection: `filtering-final`, `forecast` …, or the id of a result.
            lon: Degrees east.
            lat: Degrees north.
            options: `parameters` (`t2m_mean`, one or a list), `z` (hPa), `datetime`, `method`.
        """
        call = calls.query_position(collection, lon, lat, **options)
        found: dict[str, Any] = self._json(call)
        return found

    def _download(
        self, analysis_id: str, entry: AnalysisFile, folder: Path, on_bytes: OnBytes | None
    ) -> Path:
        download = Download(entry, folder, on_bytes)
        retry = Retry(self._attempts)
        path = f"/v1/analyses/{analysis_id}/{entry.name}"
        while not download.done:
            try:
                with self._http.stream("GET", path, headers=download.headers()) as response:
                    _raise_for_problem(response)
                    download.begin(response)
                    for block in response.iter_bytes(BLOCK):
                        download.write(block)
            except FAILURES as failure:
                download.pause()
                time.sleep(retry.pause(failure))
            else:
                return download.finish()
        return download.target

    # -- events of the installation

    def events(self, after: str | None = None, *, types: Sequence[str] = ()) -> Iterator[FeedEvent]:
        """Yield events as they happen, without end, resuming after lost connections.

        Arguments:
            after: `FeedEvent.id` of the last event seen; by default the events begin now.
            types: Only these types; all when empty.
        """
        with closing(self._follow("/v1/events", after, types)) as events:
            for event in events:
                yield FeedEvent.of(event)

    # -- cycles

    def cycles(self, **filters: Any) -> list[Cycle]:
        """Return cycles, latest valid time first.

        Arguments:
            filters: `state`, `flavour`, `valid_from`, `valid_to`, `limit`.
        """
        page = self._json(calls.list_cycles(**filters))
        return [Cycle.model_validate(item) for item in page["items"]]

    def cycle(self, cycle: str | datetime, flavour: str = Flavour.FINAL) -> Cycle:
        """Return a cycle, given by its key or by its valid time and flavour."""
        return Cycle.model_validate(self._get(calls.cycle_path(cycle, flavour)))

    def explain_cycle(
        self, cycle: str | datetime, flavour: str = Flavour.FINAL
    ) -> CycleExplanation:
        """Return what an analysis used, what was late, what was rejected and why, what changed."""
        path = calls.cycle_path(cycle, flavour, "/explain")
        return CycleExplanation.model_validate(self._get(path))

    def rerun_cycle(
        self,
        cycle: str | datetime,
        cut_off: datetime | str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Cycle:
        """Compute a final analysis again, as its next revision.

        Arguments:
            cycle: Its key or valid time.
            cut_off: Last arrival accepted; by default all that has arrived.
            idempotency_key: A repeated request with the same key starts no second rerun.
        """
        answer = self._json(calls.rerun_cycle(cycle, cut_off, idempotency_key))
        return Cycle.model_validate(answer)

    # -- champion and challenger

    def challengers(self) -> Challengers:
        """Return the suite on trial with its differences from the champion, and the history."""
        return Challengers.model_validate(self._get("/v1/challengers"))

    def promote_challenger(self, suite_id: str, *, note: str = "", force: bool = False) -> Trial:
        """Make a challenger the champion.

        Arguments:
            suite_id: Its id, as in `challengers`.
            note: Why, for the history.
            force: Also if it is worse than the champion, or has no analysis yet.
        """
        call = calls.end_trial(suite_id, "promote", note=note, force=force)
        return Trial.model_validate(self._json(call))

    def drop_challenger(self, suite_id: str, *, note: str = "") -> Trial:
        """End the trial of a challenger."""
        return Trial.model_validate(self._json(calls.end_trial(suite_id, "drop", note=note)))

    def revert_champion(self, *, note: str = "") -> Reign:
        """Make the suite champion again that was champion before the last promotion."""
        call = Call("POST", "/v1/champion/revert", json={"note": note})
        return Reign.model_validate(self._json(call))

    # -- verification

    def verification(self, **filters: Any) -> list[SeriesRow]:
        """Return the verification series, oldest valid time first, from all pages.

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

    # -- webhooks

    def webhooks(self) -> list[Webhook]:
        """Return all webhooks without their secrets, oldest first."""
        return [Webhook.model_validate(item) for item in self._get("/v1/webhooks")]

    def webhook(self, webhook_id: str) -> Webhook:
        """Return one webhook, without its secret."""
        return Webhook.model_validate(self._get(f"/v1/webhooks/{webhook_id}"))

    def create_webhook(
        self,
        url: str,
        events: Sequence[str] = (EventType.ANALYSIS_PUBLISHED,),
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> CreatedWebhook:
        """Subscribe an address to events from now on; keep the secret of the answer.

        Arguments:
            url: Address that events are posted to.
            events: Types of event to deliver.
            description: A note for people.
            idempotency_key: The same key gives the same webhook.
        """
        call = calls.create_webhook(url, events, description, idempotency_key)
        return CreatedWebhook.model_validate(self._json(call))

    def delete_webhook(self, webhook_id: str) -> Webhook:
        """Delete a webhook; messages that are still queued are discarded."""
        path = f"/v1/webhooks/{webhook_id}"
        return Webhook.model_validate(self._json(Call("DELETE", path)))

    def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """Return the newest messages of a webhook, each with its attempts."""
        messages = self._json(calls.list_deliveries(webhook_id, limit))
        return [Delivery.model_validate(message) for message in messages]

    def retry_delivery(self, webhook_id: str, event_id: str) -> Delivery:
        """Send a message again that was given up, under the same id; one that waits is returned."""
        return Delivery.model_validate(self._json(calls.retry_delivery(webhook_id, event_id)))

    # -- the system

    def capabilities(self) -> dict[str, Any]:
        """Return models, formats and networks of the running workers, and the vocabulary."""
        capabilities: dict[str, Any] = self._get("/v1/capabilities")
        return capabilities

    def key(self) -> dict[str, Any]:
        """Return what the key in use may do, its limits, and what it has used today."""
        found: dict[str, Any] = self._get("/v1/keys/me")
        return found

    def ready(self) -> bool:
        """Return whether the gateway can be reached and jobs can be run now."""
        try:
            response = self._http.get("/health/ready")
        except httpx.TransportError:
            return False
        return response.status_code == 200

    def readiness(self) -> Readiness:
        """Return every check of the gateway, whether it is ready or not; the request is not retried.

        Raises:
            UnavailableError: If the gateway cannot be reached.
            GatewayError: If what answers gives no checks.
        """
        try:
            response = self._http.get("/health/ready")
        except httpx.TransportError as failure:
            raise calls.unreachable(failure) from failure
        return calls.readiness(response)
