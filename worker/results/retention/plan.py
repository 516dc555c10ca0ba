"""Plan retention: what to delete, what old items to keep, and the reasons.

The policy is `retention.yaml` in the data folder; without it the defaults below apply. Ages count
from the end of a result, the arrival of an upload, the last line of a log, by the operational clock. A
rule without `days` keeps everything; its `keep` newest items stay whatever their age, so that a system
that was down for a month does not delete its last analyses. Inputs of queued and running work are
never deleted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.domain.files import read_yaml_model
from worker.contract import clock
from worker.contract.batches import BatchState
from worker.contract.jobs import JobRecord, JobState
from worker.contract.kinds import KINDS, JobKind
from worker.contract.layout import Layout
from worker.contract.store import Stores
from worker.contract.uploads import upload_store
from worker.observations.store.files import StoreFiles
from worker.results.catalogue import Catalogue
from worker.results.entries import Entry
from worker.results.manifest import is_pinned
from worker.results.store import result_store

__all__ = [
    "AnalysisRules",
    "CompactionRule",
    "RetentionItem",
    "InUse",
    "RetentionPlan",
    "RetentionPolicy",
    "Rule",
    "category",
    "find_in_use",
    "make_plan",
    "read_policy",
]


class _PolicyPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_PolicyPart):
    """Retention period of results, uploads or files of one category."""

    days: float | None = Field(default=None, ge=0, description="Null: for ever.")
    keep: int = Field(default=0, ge=0, description="The newest so many stay whatever their age.")


class AnalysisRules(BaseModel):
    """Published results by category: those of the cycles by flavour, the others by kind of job.

    A kind that no rule names is kept as long as its `JobKind` says.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Rule] = Field(init=False)

    early: Rule = Field(default=Rule(days=7, keep=48), description="Early analyses of the cycles.")
    final: Rule = Field(default=Rule(days=90, keep=48), description="Final analyses of the cycles.")
    challenger: Rule = Field(
        default=Rule(days=7, keep=24), description="Analyses of suites on trial."
    )
    manual: Rule = Field(
        default_factory=lambda: next(_rule(k) for k in KINDS.values() if k.cycled),
        description="Analyses outside the cycles.",
    )

    @model_validator(mode="after")
    def _of_known_kinds(self) -> Self:
        known = {name: kind for name, kind in KINDS.items() if not kind.cycled}
        if unknown := sorted(set(self.__pydantic_extra__) - set(known)):
            names = ", ".join((*type(self).model_fields, *known))
            raise ValueError(f"Expected rules for some of {names}; got {', '.join(unknown)}.")
        for name, kind in known.items():
            self.__pydantic_extra__.setdefault(name, _rule(kind))
        return self

    def rule(self, name: str) -> Rule:
        """Return the rule of a category of results."""
        rule: Rule = getattr(self, name)
        return rule


def _rule(kind: JobKind) -> Rule:
    """Return the default rule of a kind."""
    return Rule(days=kind.keep_days, keep=kind.keep_newest)


class CompactionRule(_PolicyPart):
    """Merging of the small files of an hour of the observation store."""

    after_hours: float = Field(default=6.0, ge=0, description="Hours younger than this wait.")
    look_back_hours: float = Field(default=168.0, gt=0, description="Older hours are left alone.")
    least_files: int = Field(default=4, ge=2, description="Hours with fewer files are left alone.")
    new_files: int = Field(
        default=24, ge=2, description="Hours of any age that gained so many files are merged now."
    )
    every_minutes: float = Field(default=60.0, gt=0, description="Pause between runs.")


class RetentionPolicy(_PolicyPart):
    """Retention periods of an installation: the content of `retention.yaml`."""

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
    records: Rule = Field(
        default=Rule(days=90),
        description="What is told of uploads, jobs and cycles that ended; while it is kept, an "
        "upload that comes again is recognised.",
    )
    logs: Rule = Field(default=Rule(days=30), description="Log files nobody writes any more.")
    shorten_when_low: float = Field(
        default=1.0, gt=0, le=1, description="Ages are multiplied by this while the disk is low."
    )
    every_minutes: float = Field(default=5.0, gt=0, description="Pause between runs.")
    compaction: CompactionRule | None = Field(default=CompactionRule(), description="Null: never.")


def category(entry: Entry) -> str:
    """Return the name of the rule that applies to a result."""
    return KINDS[entry.kind].retention_class(entry.flavour)


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
"""Maximum time from the start of a window to its reference time."""


@dataclass(frozen=True)
class InUse:
    """Unfinished jobs and uploads, whose inputs must be kept.

    Attributes:
        jobs: Unfinished jobs.
        batches: Ids of unfinished uploads, and of those that jobs name.
    """

    jobs: tuple[JobRecord, ...] = ()
    batches: frozenset[str] = field(default_factory=frozenset)

    def needs_result(self, entry: Entry) -> bool:
        """Return whether a job may take its background from this result."""
        return any(_may_continue(job, entry) for job in self.jobs)

    @property
    def observed_from(self) -> datetime | None:
        """Return the earliest time whose observations a job may read; None without jobs."""
        starts = [job.spec.reference_time - _WINDOW for job in self.jobs]
        return min(starts, default=None)


def _may_continue(job: JobRecord, entry: Entry) -> bool:
    """Return whether a job may continue a result, by time; it chooses one only when it starts."""
    spec = job.spec
    if spec.continues is not None:
        return spec.continues == entry.id
    first = spec.first_guess_until - spec.first_guess_age
    return first <= entry.last_time <= spec.first_guess_until


def find_in_use(stores: Stores) -> InUse:
    """Return unfinished jobs and uploads from the job store.

    Raises:
        RedisError: If it does not respond; then nothing may be deleted.
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
    return InUse(tuple(jobs), frozenset((*named, *waiting)))


What = Literal["analysis", "restart", "upload", "observations", "log"]
_DAY = timedelta(days=1)
T = TypeVar("T")


@dataclass(frozen=True)
class RetentionItem:
    """A result, upload, day of observations or file to remove.

    Attributes:
        what: Type of item.
        name: Id of the result or upload, date of observations, file name of a log.
        size: Bytes freed.
        age_days: Age by the operational clock, in days.
        reason: The rule by which it is removed.
    """

    what: What
    name: str
    size: int
    age_days: float
    reason: str


@dataclass(frozen=True)
class RetentionPlan:
    """Items to remove, oldest first, and the numbers of old items that are kept, by reason."""

    items: tuple[RetentionItem, ...]
    kept: dict[str, int]

    @property
    def size(self) -> int:
        """Return the number of bytes that would be freed."""
        return sum(item.size for item in self.items)


class _Planner:
    def __init__(
        self, layout: Layout, policy: RetentionPolicy, in_use: InUse, now: datetime, shorten: float
    ) -> None:
        self.layout, self.policy, self.in_use = layout, policy, in_use
        self.now, self.shorten = now, shorten
        self.items: list[RetentionItem] = []
        self.kept: Counter[str] = Counter()

    def old(self, found: Iterable[tuple[T, datetime]], rule: Rule) -> list[tuple[T, float]]:
        """Return items older than a rule allows and not among its newest, with ages in days."""
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
            RetentionItem(what, name, size, round(age, 3), f"{sort}: older than {limit:g} days")
        )

    def analyses(self, entries: Sequence[Entry]) -> None:
        """Add results, and old restart files of results that are kept."""
        going: set[str] = set()
        for sort in sorted({category(e) for e in entries}):
            rule = self.policy.analyses.rule(sort)
            members = [e for e in entries if category(e) == sort]
            for entry, age in self.old(_by_time(members), rule):
                if self._stays(entry):
                    continue
                going.add(entry.id)
                size = result_store(self.layout).size(entry.id)
                self.add("analysis", entry.id, size, age, rule, sort)
        staying = [e for e in entries if e.id not in going and e.restart_bytes is not None]
        for entry, age in self.old(_by_time(staying), self.policy.restarts):
            if not self._stays(entry):
                size = entry.restart_bytes or 0
                self.add("restart", entry.id, size, age, self.policy.restarts, "restarts")

    def _stays(self, entry: Entry) -> bool:
        if is_pinned(self.layout, entry.id):
            self.kept["pinned"] += 1
        elif self.in_use.needs_result(entry):
            self.kept["needed by a job"] += 1
        else:
            return False
        return True

    def uploads(self) -> None:
        """Add old uploads whose rows are in the observation store."""
        rule = self.policy.uploads
        if rule.days is None:
            return
        # only a rule with `keep` needs the newer ones
        until = None if rule.keep else self.now - timedelta(days=rule.days * self.shorten)
        kept = upload_store(self.layout).kept(until)
        found = [(upload, clock.operational(upload.written)) for upload in kept]
        for upload, age in self.old(found, rule):
            if upload.id in self.in_use.batches:
                self.kept["needed by a job"] += 1
                continue
            self.add("upload", upload.id, upload.size, age, rule, "uploads")

    def observations(self) -> None:
        """Add whole days of the observation store; a day's age counts from its end."""
        files, rule = StoreFiles.of(self.layout), self.policy.observations
        if rule.days is None:
            return
        found = [(day, day + _DAY) for day in files.days()]
        first = self.in_use.observed_from
        for day, age in self.old(found, rule):
            if first is not None and day + _DAY > first:
                self.kept["needed by a job"] += 1
                continue
            name, size = f"{day:%Y-%m-%d}", files.day_bytes(day)
            self.add("observations", name, size, age, rule, "observations")

    def logs(self) -> None:
        """Add old log files that are no longer written."""
        found = [(path, since) for path, since in _touched(self.layout.logs) if path.is_file()]
        for path, age in self.old(found, self.policy.logs):
            self.add("log", path.name, path.stat().st_size, age, self.policy.logs, "logs")


def make_plan(
    layout: Layout,
    policy: RetentionPolicy,
    in_use: InUse,
    *,
    now: datetime | None = None,
    low: bool = False,
) -> RetentionPlan:
    """Return what is to be removed now by the policy.

    Arguments:
        layout: The data folder.
        policy: Its rules.
        in_use: Unfinished work, whose inputs are kept.
        now: Operational present; by default from the clock.
        low: Whether the disk is below its watermark.
    """
    planner = _Planner(
        layout, policy, in_use, now or clock.now(), policy.shorten_when_low if low else 1.0
    )
    with Catalogue(layout) as catalogue:
        planner.analyses(catalogue.entries())
    planner.uploads()
    planner.observations()
    planner.logs()
    items = sorted(planner.items, key=lambda item: -item.age_days)
    return RetentionPlan(tuple(items), {k: n for k, n in planner.kept.items() if n})


def _by_time(entries: Iterable[Entry]) -> list[tuple[Entry, datetime]]:
    return [(entry, clock.operational(entry.created)) for entry in entries]


def _touched(folder: Path) -> list[tuple[Path, datetime]]:
    """Return the content of `folder`, with the times (UTC) at which it was last written."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        parts = [path, *path.iterdir()] if path.is_dir() else [path]
        try:
            stamp = max(part.stat().st_mtime for part in parts)
        except FileNotFoundError:
            continue
        found.append((path, clock.operational(datetime.fromtimestamp(stamp, UTC))))
    return found
