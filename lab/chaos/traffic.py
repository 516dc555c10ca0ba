"""Send the uploads and jobs of a plan as their senders would, and write down every answer.

A sender that gets no answer, or one that asks for patience, sends the same again.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from lab.chaos.content import NOON, Content, content_of
from lab.chaos.plan import JobOrder, Plan, Sending

__all__ = ["JobSent", "Ledger", "Traffic", "UploadSent", "is_explained"]

_TIMEOUT = 20.0
_LONGEST_PAUSE = 2.0
_SENDERS = 4


def is_explained(answer: httpx.Response) -> bool:
    """Return whether an answer of the 5xx class says why, and when to try again."""
    if answer.status_code not in (503, 507) or "retry-after" not in answer.headers:
        return False
    with suppress(ValueError):
        document = answer.json()
        return isinstance(document, dict) and bool(document.get("code") and document.get("detail"))
    return False


@dataclass
class UploadSent:
    """A content and what its sender was told.

    Attributes:
        content: What was sent.
        ids: Batches named by answers that accepted it.
        refusal: Status and code of a refusal for good; empty when there was none.
        doubtful: How often no answer came: it may have been accepted.
    """

    content: Content
    ids: set[str] = field(default_factory=set)
    refusal: str = ""
    doubtful: int = 0


@dataclass
class JobSent:
    """A job and what its sender was told: as `UploadSent`."""

    order: JobOrder
    ids: set[str] = field(default_factory=set)
    refusal: str = ""
    doubtful: int = 0


@dataclass
class Ledger:
    """All that was sent, by number, and the answers nobody should get."""

    uploads: dict[int, UploadSent] = field(default_factory=dict)
    jobs: dict[int, JobSent] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def upload(self, sending: Sending, content: Content) -> UploadSent:
        """Return the entry of a content."""
        with self.lock:
            return self.uploads.setdefault(sending.number, UploadSent(content))

    def job(self, order: JobOrder) -> JobSent:
        """Return the entry of a job."""
        with self.lock:
            return self.jobs.setdefault(order.number, JobSent(order))

    def fault(self, answer: httpx.Response) -> None:
        """Write down an answer of the 5xx class, unless it is explained."""
        if answer.status_code >= 500 and not is_explained(answer):
            request = answer.request
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
    """Threads that carry out the sendings and orders of a plan, and read meanwhile.

    Arguments:
        url: Of the gateway.
        plan: What to send.
        ledger: Where answers are written down.
    """

    def __init__(self, url: str, plan: Plan, ledger: Ledger) -> None:
        self.url = url
        self.plan = plan
        self.ledger = ledger
        self._began = 0.0
        self._over = threading.Event()
        self._give_up = threading.Event()
        self._sendings: queue.SimpleQueue[Sending] = queue.SimpleQueue()
        for sending in plan.sendings:
            self._sendings.put(sending)
        senders = [(f"send-{i}", self._send_uploads) for i in range(_SENDERS)]
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (*senders, ("jobs", self._send_jobs), ("reader", self._read))
        ]

    def start(self) -> None:
        """Begin to send."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> bool:
        """Send nothing new, and get answers for what was begun.

        Arguments:
            seconds: Patience with what is not answered.

        Returns:
            Whether all was answered.
        """
        self._over.set()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        answered = not any(thread.is_alive() for thread in self._threads)
        self._give_up.set()
        return answered

    def _is_due(self, at: float) -> bool:
        """Wait for a time of the plan; return False once nothing new is sent."""
        return not self._over.wait(max(0.0, self._began + at - time.monotonic()))

    # -- what senders do

    def _send_uploads(self) -> None:
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT) as http:
            while not self._over.is_set():
                with suppress(queue.Empty):
                    sending = self._sendings.get_nowait()
                    if self._is_due(sending.at):
                        self._upload(http, sending)
                    continue
                return

    def _upload(self, http: httpx.Client, sending: Sending) -> None:
        content = content_of(sending, self.plan.seed)
        entry = self.ledger.upload(sending, content)
        headers = {"Idempotency-Key": content.name} if sending.keyed else {}
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
            for order in self.plan.orders:
                if not self._is_due(order.at):
                    return
                self._order(http, order)

    def _order(self, http: httpx.Client, order: JobOrder) -> None:
        specification = {
            "kind": "filtering",
            "valid_time": f"{NOON:%Y-%m-%dT%H:%M:%SZ}",
            "members": order.members,
            "steps": order.steps,
            "window_hours": 3,
            "outputs": ["netcdf", "feedback"],
        }
        headers = {"Idempotency-Key": f"chaos-{self.plan.seed}-{order.number}"}
        entry = self.ledger.job(order)
        self._insist(entry, lambda: http.post("/v1/jobs", json=specification, headers=headers))

    def _insist(self, entry: UploadSent | JobSent, send: Callable[[], httpx.Response]) -> None:
        """Send until there is an answer for good, or nobody waits for it any more."""
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
                for look in _looks():
                    with suppress(httpx.TransportError):
                        self.ledger.fault(http.get(look, headers={"Accept-Encoding": "identity"}))
                with suppress(httpx.TransportError, ValueError):
                    self._look_at_results(http)

    def _look_at_results(self, http: httpx.Client) -> None:
        """Hold the newest results against their lists of files."""
        found = http.get("/v1/analyses", params={"limit": 3})
        if not found.is_success:
            return
        for result in found.json()["items"]:
            if not result["files"]:
                self.ledger.damaged.append(f"{result['id']} has no files")
            for file in result["files"]:
                answer = http.head(f"/v1/analyses/{result['id']}/{file['name']}")
                size = int(answer.headers.get("content-length", -1))
                if answer.is_success and size == file["size"]:
                    continue
                if answer.status_code < 500:
                    told = f"{result['id']}/{file['name']}: {answer.status_code}, {size} bytes"
                    self.ledger.damaged.append(told)


def _looks() -> Iterable[str]:
    hours = f"start={NOON.replace(hour=9):%Y-%m-%dT%H:%M:%SZ}&end={NOON:%Y-%m-%dT%H:%M:%SZ}"
    return (
        "/health/ready",
        "/v1/capabilities",
        "/v1/batches?limit=20",
        "/v1/batches?state=received",
        "/v1/jobs",
        f"/v1/observations?{hours}&limit=200&format=csv",
        "/v1/analyses",
        "/v1/analyses/latest.json",
        "/metrics",
    )
