"""Rows of the observation table as Parquet, CSV or GeoJSON bytes."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput
from model.domain.registry import Registry

__all__ = ["ROW_FORMATS", "RowFormat"]


@dataclass(frozen=True)
class RowFormat:
    """A form in which rows leave.

    Attributes:
        media_type: For HTTP.
        extension: Of a file, without the dot.
        encode: From a table to bytes.
    """

    media_type: str
    extension: str
    encode: Callable[[pa.Table], bytes]


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _plain(table: pa.Table) -> pa.Table:
    """Dictionaries as strings, times as ISO text with milliseconds."""
    columns: dict[str, Any] = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_dictionary(field.type):
            column = column.cast(pa.string())
        elif pa.types.is_timestamp(field.type):
            milliseconds = column.cast(pa.timestamp("ms", tz="UTC"), safe=False)
            column = pc.strftime(milliseconds, "%Y-%m-%dT%H:%M:%SZ")
        columns[field.name] = column
    return pa.table(columns)


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pacsv.write_csv(_plain(table), sink)
    return sink.getvalue()


def _geojson(table: pa.Table) -> bytes:
    if not {"lat", "lon"} <= set(table.column_names):
        raise InvalidInput(
            "Expected the columns lat and lon for GeoJSON; got " + ", ".join(table.column_names),
            columns=table.column_names,
        )
    features = []
    for row in _plain(table).to_pylist():
        point = {"type": "Point", "coordinates": [row.pop("lon"), row.pop("lat")]}
        properties = {name: None if value != value else value for name, value in row.items()}
        features.append({"type": "Feature", "geometry": point, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False).encode()


ROW_FORMATS: Registry[RowFormat] = Registry(
    "row format",
    parquet=RowFormat("application/vnd.apache.parquet", "parquet", _parquet),
    csv=RowFormat("text/csv", "csv", _csv),
    geojson=RowFormat("application/geo+json", "geojson", _geojson),
)
