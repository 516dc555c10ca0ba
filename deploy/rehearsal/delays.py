"""How long reports take to arrive, by network.

Shapes after what centres report of their receipt: surface reports come within minutes, ascents once
the balloon is up, satellite data when the next ground station is in sight, with a long tail.
"""

from collections.abc import Callable

from numpy.random import Generator

__all__ = ["DELAYS", "delay_minutes"]


def _minutes(median: float, shape: float, low: float, high: float) -> Callable[[Generator], float]:
    """Log-normal around a median, within limits."""

    def draw(rng: Generator) -> float:
        return min(max(median * rng.lognormal(0.0, shape), low), high)

    return draw


def _sonde(rng: Generator) -> float:
    return rng.uniform(60.0, 100.0)


def _overpass(rng: Generator) -> float:
    """30 to 120 minutes, most of them in the first half; one in twelve waits for another pass."""
    tail = rng.exponential(90.0) if rng.random() < 1 / 12 else 0.0
    return 30.0 + 90.0 * rng.beta(2.0, 3.0) + tail


DELAYS: dict[str, Callable[[Generator], float]] = {
    "synop": _minutes(9.0, 0.5, 3.0, 45.0),
    "ship": _minutes(15.0, 0.5, 5.0, 55.0),
    "aircraft": _minutes(12.0, 0.5, 3.0, 50.0),
    "temp": _sonde,
    "scatterometer": _overpass,
    "satellite": _overpass,
}
"""Minutes after the hour that the reports belong to."""


def delay_minutes(network: str, rng: Generator) -> float:
    """One draw."""
    return float(DELAYS[network](rng))
