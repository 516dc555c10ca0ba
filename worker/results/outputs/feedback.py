"""Write the feedback: every decoded observation of the window with O-B, O-A, spread, rank and flag.

As Parquet, the table itself, and as a NetCDF file in the manner of IODA: groups of variables over
Location. A location is one place, time and level of one report; the variables observed there share
it. A variable that is not observed at a location is missing there, in `EffectiveQC` as well.
Groups: https://jointcenterforsatellitedataassimilation-jedi-docs.readthedocs-hosted.com/en/latest/
inside/conventions/objects_and_layouts.html
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.domain.errors import InvalidInput, StorageError
from model.domain.observations import FEEDBACK_SCHEMA, QC_FLAGS, validate_table
from model.domain.variables import VARIABLES
from worker.observations.columns import codes, groups, numbers, times
from worker.observations.lexicons import IODA_NAMES
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.product import Product, Written, global_attributes

__all__ = ["check_ioda", "checked_feedback", "write", "write_ioda"]

GROUPS: Mapping[str, tuple[str, str]] = {
    "ObsValue": ("obs_value", "observed value"),
    "ObsError": ("obs_error", "standard deviation of the observation error"),
    "hofx": ("hofx_background", "ensemble mean of the model equivalents of the background"),
    "hofxAnalysis": ("hofx_analysis", "ensemble mean of the model equivalents of the analysis"),
    "hofxSpread": ("background_spread", "ensemble spread of the background there"),
    "hofxAnalysisSpread": ("analysis_spread", "ensemble spread of the analysis there"),
    "ombg": ("background_departure", "observation minus background"),
    "oman": ("analysis_departure", "observation minus analysis"),
}

_TEXTS = {"stationIdentification": "station_id", "platform": "platform"}
_CODED = {"reportType": "report_type", "batch": "batch_id", "verticalKind": "vertical_kind"}
"""Few distinct words: kept as numbers with their meanings, since texts do not compress."""
_PLACES = {
    "latitude": ("lat", "degrees_north"),
    "longitude": ("lon", "degrees_east"),
    "stationElevation": ("elevation", "m"),
}
_PACKED = {"compression": "zlib", "complevel": 4, "shuffle": True}
_SECOND = 1_000_000_000


def _locations(table: pa.Table) -> NDArray[np.int64]:
    """The location of each row, numbered from 0 by first appearance, with shape (rows,).

    A second value of one variable at the same place and time (a duplicate) gets a location of
    its own.
    """
    text = [codes(table, name)[0] for name in (*_TEXTS.values(), *_CODED.values())]
    exact = [times(table), times(table, "received_time")]
    columns = ("lat", "lon", "elevation", "vertical", "vertical_top")
    place = [np.nan_to_num(numbers(table, name), nan=-9e9) for name in columns]
    shared = groups(*text, *exact, *place)
    variable = codes(table, "variable")[0]
    both = groups(shared, variable)
    order = np.argsort(both, kind="stable")
    starts = np.flatnonzero(np.diff(both[order], prepend=-1))
    nth = np.arange(len(both)) - np.repeat(starts, np.diff(starts, append=len(both)))
    turn = np.empty_like(both)
    turn[order] = nth
    _, first, location = np.unique(groups(shared, turn), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[location]


def _put(group: Any, name: str, kind: Any, values: NDArray[Any], **attributes: Any) -> None:
    """One variable over Location; NaN becomes the fill value."""
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
        code, names = codes(table, column)
        if any(names):
            _put(group, name, str, np.array([*names, ""], dtype=object)[code[first]])
    for name, column in _CODED.items():
        code, names = codes(table, column)
        meanings = {"flag_values": np.arange(len(names), dtype=np.int32)} if names else {}
        _put(group, name, "i4", code[first], **meanings, flag_meanings=" ".join(names))
    for name, (column, units) in _PLACES.items():
        _put(group, name, "f8", numbers(table, column)[first], units=units)
    units = "seconds since 1970-01-01T00:00:00Z"
    for name, column in (("dateTime", "time"), ("receiptdateTime", "received_time")):
        whole = np.rint(times(table, column)[first] / _SECOND)
        _put(group, name, "i8", whole, units=units, calendar="standard")
    kind, kinds = codes(table, "vertical_kind")
    kind, vertical = kind[first], numbers(table, "vertical")[first]
    top = numbers(table, "vertical_top")[first]
    for name, wanted, values, units in (
        ("pressure", ("pressure", "layer"), vertical, "Pa"),
        ("pressureTop", ("layer",), top, "Pa"),
        ("height", ("height",), vertical, "m"),
        ("sensorChannelNumber", ("channel",), vertical, "1"),
    ):
        rows = np.isin(kind, [i for i, k in enumerate(kinds) if k in wanted])
        if rows.any():
            _put(group, name, "f8", np.where(rows, values, np.nan), units=units)


def write_ioda(table: pa.Table, attributes: Mapping[str, Any], path: Path) -> None:
    """Writes the feedback table, with global attributes of the result."""
    location = _locations(table) if len(table) else np.zeros(0, dtype=np.int64)
    _, first = np.unique(location, return_index=True)
    code, names = codes(table, "variable")
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
    name, units = IODA_NAMES[variable], VARIABLES[variable].units

    def spread_out(values: NDArray[Any]) -> NDArray[np.float64]:
        full = np.full(length, np.nan)
        full[location] = values
        return full

    for group, (column, meaning) in GROUPS.items():
        values = spread_out(numbers(table, column)[rows])
        _put(_group(file, group), name, "f8", values, units=units, long_name=meaning)
    flags = numbers(table, "qc_flag")[rows]
    error = np.where(flags == 0, numbers(table, "obs_error")[rows], np.nan)
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
    number = spread_out(numbers(table, "observation_id")[rows])
    _put(_group(file, "ObsIdentifier"), name, "i8", number, long_name="number within its upload")
    rank = spread_out(numbers(table, "rank")[rows])
    meaning = "ranked members below the observation, 0 to ranked_members"
    _put(_group(file, "hofxRank"), name, "i4", rank, long_name=meaning)


def _group(file: Any, name: str) -> Any:
    return file.groups[name] if name in file.groups else file.createGroup(name)


def check_ioda(table: pa.Table, path: Path) -> None:
    """Counts what is in the file: each observation once, and the sums of what was observed.

    Raises:
        StorageError: If an observation is missing or a value differs.
    """
    code, names = codes(table, "variable")
    flags, values = numbers(table, "qc_flag"), numbers(table, "obs_value")
    with netCDF4.Dataset(path) as file:
        for i, variable in enumerate(names):
            rows = code == i
            found = file["EffectiveQC"][IODA_NAMES[variable]][:]
            present = ~np.ma.getmaskarray(found)
            back = np.ma.filled(file["ObsValue"][IODA_NAMES[variable]][:], np.nan)[present]
            same_flags = np.array_equal(np.sort(found.compressed()), np.sort(flags[rows]))
            if not same_flags or not np.array_equal(
                np.sort(back), np.sort(values[rows]), equal_nan=True
            ):
                raise StorageError(
                    f"Expected the feedback as written; '{variable}' differs in {path.name}."
                )


def checked_feedback(table: pa.Table) -> pa.Table:
    """The table, once it is sure that each observation is in it once and has exactly one flag.

    Raises:
        InvalidInput: If an observation comes twice, or its flag is not the number of its check.
    """
    table = validate_table(table, FEEDBACK_SCHEMA)
    if not len(table):
        return table
    identity = groups(codes(table, "batch_id")[0], numbers(table, "observation_id"))
    twice = len(identity) - len(np.unique(identity))
    if twice:
        raise InvalidInput(
            f"Expected every observation once in the feedback; {twice} of {len(identity)} rows "
            "repeat another."
        )
    check, names = codes(table, "rejected_by")
    known = np.array([*(QC_FLAGS[name].number for name in names), 0])
    flags = numbers(table, "qc_flag").astype(int)
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
        if not found[name].cast(plain).equals(table[name].cast(plain)):
            if not _equal_but_nan(found[name], table[name]):
                raise StorageError(f"Expected the feedback as written; column '{name}' differs.")


def _equal_but_nan(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    """Whether two float columns agree when NaN equals NaN."""
    if not pa.types.is_floating(a.type):
        return False
    return pc.is_null(a).equals(pc.is_null(b)) and np.array_equal(
        a.to_numpy(), b.to_numpy(), equal_nan=True
    )


def write(product: Product, folder: Path) -> Written:
    """Parquet and IODA-like NetCDF; nothing for a job without a window, such as a forecast."""
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
