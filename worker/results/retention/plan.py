"""Plan retention: what is to be deleted and why, and what stays although it is old, and why.

The policy is `retention.yaml` in the data folder; without it the defaults below apply. Ages count
from the end of a result, the arrival of an upload, the last line of a log, by the operational
clock. A rule without `days` keeps for ever; its `keep` newest stay whatever their age, so that a
system that stood still for a month does not delete its last analyses. What queued and running work
may still need is never deleted, whatever the policy says.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import AppaError
from model.domain.files import read_yaml_model
from worker.contract import clock
from worker.contract.batches import BatchState
from worker.contract.jobs import JobRecord, JobState
from worker.contract.layout import Layout
from worker.contract.store import Stores
from worker.results.manifest import AnalysisManifest, is_pinned, read_manifest

__all__ = [
    "AnalysisRules",
    "CompactionRule",
    "Item",
    "Needed",
    "RESTART_ROLE",
    "RetentionPlan",
    "RetentionPolicy",
    "Rule",
    "category",
    "make_plan",
    "needed",
    "read_policy",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Part):
    """How long things of one sort are kept."""

    days: float | None = Field(default=None, ge=0, description="Null: for ever.")
    keep: int = Field(default=0, ge=0, description="The newest so many stay whatever their age.")


class AnalysisRules(_Part):
    """Published results by category."""

    early: Rule = Field(default=Rule(days=7, keep=48), description="Early analyses of the cycles.")
    final: Rule = Field(default=Rule(days=90, keep=48), description="Final analyses of the cycles.")
    forecast: Rule = Field(default=Rule(days=14, keep=8), description="Forecasts.")
    reanalysis: Rule = Field(default=Rule(), description="Reanalyses.")
    manual: Rule = Field(default=Rule(days=30, keep=24), description="Analyses outside the cycles.")

    def rule(self, name: str) -> Rule:
        """The rule of a category."""
        found: Rule = getattr(self, name)
        return found


class CompactionRule(_Part):
    """Merging of the small files of an hour of the observation store."""

    after_hours: float = Field(default=6.0, ge=0, description="Hours younger than this wait.")
    look_back_hours: float = Field(default=168.0, gt=0, description="Older hours are left alone.")
    least_files: int = Field(default=4, ge=2, description="Hours with fewer files are left alone.")
    every_minutes: float = Field(default=60.0, gt=0, description="Pause between runs.")


class RetentionPolicy(_Part):
    """All rules of an installation."""

    analyses: AnalysisRules = Field(default=AnalysisRules())
    restarts: Rule = Field(
        default=Rule(days=30, keep=48),
        description="Restart files of kept results, which make them backgrounds.",
    )
    uploads: Rule = Field(
        default=Rule(days=30), description="Uploads as they came in; their rows are in the store."
    )
    observations: Rule = Field(
        default=Rule(), description="Days of the observation store, by the time observed."
    )
    logs: Rule = Field(default=Rule(days=30), description="Log files nobody writes any more.")
    shorten_when_low: float = Field(
        default=1.0, gt=0, le=1, description="Ages are multiplied by this while the disk is low."
    )
    every_minutes: float = Field(default=5.0, gt=0, description="Pause between runs.")
    compaction: CompactionRule | None = Field(default=CompactionRule(), description="Null: never.")


def category(manifest: AnalysisManifest) -> str:
    """The rule a result falls under."""
    if manifest.kind != "filtering":
        return manifest.kind
    return manifest.flavour or "manual"


def read_policy(path: Path) -> RetentionPolicy:
    """Return the retention policy of an installation, the default one when there is no file.

    Raises:
        ConfigurationError: If the file is not a policy; nothing is deleted then.
    """
    if not path.exists():
        return RetentionPolicy()
    hint = "Nothing is deleted until it is corrected."
    return read_yaml_model(path, RetentionPolicy, "retention rules", hint=hint)


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


log = structlog.get_logger()

What = Literal["analysis", "restart", "upload", "observations", "log"]
RESTART_ROLE = "restart"
_DAY = timedelta(days=1)
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One thing to remove.

    Attributes:
        what: Sort of thing.
        name: Id of the result or upload, date of observations, file name of a log.
        size: Bytes freed.
        age_days: Since it was finished, by the operational clock.
        reason: Which rule lets it go.
    """

    what: What
    name: str
    size: int
    age_days: float
    reason: str


@dataclass(frozen=True)
class RetentionPlan:
    """What goes, oldest first, and how many old things stay, by reason."""

    items: tuple[Item, ...]
    kept: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes that would be freed."""
        return sum(item.size for item in self.items)


class _Planner:
    def __init__(
        self, layout: Layout, policy: RetentionPolicy, needed: Needed, now: datetime, shorten: float
    ) -> None:
        self.layout, self.policy, self.needed = layout, policy, needed
        self.now, self.shorten = now, shorten
        self.items: list[Item] = []
        self.kept: Counter[str] = Counter()

    def old(self, found: Iterable[tuple[T, datetime]], rule: Rule) -> list[tuple[T, float]]:
        """Things older than a rule allows, with their age in days, but for its newest."""
        if rule.days is None:
            return []
        newest_first = sorted(found, key=lambda pair: pair[1], reverse=True)
        limit = rule.days * self.shorten
        aged = [
            (i, thing, (self.now - since) / _DAY) for i, (thing, since) in enumerate(newest_first)
        ]
        self.kept["newest"] += sum(i < rule.keep and age > limit for i, _, age in aged)
        return [(thing, age) for i, thing, age in aged if i >= rule.keep and age > limit]

    def add(self, what: What, name: str, size: int, age: float, rule: Rule, sort: str) -> None:
        limit = (rule.days or 0) * self.shorten
        self.items.append(
            Item(what, name, size, round(age, 3), f"{sort}: older than {limit:g} days")
        )

    def analyses(self, manifests: Sequence[AnalysisManifest]) -> None:
        """Whole results; of those that stay, old restart files."""
        going: set[str] = set()
        for sort in sorted({category(m) for m in manifests}):
            rule = self.policy.analyses.rule(sort)
            members = [m for m in manifests if category(m) == sort]
            for manifest, age in self.old(_by_time(members), rule):
                if self._stays(manifest):
                    continue
                going.add(manifest.id)
                size = _size(self.layout.analysis(manifest.id))
                self.add("analysis", manifest.id, size, age, rule, sort)
        staying = [m for m in manifests if m.id not in going and _restart_size(m) is not None]
        for manifest, age in self.old(_by_time(staying), self.policy.restarts):
            if not self._stays(manifest):
                size = _restart_size(manifest) or 0
                self.add("restart", manifest.id, size, age, self.policy.restarts, "restarts")

    def _stays(self, manifest: AnalysisManifest) -> bool:
        reasons = {
            "pinned": lambda: is_pinned(self.layout, manifest.id),
            "needed by a job": lambda: self.needed.result(manifest),
        }
        for reason, holds in reasons.items():
            if holds():
                self.kept[reason] += 1
                return True
        return False

    def uploads(self) -> None:
        """Uploads as they came in, once their rows are in the store."""
        found = [(folder, since) for folder, since in _touched(self.layout.raw)]
        for folder, age in self.old(found, self.policy.uploads):
            if folder.name in self.needed.batches:
                self.kept["needed by a job"] += 1
                continue
            self.add("upload", folder.name, _size(folder), age, self.policy.uploads, "uploads")

    def observations(self) -> None:
        """Whole days of the store; a day's age counts from its end."""
        found = []
        for folder in self.layout.observations.glob("date=*"):
            try:
                day = datetime.fromisoformat(folder.name.removeprefix("date=")).replace(tzinfo=UTC)
            except ValueError:
                continue
            found.append(((folder, day), day + _DAY))
        first = self.needed.observed_from
        for (folder, day), age in self.old(found, self.policy.observations):
            if first is not None and day + _DAY > first:
                self.kept["needed by a job"] += 1
                continue
            name, rule = folder.name.removeprefix("date="), self.policy.observations
            self.add("observations", name, _size(folder), age, rule, "observations")

    def logs(self) -> None:
        """Log files that were not written for long."""
        found = [(path, since) for path, since in _touched(self.layout.logs) if path.is_file()]
        for path, age in self.old(found, self.policy.logs):
            self.add("log", path.name, path.stat().st_size, age, self.policy.logs, "logs")


def make_plan(
    layout: Layout,
    policy: RetentionPolicy,
    needed: Needed,
    *,
    now: datetime | None = None,
    low: bool = False,
) -> RetentionPlan:
    """What the policy lets go now.

    Arguments:
        layout: The data folder.
        policy: Its rules.
        needed: What unfinished work needs.
        now: Operational present; asked from the clock when absent.
        low: Whether the disk is below its watermark.
    """
    planner = _Planner(
        layout, policy, needed, now or clock.now(), policy.shorten_when_low if low else 1.0
    )
    planner.analyses(_manifests(layout))
    planner.uploads()
    planner.observations()
    planner.logs()
    items = sorted(planner.items, key=lambda item: -item.age_days)
    return RetentionPlan(tuple(items), {k: n for k, n in planner.kept.items() if n})


def _manifests(layout: Layout) -> list[AnalysisManifest]:
    found = []
    for path in layout.analyses.glob("*/manifest.json"):
        try:
            found.append(read_manifest(layout, path.parent.name))
        except (AppaError, ValueError, OSError) as error:
            log.warning("manifest passed by", analysis=path.parent.name, reason=str(error)[:200])
    return found


def _by_time(manifests: Iterable[AnalysisManifest]) -> list[tuple[AnalysisManifest, datetime]]:
    return [(m, clock.operational(m.created)) for m in manifests]


def _restart_size(manifest: AnalysisManifest) -> int | None:
    sizes = [file.size for file in manifest.files if file.role == RESTART_ROLE]
    return sum(sizes) if sizes else None


def _touched(folder: Path) -> list[tuple[Path, datetime]]:
    """What lies in `folder`, and when it (or what lies in it) was last written."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        parts = [path, *path.iterdir()] if path.is_dir() else [path]
        try:
            stamp = max(part.stat().st_mtime for part in parts)
        except FileNotFoundError:
            continue
        found.append((path, clock.operational(datetime.fromtimestamp(stamp, UTC))))
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
