"""Everything that is verified of one job, in one pass, before its manifest is written."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from model.diagnostics.departures import DepartureStatistics, departure_statistics
from worker.columns import BoolArray, codes, kept, numbers, set_column, times
from worker.jobs.verification_series import ALL, SCORES_VERSION
from worker.outputs.product import Product
from worker.verification.equivalents import Equivalents
from worker.verification.rows import (
    Row,
    count_rows,
    departure_rows,
    state_rows,
    withheld_rows,
)
from worker.verification.states import StateScore, score_states
from worker.verification.withheld import WithheldScore, score_withheld

__all__ = ["Report", "new_values", "verify_product"]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        used: Values used, by network.
        used_new: Those of them that the background had not seen.
        chi2: Mean of (O-B)² over error plus background variance of the new values.
        departures: By network, variable and layer, the layers together included.
        withheld: Likewise, of the stations kept back.
        states: Spectra and balance.
        members: Of the analysis.
    """

    used: Mapping[str, int]
    used_new: Mapping[str, int]
    chi2: float | None
    departures: tuple[DepartureStatistics, ...]
    withheld: tuple[WithheldScore, ...]
    states: tuple[StateScore, ...]
    members: int

    @property
    def rows(self) -> list[Row]:
        """Everything for the time series."""
        return [
            *count_rows(self.used, self.used_new, self.chi2),
            *departure_rows(self.departures),
            *withheld_rows(self.withheld),
            *state_rows(self.states, self.members),
        ]

    @property
    def scores(self) -> dict[str, Any]:
        """What the manifest keeps: the layers together, so that manifests stay small."""
        lines = []
        for line in self.departures:
            if line.layer == ALL:
                values = asdict(line)
                lines.append({"network": values.pop("report_type"), **values})
        return {
            "version": SCORES_VERSION,
            "chi2": self.chi2,
            "used": dict(self.used),
            "used_new": dict(self.used_new),
            "departures": lines,
            "withheld": [asdict(line) for line in self.withheld if line.layer == ALL],
            "states": [asdict(line) for line in self.states],
        }


def verify_product(
    product: Product,
    background: Equivalents | None,
    analysis: Equivalents,
    tendency: tuple[float, float] | None = None,
) -> Report:
    """Scores a finished job against its observations and by its states.

    Arguments:
        product: The job's states and feedback.
        background: H(x_b) and assumed errors, at rows of the feedback.
        analysis: H(x_a), likewise.
        tendency: See `worker.verification.states.pressure_tendency`, mean over members.
    """
    job, feedback = product.job, product.feedback
    moment = int(product.reference_time.timestamp()) // 3600
    rng = np.random.default_rng([job.spec.seed, moment])
    new = new_values(feedback, product.background_info)
    withheld = score_withheld(feedback, background, analysis, rng, new)
    assumed = analysis.errors_of(numbers(feedback, "obs_error"))
    feedback = set_column(feedback, "obs_error", assumed)
    twins = background.twins if background is not None else None
    fresh = feedback.filter(pa.array(new))
    departures = departure_statistics(fresh, twins=twins, overall=True)
    states = score_states(
        product.states[:, -1],
        None if product.background is None else product.background[:, -1],
        product.channels,
        product.grid,
    )
    if tendency is not None:
        names = ("pressure_tendency", "mass_tendency")
        states += [StateScore(n, ALL, v, None) for n, v in zip(names, tendency, strict=True)]
    return Report(
        _used(feedback),
        _used(fresh),
        _chi2(fresh),
        tuple(departures),
        tuple(withheld),
        tuple(states),
        product.members,
    )


def new_values(feedback: pa.Table, background: Mapping[str, Any]) -> BoolArray:
    """Rows observed after the analysis that the background continues; all after a cold start.

    Windows overlap: the previous analysis has seen most of the observations of this one, so that
    their O-B is no innovation; chi-square and Desroziers estimates would come out too small. With
    new values only, no value enters the statistics of two cycles either.

    Arguments:
        feedback: A table with the column `time`.
        background: Of the product: its source and last valid time.
    """
    if background.get("source") != "previous_analysis" or "valid_time" not in background:
        return np.ones(len(feedback), dtype=bool)
    last = datetime.fromisoformat(background["valid_time"])
    return times(feedback) > int(last.timestamp()) * 1_000_000_000


def _used(feedback: pa.Table) -> dict[str, int]:
    """Values used by network; networks present of which none was used count 0."""
    network, names = codes(feedback, "report_type")
    counts = np.bincount(network[kept(feedback)], minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _chi2(feedback: pa.Table) -> float | None:
    """Innovations over their expected variance, mean over the values used that have one."""
    used = feedback.filter(pa.array(kept(feedback)))
    innovation = numbers(used, "background_departure")
    variance = numbers(used, "obs_error") ** 2
    variance += np.nan_to_num(numbers(used, "background_spread")) ** 2
    known = np.isfinite(innovation) & (variance > 0)
    if not known.any():
        return None
    return float(np.mean(innovation[known] ** 2 / variance[known]))
