"""The delivery plan: which file of reports is sent when.

Pure and seeded: the same scenario gives the same plan. Each hour of each network comes in a few
files, as bulletins do, each with a delay of its own. Some are held up on the way: past the early
cut-off, or past the final one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from deploy.rehearsal.delays import DELAYS, delay_minutes
from deploy.rehearsal.scenario import HOUR, MINUTE, Scenario

__all__ = ["Delivery", "delivery_plan"]

LAUNCHES = (0, 12)
HELD_LATE, HELD_TOO_LATE = 3, 5
"""Every so many hours a file misses the early cut-off, and another one the final cut-off."""


@dataclass(frozen=True)
class Delivery:
    """One file that a sender sends once.

    Attributes:
        name: Unique, for people.
        network: Report type of all its reports.
        hour: Full hour (UTC) that ends the hour its reports belong to.
        part, parts: Which of how many files of the hour.
        arrival: When the sender sends it (UTC).
        copy_of: Name of the delivery whose reports it repeats; empty for none.
        same_bytes: Whether that file is repeated as it was; else the same reports come in another.
    """

    name: str
    network: str
    hour: datetime
    part: int
    parts: int
    arrival: datetime
    copy_of: str = ""
    same_bytes: bool = False


def delivery_plan(scenario: Scenario) -> tuple[Delivery, ...]:
    """All deliveries of the day, in the order of their sending."""
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
    }
    return [name for name, count in reporting.items() if count and name in scenario.parts]


def _of_hour(scenario: Scenario, number: int) -> Iterator[Delivery]:
    hour = scenario.start + number * HOUR
    if number == scenario.silent_hour:
        return
    for network in _networks(scenario, hour):
        parts = scenario.parts[network]
        for part in range(parts):
            # Each file has a generator of its own: more networks or hours change no other file.
            place = (scenario.seed, number, list(DELAYS).index(network), part)
            rng = np.random.default_rng(place)
            minutes = delay_minutes(network, rng)
            minutes = _held_up(scenario, number, network, part, minutes, rng)
            arrival = _clear_of_cut_offs(scenario, hour + minutes * MINUTE)
            name = f"{hour:%Y%m%dT%H}-{network}-{part}"
            delivery = Delivery(name, network, hour, part, parts, arrival)
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


def _again(scenario: Scenario, delivery: Delivery) -> Delivery:
    """Part 0 as it was, part 1 in another file."""
    same = delivery.part == 0
    return replace(
        delivery,
        name=f"{delivery.name}-{'again' if same else 'resent'}",
        arrival=_clear_of_cut_offs(scenario, delivery.arrival + 6.0 * MINUTE),
        copy_of=delivery.name,
        same_bytes=same,
    )


def _clear_of_cut_offs(scenario: Scenario, arrival: datetime) -> datetime:
    """The arrival, moved behind any cut-off that it comes too close to.

    Cut-offs recur every hour at the same minutes.
    """
    guard = scenario.guard_minutes * MINUTE
    for _ in range(3):  # leaving one may meet the other
        for cut_off in (scenario.early, scenario.final):
            since = (arrival - scenario.start - cut_off * MINUTE) % HOUR
            if since < guard:
                arrival += guard - since
            elif HOUR - since < guard:
                arrival += HOUR - since + guard
    return arrival.replace(microsecond=0) + timedelta(seconds=1)
