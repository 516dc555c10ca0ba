"""Write observations as research archives keep them: IODA-style NetCDF and ODB-2.

JCSDA jedi-docs, `inside/conventions/objects_and_layouts.md`; ECMWF, ODB governance: `varno`, `obstype`
and `vertco_type`. Both are written by the formats' own libraries, with names and numbers from there.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyodc

from lab.encoders.message import gather

__all__ = ["ioda_retrievals", "odb_retrievals"]

_IODA = {
    "temperature": ("airTemperature", "K"),
    "specific_humidity": ("specificHumidity", "kg kg-1"),
}
_VARNO = {"temperature": 2, "specific_humidity": 7}
_SATELLITE, _PRESSURE = 7, 1
"""`obstype` of soundings from satellites, and `vertco_type` of pressures in Pa."""


def ioda_retrievals(table: pa.Table) -> bytes:
    """Return the retrievals of a table as a file with a location for each place and level.

    Numbers have 32 bits, as in the files of JCSDA; pressures come in hPa and name it, and errors are
    not given. The file does not name its network: the sender does.
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
    """Return the bytes of a file, as neither library writes anywhere else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()
