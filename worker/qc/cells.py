"""Boxes of the model: which grid cell, level and hour a row falls into."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.columns import codes, numbers, row_pressure, times
from worker.qc.context import QCContext
from worker.regrid import cell_index

__all__ = ["box_keys"]

_HOUR = 3.6e12
_DEFAULT_LEVELS = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 70, 50, 30, 20, 10)


def box_keys(sub: pa.Table, context: QCContext, degrees: float, hours: float) -> list[NDArray]:
    """Keys that rows of one box share: network, variable, kind of level, cell, level, hour.

    Time boxes are centred on full hours, levels are the nearest of the model's in ln p.
    """
    lat, lon = numbers(sub, "lat"), numbers(sub, "lon")
    if context.grid is not None:
        cell = cell_index(context.grid.latitude, context.grid.nlon, lat, lon)
    else:
        columns = int(np.ceil(360.0 / degrees))
        cell = np.floor((90.0 - lat) / degrees).astype(np.int64) * columns
        cell += np.floor((lon % 360.0) / degrees).astype(np.int64)
    levels = np.log(np.sort(np.asarray(context.levels or _DEFAULT_LEVELS, float)) * 100.0)
    middle = (levels[1:] + levels[:-1]) / 2
    level = np.searchsorted(middle, np.log(np.maximum(row_pressure(sub), 1.0)))
    # At the surface, and for columns, height does not separate.
    level = np.where(np.isnan(numbers(sub, "vertical")), -1, level)
    hour = np.floor(times(sub) / (hours * _HOUR) + 0.5).astype(np.int64)
    names = ("report_type", "variable", "vertical_kind")
    return [*(codes(sub, n)[0] for n in names), cell, level, hour]
