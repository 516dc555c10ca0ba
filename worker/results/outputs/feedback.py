"""Write the feedback: every decoded observation of the window with O-B, O-A, spread, rank and flag.

* Parquet holds the table itself.
* NetCDF in the manner of IODA has groups of variables over Location. A location is one place, time
  and level of one report; the variables observed there share it. A variable that is not observed at
  a location is missing there, in `EffectiveQC` as well. Groups:
  https://jointcenterforsatellitedataassimilation-jedi-docs.readthedocs-hosted.com/en/latest/
  inside/conventions/objects_and_layouts.html
* ODB-2 has the columns of ECMWF's feedback: variables by varno
  (https://codes.ecmwf.int/odb/varno/), observations by obstype, and our own flags and names in
  columns of the table `appa`.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyodc
from numpy.typing import NDArray
from pyodc.constants import DataType

from model.domain.errors import InvalidInput, StorageError
from model.domain.observations import FEEDBACK_SCHEMA, QC_FLAGS, validate_table
from model.domain.variables import VARIABLES
from worker.observations.columns import (
    category_codes,
    float_column,
    groups,
    set_column,
    time_column,
)
from worker.observations.lexicons import IODA_NAMES, OBSTYPE, VARNO, VERTCO
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.product import Product, Written, global_attributes

__all__ = [
    "check_ioda",
    "checked_feedback",
    "feedback_frame",
    "ioda_name",
    "write",
    "write_ioda",
    "write_odb",
]

GROUPS: Mapping[str, tuple[str, str]] = {
    "ObsValue": ("obs_value", "value as reported or reduced, the bias not taken off"),
    "ObsBias": ("obs_bias", "bias of the sensor, taken off before departures are computed"),
    "ObsError": ("obs_error", "standard deviation of the observation error"),
    "hofx": ("hofx_background", "ensemble mean of the model equivalents of the background"),
    "hofxAnalysis": ("hofx_analysis", "ensemble mean of the model equivalents of the analysis"),
    "hofxSpread": ("background_spread", "ensemble spread of the background there"),
    "hofxAnalysisSpread": ("analysis_spread", "ensemble spread of the analysis there"),
    "ombg": ("background_departure", "observation minus background"),
    "oman": ("analysis_departure", "observation minus analysis"),
}

_TEXTS = {
    "stationIdentification": "station_id",
    "stationAlias": "station_alias",
    "canonicalStation": "canonical_station",
    "platform": "platform",
}
_CODED = {"reportType": "report_type", "batch": "batch_id", "verticalKind": "vertical_kind"}
"""Columns with few distinct texts, stored as numbers with `flag_meanings`: texts do not compress."""
_PLACES = {
    "latitude": ("lat", "degrees_north"),
    "longitude": ("lon", "degrees_east"),
    "stationElevation": ("elevation", "m"),
}
_PACKED = {"compression": "zlib", "complevel": 4, "shuffle": True}
_SECOND = 1_000_000_000


def _locations(table: pa.Table) -> NDArray[np.int64]:
    """Return the location of each row, numbered from 0 by first appearance, with shape (rows,).

    A second value of one variable at the same place and time (a duplicate) gets a separate location.
    """
    text = [category_codes(table, name)[0] for name in (*_TEXTS.values(), *_CODED.values())]
    exact = [time_column(table), time_column(table, "received_time")]
    columns = ("lat", "lon", "elevation", "vertical", "vertical_top", "scan_angle")
    place = [np.nan_to_num(float_column(table, name), nan=-9e9) for name in columns]
    shared = groups(*text, *exact, *place)
    variable = category_codes(table, "variable")[0]
    both = groups(shared, variable)
    order = np.argsort(both, kind="stable")
    starts = np.flatnonzero(np.diff(both[order], prepend=-1))
    nth = np.arange(len(both)) - np.repeat(starts, np.diff(starts, append=len(both)))
    turn = np.empty_like(both)
    turn[order] = nth
    _, first, location = np.unique(groups(shared, turn), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[location]


def _put(group: Any, name: str, kind: Any, values: NDArray[Any], **attributes: Any) -> None:
    """Write one variable over Location; NaN becomes the fill value."""
    if kind is str:
        variable = group.createVariable(name, str, ("Location",))
        variable[:] = values.astype(object)
    else:
        fill = netCDF4.default_fillvals[np.dtype(kind).str[1:]]
        variable = group.createVariable(name, kind, ("Location",), fill_value=fill, **_PACKED)
        with np.errstate(invalid="ignore"):
            variable[:] = np.where(np.isnan(values), fill, values).astype(kind)
    variable.setncatts(attributes)


def _metadata(file: Any, table: pa.Table, first: NDArray[np.int64]) -> None:
    group = file.createGroup("MetaData")
    for name, column in _TEXTS.items():
        code, names = category_codes(table, column)
        if any(names):
            _put(group, name, str, np.array([*names, ""], dtype=object)[code[first]])
    for name, column in _CODED.items():
        code, names = category_codes(table, column)
        meanings = {"flag_values": np.arange(len(names), dtype=np.int32)} if names else {}
        _put(group, name, "i4", code[first], **meanings, flag_meanings=" ".join(names))
    for name, (column, units) in _PLACES.items():
        _put(group, name, "f8", float_column(table, column)[first], units=units)
    units = "seconds since 1970-01-01T00:00:00Z"
    for name, column in (("dateTime", "time"), ("receiptdateTime", "received_time")):
        whole = np.rint(time_column(table, column)[first] / _SECOND)
        _put(group, name, "i8", whole, units=units, calendar="standard")
    kind, kinds = category_codes(table, "vertical_kind")
    kind, vertical = kind[first], float_column(table, "vertical")[first]
    top = float_column(table, "vertical_top")[first]
    for name, wanted, values, units in (
        ("pressure", ("pressure", "layer"), vertical, "Pa"),
        ("pressureTop", ("layer",), top, "Pa"),
        ("height", ("height",), vertical, "m"),
        ("sensorChannelNumber", ("channel",), vertical, "1"),
    ):
        rows = np.isin(kind, [i for i, k in enumerate(kinds) if k in wanted])
        if rows.any():
            _put(group, name, "f8", np.where(rows, values, np.nan), units=units)
    angle = float_column(table, "scan_angle")[first]
    if np.isfinite(angle).any():
        _put(group, "sensorViewAngle", "f4", angle, units="degree")


def ioda_name(variable: str) -> str:
    """Return the IODA name of a variable; our own id if IODA has none."""
    return IODA_NAMES.get(variable, variable)


def _with_bias(table: pa.Table) -> pa.Table:
    """Return the table with uncorrected values, as in IODA and ODB: sensor biases are added again."""
    bias = np.nan_to_num(float_column(table, "obs_bias"), nan=0.0)
    return set_column(table, "obs_value", float_column(table, "obs_value") + bias)


def write_ioda(table: pa.Table, attributes: Mapping[str, Any], path: Path) -> None:
    """Write the feedback table, with the global attributes of the result."""
    table = _with_bias(table)
    location = _locations(table) if len(table) else np.zeros(0, dtype=np.int64)
    _, first = np.unique(location, return_index=True)
    code, names = category_codes(table, "variable")
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts({**attributes, "Conventions": "IODA-like, see docs/outputs.md"})
        file.setncatts({"_ioda_layout": "ObsGroup", "_ioda_layout_version": np.int32(3)})
        file.createDimension("Location", len(first))
        file.createVariable("Location", "i8", ("Location",))[:] = np.arange(len(first))
        _metadata(file, table, first)
        for i, variable in enumerate(names):
            rows = np.flatnonzero(code == i)
            _write_variable(file, table, variable, rows, location[rows], len(first))


def _write_variable(
    file: Any,
    table: pa.Table,
    variable: str,
    rows: NDArray[np.int64],
    location: NDArray[np.int64],
    length: int,
) -> None:
    name, units = ioda_name(variable), VARIABLES[variable].units

    def spread_out(values: NDArray[Any]) -> NDArray[np.float64]:
        full = np.full(length, np.nan)
        full[location] = values
        return full

    for group, (column, meaning) in GROUPS.items():
        values = spread_out(float_column(table, column)[rows])
        _put(_group(file, group), name, "f8", values, units=units, long_name=meaning)
    flags = float_column(table, "qc_flag")[rows]
    error = np.where(flags == 0, float_column(table, "obs_error")[rows], np.nan)
    meaning = "error the analysis used; missing where rejected"
    _put(
        _group(file, "EffectiveError"),
        name,
        "f8",
        spread_out(error),
        units=units,
        long_name=meaning,
    )
    numbered = {0: "pass", **{f.number: f.name for f in QC_FLAGS.values()}}
    _put(
        _group(file, "EffectiveQC"),
        name,
        "i4",
        spread_out(flags),
        flag_values=np.array(list(numbered), dtype=np.int32),
        flag_meanings=" ".join(numbered.values()),
    )
    number = spread_out(float_column(table, "observation_id")[rows])
    _put(_group(file, "ObsIdentifier"), name, "i8", number, long_name="number within its upload")
    rank = spread_out(float_column(table, "rank")[rows])
    meaning = "ranked members below the observation, 0 to ranked_members"
    _put(_group(file, "hofxRank"), name, "i4", rank, long_name=meaning)


def _group(file: Any, name: str) -> Any:
    return file.groups[name] if name in file.groups else file.createGroup(name)


def check_ioda(table: pa.Table, path: Path) -> None:
    """Check that the file holds each observation once, with its value and flag.

    Raises:
        StorageError: If an observation is missing or a value differs.
    """
    table = _with_bias(table)
    code, names = category_codes(table, "variable")
    flags, values = float_column(table, "qc_flag"), float_column(table, "obs_value")
    # A value equal to the fill value, which earlier versions stored, is read back as missing.
    values = np.where(values == netCDF4.default_fillvals["f8"], np.nan, values)
    with netCDF4.Dataset(path) as file:
        for i, variable in enumerate(names):
            rows = code == i
            found = file["EffectiveQC"][ioda_name(variable)][:]
            present = ~np.ma.getmaskarray(found)
            back = np.ma.filled(file["ObsValue"][ioda_name(variable)][:], np.nan)[present]
            same_flags = np.array_equal(np.sort(found.compressed()), np.sort(flags[rows]))
            if not same_flags or not np.array_equal(
                np.sort(back), np.sort(values[rows]), equal_nan=True
            ):
                raise StorageError(
                    f"Expected the feedback as written; '{variable}' differs in {path.name}."
                )


def checked_feedback(table: pa.Table) -> pa.Table:
    """Return the table after checking that each observation is in it once, with one flag.

    Raises:
        InvalidInput: If an observation occurs twice, or its flag is not the number of its check.
    """
    table = validate_table(table, FEEDBACK_SCHEMA)
    if not len(table):
        return table
    identity = groups(category_codes(table, "batch_id")[0], float_column(table, "observation_id"))
    twice = len(identity) - len(np.unique(identity))
    if twice:
        raise InvalidInput(
            f"Expected every observation once in the feedback; {twice} of {len(identity)} rows "
            "repeat another."
        )
    check, names = category_codes(table, "rejected_by")
    known = np.array([*(QC_FLAGS[name].number for name in names), 0])
    flags = float_column(table, "qc_flag").astype(int)
    wrong = np.flatnonzero(flags != known[check])
    if len(wrong):
        row = int(wrong[0])
        raise InvalidInput(
            f"Expected the flag {known[check[row]]} of the rejecting check in every row; got "
            f"{flags[row]} in row {row}, and in {len(wrong)} rows in all.",
            row=row,
        )
    return table


def _write_parquet(table: pa.Table, product: Product, path: Path) -> None:
    facts = {str(k): str(v) for k, v in global_attributes(product).items() if k != "Conventions"}
    metadata = {**(table.schema.metadata or {}), b"appa": json.dumps(facts).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def _check_parquet(table: pa.Table, path: Path) -> None:
    found = pq.read_table(path)
    if found.num_rows != table.num_rows or found.column_names != table.column_names:
        raise StorageError(
            "Expected the feedback as written; got another number of rows or columns."
        )
    for name in table.column_names:
        kind = table.schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        same = found[name].cast(plain).equals(table[name].cast(plain))
        if not same and not _equal_but_nan(found[name], table[name]):
            raise StorageError(f"Expected the feedback as written; column '{name}' differs.")


def _equal_but_nan(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    """Return whether two float columns agree when NaN equals NaN."""
    if not pa.types.is_floating(a.type):
        return False
    return pc.is_null(a).equals(pc.is_null(b)) and np.array_equal(
        a.to_numpy(), b.to_numpy(), equal_nan=True
    )


def write(product: Product, folder: Path) -> Written:
    """Write Parquet and IODA-like NetCDF; nothing for a job without a window, such as a forecast."""
    if product.window is None:
        return []
    table = checked_feedback(product.feedback)
    parquet = put_file(
        product_file(product, folder, "parquet", "obsfb"),
        partial(_write_parquet, table, product),
        partial(_check_parquet, table),
    )
    ioda = put_file(
        product_file(product, folder, "nc", "obsfb"),
        partial(write_ioda, table, global_attributes(product)),
        partial(check_ioda, table),
    )
    return [(parquet, "feedback"), (ioda, "feedback")]


ACTIVE, PASSIVE, REJECTED, BLOCKED = 1, 2, 4, 8

_ODB_NUMBERS = {
    "lat@hdr": "lat",
    "lon@hdr": "lon",
    "stalt@hdr": "elevation",
    "vertco_reference_1@body": "vertical",
    "vertco_reference_2@body": "vertical_top",
    "scan_angle@appa": "scan_angle",
    "obsvalue@body": "obs_value",
    "biascorr@body": "obs_bias",
    "fg_depar@body": "background_departure",
    "an_depar@body": "analysis_departure",
    "final_obs_error@errstat": "obs_error",
    "fg_error@errstat": "background_spread",
    "hofx_background@appa": "hofx_background",
    "hofx_analysis@appa": "hofx_analysis",
    "analysis_spread@appa": "analysis_spread",
    "rank@appa": "rank",
}
_ODB_TEXTS = {
    "statid@hdr": "station_id",
    "station_alias@appa": "station_alias",
    "canonical_station@appa": "canonical_station",
    "report_type@appa": "report_type",
    "variable@appa": "variable",
    "rejected_by@appa": "rejected_by",
    "batch_id@appa": "batch_id",
}


def _texts(table: pa.Table, column: str) -> NDArray[Any]:
    code, names = category_codes(table, column)
    return np.array([*names, ""], dtype=object)[code]


def _coded(table: pa.Table, column: str, numbers_of: Mapping[str, int]) -> NDArray[np.int64]:
    code, names = category_codes(table, column)
    return np.array([*(numbers_of.get(name, 0) for name in names), 0], dtype=np.int64)[code]


def _status(table: pa.Table) -> NDArray[np.int64]:
    """Return datum_status: active, passive (monitored or withheld), rejected or blocklisted."""
    found = {name: REJECTED for name in QC_FLAGS}
    found.update(passive=PASSIVE, withheld=PASSIVE, blocklist=BLOCKED)
    status = _coded(table, "rejected_by", found)
    return np.where(status == 0, ACTIVE, status)


def feedback_frame(table: pa.Table) -> pd.DataFrame:
    """Return the feedback with the columns of ODB, one row per value."""
    table = _with_bias(table)
    moment = pd.DatetimeIndex(time_column(table).astype("datetime64[ns]")).round("s")
    columns: dict[str, Any] = {
        "seqno@hdr": np.arange(len(table), dtype=np.int64),
        "obstype@hdr": _coded(table, "report_type", OBSTYPE),
        "date@hdr": (moment.year * 10000 + moment.month * 100 + moment.day).to_numpy(np.int64),
        "time@hdr": (moment.hour * 10000 + moment.minute * 100 + moment.second).to_numpy(np.int64),
        "varno@body": _coded(table, "variable", VARNO),
        "vertco_type@body": _coded(table, "vertical_kind", VERTCO),
        "datum_status@body": _status(table),
        "qc_flag@appa": float_column(table, "qc_flag").astype(np.int64),
        "observation_id@appa": float_column(table, "observation_id").astype(np.int64),
    }
    columns |= {name: float_column(table, column) for name, column in _ODB_NUMBERS.items()}
    columns |= {name: _texts(table, column) for name, column in _ODB_TEXTS.items()}
    return pd.DataFrame(columns)


def _write_odb(frame: pd.DataFrame, path: Path) -> None:
    types = {name: DataType.DOUBLE for name in _ODB_NUMBERS}
    types |= {name: DataType.STRING for name in _ODB_TEXTS}
    with path.open("wb") as stream:
        pyodc.encode_odb(frame, stream, types=types)


def _check_odb(frame: pd.DataFrame, path: Path) -> None:
    with path.open("rb") as stream:  # given a path, pyodc leaves the file open
        found = pyodc.read_odb(stream, single=True)
    for name in frame.columns:
        a, b = frame[name].to_numpy(), found[name].to_numpy()
        same = (
            np.array_equal(a.astype(str), b.astype(str))
            if name in _ODB_TEXTS
            else np.array_equal(a.astype(float), b.astype(float), equal_nan=True)
        )
        if not same:
            raise StorageError(f"Expected the feedback as written; column '{name}' differs.")


def write_odb(product: Product, folder: Path) -> Written:
    """Write one ODB-2 file; none without observations, since ODB-2 has no empty file."""
    if product.window is None or not len(product.feedback):
        return []
    frame = feedback_frame(checked_feedback(product.feedback))
    path = product_file(product, folder, "odb", "obsfb")
    return [(put_file(path, partial(_write_odb, frame), partial(_check_odb, frame)), "feedback")]
