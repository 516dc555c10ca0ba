"""Compare two analyses of the same hour at the values that were withheld from both.

**With a cold window.** A chain of analyses can drift: each is consistent with the previous one, and all
of them move away from the truth. At intervals (`compare` in `cycles.yaml`) the same observations are
analysed again without an earlier analysis, and both are compared at the withheld stations that both had
in their window. The errors are compared by their ratio for each network and variable, because they have
different units; the logarithms are averaged, weighted by the number of values:

    r = sum(n log(rmse of the cycle / rmse of the cold window)) / sum(n)

A single comparison is not significant. The newest few are tested together: if r is above zero by a
one-sided t test, the cold window is better, and its result is flagged.

**With a challenger** (`pair_squares`). The squares of O-A of both suites are in units of the observation
error assumed by the champion, because a challenger may assume another. Only values of the hours since
the previous cycle are used, so that none counts twice.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from scipy.special import stdtr

from model.domain.errors import AppaError, StorageError
from worker.contract.jobs import COMPARED_WITH
from worker.contract.layout import Layout
from worker.contract.suites import CHALLENGES, PairedSquares
from worker.results.manifest import read_manifest
from worker.results.outputs.product import Product
from worker.results.store import result_store
from worker.results.verification.paired import CHALLENGE
from worker.results.verification.series import (
    ALL,
    WORSE_FLAG,
    SeriesEntry,
    SeriesFilter,
    StatisticRow,
    find_series,
    read_series,
    series_table,
)

__all__ = [
    "ColdWindowComparison",
    "RATIO",
    "challenged",
    "compare",
    "compared",
    "is_worse",
    "pair_squares",
    "read_feedback",
    "withheld_values",
]

RATIO = "log_error_over_cold"
"""Statistic of the verification series: r."""

NEWEST_HOURS = 6
"""Length in hours, up to the analysis time, of the period whose values are compared."""
MIN_COMPARISONS, MAX_COMPARISONS = 3, 7
LOOK_BACK = timedelta(days=31)
SIGNIFICANCE = 0.05
_COLUMNS = ["batch_id", "observation_id", "report_type", "variable", "time"]
_DEPARTURE, _ERROR = "analysis_departure", "obs_error"

log = structlog.get_logger()


@dataclass(frozen=True)
class PairedErrors:
    """Errors of both analyses at the same values of one network and variable, SI units."""

    network: str
    variable: str
    count: int
    cycle: float
    cold: float


@dataclass(frozen=True)
class ColdWindowComparison:
    """Errors of a cycle compared with those of a cold window at the same time.

    Attributes:
        analysis_id: The analysis of the cycle.
        ratio: r, below zero if the cycle is better.
        count: Number of values.
        errors: Errors by network and variable.
    """

    analysis_id: str
    ratio: float
    count: int
    errors: tuple[PairedErrors, ...]

    @property
    def scores(self) -> dict[str, Any]:
        """Return the entry `comparison` of the scores in the manifest."""
        return asdict(self) | {"errors": [asdict(line) for line in self.errors]}


def compare(
    analysis_id: str, cycle: pa.Table, cold: pa.Table, end: datetime
) -> ColdWindowComparison | None:
    """Compare two analyses at the values that were withheld from both.

    Arguments:
        analysis_id: Analysis of the cycle.
        cycle: Feedback of the cycle, a table of `FEEDBACK_SCHEMA`.
        cold: Feedback of the cold window.
        end: Analysis time (UTC).

    Returns:
        None if they have no such value in common.
    """
    both = withheld_values(cycle, end).merge(
        withheld_values(cold, end)[["batch_id", "observation_id", _DEPARTURE]],
        on=["batch_id", "observation_id"],
        suffixes=("_cycle", "_cold"),
    )
    lines = []
    for (network, variable), pairs in both.groupby(["report_type", "variable"], observed=True):
        errors = (pairs[[f"{_DEPARTURE}_cycle", f"{_DEPARTURE}_cold"]] ** 2).mean() ** 0.5
        if (errors > 0).all():
            lines.append(PairedErrors(str(network), str(variable), len(pairs), *map(float, errors)))
    if not lines:
        return None
    counts = np.array([line.count for line in lines])
    ratios = np.log([line.cycle / line.cold for line in lines])
    ratio = float((counts * ratios).sum() / counts.sum())
    return ColdWindowComparison(analysis_id, ratio, int(counts.sum()), tuple(lines))


def withheld_values(
    feedback: pa.Table, end: datetime, hours: int = NEWEST_HOURS, more: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the withheld values, with their keys and O-A.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        end: Analysis time (UTC).
        hours: Period before `end`; older values are left out.
        more: Additional columns.
    """
    columns = [*_COLUMNS, *more, _DEPARTURE]
    frame = feedback.select([*columns, "rejected_by"]).to_pandas()
    newest = frame["time"] > pd.Timestamp(end) - pd.Timedelta(hours=hours)
    wanted = newest & (frame["rejected_by"] == "withheld") & frame[_DEPARTURE].notna()
    return frame.loc[wanted, columns]


def is_worse(ratios: Sequence[float]) -> bool:
    """Return whether comparisons, the newest last, show that the cold window is better."""
    newest = np.asarray(ratios[-MAX_COMPARISONS:])
    if len(newest) < MIN_COMPARISONS or newest.std() == 0:
        return False
    # Computed directly: importing `scipy.stats` would delay every start of a model worker by a second.
    t = newest.mean() / (newest.std(ddof=1) / np.sqrt(len(newest)))
    return bool(stdtr(len(newest) - 1, -t) < SIGNIFICANCE)


def compared(product: Product, layout: Layout) -> Product:
    """Return the result of a cold window with its comparison, if it was computed for one.

    If the comparison fails, the reason is logged and the analysis is kept.

    Arguments:
        product: A job with a window of observations, verified.
        layout: Where the analysis of the cycle and the series are.
    """
    other = product.job.cycle.get(COMPARED_WITH)
    if other is None or product.series is None:
        return product
    try:
        found = compare(
            other, read_feedback(layout, other), product.feedback, product.reference_time
        )
        earlier = _earlier(layout, product.reference_time)
    except AppaError as error:
        log.warning("not compared with its cycle", id=product.job.id, reason=error.message)
        return product
    if found is None:
        log.warning("not compared with its cycle", id=product.job.id, reason="no common value")
        return product
    worse = is_worse([*earlier, found.ratio])
    log.info("compared", id=product.job.id, cycle=other, ratio=round(found.ratio, 4), worse=worse)
    scores = {**product.scores, "comparison": found.scores | {"worse": worse}}
    flags = (*product.flags, WORSE_FLAG) if worse else product.flags
    job = product.job
    entry = SeriesEntry(product.reference_time, job.flavour, job.revision, job.analysis_id)
    row = series_table(entry, [StatisticRow(ALL, ALL, ALL, RATIO, found.ratio, found.count)])
    series = pa.concat_tables([product.series, row]).unify_dictionaries()
    return replace(product, scores=scores, series=series, flags=flags)


def read_feedback(layout: Layout, analysis_id: str, more: Sequence[str] = ()) -> pa.Table:
    """Return the feedback of a published analysis.

    Arguments:
        layout: The data folder.
        analysis_id: The analysis.
        more: Columns in addition to those of `withheld_values`.

    Raises:
        StorageError: If it has none, or it cannot be read.
    """
    name = read_manifest(layout, analysis_id).feedback_name
    if name is None:
        raise StorageError(
            f"Expected the feedback of '{analysis_id}' to compare with. Add 'feedback' to the "
            "outputs in cycles.yaml."
        )
    try:
        path = result_store(layout).file(analysis_id, name)
        return pq.read_table(path, columns=[*_COLUMNS, *more, "rejected_by", _DEPARTURE])
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"Expected a readable {name} of '{analysis_id}'; {error}.") from error


def _earlier(layout: Layout, before: datetime) -> list[float]:
    """Return r of earlier comparisons, by valid time."""
    entries = find_series(layout, before - LOOK_BACK, before - timedelta(seconds=1), [""])
    table = read_series(layout, entries, SeriesFilter(statistics=[RATIO]))
    values: list[float] = table["value"].to_pylist()
    return values


def pair_squares(
    champion: pa.Table, challenger: pa.Table, end: datetime, hours: int
) -> list[PairedSquares]:
    """Return the squared errors of two analyses at the values that were withheld from both.

    Arguments:
        champion: Its feedback, a table of `FEEDBACK_SCHEMA`; its observation errors are the unit.
        challenger: The feedback of the other.
        end: Time of both analyses (UTC).
        hours: Hours from one cycle to the next; older values were compared before.

    Returns:
        One entry for each network and variable; empty if they have no value in common.
    """
    ours = withheld_values(challenger, end, hours)[["batch_id", "observation_id", _DEPARTURE]]
    both = withheld_values(champion, end, hours, [_ERROR]).merge(
        ours, on=["batch_id", "observation_id"], suffixes=("", "_challenger")
    )
    both = both[both[_ERROR] > 0]
    found = []
    for (network, variable), pairs in both.groupby(["report_type", "variable"], observed=True):
        sums = [
            float(((pairs[name].astype(float) / pairs[_ERROR]) ** 2).sum())
            for name in (_DEPARTURE, f"{_DEPARTURE}_challenger")
        ]
        found.append(
            PairedSquares(
                network=str(network),
                variable=str(variable),
                count=len(pairs),
                champion=sums[0],
                challenger=sums[1],
            )
        )
    return found


def challenged(product: Product, layout: Layout) -> Product:
    """Return the result of a challenger with its errors paired with those of the champion.

    If the comparison fails, the reason is logged and the analysis is kept.

    Arguments:
        product: A verified job with a window of observations.
        layout: Where the analysis of the champion is.
    """
    about = product.job.cycle.get(CHALLENGES)
    if about is None:
        return product
    name, end = about["analysis_id"], product.reference_time
    try:
        champion = read_feedback(layout, name, [_ERROR])
    except AppaError as error:
        log.warning("not compared with the champion", id=product.job.id, reason=error.message)
        return product
    pairs = pair_squares(champion, product.feedback, end, about["hours"])
    lines = [pair.model_dump() for pair in pairs]
    found = {"analysis_id": name, "hours": about["hours"], "errors": lines}
    return replace(product, scores={**product.scores, CHALLENGE: found})
