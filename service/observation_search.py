"""From query parameters to a question to the observation store."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from model.domain.errors import InvalidInput
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.names import check_known
from worker.jobs.observation_query import ObservationQuery

EARLIEST, LATEST = 1700, 2200
"""Years; the store counts nanoseconds since 1970 in 64 bits."""

KNOWN: dict[str, tuple[str, Collection[str]]] = {
    "variables": ("variables", VARIABLES),
    "report_types": ("networks", REPORT_TYPES),
    "rejected_by": ("rejected_by", QC_FLAGS),
    "columns": ("columns", OBSERVATION_SCHEMA.names),
}
"""Fields whose names are checked: what the parameter is called, and what is known."""


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Values given several times, with commas between, or both."""
    parts = (part.strip() for text in given or () for part in text.split(","))
    return tuple(part for part in parts if part)


def _box(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"Expected 'west,south,east,north' in degrees; got '{text[:80]}'.", field="box"
        ) from None
    if not all(abs(part) <= 360.0 for part in (west, south, east, north)):  # also refuses NaN
        raise InvalidInput(f"Expected degrees of at most 360; got '{text[:80]}'.", field="box")
    if not -90.0 <= south <= north <= 90.0:
        raise InvalidInput(f"Expected south <= north in [-90, 90]; got '{text[:80]}'.", field="box")
    return west, south, east, north


def observation_query(
    start: datetime,
    end: datetime,
    box: str | None,
    cut_off: datetime | None,
    outcome: Literal["all", "used", "rejected"],
    limit: int,
    offset: int,
    **names: list[str] | None,
) -> ObservationQuery:
    """The question.

    Raises:
        InvalidInput: Naming the parameter and what is possible.
    """
    values: dict[str, Any] = {k: _names(v) for k, v in names.items()}
    for field, (parameter, known) in KNOWN.items():
        for name in values.get(field, ()):
            check_known(parameter, name, known)
    for field, time in (("start", start), ("end", end), ("cut_off", cut_off)):
        if time is not None and not EARLIEST <= time.year <= LATEST:
            raise InvalidInput(
                f"Expected '{field}' between {EARLIEST} and {LATEST}; got {time}.", field=field
            )
    if end <= start:
        raise InvalidInput(f"Expected 'end' after 'start' ({start}); got {end}.", field="end")
    return ObservationQuery(
        start=start,
        end=end,
        box=_box(box),
        cut_off=cut_off,
        outcome=outcome,
        limit=limit,
        offset=offset,
        **values,
    )
