"""Meteorological seasons."""

from datetime import UTC, datetime

__all__ = ["SEASONS", "season"]

SEASONS = ("DJF", "MAM", "JJA", "SON")
"""Named by their months, northern winter first."""


def season(time: datetime) -> str:
    """The season of a time (UTC)."""
    return SEASONS[time.astimezone(UTC).month % 12 // 3]
