"""What waiting and running work may still need: never deleted, whatever the policy says."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from worker.jobs.batch import BatchState
from worker.jobs.job import JobRecord, JobState
from worker.jobs.manifest import AnalysisManifest
from worker.jobs.store import Stores

__all__ = ["Needed", "needed"]

_UNFINISHED_JOBS = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)
_UNFINISHED_BATCHES = (BatchState.RECEIVED, BatchState.INGESTING)
_WINDOW = timedelta(hours=240)
"""No window reaches further back from its reference time."""


@dataclass(frozen=True)
class Needed:
    """What unfinished jobs and uploads need.

    Attributes:
        jobs: Unfinished jobs.
        batches: Ids of unfinished uploads, and of those that jobs name.
    """

    jobs: tuple[JobRecord, ...] = ()
    batches: frozenset[str] = field(default_factory=frozenset)

    def result(self, manifest: AnalysisManifest) -> bool:
        """Whether a job may take its background from this result."""
        return any(_may_continue(job, manifest) for job in self.jobs)

    @property
    def observed_from(self) -> datetime | None:
        """Earliest time whose observations a job may read; None without jobs."""
        starts = [job.spec.reference_time - _WINDOW for job in self.jobs]
        return min(starts, default=None)


def _may_continue(job: JobRecord, manifest: AnalysisManifest) -> bool:
    """Any result that ends in the time allowed: which one is chosen when the job starts."""
    spec = job.spec
    if spec.continues is not None:
        return spec.continues == manifest.id
    last = max(manifest.times, default=manifest.valid_time)
    return spec.first_guess_until - spec.first_guess_age <= last <= spec.first_guess_until


def needed(stores: Stores) -> Needed:
    """Asks the job store.

    Raises:
        RedisError: If it does not answer; nothing may be deleted then.
    """
    jobs = [
        job
        for state in _UNFINISHED_JOBS
        for name in stores.jobs.ids(state)
        if (job := stores.jobs.find(name)) is not None
    ]
    named = [batch for job in jobs for batch in job.spec.observations.batches or ()]
    named += [job.spec.background_batch for job in jobs if job.spec.background_batch]
    waiting = [b for state in _UNFINISHED_BATCHES for b in stores.batches.ids(state)]
    return Needed(tuple(jobs), frozenset((*named, *waiting)))
