"""Describe a rehearsal: its day, network and faults, and when each file is sent.

Delays of reports are drawn from a distribution for each network.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import yaml
from numpy.random import Generator

from lab.osse.network import Network
from model.domain.windows import HOUR
from worker.contract.cycles import Flavour
from worker.contract.layout import Layout
from worker.cycling.policy import CyclePolicy

__all__ = [
    "DAY_NETWORK",
    "DAY_PARTS",
    "DELAYS",
    "MINUTE",
    "Outage",
    "PlannedDelivery",
    "QUICK_NETWORK",
    "QUICK_PARTS",
    "Scenario",
    "day_scenario",
    "delay_minutes",
    "delivery_plan",
]

MINUTE = timedelta(minutes=1)

DAY_NETWORK = Network(stations=400, sondes=80, scan_lines=20, aircraft=200, scatterometer_lines=20)
"""As in the demo: smaller than in the skill tests, so that a day ends in half an hour."""

DAY_PARTS = {
    "synop": 4,
    "ship": 1,
    "aircraft": 2,
    "temp": 3,
    "scatterometer": 1,
    "satellite": 3,
    "radiances": 4,
    "buoy": 1,
    "drifter": 1,
    "amv": 1,
    "pilot": 1,
    "gridded": 1,
}
"""Files an hour by network. Buoys are some of the ships, satellite winds some of the aircraft, pilot
balloons some of the sondes."""

QUICK_NETWORK = Network(stations=40, ships=4, sondes=4, scan_lines=4)
QUICK_PARTS = {"synop": 2, "satellite": 1}
"""A minimal network: enough for checks that count observations."""


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
        network: The simulated observing network.
        parts: Files an hour by network; one that is not named sends none.
        window_hours: Of each analysis.
        members: Of each analysis.
        steps: Diffusion steps; None for the checkpoint's own.
        early, final: Cut-offs in minutes after the valid time.
        warm_start: As in the policy.
        background_max_age_hours: As in the policy.
        silent_hour: Hour without observations; None for none.
        copied_hour: Hour in which two deliveries come twice; None for none.
        outage_hours: First and last moment of the outage, in hours from the start; None for none.
        kills: When a model worker is killed, in hours from the start.
        schedulers, model_workers: How many of each run.
        guard_minutes: No delivery is planned closer to a cut-off, as the outcome of such a race is
            undetermined.
        settle_hours: Analyses before this hour have an incomplete window.
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
        """Return the valid times of all cycles, in order."""
        return tuple(self.start + i * HOUR for i in range(self.hours))

    @property
    def outage(self) -> Outage | None:
        """Return the period in which nothing runs, if there is one."""
        if self.outage_hours is None:
            return None
        first, last = self.outage_hours
        return Outage(self.start + first * HOUR, self.start + last * HOUR)

    def hour(self, number: int | None) -> datetime | None:
        """Return the valid time of a numbered hour."""
        return None if number is None else self.start + number * HOUR

    def cut_off(self, valid_time: datetime, flavour: str) -> datetime:
        """Return the last arrival that an analysis may use."""
        return valid_time + (self.early if flavour == Flavour.EARLY else self.final) * MINUTE

    @property
    def end(self) -> datetime:
        """Return the last cut-off of the day (UTC)."""
        return self.cut_off(self.cycles[-1], Flavour.FINAL)

    def speed_for(self, job_seconds: float) -> float:
        """Return the speed of the clock at which an hour lasts 15 % longer than its two analyses."""
        return 3600.0 / (2.0 * job_seconds * 1.15)

    def policy(self) -> CyclePolicy:
        """Return the policy for the installation's `cycles.yaml`."""
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
        """Write the policy, and changed parameters of checks, to the data folder."""
        policy = self.policy().model_dump(mode="json")
        layout.cycles_file.write_text(yaml.safe_dump(policy, sort_keys=False))
        if self.checks:
            checks = {name: dict(values) for name, values in self.checks.items()}
            (layout.root / "checks.yaml").write_text(yaml.safe_dump(checks))


def day_scenario(
    hours: int, *, outage: bool = True, doubled: bool = False, **values: Any
) -> Scenario:
    """Return the usual day, scaled to `hours`: silence, copies, an outage in the middle, two kills.

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


def _minutes(median: float, shape: float, low: float, high: float) -> Callable[[Generator], float]:
    """Return a log-normal distribution of minutes around a median, clipped to limits."""

    def draw(rng: Generator) -> float:
        return min(max(median * rng.lognormal(0.0, shape), low), high)

    return draw


def _sonde(rng: Generator) -> float:
    return rng.uniform(60.0, 100.0)


def _overpass(rng: Generator) -> float:
    """Draw 30 to 120 minutes, most in the first half; one in twelve waits for another pass."""
    tail = rng.exponential(90.0) if rng.random() < 1 / 12 else 0.0
    return 30.0 + 90.0 * rng.beta(2.0, 3.0) + tail


DELAYS: dict[str, Callable[[Generator], float]] = {
    "synop": _minutes(9.0, 0.5, 3.0, 45.0),
    "ship": _minutes(15.0, 0.5, 5.0, 55.0),
    "aircraft": _minutes(12.0, 0.5, 3.0, 50.0),
    "temp": _sonde,
    "scatterometer": _overpass,
    "satellite": _overpass,
    "radiances": _overpass,
    "buoy": _minutes(15.0, 0.5, 5.0, 55.0),
    "drifter": _minutes(20.0, 0.5, 5.0, 55.0),
    "amv": _overpass,
    "pilot": _sonde,
    "gridded": _minutes(40.0, 0.3, 20.0, 54.0),
}
"""Minutes after the hour that the reports belong to."""


def delay_minutes(network: str, rng: Generator) -> float:
    """Draw the delay of one delivery in minutes."""
    return float(DELAYS[network](rng))


LAUNCHES = (0, 12)
HELD_LATE, HELD_TOO_LATE = 3, 5
"""Hours between files that miss the early cut-off, and between files that miss the final one."""


@dataclass(frozen=True)
class PlannedDelivery:
    """One file that a sender sends once.

    Attributes:
        name: Unique, for people.
        network: Report type of all its reports; radiances are of `satellite`.
        hour: Full hour (UTC) that ends the hour its reports belong to.
        part, parts: Which of how many files of the hour.
        arrival: When the sender sends it (UTC).
        copy_of: Name of the delivery whose reports it repeats; empty for none.
        same_bytes: Whether that file is repeated byte for byte; else its reports are encoded anew.
    """

    name: str
    network: str
    hour: datetime
    part: int
    parts: int
    arrival: datetime
    copy_of: str = ""
    same_bytes: bool = False


def delivery_plan(scenario: Scenario) -> tuple[PlannedDelivery, ...]:
    """Return all deliveries of the day, in the order of their sending."""
    found = [d for number in range(scenario.hours) for d in _of_hour(scenario, number)]
    return tuple(sorted(found, key=lambda d: (d.arrival, d.name)))


def _networks(scenario: Scenario, hour: datetime) -> list[str]:
    network = scenario.network
    reporting = {
        "synop": network.stations,
        "ship": network.ships,
        "aircraft": network.aircraft,
        "temp": network.sondes if hour.hour in LAUNCHES else 0,
        "scatterometer": network.scatterometer_lines,
        "satellite": network.scan_lines,
        "radiances": network.scan_lines,
        "buoy": network.ships,
        "drifter": network.ships,
        "amv": network.aircraft,
        "pilot": network.sondes if hour.hour in LAUNCHES else 0,
        "gridded": 1,
    }
    return [name for name, count in reporting.items() if count and name in scenario.parts]


def _of_hour(scenario: Scenario, number: int) -> Iterator[PlannedDelivery]:
    hour = scenario.start + number * HOUR
    if number == scenario.silent_hour:
        return
    for network in _networks(scenario, hour):
        parts = scenario.parts[network]
        for part in range(parts):
            # One generator per file: more networks or hours do not change other files.
            place = (scenario.seed, number, list(DELAYS).index(network), part)
            rng = np.random.default_rng(place)
            minutes = delay_minutes(network, rng)
            minutes = _held_up(scenario, number, network, part, minutes, rng)
            arrival = _clear_of_cut_offs(scenario, hour + minutes * MINUTE)
            name = f"{hour:%Y%m%dT%H}-{network}-{part}"
            delivery = PlannedDelivery(name, network, hour, part, parts, arrival)
            yield delivery
            if number == scenario.copied_hour and network == "synop" and part < 2:
                yield _again(scenario, delivery)


def _held_up(
    scenario: Scenario,
    number: int,
    network: str,
    part: int,
    minutes: float,
    rng: np.random.Generator,
) -> float:
    last = part == scenario.parts[network] - 1
    if network != "synop" or not last or number == scenario.copied_hour:
        return minutes
    if number % HELD_TOO_LATE == 2:
        return scenario.final + rng.uniform(15.0, 90.0)
    if number % HELD_LATE == 1:
        return rng.uniform(scenario.early + 10.0, scenario.final - 10.0)
    return minutes


def _again(scenario: Scenario, delivery: PlannedDelivery) -> PlannedDelivery:
    """Return a repeated delivery: part 0 with the same bytes, part 1 encoded differently."""
    same = delivery.part == 0
    return replace(
        delivery,
        name=f"{delivery.name}-{'again' if same else 'resent'}",
        arrival=_clear_of_cut_offs(scenario, delivery.arrival + 6.0 * MINUTE),
        copy_of=delivery.name,
        same_bytes=same,
    )


def _clear_of_cut_offs(scenario: Scenario, arrival: datetime) -> datetime:
    """Return the arrival, moved behind any cut-off that it comes too close to.

    Cut-offs recur every hour at the same minutes.
    """
    guard = scenario.guard_minutes * MINUTE
    for _ in range(3):  # moving away from one may come close to the other
        for cut_off in (scenario.early, scenario.final):
            since = (arrival - scenario.start - cut_off * MINUTE) % HOUR
            if since < guard:
                arrival += guard - since
            elif HOUR - since < guard:
                arrival += HOUR - since + guard
    return arrival.replace(microsecond=0) + timedelta(seconds=1)
