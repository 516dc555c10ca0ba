"""Verification of a finished job: scores, time series and control limits, before the manifest."""

import time
from dataclasses import replace

import structlog

from model.domain.errors import AppaError
from worker.jobs.layout import Layout
from worker.jobs.verification_series import ALL, OUTSIDE_FLAG, SeriesEntry
from worker.outputs.product import Product
from worker.verification.control import Control, check_limits, trailing_series
from worker.verification.equivalents import Equivalents
from worker.verification.policy import read_control_policy
from worker.verification.report import Report, verify_product
from worker.verification.rows import Row, series_table

__all__ = ["UNCHECKED_FLAG", "verified"]

log = structlog.get_logger()

UNCHECKED_FLAG = "control_limits_not_checked"


def verified(
    product: Product,
    layout: Layout,
    background: Equivalents | None,
    analysis: Equivalents,
    tendency: tuple[float, float] | None = None,
) -> Product:
    """The product with its scores, its part of the time series and, outside limits, a flag.

    Arguments:
        product: A job with a window of observations.
        layout: Where the time series and the policy are.
        background: H(x_b) at rows of the feedback.
        analysis: H(x_a), likewise.
        tendency: Pressure tendencies of the analysis, if two hours are known.
    """
    began = time.monotonic()
    job = product.job
    entry = SeriesEntry(product.reference_time, job.flavour, job.revision, job.analysis_id)
    report = verify_product(product, background, analysis, tendency)
    scores, flags = report.scores, list(product.flags)
    try:
        control = _control(report, entry, layout)
    except AppaError as error:  # an analysis is not lost because its limits cannot be read
        log.warning("control limits not checked", id=job.id, reason=error.message)
        control, flags = None, [*flags, UNCHECKED_FLAG]
    rows = report.rows
    if control is not None:
        scores["control"] = control.scores
        outside = len(control.outside)
        rows.append(Row(ALL, ALL, ALL, "outside_limits", float(outside), control.checked))
        if control.outside:
            flags.append(OUTSIDE_FLAG)
    log.info(
        "verified",
        id=job.id,
        chi2=report.chi2,
        withheld=sum(line["count"] for line in scores["withheld"]),
        outside=[] if control is None else [o.statistic for o in control.outside],
        seconds=round(time.monotonic() - began, 3),
    )
    series = series_table(entry, rows)
    return replace(product, scores=scores, series=series, flags=tuple(dict.fromkeys(flags)))


def _control(report: Report, entry: SeriesEntry, layout: Layout) -> Control | None:
    """The outcome for a cycle whose flavour is watched; None for others."""
    policy = read_control_policy(layout.verification_file)
    if not policy.enabled or entry.flavour not in policy.flavours:
        return None
    trailing = trailing_series(layout, entry.flavour, entry.valid_time, policy)
    return check_limits(report.rows, entry.valid_time, trailing, policy)
