"""Rows of the observation table gathered into reports: one line per station, time and place."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

__all__ = ["ReportTable", "gather"]


@dataclass(frozen=True)
class ReportTable:
    """Reports with their values side by side.

    Attributes:
        station_id, platform: Texts, N each.
        time: datetime64[s], (N,).
        lat, lon, elevation: (N,); elevation NaN where unknown.
        vertical: Pa or m, (N,), NaN at the surface.
        values: By variable, (N,), NaN where not observed.
        profile: Number that reports of one ascent share, (N,).
    """

    station_id: np.ndarray
    platform: np.ndarray
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    elevation: np.ndarray
    vertical: np.ndarray
    values: dict[str, np.ndarray]
    profile: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    def get(self, variable: str) -> np.ndarray:
        """Values of a variable, NaN where absent."""
        return self.values.get(variable, np.full(len(self), np.nan))

    def take(self, index: np.ndarray) -> "ReportTable":
        """Some of the reports."""
        own = {k: v[index] for k, v in vars(self).items() if k != "values"}
        return ReportTable(**own, values={k: v[index] for k, v in self.values.items()})


def gather(table: pa.Table) -> ReportTable:
    """Reports of a table, in the order of their first rows.

    Rows with the same station, time, position and level are one report; of several values of a
    variable the first counts.
    """
    column = {name: table[name].combine_chunks() for name in table.column_names}
    station = column["station_id"].cast(pa.string()).to_numpy(zero_copy_only=False)
    platform = column["platform"].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
    time = column["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    lat, lon = column["lat"].to_numpy(), column["lon"].to_numpy()
    vertical = column["vertical"].to_numpy(zero_copy_only=False).astype(np.float64)
    ascent = column["profile_id"].fill_null(-1).to_numpy()
    names, codes = np.unique(station.astype(str), return_inverse=True)
    keys = np.rec.fromarrays([codes, time, lat, lon, np.nan_to_num(vertical, nan=-1.0), ascent])
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    report, lead = order[inverse], np.sort(first)
    variable = column["variable"].cast(pa.string()).to_numpy(zero_copy_only=False)
    value = column["obs_value"].to_numpy(zero_copy_only=False)
    values = {}
    for name in np.unique(variable.astype(str)):
        rows = np.flatnonzero(variable == name)[::-1]
        values[str(name)] = found = np.full(len(lead), np.nan)
        found[report[rows]] = value[rows]
    elevation = column["elevation"].to_numpy(zero_copy_only=False).astype(np.float64)
    return ReportTable(
        station[lead],
        platform[lead],
        time[lead].astype("datetime64[s]"),
        lat[lead],
        lon[lead],
        elevation[lead],
        vertical[lead],
        values,
        ascent[lead],
    )
