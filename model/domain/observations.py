"""Define the observation table, one row per observed value in SI units and UTC, and its flags.

The columns are the contract between decoders, error assignment, quality control, the store, the
observation operators and the feedback file. Flag numbers follow UFO (JCSDA ufo,
`src/ufo/filters/QCflags.h`); numbers of 30 and above are our own.
"""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from model.domain.errors import InvalidInput
from model.domain.registry import Registry
from model.domain.variables import VARIABLES

__all__ = [
    "DEPARTURE_LAYERS",
    "FEEDBACK_SCHEMA",
    "OBSERVATION_SCHEMA",
    "QCFlag",
    "QC_FLAGS",
    "REPORT_TYPES",
    "ReportType",
    "VERTICAL_KINDS",
    "empty_table",
    "station_draw",
    "validate_table",
]


@dataclass(frozen=True)
class QCFlag:
    """Outcome of quality control: the name kept in `rejected_by` and its UFO-style number."""

    name: str
    number: int
    meaning: str


_FLAGS = (
    QCFlag("passive", 1, "not assimilated on purpose: no operator, or monitored only"),
    QCFlag("missing", 10, "value missing"),
    QCFlag("preqc", 11, "flagged by the provider"),
    QCFlag("bounds", 12, "outside the gross limits of its variable and level"),
    QCFlag("domain", 13, "position, height or time impossible or outside the model's domain"),
    QCFlag("blocklist", 14, "station or platform on the block list"),
    QCFlag("operator_failed", 15, "no model equivalent could be computed"),
    QCFlag("thinned", 16, "redundant: removed by thinning or merged into a superobservation"),
    QCFlag("difference", 17, "too far from a reference, such as station height against orography"),
    QCFlag("background_check", 19, "departure from the background too large"),
    QCFlag("track", 21, "inconsistent with the platform's own track"),
    QCFlag("buddy", 22, "inconsistent with its neighbours"),
    QCFlag("stuck", 23, "sensor repeats the same value"),
    QCFlag("profile", 24, "inconsistent within its own vertical profile"),
    QCFlag("duplicate", 30, "same station, time, level and variable as a preferred report"),
    QCFlag("late", 31, "arrived after the cut-off"),
    QCFlag("withheld", 32, "kept back for verification"),
    QCFlag("decode", 33, "decoder could not trust the value"),
    QCFlag("assimilated", 34, "seen by the analysis that this one continues"),
)
QC_FLAGS: Registry[QCFlag] = Registry(
    "quality-control outcome",
    "appa.qc_outcomes",
    QCFlag,
    ("number",),
    **{f.name: f for f in _FLAGS},
)
"""Numbers from 128 to 254 are for extensions."""


@dataclass(frozen=True)
class ReportType:
    """A network: a family of reports that share errors, checks and thinning."""

    name: str
    meaning: str
    moving: bool = False
    profile: bool = False


_REPORTS = (
    ReportType("synop", "surface land stations"),
    ReportType("ship", "ships", moving=True),
    ReportType("buoy", "moored buoys"),
    ReportType("drifter", "drifting buoys", moving=True),
    ReportType("temp", "radiosondes", profile=True),
    ReportType("pilot", "pilot balloons (wind only)", profile=True),
    ReportType("dropsonde", "dropsondes", profile=True),
    ReportType("aircraft", "AMDAR, ACARS, Mode-S and other aircraft reports", moving=True),
    ReportType("amv", "atmospheric motion vectors"),
    ReportType("scatterometer", "scatterometer winds over sea"),
    ReportType("profiler", "wind profilers", profile=True),
    ReportType("gnss", "ground-based GNSS precipitable water"),
    ReportType("satellite", "satellite soundings: temperature and humidity retrievals"),
    ReportType("gridded", "fields used as observations"),
    ReportType("other", "derived tables that name no network"),
)
REPORT_TYPES: Registry[ReportType] = Registry(
    "report type", "appa.report_types", ReportType, **{r.name: r for r in _REPORTS}
)

VERTICAL_KINDS = ("surface", "pressure", "height", "layer", "column", "channel")
"""How `vertical` is read: `surface` (null), `pressure` in Pa, `height` in m above mean sea level,
`layer` in Pa with `vertical_top` the upper bound, `column` (null), `channel` a number."""

DEPARTURE_LAYERS = (0.0, 7_500.0, 15_000.0, 25_000.0, 40_000.0, 60_000.0, 80_000.0, 110_000.0)
"""Bounds in Pa of the layers in which departures at pressure levels are counted."""

_DICT = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("ns", tz="UTC")


def _field(name: str, kind: pa.DataType, meaning: str, units: str = "", *, null: bool) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"description": meaning, "units": units})


OBSERVATION_SCHEMA = pa.schema(
    [
        _field(
            "observation_id", pa.int64(), "unique within a batch, in order of decoding", null=False
        ),
        _field("batch_id", _DICT, "the upload it came in", null=False),
        _field("report_type", _DICT, "network, one of REPORT_TYPES", null=False),
        _field(
            "station_id", _DICT, "who reported: WIGOS, WMO number, call sign, satellite", null=False
        ),
        _field(
            "station_alias",
            _DICT,
            "another identifier that the report gives of the station, such as its WMO number",
            null=True,
        ),
        _field("platform", _DICT, "instrument or platform detail, may be empty", null=True),
        _field("time", _TIME, "valid time of the value", "UTC", null=False),
        _field("received_time", _TIME, "arrival at the gateway", "UTC", null=False),
        _field("lat", pa.float64(), "latitude", "degrees_north", null=False),
        _field("lon", pa.float64(), "longitude in [-180, 180)", "degrees_east", null=False),
        _field("elevation", pa.float32(), "station height above mean sea level", "m", null=True),
        _field("vertical_kind", _DICT, "one of VERTICAL_KINDS", null=False),
        _field(
            "vertical",
            pa.float32(),
            "vertical coordinate (lower bound of a layer)",
            "Pa or m",
            null=True,
        ),
        _field("vertical_top", pa.float32(), "upper bound of a layer", "Pa", null=True),
        _field(
            "scan_angle",
            pa.float32(),
            "of a scanning sounder: view from nadir, negative before the middle of the scan line",
            "degree",
            null=True,
        ),
        _field("variable", _DICT, "an id of the vocabulary", null=False),
        _field("obs_value", pa.float64(), "observed value", "SI", null=True),
        _field("obs_error", pa.float32(), "1 standard deviation", "SI", null=True),
        _field(
            "profile_id", pa.int32(), "reports of one ascent share it within a batch", null=True
        ),
        _field("update_sequence", pa.int16(), "correction number; higher wins", null=True),
        _field("message_offset", pa.int64(), "byte offset of the message in the upload", null=True),
        _field(
            "rejected_by", _DICT, "name of the first check that rejected it; null = used", null=True
        ),
        _field("qc_flag", pa.uint8(), "number of that check, 0 = used", null=False),
    ],
    metadata={"convention": "appa observation table 1"},
)

FEEDBACK_SCHEMA = pa.schema(
    [
        *OBSERVATION_SCHEMA,
        _field(
            "canonical_station",
            _DICT,
            "the identifier that stands for the station whatever name it reports under",
            null=True,
        ),
        _field(
            "obs_bias",
            pa.float64(),
            "bias of the sensor that was taken off `obs_value`; null where none is corrected",
            "SI",
            null=True,
        ),
        _field("hofx_background", pa.float64(), "ensemble mean of H(background)", "SI", null=True),
        _field("hofx_analysis", pa.float64(), "ensemble mean of H(analysis)", "SI", null=True),
        _field(
            "background_departure",
            pa.float64(),
            "O-B, observation minus background",
            "SI",
            null=True,
        ),
        _field(
            "analysis_departure", pa.float64(), "O-A, observation minus analysis", "SI", null=True
        ),
        _field(
            "background_spread",
            pa.float32(),
            "ensemble standard deviation of H(background)",
            "SI",
            null=True,
        ),
        _field(
            "analysis_spread",
            pa.float32(),
            "ensemble standard deviation of H(analysis)",
            "SI",
            null=True,
        ),
        _field(
            "rank",
            pa.int16(),
            "ranked members of H(analysis) plus drawn error below the value; of a pair one is ranked",
            "1",
            null=True,
        ),
    ],
    metadata={"convention": "appa feedback table 1"},
)


def station_draw(station: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on a station's name and the salt alone.

    Stations whose number is below the withheld share are kept for verification: the same ones in every
    window, whichever other stations report.
    """
    digest = hashlib.sha256(f"{salt}/{station}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def empty_table(schema: pa.Schema = OBSERVATION_SCHEMA) -> pa.Table:
    """Return a table with the schema and no rows."""
    return schema.empty_table()


def _check_names(table: pa.Table, column: str, known: set[str], what: str) -> None:
    values = set(pc.unique(table[column]).to_pylist()) - {None}
    unknown = sorted(values - known)
    if unknown:
        raise InvalidInput(
            f"Expected every '{column}' to be a known {what} ({', '.join(sorted(known))}); got "
            f"{', '.join(map(repr, unknown[:5]))}.",
            field=column,
            got=unknown[:20],
        )


_OPTIONAL = ("station_alias", "canonical_station", "scan_angle")


def validate_table(table: pa.Table, schema: pa.Schema = OBSERVATION_SCHEMA) -> pa.Table:
    """Return the table cast to `schema`, with column order and vocabulary checked.

    Extra columns are an error: they would be lost silently. Other names of the station and the
    scan angle may be absent, as in tables of earlier versions; they become null.

    Raises:
        InvalidInput: Naming the columns, values and what was expected.
    """
    for name in _OPTIONAL:
        if name in schema.names and name not in table.column_names:
            field = schema.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    missing = [n for n in schema.names if n not in table.column_names]
    extra = [n for n in table.column_names if n not in schema.names]
    if missing or extra:
        raise InvalidInput(
            f"Expected the columns {', '.join(schema.names)}; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(extra) or 'none'}.",
            missing=missing,
            unknown=extra,
        )
    try:
        table = table.select(schema.names).cast(schema).unify_dictionaries()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise InvalidInput(f"Expected column types of the observation table; {error}.") from error
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise InvalidInput(
                f"Expected no missing values in '{field.name}'; got {table[field.name].null_count}.",
                field=field.name,
            )
    _check_names(table, "variable", set(VARIABLES), "variable")
    _check_names(table, "report_type", set(REPORT_TYPES), "report type")
    _check_names(table, "vertical_kind", set(VERTICAL_KINDS), "vertical kind")
    _check_names(table, "rejected_by", set(QC_FLAGS), "quality-control outcome")
    return table
