"""Write observation rows as Parquet, CSV or GeoJSON, and write example files to start from.

The examples are those of the forms a sender may write by hand; `example_files` adds the forms
that need a library of their own (IODA NetCDF, ODB-2).
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput
from model.domain.registry import Registry
from worker.observations.lexicons.earth2studio import SHORT_NAMES

__all__ = ["EXAMPLE", "ExampleFile", "ROW_FORMATS", "RowFormat", "TEMPLATES"]


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


_NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def _row(
    report_type: str, station: str, lat: float, lon: float, variable: str, value: float, **more: Any
) -> dict[str, Any]:
    return {
        "time": _NOON,
        "lat": lat,
        "lon": lon,
        "elevation": more.get("elevation"),
        "report_type": report_type,
        "station_id": station,
        "vertical_kind": "pressure" if "vertical" in more else "surface",
        "vertical": more.get("vertical"),
        "variable": variable,
        "obs_value": value,
        "obs_error": more.get("error"),
        "units": "SI",
    }


EXAMPLE: tuple[dict[str, Any], ...] = (
    _row("synop", "10384", 52.47, 13.40, "2m_temperature", 275.4, elevation=48.0),
    _row("synop", "10384", 52.47, 13.40, "surface_pressure", 100890.0, elevation=48.0, error=80.0),
    _row("synop", "10384", 52.47, 13.40, "10m_u_component_of_wind", 4.2, elevation=48.0),
    _row("synop", "10384", 52.47, 13.40, "10m_v_component_of_wind", -1.5, elevation=48.0),
    _row("ship", "DBLK", 54.10, 7.90, "mean_sea_level_pressure", 101520.0),
    _row("buoy", "62170", 51.24, 2.00, "sea_surface_temperature", 282.3),
    _row("temp", "10393", 52.21, 14.12, "temperature", 249.1, vertical=50000.0, elevation=112.0),
    _row("temp", "10393", 52.21, 14.12, "geopotential", 53740.0, vertical=50000.0, elevation=112.0),
    _row("temp", "10393", 52.21, 14.12, "u_component_of_wind", 21.0, vertical=50000.0),
    _row("aircraft", "EU0042", 50.90, 8.10, "temperature", 220.5, vertical=25000.0),
)
"""What every template says; `obs_error` is left out where the service's own table shall hold."""


@dataclass(frozen=True)
class ExampleFile:
    """An example file.

    Attributes:
        file_name: What to call it.
        description: One line for the user.
        write: Its bytes.
    """

    file_name: str
    description: str
    write: Callable[[], bytes]


def example_table() -> pa.Table:
    """The example rows with plain column types."""
    schema = pa.schema(
        [
            ("time", pa.timestamp("ms", tz="UTC")),
            *((name, pa.float64()) for name in ("lat", "lon", "elevation")),
            *((name, pa.string()) for name in ("report_type", "station_id", "vertical_kind")),
            ("vertical", pa.float64()),
            ("variable", pa.string()),
            ("obs_value", pa.float64()),
            ("obs_error", pa.float64()),
            ("units", pa.string()),
        ]
    )
    return pa.Table.from_pylist(list(EXAMPLE), schema=schema)


def _example_csv() -> bytes:
    table = example_table()
    text = pa.compute.strftime(
        table["time"].cast(pa.timestamp("s", tz="UTC")), "%Y-%m-%dT%H:%M:%SZ"
    )
    sink = io.BytesIO()
    sink.write((",".join(table.column_names) + "\n").encode())
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    pacsv.write_csv(table.set_column(0, "time", text), sink, options)
    return sink.getvalue()


def _example_parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(example_table(), sink)
    return sink.getvalue()


def _example_geojson() -> bytes:
    features = []
    for row in EXAMPLE:
        properties = {name: value for name, value in row.items() if value is not None}
        properties["time"] = f"{row['time']:%Y-%m-%dT%H:%M:%SZ}"
        point = [properties.pop("lon"), properties.pop("lat")]
        geometry = {"type": "Point", "coordinates": point}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    document = {"type": "FeatureCollection", "features": features}
    return json.dumps(document, indent=1).encode()


def _example_earth2studio() -> bytes:
    table = pa.table(
        {
            "time": pa.array(
                [row["time"].replace(tzinfo=None) for row in EXAMPLE], pa.timestamp("ns")
            ),
            "lat": pa.array([row["lat"] for row in EXAMPLE], pa.float32()),
            "lon": pa.array([row["lon"] % 360.0 for row in EXAMPLE], pa.float32()),
            "pres": pa.array([row["vertical"] for row in EXAMPLE], pa.float32()),
            "station": pa.array([row["station_id"] for row in EXAMPLE], pa.string()),
            "station_elev": pa.array([row["elevation"] for row in EXAMPLE], pa.float32()),
            "observation": pa.array([row["obs_value"] for row in EXAMPLE], pa.float32()),
            "variable": pa.array([SHORT_NAMES[row["variable"]] for row in EXAMPLE], pa.string()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


TEMPLATES: Registry[ExampleFile] = Registry(
    "template",
    csv=ExampleFile("observations.csv", "the observation table as CSV", _example_csv),
    parquet=ExampleFile(
        "observations.parquet", "the observation table as Parquet", _example_parquet
    ),
    geojson=ExampleFile("observations.geojson", "GeoJSON points", _example_geojson),
    earth2studio=ExampleFile(
        "earth2studio.parquet",
        "an earth2studio observation frame as Parquet",
        _example_earth2studio,
    ),
)
