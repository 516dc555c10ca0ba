"""GRIB messages encoded for tests."""

from datetime import datetime

import eccodes
import numpy as np

LAT = np.linspace(90.0, -90.0, 19)
LON = np.arange(0.0, 360.0, 10.0)


def message(
    values: np.ndarray,
    *,
    short: str | int = "t",
    level: int = 500,
    kind: str = "isobaricInhPa",
    edition: int = 2,
    lat: np.ndarray = LAT,
    lon: np.ndarray = LON,
    time: datetime = datetime(2024, 1, 1, 12),
    **keys,
) -> bytes:
    """One field on a regular grid, rows as in `lat`; NaN becomes missing."""
    sample = f"regular_ll_{'pl' if kind == 'isobaricInhPa' else 'sfc'}_grib{edition}"
    handle = eccodes.codes_grib_new_from_samples(sample)
    south_first = lat[0] < lat[-1]
    settings = {
        "Ni": len(lon), "Nj": len(lat), "jScansPositively": int(south_first),
        "latitudeOfFirstGridPointInDegrees": lat[0], "latitudeOfLastGridPointInDegrees": lat[-1],
        "longitudeOfFirstGridPointInDegrees": lon[0], "longitudeOfLastGridPointInDegrees": lon[-1],
        "iDirectionIncrementInDegrees": abs(lon[1] - lon[0]),
        "jDirectionIncrementInDegrees": abs(lat[1] - lat[0]),
        "dataDate": int(f"{time:%Y%m%d}"), "dataTime": int(f"{time:%H%M}"),
        "paramId" if isinstance(short, int) else "shortName": short,
    }  # fmt: skip
    if kind == "isobaricInhPa":
        settings["level"] = level
    for key, value in {**settings, **keys}.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set(handle, "missingValue", 9999)
    eccodes.codes_set(handle, "bitmapPresent", int(np.isnan(values).any()))
    eccodes.codes_set(handle, "bitsPerValue", 24)
    eccodes.codes_set_values(handle, np.nan_to_num(values, nan=9999.0).ravel())
    content = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return content
