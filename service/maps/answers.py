"""Define the answers about fields: metadata of one field, what a result holds, what exists by time.

A field travels as one binary body: the length of its metadata (uint32, little-endian), the metadata
as JSON padded with spaces to a multiple of four bytes, then the values as float32, little-endian, row
by row from the top; NaN where undefined. A browser reads it with one `DataView` and one
`Float32Array`, without a copy.
"""

import struct
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AvailableField",
    "DisplayUnits",
    "FieldCatalogue",
    "FieldInfo",
    "FieldValues",
    "GridInfo",
    "MapAnswer",
    "ShownResult",
    "Timeline",
    "TimelineEntry",
    "frame",
]


class MapAnswer(BaseModel):
    """Base of what the map asks for: no other fields, NaN and infinity sent as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class DisplayUnits(MapAnswer):
    """How people read the values: value * scale + offset; differences take no offset."""

    units: str = Field(description="Units that people read.")
    scale: float = Field(description="Factor.")
    offset: float = Field(description="Added after the factor.")


class GridInfo(MapAnswer):
    """Where the values lie: cell centres, rows from the top."""

    view: Literal["global", "north", "south"] = Field(description="The view asked for.")
    rows: int = Field(description="Rows of the values.")
    columns: int = Field(description="Columns of the values.")
    native_rows: int = Field(description="Rows of the result's own grid.")
    native_columns: int = Field(description="Columns of the result's own grid.")
    stride: int = Field(
        description="Every so many cells of the result's grid were taken; 0 if interpolated."
    )
    latitude: list[float] | None = Field(
        description="Degrees north of the rows; null in a polar view."
    )
    longitude: list[float] | None = Field(
        description="Degrees east of the columns, rising; null in a polar view."
    )
    extent: list[float] = Field(
        description="Left, bottom, right, top edges: degrees, or metres in a polar view."
    )
    projection: str = Field(description="PROJ string of the plane of `extent`.")


class FieldInfo(MapAnswer):
    """Metadata of a field: its result, quantity, level, time, members and units."""

    result: str = Field(description="Id of the result.")
    kind: str = Field(description="Kind of the result.")
    flavour: str = Field(description="`early`, `final`, or empty.")
    revision: int = Field(description="Revision of the result.")
    field: str = Field(description="Name of the field.")
    long_name: str = Field(description="For titles.")
    units: str = Field(description="Of the values.")
    display: DisplayUnits = Field(description="How people read the values.")
    level: float | None = Field(description="hPa; null at the surface.")
    base: float | None = Field(description="Lower level of a layer, hPa.")
    statistic: str = Field(description="Such as `mean`, `member:3`, `probability`.")
    threshold: float | None = Field(description="Of a probability, in the units of the field.")
    direction: Literal["above", "below"] | None = Field(description="Of a probability.")
    other: str | None = Field(description="The result subtracted, of a difference.")
    members: int = Field(description="Ensemble members of the result.")
    valid_time: datetime = Field(description="UTC.")
    reference_time: datetime = Field(description="Analysis time, or start of a forecast (UTC).")
    lead_hours: float = Field(description="Hours from the reference time to the valid time.")
    checkpoint: str = Field(description="Weights that made the result; empty if not known.")
    simulated: bool = Field(description="Whether the weights know a simulated atmosphere only.")
    minimum: float | None = Field(description="Least value of the whole field.")
    maximum: float | None = Field(description="Greatest value of the whole field.")
    colours: str = Field(description="Suggested colour map, see GET /v1/fields/colours.")
    range: list[float] = Field(description="Values of its first and last colour.")
    contour: float = Field(description="Suggested distance of contours; 0 without one.")
    grid: GridInfo = Field(description="Where the values lie.")


class FieldValues(FieldInfo):
    """A field with metadata and values, as JSON."""

    values: list[list[float | None]] = Field(description="Row by row from the top.")


class AvailableField(MapAnswer):
    """A field that a result can show."""

    field: str = Field(description="Name in requests.")
    long_name: str = Field(description="For titles.")
    units: str = Field(description="Of the values.")
    display: DisplayUnits = Field(description="How people read the values.")
    leveled: bool = Field(description="Whether it needs a level.")
    layer: bool = Field(description="Whether it has a second, lower level `base`.")
    derived: bool = Field(description="Whether it is computed from stored variables.")
    statistics: list[str] = Field(description="Kinds of statistic that this result allows.")
    colours: str = Field(description="Suggested colour map.")


class FieldCatalogue(MapAnswer):
    """What can be asked of one result."""

    result: str = Field(description="Id of the result.")
    kind: str = Field(description="Kind of the result.")
    flavour: str = Field(description="`early`, `final`, or empty.")
    revision: int = Field(description="Revision of the result.")
    times: list[datetime] = Field(description="Valid times (UTC).")
    levels: list[float] = Field(description="Pressure levels, hPa, from the top down.")
    members: int = Field(description="Ensemble members.")
    rows: int = Field(description="Rows of its grid.")
    columns: int = Field(description="Columns of its grid.")
    simulated: bool = Field(description="Whether the weights know a simulated atmosphere only.")
    checkpoint: str = Field(description="Weights that made the result; empty if not known.")
    fields: list[AvailableField] = Field(description="Fields, in the order of a menu.")


class ShownResult(MapAnswer):
    """A result at one valid time."""

    id: str = Field(description="Id of the result.")
    kind: str = Field(description="Kind of the result.")
    flavour: str = Field(description="`early`, `final`, or empty.")
    revision: int = Field(description="Revision of the result.")
    reference_time: datetime = Field(description="Analysis time, or start of a forecast (UTC).")
    lead_hours: float = Field(description="Hours from the reference time to this valid time.")
    created: datetime = Field(description="When it was finished (UTC).")


class TimelineEntry(MapAnswer):
    """A valid time and the results that hold it."""

    time: datetime = Field(description="Valid time (UTC).")
    results: list[ShownResult] = Field(
        description="Shortest lead first; of one lead the newest revision first."
    )


class Timeline(MapAnswer):
    """What exists, earliest valid time first."""

    items: list[TimelineEntry] = Field(description="Valid times that any result holds.")
    truncated: bool = Field(description="Whether older results were left out; narrow the times.")


def frame(info: BaseModel, values: bytes) -> bytes:
    """Return the binary body of an answer: length, metadata, values."""
    text = info.model_dump_json().encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text + values
