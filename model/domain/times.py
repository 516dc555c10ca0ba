"""Read times as files and people write them, in ISO 8601.

A leap second (`23:59:60`) is the second that follows it, as in BUFR: neither Python nor numpy can hold it.
"""

import re
from datetime import UTC, datetime, timedelta

__all__ = ["LEAP_SECOND", "read_time"]

LEAP_SECOND = re.compile(r"([Tt_ ]\d\d:?\d\d:?)60(?!\d)")
"""Finds second 60 of a date and a clock; the group is what comes before it."""


def read_time(text: str) -> datetime:
    """Return the time in UTC that `text` names; one without a zone is read as UTC.

    Raises:
        ValueError: If it is no time, or one that Python cannot hold.
    """
    earlier, found = LEAP_SECOND.subn(r"\g<1>59", text, count=1)
    try:
        time = datetime.fromisoformat(earlier) + timedelta(seconds=found)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"'{text}' is beyond the calendar") from None
