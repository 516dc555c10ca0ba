"""Write observation rows as Parquet, CSV or GeoJSON, and example files to start from.

The gateway, the command line and the example files share these writers. Rows are written a block at
a time, so that an answer of any size needs little memory. Times are ISO 8601 in UTC with `T` and
`Z`, in milliseconds or finer where a value needs it.
"""

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput
from model.domain.registry import Registry
from worker.observations.formats import imported
from worker.observations.lexicons import EARTH2STUDIO

__all__ = [
    "ALL_TEMPLATES",
    "EXAMPLE",
    "ExampleFile",
    "ROW_FORMATS",
    "RowFormat",
    "TEMPLATES",
]

_ROWS = 5_000
"""Number of rows of a block of text."""
_ROW_GROUP = 100_000
"""Number of rows of a Parquet row group; one is sent before the next is encoded."""
_BLOCK_BYTES = 1 << 20

Quoting = Literal["needed", "none"]


@dataclass(frozen=True)
class RowFormat:
    """A format in which rows are exported.

    Attributes:
        media_type: Media type for HTTP.
        extension: File name extension, without the dot.
        write: Yields the bytes of a table block by block; raises `InvalidInput` at once if the
            table lacks columns that the format needs.
        max_rows: Maximum number of rows of one answer; None for no limit. More rows come as further
            pages.
    """

    media_type: str
    extension: str
    write: Callable[[pa.Table], Iterator[bytes]]
    max_rows: int | None = None

    def encode(self, table: pa.Table) -> bytes:
        """Return all bytes of a table."""
        return b"".join(self.write(table))


class _Pieces(io.RawIOBase):
    """A writable file whose content is consumed in pieces while it is written."""

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        self._position += len(self._written[-1])
        return len(self._written[-1])

    def tell(self) -> int:
        return self._position

    def take(self) -> Iterator[bytes]:
        """Yield the bytes written since the last call, in blocks."""
        data = memoryview(b"".join(self._written))
        self._written.clear()
        for first in range(0, len(data), _BLOCK_BYTES):
            yield bytes(data[first : first + _BLOCK_BYTES])


def _parquet(table: pa.Table) -> Iterator[bytes]:
    sink, groups = _Pieces(), _groups(table, _ROW_GROUP)
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        del table
        for group in groups:
            writer.write_table(group, row_group_size=_ROW_GROUP)
            del group
            yield from sink.take()
    yield from sink.take()


def _groups(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a table in groups of at least `rows`, releasing each after use."""
    batches = deque(table.to_batches())
    schema = table.schema
    del table
    while batches:
        some, count = [], 0
        while batches and count < rows:
            some.append(batches.popleft())
            count += some[-1].num_rows
        yield pa.Table.from_batches(some, schema)


def _with_text(table: pa.Table) -> pa.Table:
    """Return the table with dictionaries as strings and times as ISO 8601 text."""
    columns: dict[str, Any] = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_dictionary(field.type):
            column = column.cast(pa.string())
        elif pa.types.is_timestamp(field.type):
            column = _iso_times(column)
        columns[field.name] = column
    return pa.table(columns)


def _iso_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    units = ("ms", "us", "ns") if column.type.unit in ("us", "ns") else (column.type.unit,)
    for unit in units:
        try:
            exact = column.cast(pa.timestamp(unit, tz="UTC"))
        except pa.ArrowInvalid:  # finer than the unit
            continue
        return pc.strftime(exact, "%Y-%m-%dT%H:%M:%SZ")
    raise AssertionError("nanoseconds hold every time")


def _csv(table: pa.Table, quoting: Quoting = "needed") -> Iterator[bytes]:
    """Yield the header and the rows; a value that is not a number is `nan`, a missing one empty."""
    mark = '"' if quoting == "needed" else ""
    yield (",".join(f"{mark}{name}{mark}" for name in table.column_names) + "\n").encode()
    options = pacsv.WriteOptions(include_header=False, quoting_style=quoting)
    for block in _blocks_of_text(table):
        sink = io.BytesIO()
        pacsv.write_csv(block, sink, options)
        yield sink.getvalue()


def _blocks_of_text(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the table in blocks of rows as text, because text takes ten times the memory."""
    groups = _groups(table, _ROWS)
    del table
    for group in groups:
        for batch in group.combine_chunks().to_batches(_ROWS):
            yield _with_text(pa.Table.from_batches([batch]))


def _geojson(table: pa.Table) -> Iterator[bytes]:
    """Yield a FeatureCollection (RFC 7946); values that are not finite numbers are null."""
    if not {"lat", "lon"} <= set(table.column_names):
        raise InvalidInput(
            f"Expected the columns lat and lon for GeoJSON; got {', '.join(table.column_names)}.",
            field="columns",
            columns=table.column_names,
        )
    return _feature_collection(table)


def _feature_collection(table: pa.Table) -> Iterator[bytes]:
    yield b'{"type":"FeatureCollection","features":['
    separator = ""
    for block in _blocks_of_text(table):
        text = ",\n".join(_feature(row) for row in block.to_pylist())
        yield (separator + text).encode()
        separator = ",\n" if text else separator
    yield b"]}"


def _feature(row: dict[str, Any]) -> str:
    properties = {name: _finite(value) for name, value in row.items()}
    point = {"type": "Point", "coordinates": [properties.pop("lon"), properties.pop("lat")]}
    feature = {"type": "Feature", "geometry": point, "properties": properties}
    return json.dumps(feature, allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value - value != 0.0 else value


ROW_FORMATS: Registry[RowFormat] = Registry(
    "row format",
    parquet=RowFormat("application/vnd.apache.parquet", "parquet", _parquet),
    geojson=RowFormat("application/geo+json", "geojson", _geojson, 100_000),
    csv=RowFormat("text/csv", "csv", _csv),
)
"""Formats by name; the first one is the default."""


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
"""Rows of every example; `obs_error` is absent where the service's own error table applies."""


@dataclass(frozen=True)
class ExampleFile:
    """An example file.

    Attributes:
        file_name: Suggested name.
        description: One line for the user.
        media_type: For HTTP.
        write: Returns its bytes.
    """

    file_name: str
    description: str
    media_type: str
    write: Callable[[], bytes]


_EXAMPLE_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("s", tz="UTC")),
        *((name, pa.float64()) for name in ("lat", "lon", "elevation")),
        *((name, pa.string()) for name in ("report_type", "station_id", "vertical_kind")),
        ("vertical", pa.float64()),
        ("variable", pa.string()),
        ("obs_value", pa.float64()),
        ("obs_error", pa.float64()),
        ("units", pa.string()),
    ]
)


def _example_table() -> pa.Table:
    return pa.Table.from_pylist(list(EXAMPLE), schema=_EXAMPLE_SCHEMA)


def _example_csv() -> bytes:
    return b"".join(_csv(_example_table(), quoting="none"))


def _earth2studio_table() -> pa.Table:
    columns = {
        "lat": [row["lat"] for row in EXAMPLE],
        "lon": [row["lon"] % 360.0 for row in EXAMPLE],
        "pres": [row["vertical"] for row in EXAMPLE],
        "station": [row["station_id"] for row in EXAMPLE],
        "station_elev": [row["elevation"] for row in EXAMPLE],
        "observation": [row["obs_value"] for row in EXAMPLE],
        "variable": [EARTH2STUDIO.written[row["variable"]] for row in EXAMPLE],
    }
    times = pa.array([row["time"].replace(tzinfo=None) for row in EXAMPLE], pa.timestamp("ns"))
    texts = ("station", "variable")
    return pa.table(
        {"time": times}
        | {n: pa.array(v, pa.string() if n in texts else pa.float32()) for n, v in columns.items()}
    )


TEMPLATES: Registry[ExampleFile] = Registry(
    "template",
    csv=ExampleFile("observations.csv", "the observation table as CSV", "text/csv", _example_csv),
    parquet=ExampleFile(
        "observations.parquet",
        "the observation table as Parquet",
        ROW_FORMATS["parquet"].media_type,
        lambda: ROW_FORMATS["parquet"].encode(_example_table()),
    ),
    geojson=ExampleFile(
        "observations.geojson",
        "GeoJSON points",
        ROW_FORMATS["geojson"].media_type,
        lambda: ROW_FORMATS["geojson"].encode(_example_table()),
    ),
    earth2studio=ExampleFile(
        "earth2studio.parquet",
        "an earth2studio observation frame as Parquet",
        ROW_FORMATS["parquet"].media_type,
        lambda: ROW_FORMATS["parquet"].encode(_earth2studio_table()),
    ),
)
"""Examples that need no library besides pyarrow."""


def _written_by(function: str) -> Callable[[], bytes]:
    """Return a writer that imports `function` when called; it takes rows and returns bytes."""

    def write() -> bytes:
        content: bytes = imported(function)(EXAMPLE)
        return content

    return write


ALL_TEMPLATES: Registry[ExampleFile] = Registry(
    "template",
    **TEMPLATES,
    ioda=ExampleFile(
        "observations.nc4",
        "IODA-style NetCDF of a surface station",
        "application/netcdf",
        _written_by("worker.observations.decoders.ioda:encode_example"),
    ),
    odb2=ExampleFile(
        "observations.odb",
        "ODB-2",
        "application/x-odb",
        _written_by("worker.observations.decoders.odb:encode_example"),
    ),
)
"""All examples; the gateway offers only `TEMPLATES`, because it loads neither netCDF4 nor pyodc."""
