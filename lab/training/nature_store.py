"""Store a nature run in zarr while it grows, laid out like WeatherBench2's ERA5 stores.

Names, units and rounding of the variables follow those stores. Zarr format 2 with consolidated
metadata, dimensions (time, level, latitude, longitude), one chunk a day and variable. The store
may be read while it grows: days are written first, then the time axis, then the consolidated
metadata (one atomic rename), and only what that file lists counts. A run killed at any point
leaves a valid store; what lies beyond the listed time is overwritten.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numcodecs import Blosc

__all__ = ["LEVELS", "NatureStore", "STATIC", "VARIABLES", "VariableSpec"]

LEVELS = (50, 100, 200, 300, 500, 700, 850, 925)
"""hPa."""


@dataclass(frozen=True)
class VariableSpec:
    """One array of the store.

    ``quantum`` is the step the values are rounded to, a power of two in the variable's units;
    None keeps 9 bits of mantissa instead (relative error 1e-3, for humidity and rain).
    """

    units: str
    standard_name: str
    levels: bool
    quantum: float | None


VARIABLES = {
    "2m_temperature": VariableSpec("K", "air_temperature", False, 2**-5),
    "10m_u_component_of_wind": VariableSpec("m s**-1", "eastward_wind", False, 2**-5),
    "10m_v_component_of_wind": VariableSpec("m s**-1", "northward_wind", False, 2**-5),
    "mean_sea_level_pressure": VariableSpec("Pa", "air_pressure_at_mean_sea_level", False, 2.0**0),
    "sea_surface_temperature": VariableSpec("K", "sea_surface_temperature", False, 2**-5),
    "total_precipitation": VariableSpec("m", "precipitation_amount", False, None),
    "temperature": VariableSpec("K", "air_temperature", True, 2**-5),
    "u_component_of_wind": VariableSpec("m s**-1", "eastward_wind", True, 2**-5),
    "v_component_of_wind": VariableSpec("m s**-1", "northward_wind", True, 2**-5),
    "geopotential": VariableSpec("m**2 s**-2", "geopotential", True, 2.0**0),
    "specific_humidity": VariableSpec("kg kg**-1", "specific_humidity", True, None),
}

STATIC = {
    "geopotential_at_surface": VariableSpec("m**2 s**-2", "surface_geopotential", False, None),
    "land_sea_mask": VariableSpec("(0 - 1)", "land_binary_mask", False, None),
}


HOURS = 24
EPOCH = datetime(1900, 1, 1)
TITLE = "SIMULATED atmosphere, not observed: hourly nature run of a circulation model"
SOURCE = "jcm SPEEDY T31 nature run (simulated, not for real decisions)"


class NatureStore:
    """One store on a local disk.

    Args:
        path: Folder of the store; made where it does not exist.
        start: Valid time of the first hour, UTC.
    """

    def __init__(self, path: Path, start: datetime) -> None:
        self.path = path
        self.first_hour = int((start - EPOCH).total_seconds()) // 3600
        self.group = zarr.open_group(str(path), mode="a", zarr_format=2)

    @property
    def exists(self) -> bool:
        """Whether ``create`` has run to its end."""
        return (self.path / ".zmetadata").exists()

    def create(
        self,
        latitude: np.ndarray,
        longitude: np.ndarray,
        static: dict[str, np.ndarray],
        attributes: dict[str, Any],
    ) -> None:
        """Write coordinates, static fields (latitude, longitude) and empty variables."""
        grid = (latitude.size, longitude.size)
        self.group.attrs.update({"title": TITLE, "source": SOURCE, **attributes})
        self._coordinate("latitude", latitude, "degrees_north")
        self._coordinate("longitude", longitude, "degrees_east")
        self._coordinate("level", np.asarray(LEVELS, np.int64), "hPa")
        self._coordinate("time", np.zeros(0, np.int64), "hours since 1900-01-01 00:00:00")
        self.group["time"].attrs["calendar"] = "proleptic_gregorian"
        for name, spec in STATIC.items():
            array = self._array(name, grid, grid, ["latitude", "longitude"])
            array.attrs.update(units=spec.units, standard_name=spec.standard_name)
            array[:] = static[name].astype(np.float32)
        for name, spec in VARIABLES.items():
            levels = (len(LEVELS),) if spec.levels else ()
            names = ["time", *(["level"] if spec.levels else []), "latitude", "longitude"]
            array = self._array(name, (0, *levels, *grid), (HOURS, *levels, *grid), names)
            array.attrs.update(
                units=spec.units,
                standard_name=spec.standard_name,
                long_name=name.replace("_", " "),
                comment="simulated",
            )
        self.group["total_precipitation"].attrs["cell_methods"] = "time: sum (interval: 1 hour)"
        zarr.consolidate_metadata(str(self.path), zarr_format=2)

    def _array(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], names: list[str]
    ) -> "zarr.Array[Any]":
        return self.group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype="float32",
            fill_value=float("nan"),
            compressors=Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE),
            attributes={"_ARRAY_DIMENSIONS": names},
            overwrite=True,
        )

    def _coordinate(self, name: str, values: np.ndarray, units: str) -> None:
        array = self.group.create_array(
            name,
            shape=values.shape,
            chunks=(max(values.size, 100_000),),
            dtype=values.dtype,
            # No fill value: readers would take a coordinate equal to it (0° east) as missing.
            fill_value=None,
            attributes={"_ARRAY_DIMENSIONS": [name], "units": units, "standard_name": name},
            overwrite=True,
        )
        array[:] = values

    def write(self, day: int, block: dict[str, np.ndarray]) -> None:
        """Put whole days at ``day`` (days since the start), then make them visible.

        ``block`` holds (24 · days, ...) float32 arrays.
        """
        first = day * HOURS
        end = first + len(block["temperature"])
        for name, values in block.items():
            array = cast("zarr.Array[Any]", self.group[name])
            if array.shape[0] < end:
                array.resize((end, *array.shape[1:]))
            array[first:end] = values
        time = cast("zarr.Array[Any]", self.group["time"])
        if time.shape[0] < end:
            time.resize((end,))
        time[first:end] = self.first_hour + np.arange(first, end)
        zarr.consolidate_metadata(str(self.path), zarr_format=2)
