"""Write example files in every supported form, those that need netCDF4 or pyodc included."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pyodc

from model.domain.registry import Registry
from worker.observations.export import EXAMPLE, TEMPLATES, ExampleFile

__all__ = ["ALL_TEMPLATES"]

_VARNO = {
    "2m_temperature": 39, "surface_pressure": 110, "10m_u_component_of_wind": 41,
    "10m_v_component_of_wind": 42, "mean_sea_level_pressure": 108, "temperature": 2,
    "geopotential": 1, "u_component_of_wind": 3,
}  # fmt: skip
_OBSTYPE = {"synop": 1, "ship": 1, "aircraft": 2, "temp": 5}
_CODETYPE = {"synop": 14, "ship": 21, "aircraft": 144, "temp": 35}


def _written(write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template"
        write(path)
        return path.read_bytes()


def _write_ioda(path: Path) -> None:
    """One location per station of the surface, with the variables it has."""
    rows = [row for row in EXAMPLE if row["report_type"] == "synop"]
    names = {
        "2m_temperature": ("airTemperature", "K"),
        "surface_pressure": ("stationPressure", "Pa"),
        "10m_u_component_of_wind": ("windEastward", "m s-1"),
        "10m_v_component_of_wind": ("windNorthward", "m s-1"),
    }
    with netCDF4.Dataset(path, "w") as data:
        data.createDimension("Location", 1)
        meta = data.createGroup("MetaData")
        for name, value in (
            ("latitude", rows[0]["lat"]),
            ("longitude", rows[0]["lon"]),
            ("stationElevation", rows[0]["elevation"]),
        ):
            meta.createVariable(name, "f4", ("Location",))[:] = value
        time = meta.createVariable("dateTime", "i8", ("Location",))
        time.units = "seconds since 1970-01-01T00:00:00Z"
        time[:] = int(rows[0]["time"].timestamp())
        station = meta.createVariable("stationIdentification", str, ("Location",))
        station[:] = np.array([rows[0]["station_id"]], dtype=object)
        values, errors = data.createGroup("ObsValue"), data.createGroup("ObsError")
        for row in rows:
            name, units = names[row["variable"]]
            variable = values.createVariable(name, "f4", ("Location",))
            variable.units = units
            variable[:] = row["obs_value"]
            if row["obs_error"] is not None:
                errors.createVariable(name, "f4", ("Location",))[:] = row["obs_error"]


def _write_odb(path: Path) -> None:
    rows = [row for row in EXAMPLE if row["variable"] in _VARNO]
    frame = pd.DataFrame(
        {
            "date@hdr": [int(f"{r['time']:%Y%m%d}") for r in rows],
            "time@hdr": [int(f"{r['time']:%H%M%S}") for r in rows],
            "lat@hdr": [r["lat"] for r in rows],
            "lon@hdr": [r["lon"] for r in rows],
            "statid@hdr": [r["station_id"] for r in rows],
            "stalt@hdr": [np.nan if r["elevation"] is None else r["elevation"] for r in rows],
            "obstype@hdr": [_OBSTYPE[r["report_type"]] for r in rows],
            "codetype@hdr": [_CODETYPE[r["report_type"]] for r in rows],
            "varno@body": [_VARNO[r["variable"]] for r in rows],
            "vertco_type@body": [1 for _ in rows],
            "vertco_reference_1@body": [r["vertical"] or np.nan for r in rows],
            "obsvalue@body": [r["obs_value"] for r in rows],
        }
    )
    pyodc.encode_odb(frame, str(path))


ALL_TEMPLATES: Registry[ExampleFile] = Registry(
    "template",
    **TEMPLATES,
    ioda=ExampleFile(
        "observations.nc4", "IODA-style NetCDF of a surface station", lambda: _written(_write_ioda)
    ),
    odb2=ExampleFile("observations.odb", "ODB-2", lambda: _written(_write_odb)),
)
