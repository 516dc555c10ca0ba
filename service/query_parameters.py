"""Read query parameters: comma-separated lists, boxes, times and intervals, names, JSON objects.

Every function raises `InvalidInput` (or its subclass `UnknownName`) with the field it is about, which
the problem document then names.
"""

import json
import math
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from model.domain.errors import InvalidInput, UnknownName
from model.domain.files import distinct_names
from model.domain.times import read_time
from worker.contract.kinds import FIRST_YEAR, LAST_YEAR

__all__ = [
    "check_known",
    "check_years",
    "is_unicode",
    "json_object",
    "listed_names",
    "parse_bbox",
    "parse_box",
    "parse_interval",
    "parse_numbers",
]

MAX_KNOWN_SHOWN = 100
MAX_DEPTH = 16

_OPEN = ("", "..")


def check_known(field: str, name: str, known: Collection[str], what: str = "") -> None:
    """Refuse a name that is not known.

    Raises:
        UnknownName: Naming the field and the known names.
    """
    if name not in known:
        shown = sorted(known)[:MAX_KNOWN_SHOWN]
        raise UnknownName(
            f"Expected '{field}' to be one of {what}{', '.join(shown) or 'none'}; got '{name}'.",
            field=field,
            known=shown,
        )


def listed_names(given: str | Sequence[str] | None) -> list[str]:
    """Return the names of a parameter that is repeated, comma-separated, or both."""
    texts = (given,) if isinstance(given, str) else given or ()
    parts = (part.strip() for text in texts for part in text.split(","))
    return [part for part in parts if part]


def parse_numbers(field: str, text: str | None) -> list[float] | None:
    """Return comma-separated numbers; None for no text."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(
            f"Expected comma-separated numbers; got '{text[:80]}'.", field=field
        ) from None


def parse_box(text: str | None) -> tuple[float, float, float, float] | None:
    """Return west, south, east and north of `west,south,east,north` in degrees; west may be east of
    east, for a box across the date line.
    """
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


def parse_bbox(values: list[float]) -> list[float]:
    """Return a GeoJSON bounding box of 4 or 6 numbers (with heights) after checking it."""
    half = len(values) // 2
    inside = len(values) in (4, 6) and all(-180 <= values[i] <= 180 for i in (0, half))
    if not inside or not -90 <= values[1] <= values[half + 1] <= 90:
        raise InvalidInput(
            "Expected west, south, east, north in degrees (and heights), south not above north; "
            f"got {values}.",
            field="bbox",
        )
    return values


def check_years(field: str, time: datetime | None) -> None:
    """Refuse a time that the observation store cannot hold."""
    if time is not None and not FIRST_YEAR <= time.year <= LAST_YEAR:
        raise InvalidInput(
            f"Expected '{field}' between {FIRST_YEAR} and {LAST_YEAR}; got {time}.", field=field
        )


def parse_interval(text: str | None) -> tuple[datetime | None, datetime | None]:
    """Return start and end (UTC) of a STAC `datetime`; None for an open side."""
    if text is None or text == "":
        return None, None
    parts = text.split("/")
    if len(parts) > 2 or (len(parts) == 2 and all(part in _OPEN for part in parts)):
        raise _bad_interval(text)
    times = [None if part in _OPEN and len(parts) == 2 else _time(part, text) for part in parts]
    start, end = times[0], times[-1]
    if start is not None and end is not None and start > end:
        raise _bad_interval(text)
    return start, end


def _time(part: str, text: str) -> datetime:
    try:
        if "T" not in part.upper():
            raise ValueError
        return read_time(part.upper())
    except ValueError:
        raise _bad_interval(text) from None


def _bad_interval(text: str) -> InvalidInput:
    return InvalidInput(
        "Expected an RFC 3339 time, or an interval '<start>/<end>' with '..' for an open side and "
        f"the start not after the end; got '{text}'.",
        field="datetime",
    )


def json_object(field: str, text: str) -> dict[str, Any]:
    """Return the JSON object in `text`, after a check that it can be stored and sent back unchanged."""
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=distinct_names)
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError as error:
        raise InvalidInput(f"Expected JSON in '{field}'; {error}.", field=field) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"Expected a JSON object in '{field}'; got {text[:40]}.", field=field)
    _check_values(field, value)
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"'{text}' is no number of JSON")


def _check_values(field: str, value: Any) -> None:
    """Refuse depth, infinite numbers and halves of surrogate pairs, which cannot be written."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise InvalidInput(
                    f"Expected finite numbers in '{field}'; got {item}.", field=field
                )
            elif isinstance(item, str) and not is_unicode(item):
                raise InvalidInput(
                    f"Expected Unicode text in '{field}'; got half of a surrogate pair in "
                    f"{ascii(item)[:80]}.",
                    field=field,
                )
        if not inner:
            return
        level = inner
    raise _too_deep(field)


def is_unicode(text: str) -> bool:
    """Return whether `text` can be encoded: JSON may escape halves of surrogate pairs alone."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _too_deep(field: str) -> InvalidInput:
    return InvalidInput(
        f"Expected at most {MAX_DEPTH} levels of lists and objects in '{field}'; got more.",
        field=field,
    )
