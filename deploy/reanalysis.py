"""A past period as reanalysis windows that run side by side and can be taken up again.

The period is cut into windows; each is computed with margins on both sides that are not written, so
that neighbours have seen the observations across their common border. A window is a job under a
key made of all that was asked: asked again, the gateway finds the job and nothing runs twice.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from model.domain.errors import InvalidInput
from service.client import AppaClient
from worker.jobs.job import JobRecord, JobState
from worker.jobs.kinds import ReanalysisSpec

__all__ = ["OnJob", "cut", "run_windows", "window_key"]

HOUR = timedelta(hours=1)
MOST_ATTEMPTS = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED)

OnJob = Callable[[ReanalysisSpec, JobRecord], None]
"""Told of the job of a window whenever it was asked for."""


def cut(whole: ReanalysisSpec, window_hours: int) -> list[ReanalysisSpec]:
    """The windows of a period, in order; the last one may be shorter.

    Each has a seed of its own, so that the members of neighbours do not repeat their noise.

    Arguments:
        whole: The period and everything else; its margins are those of each window.
        window_hours: Hourly states written by one window.

    Raises:
        InvalidInput: If a window has no hour.
    """
    if window_hours < 1:
        raise InvalidInput(f"Expected windows of 1 hour or more; got {window_hours}.")
    windows = []
    start = whole.start
    while start <= whole.end:
        end = min(start + (window_hours - 1) * HOUR, whole.end)
        seed = (whole.seed + (start - _EPOCH) // HOUR) % 2**31
        windows.append(whole.model_copy(update={"start": start, "end": end, "seed": seed}))
        start = end + HOUR
    return windows


def window_key(spec: ReanalysisSpec, attempt: int) -> str:
    """Idempotency key: the same whenever the same is asked."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return f"reanalyse:{hashlib.sha256(text.encode()).hexdigest()[:32]}:{attempt}"


def run_windows(
    client: AppaClient,
    windows: Sequence[ReanalysisSpec],
    *,
    at_once: int,
    on_job: OnJob,
    poll_seconds: float = 1.0,
) -> list[JobRecord]:
    """Runs what is not there yet; returns the job of each window at its end.

    Windows that failed when asked for before are tried again; one that fails now stays failed.

    Arguments:
        client: Of the gateway.
        windows: From `cut`.
        at_once: Unfinished jobs at a time; more workers than that stand idle.
        on_job: Told about progress.
        poll_seconds: Pause between questions.
    """
    jobs: dict[int, JobRecord] = {}
    waiting, flying = deque(range(len(windows))), set[int]()
    while waiting or flying:
        while waiting and len(flying) < at_once:
            flying.add(number := waiting.popleft())
            jobs[number] = _submit(client, windows[number])
            on_job(windows[number], jobs[number])
            flying -= {number} if jobs[number].done else set()
        if flying:
            time.sleep(poll_seconds)
        for number in sorted(flying):
            jobs[number] = client.job(jobs[number].id)
            on_job(windows[number], jobs[number])
        flying = {number for number in flying if not jobs[number].done}
    return [jobs[number] for number in range(len(windows))]


def _submit(client: AppaClient, spec: ReanalysisSpec) -> JobRecord:
    """The job of a window: the one that was asked for before, unless it did not succeed."""
    for attempt in range(1, MOST_ATTEMPTS + 1):
        job = client.submit(spec, idempotency_key=window_key(spec, attempt))
        if job.state not in _UNSUCCESSFUL:
            break
    return job
