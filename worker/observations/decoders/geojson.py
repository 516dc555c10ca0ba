"""Decode GeoJSON points (RFC 7946) with one observed value, or several, in their properties."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from model.domain.errors import DecodeError
from model.domain.files import distinct_names
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport, text_of
from worker.observations.decoders.frame import ACCEPTED, RowFaults, decode_frame

__all__ = ["decode_geojson"]

_BYTES = 256_000_000
_ENTRY = {"value": "obs_value", "units": "units", "error": "obs_error"}
"""Column of each part of an entry of `values`."""


def decode_geojson(path: Path, context: DecodeContext) -> Decoded:
    """Return rows of a FeatureCollection or a single Feature.

    A feature's properties are columns of the observation table, with either `variable` and
    `obs_value` or a mapping `values` of variable to a number or to `{value, units, error}`. A third
    coordinate is the station's elevation in m.

    Raises:
        DecodeError: If it is no GeoJSON, too large, or properties are unknown.
    """
    report = DecodeReport(format="geojson", size=path.stat().st_size)
    if report.size > _BYTES:
        raise DecodeError(
            f"Expected at most {_BYTES} bytes of GeoJSON; got {report.size}. Send Parquet.",
            reason="too_large",
        )
    try:
        document = json.loads(
            path.read_bytes(), parse_int=_integer, object_pairs_hook=distinct_names
        )
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"Expected GeoJSON; {error}.", reason="undecodable") from error
    features = _features(document)
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    for number, feature in enumerate(features, 1):
        for row in _rows(feature):
            if isinstance(row, str):
                detail = f"feature {number}: {row}"
                report.reject("invalid_table", detail=detail, report=number)
            else:
                rows.append(row)
        places.extend([number] * (len(rows) - len(places)))
    if not rows:
        report.messages = report.reports = len(features)
        _refuse(report)
    faults = RowFaults(len(rows), "feature", np.array(places))
    decoded = decode_frame(_columns(rows, faults), context, report, faults=faults)
    decoded.report.bytes_decoded = report.size
    return decoded


def _refuse(report: DecodeReport) -> NoReturn:
    """Refuse a file without one usable feature as a whole."""
    first = report.quarantined[0].detail if report.quarantined else "no features"
    raise DecodeError(
        f"Expected point features with `time` and values; got none ({first}).",
        reason="invalid_table",
    )


def _features(document: Any) -> list[Any]:
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "Feature":
        return [document]
    if kind == "FeatureCollection" and isinstance(document.get("features"), list):
        return list(document["features"])
    raise DecodeError(
        f"Expected a GeoJSON Feature or FeatureCollection; got type {_shown(kind)}.",
        reason="wrong_format",
    )


def _rows(feature: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a feature; in place of one that cannot be read, what is wrong with it."""
    try:
        shared, values = _properties(feature)
    except ValueError as error:
        yield str(error)
        return
    if values is None:
        yield shared
        return
    for variable, value in values.items():
        entry = value if isinstance(value, dict) else {"value": value}
        if unknown := [name for name in entry if name not in _ENTRY]:
            yield f"unknown properties {', '.join(map(repr, unknown[:5]))} of {variable}"
        elif "value" not in entry:
            yield f"no value of {variable}"
        else:
            own = {_ENTRY[name]: given for name, given in entry.items()}
            yield {**shared, "variable": variable, **own}


def _properties(feature: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what all rows of a feature share, and its `values` if it has several.

    Raises:
        ValueError: Saying what is absent or unknown.
    """
    shared = _shared(feature)
    values = shared.pop("values", None)
    if unknown := [name for name in shared if name not in ACCEPTED]:
        raise ValueError(f"unknown properties {', '.join(map(repr, unknown[:5]))}")
    if "time" not in shared:
        raise ValueError("no time")
    if values is None:
        if absent := [name for name in ("variable", "obs_value") if name not in shared]:
            raise ValueError(f"neither values nor {' and '.join(absent)}")
    elif not isinstance(values, dict) or not values:
        raise ValueError("expected values by variable; got none")
    return shared, values


def _shared(feature: Any) -> dict[str, Any]:
    """Return the properties of a feature with its place; nothing may give another latitude or longitude.

    Raises:
        ValueError: Saying what it is in place of a point with properties.
    """
    if not isinstance(feature, dict):
        raise ValueError("expected a feature; got null or another type")
    geometry, properties = feature.get("geometry"), feature.get("properties")
    if not isinstance(geometry, dict) or not isinstance(properties, dict):
        raise ValueError("expected a geometry and properties; got null or another type")
    if geometry.get("type") != "Point":
        raise ValueError(f"expected a Point; got {_shown(geometry.get('type'))}")
    coordinates = geometry.get("coordinates")
    if not isinstance(coordinates, list) or len(coordinates) < 2:
        raise ValueError("expected the coordinates longitude and latitude; got fewer")
    # A coordinate that is not a number is reported by its column, like any other cell.
    lon, lat, *height = coordinates
    for name, own in (("lat", lat), ("lon", lon)):
        if properties.get(name, own) != own:
            raise ValueError(f"the property {name} is not that of the point")
    shared = {**properties, "lat": lat, "lon": lon}
    if height and "elevation" not in shared:
        shared["elevation"] = height[0]
    return shared


def _columns(rows: list[dict[str, Any]], faults: RowFaults) -> dict[str, pa.Array]:
    """Return columns as text, so that a value of a wrong type is found by row.

    Lists, objects, true and false are faults of their rows in every column.
    """
    names = {name: None for row in rows for name in row}
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        odd = np.array([isinstance(v, list | dict | bool) for v in values])
        if odd.any():
            shown = np.array([_shown(v) for v in values], dtype=object)
            faults.add(odd, name, "invalid_table", shown)
            values = [None if o else v for v, o in zip(values, odd, strict=True)]
        texts = [None if v is None else _text(v, name) for v in values]
        columns[name] = pa.array(texts, pa.string())
    return columns


def _shown(value: Any) -> str:
    """Return the beginning of a value as the file has it; of a text without its quotes."""
    if isinstance(value, str):
        return value[:80]
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "a value of too many levels"


def _text(value: Any, name: str) -> str:
    if isinstance(value, float):
        return text_of(value) if name in _IDENTIFIERS else repr(value)
    # JSON can contain lone surrogates, which UTF-8 cannot.
    return str(value).encode("utf-8", "replace").decode()


_IDENTIFIERS = ("station_id", "platform")


def _integer(digits: str) -> int | float:
    """Return a JSON integer; one with too many digits as a float, which no column accepts."""
    return int(digits) if len(digits) <= _DIGITS else float(digits)


_DIGITS = 300
