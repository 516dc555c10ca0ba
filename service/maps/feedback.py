"""Read the feedback of an analysis for maps: many points in columns, few rows with all they hold.

Points travel as one binary body like fields do (`service.maps.answers.frame`): metadata, then one
column after the other, little-endian. Texts are numbers into the lists of names in the metadata. A
browser reads a column as a typed array, without a copy and without parsing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from model.domain.errors import StorageError
from model.domain.observations import DEPARTURE_LAYERS, FEEDBACK_SCHEMA, QC_FLAGS
from model.domain.variables import VARIABLES
from service.errors import NotFound
from service.maps.answers import MapAnswer
from worker.contract.layout import Layout
from worker.observations.columns import category_codes, float_column, is_one_of
from worker.results.manifest import AnalysisManifest
from worker.results.store import result_store

__all__ = [
    "LAYER_NAMES",
    "FeedbackFilter",
    "FeedbackInfo",
    "FeedbackPoints",
    "FeedbackRow",
    "feedback_path",
    "read_points",
    "read_rows",
]

USED = "used"
_BOUNDS = list(zip(DEPARTURE_LAYERS, DEPARTURE_LAYERS[1:], strict=False))
LAYER_NAMES = tuple(f"{low / 100:.0f}-{high / 100:.0f} hPa" for low, high in _BOUNDS)
"""Layers of pressure, as the departure statistics name them; other rows go by `vertical_kind`."""

_TEXTS = ("report_type", "variable", "rejected_by", "vertical_kind")
_NUMBERS = ("lon", "lat", "obs_error", "background_departure", "analysis_departure")
_NEEDED = (*_TEXTS, "lon", "lat", "vertical")


class FeedbackCount(MapAnswer):
    """Observed values that share network, variable, layer and outcome."""

    network: str = Field(description="Report type.")
    variable: str = Field(description="Variable id.")
    layer: str = Field(description="`surface`, `400-600 hPa` …")
    outcome: str = Field(description="`used`, or the check that rejected them.")
    count: int = Field(description="Observed values.")


class FeedbackColumn(MapAnswer):
    """A column of the binary body."""

    name: str = Field(description="What it holds.")
    type: Literal["float32", "uint32", "uint8"] = Field(description="Little-endian numbers.")
    offset: int = Field(description="First byte, counted from the end of the metadata.")
    names: list[str] = Field(description="What its numbers stand for; empty for plain numbers.")


class FeedbackInfo(MapAnswer):
    """What the points of an analysis are, and how many there are of each kind."""

    result: str = Field(description="Id of the analysis.")
    kind: str = Field(description="Kind of the analysis.")
    flavour: str = Field(description="`early`, `final`, or empty.")
    revision: int = Field(description="Revision of the analysis.")
    valid_time: datetime = Field(description="UTC.")
    total: int = Field(description="Rows of the feedback.")
    matching: int = Field(description="Rows that were asked for.")
    points: int = Field(description="Rows in this answer, evenly chosen if fewer than `matching`.")
    units: dict[str, str] = Field(description="Units by variable id.")
    meanings: dict[str, str] = Field(description="What each outcome means.")
    counts: list[FeedbackCount] = Field(description="Of the whole feedback, whatever is asked.")
    columns: list[FeedbackColumn] = Field(description="Columns of the binary body, in order.")


class FeedbackRow(MapAnswer):
    """One observed value and what the analysis made of it."""

    row: int = Field(description="Row of the feedback, from 0.")
    batch_id: str = Field(description="The upload it came in.")
    observation_id: int = Field(description="Its number in that upload.")
    network: str = Field(description="Report type.")
    station_id: str = Field(description="Who reported.")
    platform: str | None = Field(description="Instrument or platform.")
    time: datetime = Field(description="Valid time of the value (UTC).")
    received_time: datetime = Field(description="Arrival (UTC).")
    lat: float = Field(description="Degrees north.")
    lon: float = Field(description="Degrees east.")
    elevation: float | None = Field(description="Station height, m.")
    vertical_kind: str = Field(description="How `vertical` is read.")
    vertical: float | None = Field(description="Pa or m.")
    scan_angle: float | None = Field(
        description="Of a sounder: degrees from nadir, negative before the middle of the scan line."
    )
    layer: str = Field(description="`surface`, `400-600 hPa` …")
    variable: str = Field(description="Variable id.")
    units: str = Field(description="Of the values.")
    obs_value: float | None = Field(description="Observed value.")
    obs_error: float | None = Field(description="One standard deviation.")
    obs_bias: float | None = Field(description="Bias that was taken off the value.")
    hofx_background: float | None = Field(description="Mean of H(background).")
    hofx_analysis: float | None = Field(description="Mean of H(analysis).")
    background_departure: float | None = Field(description="O-B.")
    analysis_departure: float | None = Field(description="O-A.")
    background_spread: float | None = Field(description="Ensemble spread of H(background).")
    analysis_spread: float | None = Field(description="Ensemble spread of H(analysis).")
    rank: int | None = Field(description="Ranked members of H(analysis) below the value.")
    outcome: str = Field(description="`used`, or the check that rejected it.")
    meaning: str = Field(description="What that outcome means.")


class FeedbackPoints(FeedbackInfo):
    """Feedback rows with their counts and metadata, as JSON."""

    rows: list[FeedbackRow] = Field(description="All that the feedback says of each.")


@dataclass(frozen=True)
class FeedbackFilter:
    """Rows to choose; empty tuples choose all.

    Attributes:
        networks: Report types.
        variables: Variable ids.
        layers: Names of layers, or vertical kinds such as `surface`.
        rejected_by: Checks.
        stations: Station ids.
        outcome: Whether used, rejected or all rows are wanted.
        rows: Numbers of rows.
    """

    networks: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    rejected_by: tuple[str, ...] = ()
    stations: tuple[str, ...] = ()
    outcome: Literal["all", "used", "rejected"] = "all"
    rows: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that the choice reads beyond those of every answer."""
        return ("station_id",) if self.stations else ()

    def mask(self, table: pa.Table, layer: NDArray[np.uint8], names: Sequence[str]) -> Any:
        """Return which rows of the feedback are chosen, with shape (rows,).

        Arguments:
            table: The feedback.
            layer: The layer of each row, a number into `names`.
            names: Names of the layers.
        """
        chosen = np.ones(len(table), dtype=bool)
        for column, wanted in (
            ("report_type", self.networks),
            ("variable", self.variables),
            ("rejected_by", self.rejected_by),
            ("station_id", self.stations),
        ):
            if wanted:
                chosen &= is_one_of(table, column, wanted)
        if self.layers:
            chosen &= np.isin(layer, [i for i, name in enumerate(names) if name in self.layers])
        if self.outcome != "all":
            used = np.array(pc.is_null(table["rejected_by"]).to_numpy(), dtype=bool)
            chosen &= used if self.outcome == USED else ~used
        if self.rows:
            listed = np.zeros(len(table), dtype=bool)
            listed[[row for row in self.rows if row < len(table)]] = True
            chosen &= listed
        return chosen


def feedback_path(layout: Layout, manifest: AnalysisManifest) -> Path | None:
    """Return the feedback table of an analysis; None if it was published without."""
    name = manifest.feedback_name
    return None if name is None else result_store(layout).file(manifest.id, name)


def _read(layout: Layout, manifest: AnalysisManifest, columns: Sequence[str]) -> pa.Table:
    """Return columns of the feedback; those that older versions did not write are null.

    Raises:
        NotFound: If the analysis has no feedback.
        StorageError: If the file is gone or no feedback table.
    """
    path = feedback_path(layout, manifest)
    if path is None:
        raise NotFound(
            f"Expected an analysis with a feedback table; '{manifest.id}' ({manifest.kind}) has "
            "none. Ask for the output `feedback`."
        )
    try:
        held = set(pq.read_schema(path).names)
        missing = [name for name in _NEEDED if name not in held]
        if missing:
            raise StorageError(
                f"Expected the columns of a feedback table in {path.name}; it lacks "
                f"{', '.join(missing)}."
            )
        table = pq.read_table(path, columns=[name for name in columns if name in held])
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"Expected the feedback of '{manifest.id}'; {error}.") from error
    for name in columns:
        if name not in held:
            field = FEEDBACK_SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def _layers(table: pa.Table) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the layer of each row as a number, with shape (rows,), and the names of layers."""
    kind, kinds = category_codes(table, "vertical_kind")
    names = [*LAYER_NAMES, *(k for k in kinds if k != "pressure"), "pressure"]
    number = np.array([names.index(k) for k in kinds] or [0])[np.maximum(kind, 0)]
    if "pressure" in kinds:
        # A layer includes its lower boundary, which has the higher pressure.
        vertical = float_column(table, "vertical")
        place = np.searchsorted(DEPARTURE_LAYERS, vertical, side="left") - 1
        inside = (kind == kinds.index("pressure")) & (place >= 0) & (place < len(LAYER_NAMES))
        number = np.where(inside, place, number)
    return number.astype(np.uint8), names


def _outcomes(table: pa.Table) -> tuple[NDArray[np.uint8], list[str]]:
    code, names = category_codes(table, "rejected_by")
    return (code + 1).astype(np.uint8), [USED, *names]


def _coded(table: pa.Table) -> dict[str, tuple[NDArray[np.uint8], list[str]]]:
    """Return the columns of names: the number of each row, and what the numbers stand for."""
    found = {"outcome": _outcomes(table), "layer": _layers(table)}
    for name, column in (("network", "report_type"), ("variable", "variable")):
        code, names = category_codes(table, column)
        found[name] = (code.astype(np.uint8), names)
    return found


def _counts(coded: dict[str, tuple[NDArray[np.uint8], list[str]]]) -> list[FeedbackCount]:
    order = ("network", "variable", "layer", "outcome")
    keys = np.stack([coded[name][0] for name in order], axis=1)
    kinds, count = np.unique(keys, axis=0, return_counts=True)
    return [
        FeedbackCount(
            count=int(n),
            **{name: coded[name][1][i] for name, i in zip(order, row, strict=True)},
        )
        for row, n in zip(kinds.tolist(), count.tolist(), strict=True)
    ]


def _meaning(outcome: str) -> str:
    if outcome == USED:
        return "assimilated"
    return QC_FLAGS[outcome].meaning if outcome in QC_FLAGS else ""


def _evenly(rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return at most `limit` of the rows, evenly spread over them."""
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


@dataclass(frozen=True)
class _Chosen:
    """The rows of one request: where they are, their columns of names, and what they are."""

    rows: NDArray[np.int64]
    coded: dict[str, tuple[NDArray[np.uint8], list[str]]]
    info: FeedbackInfo


def _choose(
    table: pa.Table, manifest: AnalysisManifest, wanted: FeedbackFilter, limit: int
) -> _Chosen:
    coded = _coded(table)
    matching = np.flatnonzero(wanted.mask(table, *coded["layer"]))
    rows = _evenly(matching, limit)
    info = FeedbackInfo(
        result=manifest.id,
        kind=manifest.kind,
        flavour=manifest.flavour,
        revision=manifest.revision,
        valid_time=manifest.valid_time,
        total=len(table),
        matching=len(matching),
        points=len(rows),
        units={v: VARIABLES[v].units for v in coded["variable"][1] if v in VARIABLES},
        meanings={name: _meaning(name) for name in coded["outcome"][1]},
        counts=_counts(coded) if len(table) else [],
        columns=[],
    )
    return _Chosen(rows, coded, info)


def read_points(
    layout: Layout, manifest: AnalysisManifest, wanted: FeedbackFilter, limit: int
) -> tuple[FeedbackInfo, bytes]:
    """Return the chosen rows as columns: metadata and the bytes of the columns.

    Raises:
        NotFound: If the analysis has no feedback.
        StorageError: If the feedback cannot be read.
    """
    table = _read(layout, manifest, list(dict.fromkeys((*_NEEDED, *_NUMBERS, *wanted.columns))))
    chosen = _choose(table, manifest, wanted, limit)
    parts: list[tuple[str, NDArray[Any], list[str]]] = [
        ("row", chosen.rows.astype("<u4"), []),
        *((n, float_column(table, n)[chosen.rows].astype("<f4"), []) for n in _NUMBERS),
        *((n, codes[chosen.rows], names) for n, (codes, names) in chosen.coded.items()),
    ]
    offset = 0
    for name, values, names in parts:
        chosen.info.columns.append(
            FeedbackColumn(name=name, type=values.dtype.name, offset=offset, names=names)
        )
        offset += values.nbytes
    return chosen.info, b"".join(values.tobytes() for _, values, _ in parts)


def read_rows(
    layout: Layout, manifest: AnalysisManifest, wanted: FeedbackFilter, limit: int
) -> FeedbackPoints:
    """Return the chosen rows with everything that the feedback says of them.

    Raises:
        NotFound: If the analysis has no feedback.
        StorageError: If the feedback cannot be read.
    """
    table = _read(layout, manifest, FEEDBACK_SCHEMA.names)
    chosen = _choose(table, manifest, wanted, limit)
    layer, names = chosen.coded["layer"]
    listed = _plain(table.take(pa.array(chosen.rows))).to_pylist()
    rows = [
        _row(int(i), names[layer[i]], values) for i, values in zip(chosen.rows, listed, strict=True)
    ]
    return FeedbackPoints(**chosen.info.model_dump(), rows=rows)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with times of whole microseconds: what a datetime can hold."""
    for name in ("time", "received_time"):
        times = table[name].cast(pa.timestamp("us", tz="UTC"), safe=False)
        table = table.set_column(table.schema.get_field_index(name), name, times)
    return table


def _row(number: int, layer: str, values: dict[str, Any]) -> FeedbackRow:
    outcome = values["rejected_by"] or USED
    variable = values["variable"]
    same = {name: values[name] for name in FeedbackRow.model_fields if name in values}
    return FeedbackRow(
        **same,
        row=number,
        layer=layer,
        network=values["report_type"],
        units=VARIABLES[variable].units if variable in VARIABLES else "",
        outcome=outcome,
        meaning=_meaning(outcome),
    )
