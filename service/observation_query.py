"""Read queries of stored observations: the conditions, and the format of the answer."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from model.domain.errors import InvalidInput
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.errors import NotAcceptable
from service.query_parameters import check_known, check_years, listed_names, parse_box
from worker.observations.export import ROW_FORMATS, RowFormat
from worker.observations.store.query import ObservationQuery

KNOWN: dict[str, tuple[str, Collection[str]]] = {
    "variables": ("variables", VARIABLES),
    "report_types": ("networks", REPORT_TYPES),
    "rejected_by": ("rejected_by", QC_FLAGS),
    "columns": ("columns", OBSERVATION_SCHEMA.names),
}
"""Fields whose names are checked: the name of the parameter, and the known values."""


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
    values: dict[str, Any] = {k: tuple(listed_names(v)) for k, v in names.items()}
    for field, (parameter, known) in KNOWN.items():
        for name in values.get(field, ()):
            check_known(parameter, name, known)
    for field, time in (("start", start), ("end", end), ("cut_off", cut_off)):
        check_years(field, time)
    if end <= start:
        raise InvalidInput(f"Expected 'end' after 'start' ({start}); got {end}.", field="end")
    return ObservationQuery(
        start=start,
        end=end,
        box=parse_box(box),
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
