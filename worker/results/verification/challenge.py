"""Pair the errors of a challenger with those of the champion, at values withheld from both.

Each suite has squares of O-A in units of the observation error that the champion assumes, for a
challenger may assume another. Values of the hours since the cycle before count: none counts twice.
"""

from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import structlog

from model.domain.errors import AppaError
from worker.contract.layout import Layout
from worker.contract.suites import CHALLENGES, PairedSquares
from worker.results.outputs.product import Product
from worker.results.verification.comparison import read_feedback, withheld_values
from worker.results.verification.paired import CHALLENGE

__all__ = ["challenged", "pair_squares"]

_DEPARTURE, _ERROR = "analysis_departure", "obs_error"

log = structlog.get_logger()


def pair_squares(
    champion: pa.Table, challenger: pa.Table, end: datetime, hours: int
) -> list[PairedSquares]:
    """Return the squared errors of two analyses at the values that were withheld from both.

    Arguments:
        champion: Its feedback, a table of `FEEDBACK_SCHEMA`; its observation errors are the unit.
        challenger: The feedback of the other.
        end: Time of both analyses (UTC).
        hours: From one cycle to the next; older values were looked at before.

    Returns:
        One entry for each network and variable; empty if they share no value.
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

    An analysis is not lost because it cannot be compared: the log then says why.

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
