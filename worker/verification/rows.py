"""The statistics of one analysis in long form: network, variable, layer, statistic, value, count."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from model.diagnostics.departures import DepartureStatistics
from worker.jobs.verification_series import ALL, SERIES_SCHEMA, SeriesEntry
from worker.verification.states import StateScore
from worker.verification.withheld import EnsembleScore, WithheldScore

__all__ = [
    "Row",
    "count_rows",
    "departure_rows",
    "series_table",
    "state_rows",
    "withheld_rows",
]

STATES = "states"
"""Stands for the network of statistics of the states themselves."""

_DEPARTURES = (
    "bias_background",
    "rms_background",
    "bias_analysis",
    "rms_analysis",
    "chi2",
    "error",
    "spread",
    "desroziers_error",
    "desroziers_spread",
    "error_ratio",
    "spread_ratio",
    "spread_skill",
)
_WITHHELD = ("rmse", "bias", "crps", "spread_skill", "outliers", "flatness")


@dataclass(frozen=True)
class Row:
    """One number of the series."""

    network: str
    variable: str
    layer: str
    statistic: str
    value: float
    count: int


def departure_rows(lines: Iterable[DepartureStatistics]) -> Iterator[Row]:
    """Statistics of the departures of values in use."""
    for line in lines:
        for name in _DEPARTURES:
            value = getattr(line, name)
            if value is not None:
                yield Row(line.report_type, line.variable, line.layer, name, value, line.count)


def withheld_rows(lines: Iterable[WithheldScore]) -> Iterator[Row]:
    """Scores against withheld stations, `withheld_rmse_analysis` and so on."""
    for line in lines:
        sides: tuple[tuple[str, EnsembleScore | None], ...] = (
            ("background", line.background),
            ("analysis", line.analysis),
        )
        for side, score in sides:
            for name in _WITHHELD if score is not None else ():
                value = getattr(score, name)
                if value is not None:
                    statistic = f"withheld_{name}_{side}"
                    yield Row(line.network, line.variable, line.layer, statistic, value, line.count)


def state_rows(lines: Iterable[StateScore], members: int) -> Iterator[Row]:
    """Spectra and balance; of energies also analysis over background."""
    for line in lines:
        yield Row(STATES, ALL, line.level, f"{line.quantity}_analysis", line.analysis, members)
        if line.background is None:
            continue
        name = line.quantity
        yield Row(STATES, ALL, line.level, f"{name}_background", line.background, members)
        if name.startswith("kinetic_energy") and line.background > 0:
            ratio = line.analysis / line.background
            yield Row(STATES, ALL, line.level, f"{name}_ratio", ratio, members)


def count_rows(
    used: Mapping[str, int], new: Mapping[str, int], chi2: float | None
) -> Iterator[Row]:
    """Values used, of all networks together and of each, and the chi-square of the new ones.

    Arguments:
        used: Values used by network.
        new: Those of them that the background had not seen.
        chi2: Of all new values together.
    """
    for statistic, counts in (("used", used), ("used_new", new)):
        for network, count in {ALL: sum(counts.values()), **counts}.items():
            yield Row(network, ALL, ALL, statistic, float(count), count)
    if chi2 is not None:
        yield Row(ALL, ALL, ALL, "chi2", chi2, sum(new.values()))


def series_table(entry: SeriesEntry, rows: Sequence[Row]) -> pa.Table:
    """The rows of one result as a table of `SERIES_SCHEMA`; values that are not finite are left out."""
    rows = [row for row in rows if np.isfinite(row.value)]
    count = len(rows)
    time: datetime = entry.valid_time
    columns = {
        "valid_time": [time] * count,
        "flavour": [entry.flavour] * count,
        "revision": [entry.revision] * count,
        "analysis_id": [entry.analysis_id] * count,
    } | {
        name: [getattr(row, name) for row in rows]
        for name in ("network", "variable", "layer", "statistic", "value", "count")
    }
    arrays = []
    for field in SERIES_SCHEMA:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        arrays.append(pa.array(columns[field.name], kind).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=SERIES_SCHEMA)
