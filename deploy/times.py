"""Times as people type them: `2003-10-01T06`, `20031001T06`, with or without a zone; UTC."""

from datetime import UTC, datetime

import typer

__all__ = ["utc_time"]


def utc_time(text: str) -> datetime:
    """The time, in UTC; one without a zone is read as UTC.

    Raises:
        BadParameter: If it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"Expected a time such as 2003-10-01T06; got '{text}'.") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
