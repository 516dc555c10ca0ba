"""What a rehearsal does: its day, its network, and what goes wrong in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from model.osse.network import Network
from worker.jobs.cycle import Flavour
from worker.jobs.cycle_policy import CyclePolicy
from worker.jobs.layout import Layout

__all__ = [
    "DAY_NETWORK",
    "DAY_PARTS",
    "HOUR",
    "MINUTE",
    "QUICK_NETWORK",
    "QUICK_PARTS",
    "Outage",
    "Scenario",
    "day_scenario",
]

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)

DAY_NETWORK = Network(stations=400, sondes=80, scan_lines=20, aircraft=200, scatterometer_lines=20)
"""As in the demo: less than the network of the skill tests, so that a day ends in half an hour."""

DAY_PARTS = {
    "synop": 3,
    "ship": 1,
    "aircraft": 2,
    "temp": 2,
    "scatterometer": 1,
    "satellite": 2,
}
"""Files an hour by network."""

QUICK_NETWORK = Network(stations=40, ships=4, sondes=4, scan_lines=4)
QUICK_PARTS = {"synop": 2, "satellite": 1}
"""Enough to count by."""


@dataclass(frozen=True)
class Outage:
    """Everything is killed at `start` and started again at `end` (UTC)."""

    start: datetime
    end: datetime

    def __contains__(self, time: datetime) -> bool:
        return self.start <= time < self.end


@dataclass(frozen=True)
class Scenario:
    """One rehearsal. Hours are counted from the first cycle, which is hour 0.

    Attributes:
        start: Valid time of the first cycle (UTC).
        hours: Cycles, one an hour.
        checkpoint: Name or folder of what the model workers load.
        world: Checkpoint whose simulated truth is observed.
        truth: A store of states instead of that checkpoint's case.
        network: What observes.
        parts: Files an hour by network; one that is not named sends none.
        window_hours: Of each analysis.
        members: Of each analysis.
        steps: Diffusion steps; None for the checkpoint's own.
        early, final: Cut-offs in minutes after the valid time.
        warm_start: As in the policy.
        background_max_age_hours: As in the policy.
        silent_hour: Nobody observes anything in it; None for no such hour.
        copied_hour: Two of its deliveries come twice; None for none.
        outage_hours: First and last moment of the outage, in hours from the start; None for none.
        kills: When a model worker is killed, in hours from the start.
        schedulers, model_workers: How many of each run.
        guard_minutes: No delivery is planned so close to a cut-off: who wins such a race proves
            nothing.
        settle_hours: Analyses before this hour still gather their first window.
        seed: Of delays and observation errors.
        checks: Changed parameters of quality control.
    """

    start: datetime = datetime(2003, 10, 1, 6, tzinfo=UTC)
    hours: int = 24
    checkpoint: str = "appa-t31"
    world: str = "appa-t31"
    truth: str | None = None
    network: Network = field(default_factory=lambda: DAY_NETWORK)
    parts: Mapping[str, int] = field(default_factory=lambda: DAY_PARTS)
    window_hours: int = 24
    members: int = 4
    steps: int | None = None
    early: float = 55.0
    final: float = 175.0
    warm_start: bool = True
    background_max_age_hours: int = 6
    silent_hour: int | None = 7
    copied_hour: int | None = 4
    outage_hours: tuple[float, float] | None = (11.3, 13.3)
    kills: tuple[float, ...] = ()
    schedulers: int = 1
    model_workers: int = 1
    guard_minutes: float = 4.0
    settle_hours: int = 6
    seed: int = 0
    checks: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def cycles(self) -> tuple[datetime, ...]:
        """Valid times of all cycles."""
        return tuple(self.start + i * HOUR for i in range(self.hours))

    @property
    def outage(self) -> Outage | None:
        """When nothing runs."""
        if self.outage_hours is None:
            return None
        first, last = self.outage_hours
        return Outage(self.start + first * HOUR, self.start + last * HOUR)

    def hour(self, number: int | None) -> datetime | None:
        """Valid time of a numbered hour."""
        return None if number is None else self.start + number * HOUR

    def cut_off(self, valid_time: datetime, flavour: str) -> datetime:
        """Last arrival that an analysis may use, as the scenario means it."""
        return valid_time + (self.early if flavour == Flavour.EARLY else self.final) * MINUTE

    @property
    def end(self) -> datetime:
        """The last cut-off."""
        return self.cut_off(self.cycles[-1], Flavour.FINAL)

    def speed_for(self, job_seconds: float) -> float:
        """How fast the clock may run: an hour lasts as long as its two analyses, and a bit."""
        return 3600.0 / (2.0 * job_seconds * 1.15)

    def policy(self) -> CyclePolicy:
        """What the installation is told in `cycles.yaml`."""
        return CyclePolicy.model_validate(
            {
                "start": self.start,
                "end": self.cycles[-1],
                "window_hours": self.window_hours,
                "members": self.members,
                "steps": self.steps,
                "outputs": ["netcdf", "feedback"],
                "early_cut_off_minutes": self.early,
                "final_cut_off_minutes": self.final,
                "catch_up": {"at_once": self.model_workers},
                "warm_start": self.warm_start,
                "background_max_age_hours": self.background_max_age_hours,
                "seed": self.seed,
                "retries": 2,
            }
        )

    def configure(self, layout: Layout) -> None:
        """Writes the policy, and checks that differ, into the data folder."""
        policy = self.policy().model_dump(mode="json")
        layout.cycles_file.write_text(yaml.safe_dump(policy, sort_keys=False))
        if self.checks:
            checks = {name: dict(values) for name, values in self.checks.items()}
            (layout.root / "checks.yaml").write_text(yaml.safe_dump(checks))


def day_scenario(
    hours: int, *, outage: bool = True, doubled: bool = False, **values: Any
) -> Scenario:
    """The usual day, scaled to `hours`: silence, copies, an outage in the middle, two kills.

    Arguments:
        hours: Cycles.
        outage: Whether everything is killed for two hours.
        doubled: Whether two schedulers and two model workers run, one of which is killed twice.
        values: Further fields of the scenario.
    """
    middle = max(round(0.47 * hours), 1) + 0.3
    return Scenario(
        hours=hours,
        silent_hour=round(0.3 * hours),
        copied_hour=round(0.17 * hours),
        outage_hours=(middle, middle + 2.0) if outage else None,
        kills=(0.13 * hours, 0.7 * hours) if doubled else (),
        schedulers=2 if doubled else 1,
        model_workers=2 if doubled else 1,
        settle_hours=max(hours // 4, 1),
        **values,
    )
