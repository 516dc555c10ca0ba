"""Answer queries of stored observations: from query parameters to Parquet, CSV or GeoJSON.

Rows are written a batch at a time, so that an answer of any size needs little memory.
"""

import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.variables import VARIABLES
from service.errors import NotAcceptable
from service.query_parameters import check_known, check_years, listed_names, parse_box
from worker.observations.store.query import ObservationQuery

KNOWN: dict[str, tuple[str, Collection[str]]] = {
    "variables": ("variables", VARIABLES),
    "report_types": ("networks", REPORT_TYPES),
    "rejected_by": ("rejected_by", QC_FLAGS),
    "columns": ("columns", OBSERVATION_SCHEMA.names),
}
"""Fields whose names are checked: what the parameter is called, and what is known."""


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
    """Return the query of the store that the parameters ask for.

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


ROWS = 5_000


@dataclass(frozen=True)
class OutputFormat:
    """A form of the answer to a query."""

    name: str
    media_type: str
    write: Callable[[pa.Table], Iterator[bytes]]


def _parquet(table: pa.Table) -> Iterator[bytes]:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    sink.seek(0)
    while block := sink.read(1 << 20):
        yield block


def _csv(table: pa.Table) -> Iterator[bytes]:
    plain = pa.schema(
        [f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    )
    table = table.cast(plain)
    options = {"include_header": True, "quoting_header": "none"}
    for batch in table.to_batches(ROWS) or [plain.empty_table()]:
        sink = io.BytesIO()
        pyarrow.csv.write_csv(batch, sink, pyarrow.csv.WriteOptions(**options))
        options["include_header"] = False
        yield sink.getvalue()


def _plain(value: object) -> object:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _feature(row: dict[str, object]) -> str:
    point = {"type": "Point", "coordinates": [row.pop("lon", None), row.pop("lat", None)]}
    properties = {name: _plain(value) for name, value in row.items()}
    text = {"type": "Feature", "geometry": point, "properties": properties}
    return json.dumps(text, allow_nan=False, separators=(",", ":"))


def _geojson(table: pa.Table) -> Iterator[bytes]:
    """RFC 7946; values that are not numbers are null. Times to microseconds: JSON has no type."""
    fields = [
        f.with_type(pa.timestamp("us", tz="UTC")) if pa.types.is_timestamp(f.type) else f
        for f in table.schema
    ]
    table = table.cast(pa.schema(fields), safe=False)
    yield b'{"type":"FeatureCollection","features":['
    separator = ""
    for batch in table.to_batches(ROWS):
        features = (_feature(_finite(row)) for row in batch.to_pylist())
        text = ",\n".join(features)
        yield (separator + text).encode()
        separator = ",\n" if text else separator
    yield b"]}"


def _finite(row: dict[str, object]) -> dict[str, object]:
    return {k: None if isinstance(v, float) and v - v != 0.0 else v for k, v in row.items()}


FORMATS: dict[str, OutputFormat] = {
    f.name: f
    for f in (
        OutputFormat("parquet", "application/vnd.apache.parquet", _parquet),
        OutputFormat("geojson", "application/geo+json", _geojson),
        OutputFormat("csv", "text/csv; charset=utf-8", _csv),
    )
}
"""The first one is the answer to those who accept anything."""


def choose_format(name: str | None, accept: str) -> OutputFormat:
    """The format asked for by name, else the best of an Accept header.

    Raises:
        NotAcceptable: If none of the formats is accepted.
    """
    if name is not None:
        return FORMATS[name]
    ranked: list[tuple[float, OutputFormat]] = []
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media, _, parameters = part.strip().partition(";")
        quality = _quality(parameters)
        for entry in FORMATS.values():
            if quality > 0 and _matches(media.strip().lower(), entry.media_type.split(";")[0]):
                ranked.append((quality, entry))
    if not ranked:
        offered = ", ".join(f.media_type for f in FORMATS.values())
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
