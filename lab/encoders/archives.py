"""Write the formats of archives: observations as IODA-style NetCDF and ODB-2, fields as GRIB.

JCSDA jedi-docs, `inside/conventions/objects_and_layouts.md`; ECMWF, ODB governance: `varno`, `obstype`
and `vertco_type`. All are written by the formats' own libraries, with names and numbers from there.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import eccodes
import netCDF4
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyodc

from lab.encoders.message import calendar, gather
from model.domain.errors import InvalidInput

__all__ = ["encode_fields", "ioda_retrievals", "odb_retrievals"]

_IODA = {
    "temperature": ("airTemperature", "K"),
    "specific_humidity": ("specificHumidity", "kg kg-1"),
}
_VARNO = {"temperature": 2, "specific_humidity": 7}
_SATELLITE, _PRESSURE = 7, 1
"""`obstype` of soundings from satellites, and `vertco_type` of pressures in Pa."""


def ioda_retrievals(table: pa.Table) -> bytes:
    """Return the retrievals of a table as a file with a location for each place and level.

    Numbers have 32 bits, as in the files of JCSDA; pressures are in hPa, as their attribute `units`
    says, and errors are not given. The file does not name its network: the sender does.
    """
    reports = gather(_retrievals(table))
    return _written(lambda path: _write_ioda(path, reports))


def _retrievals(table: pa.Table) -> pa.Table:
    names = table["variable"].cast(pa.string())
    return table.filter(pc.is_in(names, pa.array(list(_VARNO))))


def _write_ioda(path: Path, reports: Any) -> None:
    with netCDF4.Dataset(path, "w") as data:
        data.createDimension("Location", len(reports))
        meta, values = data.createGroup("MetaData"), data.createGroup("ObsValue")
        for name, units, numbers in (
            ("latitude", "degrees_north", reports.lat),
            ("longitude", "degrees_east", reports.lon),
            ("pressure", "hPa", reports.vertical / 100.0),
        ):
            place = meta.createVariable(name, "f4", ("Location",))
            place.units = units
            place[:] = numbers
        when = meta.createVariable("dateTime", "i8", ("Location",))
        when.units = "seconds since 1970-01-01T00:00:00Z"
        when[:] = reports.time.astype("datetime64[s]").astype(np.int64)
        who = meta.createVariable("stationIdentification", str, ("Location",))
        who[:] = reports.station_id.astype(object)
        for variable, (name, units) in _IODA.items():
            found = values.createVariable(name, "f4", ("Location",), fill_value=-3.3687953e38)
            found.units = units
            found[:] = np.ma.masked_invalid(reports.get(variable))


def odb_retrievals(table: pa.Table) -> bytes:
    """Return the retrievals of a table as ODB-2, a row for each value, with errors."""
    rows = _retrievals(table)
    seconds = rows["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    when = pd.to_datetime(seconds, unit="s")
    frame = pd.DataFrame(
        {
            "date@hdr": when.strftime("%Y%m%d").astype(int),
            "time@hdr": when.strftime("%H%M%S").astype(int),
            "lat@hdr": rows["lat"].to_numpy(),
            "lon@hdr": rows["lon"].to_numpy(),
            "statid@hdr": rows["station_id"].cast(pa.string()).to_pylist(),
            "obstype@hdr": _SATELLITE,
            "varno@body": [_VARNO[name] for name in rows["variable"].cast(pa.string()).to_pylist()],
            "vertco_type@body": _PRESSURE,
            "vertco_reference_1@body": rows["vertical"].to_numpy(),
            "obsvalue@body": rows["obs_value"].to_numpy(),
            "obs_error@errstat": rows["obs_error"].to_numpy().astype(float),
        }
    )
    return _written(lambda path: pyodc.encode_odb(frame, str(path)))


def _written(write: Callable[[Path], None]) -> bytes:
    """Return the bytes of a temporary file: neither library can write to memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


# -- fields

_SHORT: Mapping[str, str] = {"2m_temperature": "2t", "temperature": "t"}
_BITS = 24


def encode_fields(table: pa.Table, edition: int) -> bytes:
    """Return a message for each variable, level and time of the fields of a table, on the hour.

    Arguments:
        table: Rows at all points of a grid with even steps in latitude and longitude.
        edition: 1 or 2.

    Raises:
        InvalidInput: If a field lacks a point.
    """
    rows = table.filter(pc.equal(table["report_type"].cast(pa.string()), "gridded"))
    return b"".join(_messages(rows, edition))


def _messages(rows: pa.Table, edition: int) -> Iterator[bytes]:
    frame = rows.select(["variable", "vertical", "time", "lat", "lon", "obs_value"]).to_pandas()
    frame["variable"] = frame["variable"].astype(str)
    frame["lon"] = frame["lon"] % 360.0
    for (variable, level, time), own in frame.groupby(
        ["variable", "vertical", "time"], dropna=False
    ):
        field = own.pivot(index="lat", columns="lon", values="obs_value").sort_index(
            ascending=False
        )
        if field.isna().to_numpy().any():
            raise InvalidInput(f"Expected a value of '{variable}' at each point of a grid.")
        yield _message(_SHORT[variable], level, time.to_datetime64(), field, edition)


def _message(
    short: str, level: float, time: np.datetime64, field: pd.DataFrame, edition: int
) -> bytes:
    lat, lon = field.index.to_numpy(), field.columns.to_numpy()
    moment = {key[3:]: int(value[0]) for key, value in calendar(np.array([time])).items()}
    aloft = bool(np.isfinite(level))
    keys = {
        "Ni": len(lon), "Nj": len(lat),
        "latitudeOfFirstGridPointInDegrees": lat[0], "latitudeOfLastGridPointInDegrees": lat[-1],
        "longitudeOfFirstGridPointInDegrees": lon[0], "longitudeOfLastGridPointInDegrees": lon[-1],
        "iDirectionIncrementInDegrees": lon[1] - lon[0],
        "jDirectionIncrementInDegrees": lat[0] - lat[1],
        "dataDate": moment["year"] * 10_000 + moment["month"] * 100 + moment["day"],
        "dataTime": moment["hour"] * 100 + moment["minute"],
        "shortName": short,
        **({"level": round(level / 100.0)} if aloft else {}),
        "bitsPerValue": _BITS,
    }  # fmt: skip
    handle = eccodes.codes_grib_new_from_samples(
        f"regular_ll_{'pl' if aloft else 'sfc'}_grib{edition}"
    )
    try:
        for key, value in keys.items():
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set_values(handle, field.to_numpy().ravel())
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)
