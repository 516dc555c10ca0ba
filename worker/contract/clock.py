"""Read the operational clock, by which arrival times, cut-offs and cycles are measured.

It shows real time unless `APPA_CLOCK` says otherwise:

    APPA_CLOCK="2003-10-01T00:00:00Z@1760000000x600"

means that it was 2003-10-01 00 UTC when the real clock showed 1760000000 s, and that it runs 600
times as fast. All processes with the same value share one clock, so that a day of cycles can be
rehearsed in minutes. Leases, timeouts and log lines use real time.
"""

import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from model.domain.errors import ConfigurationError

__all__ = ["CLOCK_VARIABLE", "Clock", "clock_text", "now", "operational", "speed"]

CLOCK_VARIABLE = "APPA_CLOCK"
_FORM = re.compile(r"(?P<epoch>[^@]+)@(?P<anchor>\d+(\.\d+)?)x(?P<speed>\d+(\.\d+)?)")


@dataclass(frozen=True)
class Clock:
    """A clock that showed `epoch` at real time `anchor` (s since 1970) and runs `speed` times."""

    epoch: datetime
    anchor: float
    speed: float

    def at(self, seconds: float) -> datetime:
        """Return what it shows at real time `seconds` since 1970."""
        return self.epoch + timedelta(seconds=self.speed * (seconds - self.anchor))


_REAL = Clock(datetime(1970, 1, 1, tzinfo=UTC), 0.0, 1.0)


@lru_cache(maxsize=8)
def _parse(text: str) -> Clock:
    form = _FORM.fullmatch(text)
    try:
        if form is None or not float(form["speed"]) > 0.0:
            raise ValueError
        epoch = datetime.fromisoformat(form["epoch"])
    except ValueError:
        raise ConfigurationError(
            f"Expected {CLOCK_VARIABLE} as '<UTC time>@<real seconds since 1970>x<speed>', such as "
            f"'2003-10-01T00:00:00Z@1760000000x600'; got {text!r}. Unset it for the real time."
        ) from None
    epoch = epoch.replace(tzinfo=UTC) if epoch.tzinfo is None else epoch.astimezone(UTC)
    return Clock(epoch, float(form["anchor"]), float(form["speed"]))


def _clock() -> Clock:
    text = os.environ.get(CLOCK_VARIABLE, "")
    return _parse(text) if text else _REAL


def now() -> datetime:
    """Return the operational present (aware, UTC)."""
    return datetime.now(UTC) if not os.environ.get(CLOCK_VARIABLE) else _clock().at(time.time())


def operational(real: datetime) -> datetime:
    """Return what the operational clock showed at the real time `real` (aware)."""
    return _clock().at(real.timestamp())


def speed() -> float:
    """Return the operational seconds in a real one: 1 unless the clock is accelerated."""
    return _clock().speed


def clock_text(epoch: datetime, anchor: float, speed: float) -> str:
    """Return the value of `APPA_CLOCK` that sets such a clock; see `Clock`."""
    return f"{epoch.astimezone(UTC).isoformat().replace('+00:00', 'Z')}@{anchor}x{speed}"
