"""Run cycles on an accelerated clock during an exercise, and read their outcome.

The operational clock advances some hours per minute, so that cycles fall due while faults are
injected. It starts at `NOON`; if the system takes longer to start, cycles begin at a later full hour.
"""

import io
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from lab.chaos.content import NOON
from lab.chaos.plan import ChaosPlan
from model.domain.windows import HOUR
from worker.contract.clock import Clock
from worker.contract.cycles import CYCLE_DONE, Flavour, cycle_key
from worker.contract.layout import Layout
from worker.cycling.policy import CyclePolicy

__all__ = [
    "CycleFound",
    "CycledResult",
    "arrival_margin",
    "cycle_found",
    "cycle_policy",
    "cycled_result",
    "due_keys",
    "fast_clock",
    "unended_cycles",
    "wait_for_noon",
    "write_policy",
]

_LEAD_SECONDS = 30.0
"""Start-up time of the system above which cycles begin at a later hour."""
_EARLY_MINUTES, _FINAL_MINUTES = 20, 60
_WINDOW_HOURS = 3


@dataclass(frozen=True)
class CycleFound:
    """Record of a cycle as the system returns it: its `CycleState`, newest job, result and message."""

    state: str
    job_id: str = ""
    analysis_id: str = ""
    message: str = ""


@dataclass(frozen=True)
class CycledResult:
    """Inputs of a published result of a cycle, from its manifest.

    Attributes:
        id: Of the result.
        key: Of its cycle.
        cut_off: Last arrival accepted (UTC).
        start, end: Of its window, exclusive and inclusive (UTC).
        seen: Uploads that its feedback names.
        used: Of these, the ones with a row that was not late.
        remark: The cycle's remark on how it was made.
    """

    id: str
    key: str
    cut_off: datetime
    start: datetime
    end: datetime
    seen: frozenset[str]
    used: frozenset[str]
    remark: str = ""

    @property
    def says_so(self) -> bool:
        """Return whether the cycle says that uploads may be missing from it."""
        return "may be missing" in self.remark


def fast_clock(plan: ChaosPlan) -> Clock:
    """Return the clock of an exercise that is about to start."""
    return Clock(NOON, time.time() + _LEAD_SECONDS, plan.speed)


def wait_for_noon(clock: Clock) -> datetime:
    """Wait until the clock shows `NOON`, or after that the next full hour; return what it shows."""
    steps = max(0, -((NOON - clock.at(time.time())) // HOUR))
    first = NOON + steps * HOUR
    time.sleep(max(0.0, (first - clock.at(time.time())).total_seconds() / clock.speed))
    return first


def cycle_policy(first: datetime, hours: int) -> CyclePolicy:
    """Return the policy: small hourly analyses, whose last cut-off is `hours` after the first."""
    return CyclePolicy.model_validate(
        {
            "start": first,
            "end": first + (hours - 1) * HOUR,
            "window_hours": _WINDOW_HOURS,
            "members": 2,
            "steps": 3,
            "outputs": ["netcdf", "feedback"],
            "early_cut_off_minutes": _EARLY_MINUTES,
            "final_cut_off_minutes": _FINAL_MINUTES,
            "ingest_grace_seconds": 60.0,
            "catch_up": {"max_age_hours": 10_000.0},
            "retries": 2,
        }
    )


def write_policy(layout: Layout, policy: CyclePolicy) -> None:
    """Put the policy where the scheduler of a running system finds it."""
    text = yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False)
    new = layout.cycles_file.with_name("cycles.yaml.new")
    new.write_text(text)
    new.replace(layout.cycles_file)


def due_keys(policy: CyclePolicy) -> tuple[str, ...]:
    """Return the keys of all cycles of a policy that has an end, in order."""
    end = policy.end or policy.start
    times = [policy.start + i * policy.step for i in range((end - policy.start) // policy.step + 1)]
    return tuple(cycle_key(valid_time, flavour) for valid_time in times for flavour in Flavour)


def cycle_found(record: Mapping[str, Any]) -> CycleFound:
    """Return the audited fields of a cycle's record from the gateway."""
    names = ("state", "job_id", "analysis_id", "message")
    return CycleFound(**{name: str(record[name]) for name in names})


def unended_cycles(due: Iterable[str], found: Mapping[str, CycleFound]) -> dict[str, int]:
    """Return the number of due cycles that have not ended, by state."""
    counts: dict[str, int] = {}
    for key in due:
        state = found[key].state if key in found else "absent"
        if state not in CYCLE_DONE:
            counts[f"cycles {state}"] = counts.get(f"cycles {state}", 0) + 1
    return counts


def cycled_result(result: Mapping[str, Any], feedback: bytes) -> CycledResult | None:
    """Return the inputs of a cycle's result; None for a result of no cycle.

    Arguments:
        result: Its record from the gateway.
        feedback: Its feedback table, Parquet.
    """
    about = result["cycle"]
    if "key" not in about:
        return None
    table = pq.read_table(io.BytesIO(feedback), columns=["batch_id", "rejected_by"])
    late = pc.fill_null(pc.equal(table["rejected_by"].cast("string"), "late"), False)
    in_time = table.filter(pc.invert(late))
    return CycledResult(
        id=result["id"],
        key=about["key"],
        cut_off=datetime.fromisoformat(result["cut_off"]),
        start=datetime.fromisoformat(result["window_start"]),
        end=datetime.fromisoformat(result["window_end"]),
        seen=frozenset(map(str, table["batch_id"].to_pylist())),
        used=frozenset(map(str, in_time["batch_id"].to_pylist())),
        remark=str(about.get("remark", "")),
    )


def arrival_margin(speed: float) -> timedelta:
    """Return the time before a cut-off by which an upload must have arrived to count as missing.

    The gateway timestamps an upload before it writes its record, and may be paused in between.
    """
    return timedelta(seconds=12.0 * speed)
