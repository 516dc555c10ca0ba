"""Encode fields of values on a regular grid as GRIB 1 and 2, as a centre publishes an analysis."""

from collections.abc import Iterator, Mapping

import eccodes
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import calendar
from model.domain.errors import InvalidInput

__all__ = ["encode_fields"]

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
