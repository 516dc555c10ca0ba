"""Send the uploads and jobs of a plan as real senders would, and record every response.

A sender that gets no response, or one that asks to try again later, sends the same again.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import httpx

from lab.chaos.content import UploadContent, content_of
from lab.chaos.plan import ChaosPlan, PlannedJob, PlannedUpload

__all__ = ["JobSent", "Ledger", "Traffic", "UploadSent", "is_explained"]

_TIMEOUT = 20.0
_LONGEST_PAUSE = 2.0
_SENDERS = {False: 3, True: 3}
"""Threads for valid contents, and for damaged ones, which are many and must not delay the valid ones."""


def is_explained(answer: httpx.Response, *, bodiless: bool = False) -> bool:
    """Return whether a 5xx response says why, and when to try again.

    Arguments:
        answer: Of the gateway.
        bodiless: Whether it answers a HEAD request and has no body for a reason.
    """
    if answer.status_code not in (503, 507) or "retry-after" not in answer.headers:
        return False
    if bodiless:
        return True
    with suppress(ValueError):
        document = answer.json()
        return isinstance(document, dict) and bool(document.get("code") and document.get("detail"))
    return False


@dataclass
class UploadSent:
    """An uploaded content and the responses to it.

    Attributes:
        content: What was sent.
        ids: Batches named by responses that accepted it.
        refusal: Status and body of a permanent refusal; empty when there was none.
        doubtful: How often there was no response: it may have been accepted.
    """

    content: UploadContent
    ids: set[str] = field(default_factory=set)
    refusal: str = ""
    doubtful: int = 0


@dataclass
class JobSent:
    """A submitted job and the responses to it; attributes as in `UploadSent`."""

    job: PlannedJob
    ids: set[str] = field(default_factory=set)
    refusal: str = ""
    doubtful: int = 0


@dataclass
class Ledger:
    """Record of all that was sent, by number, and of answers that must not occur."""

    uploads: dict[int, UploadSent] = field(default_factory=dict)
    jobs: dict[int, JobSent] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def upload(self, planned: PlannedUpload, content: UploadContent) -> UploadSent:
        """Return the entry of a content."""
        with self.lock:
            return self.uploads.setdefault(planned.number, UploadSent(content))

    def job(self, job: PlannedJob) -> JobSent:
        """Return the entry of a job."""
        with self.lock:
            return self.jobs.setdefault(job.number, JobSent(job))

    def fault(self, answer: httpx.Response) -> None:
        """Record a 5xx response, unless it is explained."""
        request = answer.request
        head = request.method == "HEAD"
        if answer.status_code >= 500 and not is_explained(answer, bodiless=head):
            told = f"{request.method} {request.url.path}: {answer.status_code}"
            with self.lock:
                self.faults.append(f"{told} {answer.text[:200]}")

    @property
    def accepted(self) -> int:
        """Return how many uploads and jobs were accepted so far."""
        with self.lock:
            accepted = [one.ids for one in self.uploads.values()]
            accepted += [one.ids for one in self.jobs.values()]
            return sum(map(bool, accepted))


class Traffic:
    """Threads that send the uploads and jobs of a plan, and read from the API meanwhile.

    Arguments:
        url: Of the gateway.
        plan: What to send.
        ledger: Where responses are recorded.
        first: What the operational clock shows at the start, a full hour.
    """

    def __init__(self, url: str, plan: ChaosPlan, ledger: Ledger, first: datetime) -> None:
        self.url = url
        self.plan = plan
        self.ledger = ledger
        self.first = first
        self._began = 0.0
        self._over = threading.Event()
        self._give_up = threading.Event()
        self._queues: dict[bool, queue.SimpleQueue[PlannedUpload]] = {
            mutated: queue.SimpleQueue() for mutated in _SENDERS
        }
        for planned in plan.uploads:
            self._queues[planned.mutated].put(planned)
        until = {False: self._give_up, True: self._over}  # all valid ones are sent
        senders = [
            threading.Thread(
                target=self._send_uploads,
                args=(self._queues[mutated], until[mutated]),
                daemon=True,
            )
            for mutated, count in _SENDERS.items()
            for _ in range(count)
        ]
        others = [
            threading.Thread(target=work, daemon=True) for work in (self._send_jobs, self._read)
        ]
        self._threads = [*senders, *others]

    def start(self) -> None:
        """Start the clock of the exercise and the threads that send uploads and jobs."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> bool:
        """Send the remaining valid contents, nothing else that is new, and wait for responses.

        Arguments:
            seconds: Longest wait.

        Returns:
            Whether all requests were answered.
        """
        self._over.set()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        answered = not any(thread.is_alive() for thread in self._threads)
        self._give_up.set()
        return answered

    def unsent(self) -> list[PlannedUpload]:
        """Return the damaged contents that were not sent; call it at the end."""
        sent = self.ledger.uploads
        return [one for one in self.plan.uploads if one.mutated and one.number not in sent]

    def _hour(self, at: float) -> datetime:
        """Return the last full hour of the operational clock when an upload or a job is due."""
        return self.first + timedelta(hours=self.plan.hours_at(at))

    def _is_due(self, at: float) -> bool:
        """Wait for a time of the plan; return False once nothing new is sent."""
        return not self._over.wait(max(0.0, self._began + at - time.monotonic()))

    # -- what senders do

    def _send_uploads(
        self, uploads: "queue.SimpleQueue[PlannedUpload]", until: threading.Event
    ) -> None:
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT) as http:
            while not until.is_set():
                with suppress(queue.Empty):
                    planned = uploads.get_nowait()
                    if not until.wait(max(0.0, self._began + planned.at - time.monotonic())):
                        self._upload(http, planned)
                    continue
                return

    def _upload(self, http: httpx.Client, planned: PlannedUpload) -> None:
        made = content_of(planned, self.plan.seed, self._hour(planned.at))
        entry = self.ledger.upload(planned, made)
        content = entry.content  # of the first time, where it is sent again
        headers = {"Idempotency-Key": content.name} if planned.keyed else {}
        self._insist(
            entry,
            lambda: http.post(
                "/v1/observations",
                params={"file_name": content.name},
                content=content.data,
                headers=headers,
            ),
        )

    def _send_jobs(self) -> None:
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT) as http:
            for job in self.plan.jobs:
                if not self._is_due(job.at):
                    return
                self._job(http, job)

    def _job(self, http: httpx.Client, job: PlannedJob) -> None:
        specification = {
            "kind": "filtering",
            "valid_time": f"{self._hour(job.at):%Y-%m-%dT%H:%M:%SZ}",
            "members": job.members,
            "steps": job.steps,
            "window_hours": 3,
            "outputs": ["netcdf", "feedback"],
        }
        headers = {"Idempotency-Key": f"chaos-{self.plan.seed}-{job.number}"}
        entry = self.ledger.job(job)
        self._insist(entry, lambda: http.post("/v1/jobs", json=specification, headers=headers))

    def _insist(self, entry: UploadSent | JobSent, send: Callable[[], httpx.Response]) -> None:
        """Send until there is a final response, or the exercise gives up."""
        while not self._give_up.is_set():
            pause = 0.3
            try:
                answer = send()
            except httpx.TransportError:
                entry.doubtful += 1
            else:
                if answer.is_success:
                    entry.ids.add(str(answer.json()["id"]))
                    return
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    entry.refusal = f"{answer.status_code} {answer.text[:300]}"
                    return
                self.ledger.fault(answer)
                pause = min(float(answer.headers.get("retry-after", 1)), _LONGEST_PAUSE)
            self._give_up.wait(pause)

    # -- what readers do

    def _read(self) -> None:
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT) as http:
            while not self._over.wait(0.5):
                for look in _looks(self.first):
                    with suppress(httpx.TransportError):
                        self.ledger.fault(http.get(look, headers={"Accept-Encoding": "identity"}))
                with suppress(httpx.TransportError, ValueError):
                    self._look_at_results(http)

    def _look_at_results(self, http: httpx.Client) -> None:
        """Compare the newest results with their lists of files."""
        found = http.get("/v1/analyses", params={"limit": 3})
        self.ledger.fault(found)
        if not found.is_success:
            return
        for result in found.json()["items"]:
            if not result["files"]:
                self.ledger.damaged.append(f"{result['id']} has no files")
            for file in result["files"]:
                answer = http.head(f"/v1/analyses/{result['id']}/{file['name']}")
                size = int(answer.headers.get("content-length", -1))
                self.ledger.fault(answer)
                if answer.is_success and size == file["size"]:
                    continue
                if answer.status_code < 500:
                    told = f"{result['id']}/{file['name']}: {answer.status_code}, {size} bytes"
                    self.ledger.damaged.append(told)


def _looks(first: datetime) -> Iterable[str]:
    begin = first - timedelta(hours=3)
    hours = f"start={begin:%Y-%m-%dT%H:%M:%SZ}&end={first:%Y-%m-%dT%H:%M:%SZ}"
    return (
        "/health/ready",
        "/v1/capabilities",
        "/v1/batches?limit=20",
        "/v1/batches?state=received",
        "/v1/jobs",
        "/v1/cycles",
        f"/v1/observations?{hours}&limit=200&format=csv",
        "/v1/analyses",
        "/v1/analyses/latest.json",
        "/metrics",
    )
