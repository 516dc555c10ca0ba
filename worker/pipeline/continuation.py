"""Continue an earlier analysis: which one, whether a job can, and what that analysis has seen.

How many hours before its own time a cycle continues is written in the card of its checkpoint, for the
errors of a background grow with the hours. With six, hourly cycles are six chains side by side.

Each chain of analyses sees every row once. What an analysis has seen are the rows of the uploads in
its manifest that lie in its window and had arrived by its cut-off, whether it used them or refused
them. Anything else in the window is new: the last hour's, and what came late.
"""

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.domain.windows import HOUR, WindowPlan
from model.latent_model import LatentModel
from worker.backgrounds.load import EarlierStates
from worker.backgrounds.restarts import PublishedStates
from worker.contract.kinds import SpecBase
from worker.observations.columns import category_codes
from worker.results.manifest import AnalysisManifest

__all__ = ["already_seen", "continued", "continued_ages"]


def continued(
    plan: WindowPlan, spec: SpecBase, earlier: EarlierStates | None, model: LatentModel
) -> PublishedStates | None:
    """Return the analysis that a job continues; None where it starts from its window alone.

    It must be as old as the card of the model says, or at most half as old again, of the same model,
    hold the first states of the window, have chosen its observations alike, and have members in
    pairs, whose mean is the analysis and no draw; and the model must know the errors of such
    backgrounds.

    Arguments:
        plan: The states of the job.
        spec: What was asked: a warm start, and which observations.
        earlier: A result that can be continued, if any.
        model: Of the job.
    """
    known = model.card.background
    if model.background_errors is None or known is None:
        return None
    if not spec.starts_warm or any(plan.tied):
        return None
    if plan.length != model.blanket_size or not isinstance(earlier, PublishedStates):
        return None
    times, before = earlier.restart.times, earlier.manifest.spec.observations
    same = before.model_copy(update={"cut_off": None}) == spec.observations.model_copy(
        update={"cut_off": None}
    )
    least, most = continued_ages(known.hours)
    fits = times[0] <= plan.times[0] and least <= plan.times[-1] - times[-1] <= most
    fits = fits and times[-1] >= plan.times[0]
    made = earlier.manifest
    analysed = made.kind == "filtering" and made.mirrored and "batches" in made.provenance
    return earlier if same and fits and analysed and made.members % 2 == 0 else None


def continued_ages(hours: int) -> tuple[timedelta, timedelta]:
    """Return the least and the greatest age of an analysis that is continued.

    Arguments:
        hours: As in the card of the model.
    """
    return hours * HOUR, (hours + hours // 2) * HOUR


def already_seen(table: pa.Table, manifest: AnalysisManifest) -> NDArray[np.bool_]:
    """Return which rows of a table an analysis has seen, with shape (N,).

    Arguments:
        table: Observations of a later window.
        manifest: Of the analysis.
    """
    code, names = category_codes(table, "batch_id")
    known = np.array([name in manifest.provenance["batches"] for name in names] + [False])
    seen = known[code] & _up_to(table["time"], manifest.valid_time)
    if manifest.cut_off is not None:
        seen &= _up_to(table["received_time"], manifest.cut_off)
    return seen


def _up_to(times: pa.ChunkedArray, last: datetime) -> NDArray[np.bool_]:
    limit = pa.scalar(last, pa.timestamp("ns", tz="UTC"))
    return np.array(pc.less_equal(times, limit).to_numpy(), dtype=bool)
