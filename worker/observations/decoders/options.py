"""Define the options that a sender may set for the decoder of each format; others are refused.

Information from the service itself is passed to decoders in other fields of `DecodeContext`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from model.domain.errors import DecodeError
from model.domain.observations import REPORT_TYPES
from model.domain.variables import VARIABLES
from worker.contract.kinds import ArrivalTime
from worker.observations.units import conversion

__all__ = [
    "BufrOptions",
    "DecoderOptions",
    "GribOptions",
    "IodaOptions",
    "OdbOptions",
    "TableOptions",
]


def _known(kind: str, registry: Mapping[str, Any]) -> Any:
    def check(name: str) -> str:
        if name not in registry:
            raise ValueError(f"unknown {kind} '{name}'; known: {', '.join(registry)}")
        return name

    return AfterValidator(check)


VariableId = Annotated[str, _known("variable", VARIABLES)]
ReportTypeName = Annotated[str, _known("report type", REPORT_TYPES)]


class DecoderOptions(BaseModel):
    """Options that all formats share: the network of rows without one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    report_type: ReportTypeName | None = Field(
        default=None, description="Network of rows that name none."
    )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the options as named fields.

        Raises:
            DecodeError: For the first option that is unknown or of a wrong kind, with its `option`.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "decoder"
        if first["type"] == "extra_forbidden":
            what = f"Expected decoder options among {', '.join(cls.model_fields)}; got '{place}'."
        else:
            what = f"Decoder option '{place}': {first['msg']}; got {str(first['input'])[:60]!r}."
        raise DecodeError(what, reason="invalid_table", option=place)


class _PlainUnits(DecoderOptions):
    """Units of coordinates that a file leaves unnamed."""

    pressure_units: Literal["Pa", "hPa"] | None = Field(
        default=None, description="Of pressures as vertical coordinate, where the file names none."
    )
    angle_units: Literal["degrees", "radians"] | None = Field(
        default=None, description="Of latitude and longitude, where the file names none."
    )


class BufrOptions(DecoderOptions):
    """BUFR; both fields concern PrepBUFR files of NCEP only."""

    event: Literal["used", "original"] = Field(
        default="used",
        description="Which value of a stack of events: the one that the sender's analysis was given, "
        "or the one first reported.",
    )
    file_errors: bool = Field(
        default=False, description="Take the observation errors of the file instead of the table's."
    )


class TableOptions(_PlainUnits):
    """Options of tables: Parquet, CSV and GeoJSON."""

    columns: dict[str, str] = Field(
        default_factory=dict, description="Our name of a column, by the sender's."
    )


class IodaOptions(_PlainUnits):
    """Options of NetCDF files in the style of IODA."""


class OdbOptions(_PlainUnits):
    """ODB-2 of other writers than ECMWF."""

    units: dict[VariableId, str] = Field(
        default_factory=dict, description="Units of values, by variable; SI where not named."
    )
    clock: Literal["hhmm", "hhmmss"] | None = Field(
        default=None, description="Digits of the column `time`."
    )
    vertco: Literal["pressure", "height"] | None = Field(
        default=None, description="What `vertco_reference_1` is, in files without `vertco_type`."
    )
    ignore_status: bool = Field(
        default=False, description="Keep values that the sender's assimilation rejected."
    )

    @field_validator("units")
    @classmethod
    def _convertible(cls, units: dict[str, str]) -> dict[str, str]:
        for variable, name in units.items():
            if conversion(name, variable) is None:
                raise ValueError(f"unknown units '{name}' of '{variable}'")
        return units


class GridOption(BaseModel):
    """A grid whose cells the values of a field are averaged over."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["regular", "gaussian"] = "regular"
    nlat: int = Field(default=73, ge=2, le=3_601)
    nlon: int = Field(default=144, ge=2, le=7_200)


class GribOptions(DecoderOptions):
    """GRIB 1 and 2.

    The default grid has 2.5 degrees; coarser than most fields, so that one cell's error is not the
    next one's.
    """

    grid: GridOption = GridOption()
    errors: dict[VariableId, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="1 sigma in SI, by variable; without one a field is monitored.",
    )
    variables: tuple[VariableId, ...] = Field(
        default=(), description="The variables to take; all if empty."
    )

    @field_validator("variables", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take a JSON list as well."""
        return tuple(value) if isinstance(value, list) else value


Height = Annotated[float, Field(allow_inf_nan=False)]


class StationPlace(BaseModel):
    """Coordinates and heights of a station, as the sender of an upload gives them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lat: float = Field(ge=-90.0, le=90.0, description="Degrees north.")
    lon: float = Field(ge=-180.0, le=360.0, description="Degrees east.")
    elevation: Height | None = Field(default=None, description="Metres above mean sea level.")
    barometer: Height | None = Field(default=None, description="Height of the barometer, likewise.")


class TextOptions(DecoderOptions):
    """Options of alphanumeric bulletins (SYNOP, METAR, TEMP …)."""

    reference_time: ArrivalTime | None = Field(
        default=None,
        strict=False,
        description="A time shortly after the reports, which give day and hour alone.",
    )
    stations: dict[str, StationPlace] = Field(
        default_factory=dict, description="Places of stations, before those of the installation."
    )


class ArchiveOptions(DecoderOptions):
    """Compressed files and archives: the options of the files inside, by format."""

    bufr: BufrOptions = BufrOptions()
    grib: GribOptions = GribOptions()
    csv: TableOptions = TableOptions()
    parquet: TableOptions = TableOptions()
    geojson: TableOptions = TableOptions()
    ioda: IodaOptions = IodaOptions()
    odb: OdbOptions = OdbOptions()
    text: TextOptions = TextOptions()

    def of_format(self, name: str) -> dict[str, Any]:
        """Return the options of a file inside, as its sender would give them alone."""
        field = {"ioda-netcdf": "ioda", "odb2": "odb"}.get(name, name)
        own: dict[str, Any] = {"report_type": self.report_type} if self.report_type else {}
        if isinstance(inner := getattr(self, field, None), DecoderOptions):
            own |= inner.model_dump(exclude_unset=True)
        return own
