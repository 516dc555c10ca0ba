"""The plan: what would go and why, what stays although it is old, and why."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

import structlog

from model.domain.errors import AppaError
from worker.jobs import clock
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest, read_manifest
from worker.jobs.pins import is_pinned
from worker.retention.needed import Needed
from worker.retention.policy import RetentionPolicy, Rule, category

__all__ = ["RESTART_ROLE", "Item", "RetentionPlan", "make_plan"]

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
