"""Read queries of stored observations: the conditions, and the format of the answer."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from model.domain.errors import InvalidInput
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.errors import NotAcceptable, check_known
from worker.observations.export import ROW_FORMATS, RowFormat
from worker.observations.store.query import ObservationQuery

EARLIEST, LATEST = 1700, 2200
"""Years; the store counts nanoseconds since 1970 in 64 bits."""

KNOWN: dict[str, tuple[str, Collection[str]]] = {
    "variables": ("variables", VARIABLES),
    "report_types": ("networks", REPORT_TYPES),
    "rejected_by": ("rejected_by", QC_FLAGS),
    "columns": ("columns", OBSERVATION_SCHEMA.names),
}
"""Fields whose names are checked: the name of the parameter, and the known values."""


def _names(given: list[str] | None) -> tuple[str, ...]:
    """Return the values of a parameter that is repeated, comma-separated, or both."""
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
    """Return the query that the parameters of a request ask for.

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


def choose_format(name: str | None, accept: str) -> RowFormat:
    """Return the format asked for by name, else the best one of an Accept header.

    Raises:
        NotAcceptable: If none of the formats is accepted.
    """
    if name is not None:
        return ROW_FORMATS[name]
    ranked: list[tuple[float, RowFormat]] = []
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media, _, parameters = part.strip().partition(";")
        quality = _quality(parameters)
        for entry in ROW_FORMATS.values():
            if quality > 0 and _matches(media.strip().lower(), entry.media_type):
                ranked.append((quality, entry))
    if not ranked:
        offered = ", ".join(f.media_type for f in ROW_FORMATS.values())
        raise NotAcceptable(f"Expected to be asked for one of {offered}; got '{accept[:200]}'.")
    return max(ranked, key=lambda pair: pair[0])[1]


def _matches(pattern: str, media_type: str) -> bool:
    return pattern in ("*/*", media_type, media_type.split("/")[0] + "/*")


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
