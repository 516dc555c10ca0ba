"""Load the background of a job: earlier states and their forecast, or climatology.

Climatology is an ensemble drawn from the model's own prior for these dates, conditioned on season and
hour of day: a sample without observations is a draw from the climatology of that time, and the members'
spread is its variability. Where observations will follow, draws of the closed form suffice.

An uploaded first guess is read in a sandboxed process. One file holds one state of each hour, so
that all members of the background are alike: its spread is zero, and the checks against it allow
for the errors of the observations alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from model.domain.errors import AppaError, InvalidInput
from model.domain.files import file_digest
from model.domain.windows import HOUR, WindowPlan
from worker.backgrounds.restarts import Restart
from worker.backgrounds.uploaded import states_table
from worker.contract.kinds import SpecBase
from worker.contract.layout import Layout
from worker.contract.uploads import upload_store
from worker.loaded_models import LoadedModel
from worker.sandbox import Limits, run_limited
from worker.solver import Background, Solver, pairs_info

__all__ = [
    "EarlierStates",
    "FirstGuess",
    "climatology",
    "consecutive",
    "continued_background",
    "covers",
    "load_background",
    "previous_analysis",
    "read_first_guess",
    "tied_states",
]

FIELD = "background_batch"
Period = tuple[datetime, datetime]


@dataclass(frozen=True, eq=False)
class FirstGuess:
    """States of an upload, as latents of a model.

    Attributes:
        restart: Their consecutive hours and latents (1, T, c, h, w).
        batch: Id of the upload.
        sha256: Of its bytes.
    """

    restart: Restart
    batch: str
    sha256: str
    source = "uploaded"
    antithetic = False
    flags = ("uploaded_background",)

    def describe(self) -> dict[str, Any]:
        """Return which upload this is, for the manifest of the result."""
        return {"source": self.source, "batch_id": self.batch, "batch_sha256": self.sha256}

    def hours_to(self, time: datetime) -> int:
        """Return the number of states up to and including `time`."""
        return sum(t <= time for t in self.restart.times)


def read_first_guess(layout: Layout, batch: str, loaded: LoadedModel, spec: SpecBase) -> FirstGuess:
    """Return the states of an upload that a job can start from, encoded.

    Arguments:
        layout: Where the upload is.
        batch: Its id.
        loaded: The model of the job: its channels, its grid, its encoder.
        spec: The job: which hours it needs, how old a first guess may be.

    Raises:
        InvalidInput: If the upload is gone, lacks channels, or has no state of those hours.
        DecodeError: If it cannot be read within the limits.
        BucketUnavailable: If it lies in a bucket that does not answer.
    """
    uploads = upload_store(layout)
    if not uploads.has(batch):
        raise InvalidInput(
            f"Expected the upload '{batch}' as it was received; it has been deleted. Send it again "
            "and name the new one.",
            field=FIELD,
        )
    with uploads.local({batch: ""}) as found:
        return _read_states(found[batch], batch, loaded, spec)


def _read_states(path: Path, batch: str, loaded: LoadedModel, spec: SpecBase) -> FirstGuess:
    """Return the states in a file that a job can start from; see `read_first_guess`."""
    model = loaded.model
    plan = spec.plan(model.blanket_size)
    period = _period(plan, spec, model.blanket_size)
    size = 4 * round((period[1] - period[0]) / HOUR + 1) * int(np.prod(model.state_shape))
    limits = Limits(address_space=Limits.address_space + 3 * size)
    try:
        table, times = run_limited(
            states_table,
            str(path),
            tuple(model.channels),
            model.grid,
            period,
            limits=limits,
            reads=[path],
        )
    except InvalidInput:
        raise
    except AppaError as error:  # raised in the sandboxed process
        raise InvalidInput(error.message, **{**error.context, "field": FIELD}) from error
    hours = tuple(datetime.fromisoformat(t) for t in times)
    block = consecutive(hours, *_hours_needed(plan, spec), batch)
    states = table["states"].to_numpy().reshape(len(hours), *model.state_shape)
    latents = _encoded(states[[hours.index(hour) for hour in block]], loaded)
    digest = file_digest(path)
    return FirstGuess(Restart(block, latents, loaded.sha256), batch, digest)


def consecutive(
    hours: Sequence[datetime], start: datetime, until: datetime, oldest: datetime, batch: str
) -> tuple[datetime, ...]:
    """Return the consecutive hours around the newest one at or before `start`, up to `until`.

    Arguments:
        hours: Valid times of the uploaded states, ascending.
        start: First hour that the job needs.
        until: Last hour that may be taken.
        oldest: The last hour taken must not be before this one.
        batch: Id of the upload, for the error message.

    Raises:
        InvalidInput: If there are none, or they are too old.
    """
    usable = {hour for hour in hours if hour <= until}
    block = sorted(hour for hour in usable if hour <= start)[-1:]
    while block and (before := block[0] - HOUR) in usable:
        block.insert(0, before)
    while block and (after := block[-1] + HOUR) in usable:
        block.append(after)
    if not block or block[-1] < oldest:
        there = ", ".join(hour.isoformat() for hour in hours)
        raise InvalidInput(
            f"Expected the upload '{batch}' to have a state at or before {start.isoformat()}, and "
            f"not all before {oldest.isoformat()}; it has {there}. Upload states of those hours, "
            "or allow older ones with background_max_age_hours.",
            field=FIELD,
        )
    return tuple(block)


def _hours_needed(plan: WindowPlan, spec: SpecBase) -> tuple[datetime, datetime, datetime]:
    """Return the first hour needed, the last hour taken and the oldest last hour accepted."""
    oldest = spec.first_guess_until - spec.first_guess_age
    if any(plan.tied):
        return spec.reference_time, spec.reference_time, oldest
    return plan.times[0], plan.times[-1], oldest


def _period(plan: WindowPlan, spec: SpecBase, blanket: int) -> Period:
    """Return the hours worth reading: from a blanket before the oldest to the last one taken."""
    start, until, oldest = _hours_needed(plan, spec)
    return min(start, oldest) - blanket * HOUR, until


@torch.no_grad()
def _encoded(states: NDArray[np.float32], loaded: LoadedModel) -> torch.Tensor:
    """Return latents (1, T, c, h, w), encoded one state at a time as full-size ones are large."""
    model = loaded.model
    latents = [model.encode(torch.from_numpy(np.array(state))[None]) for state in states]
    return torch.cat(latents).float().cpu()[None]


class EarlierStates(Protocol):
    """States that can be continued: those of a published result, or an uploaded first guess."""

    @property
    def restart(self) -> Restart:
        """Return the times and latents of the states."""

    @property
    def source(self) -> str:
        """Return the kind of source, the `source` of the background."""

    @property
    def antithetic(self) -> bool:
        """Return whether members 0 and 1, 2 and 3 … are antithetic: opposite perturbations."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Return the flags that the result carries because of these states."""

    def describe(self) -> dict[str, Any]:
        """Return which states these are, for the manifest; JSON-able."""

    def hours_to(self, time: datetime) -> int:
        """Return the number of states up to and including `time`."""


def climatology(plan: WindowPlan, solver: Solver, *, observed: bool) -> Background:
    """Return an ensemble drawn from the prior, at the times of the plan.

    Arguments:
        plan: The times.
        solver: Draws the members.
        observed: Whether there are observations. They are checked against mean and spread of the
            climate, which are those of the closed form; without any, the members are the analysis.
    """
    latents = solver.prior(plan.times, closed_form=observed)
    antithetic = solver.settings.antithetic
    info = {"source": "climatology", "members": len(latents)} | pairs_info(antithetic)
    return Background(plan.times, latents, "climatology", info, ("cold_start",), antithetic)


def covers(earlier: EarlierStates, plan: WindowPlan) -> bool:
    """Return whether the states begin no later than the plan does."""
    return earlier.restart.times[0] <= plan.times[0]


def previous_analysis(plan: WindowPlan, earlier: EarlierStates, solver: Solver) -> Background:
    """Return the earlier states at the times of the plan, brought forward by the model.

    A forecast of a few hours keeps pairs of opposite perturbations: with the checkpoint that ships,
    the means of pairs vary by 0.1 % of what those of independent members would at +1 h, and by
    0.6 % at +12 h.
    """
    restart = earlier.restart
    antithetic = solver.keeps_pairs(earlier.antithetic, len(restart.latents))
    last = restart.times[-1]
    latents = solver.resize(restart.latents)
    times = restart.times
    if last < plan.times[-1]:
        ahead = solver.forecast(latents, times, plan.times[-1])
        antithetic = antithetic and solver.settings.antithetic
        latents = torch.cat((latents, ahead), dim=1)
        times = times + _hours_after(last, ahead.shape[1])
    first = times.index(plan.times[0])
    return Background(
        plan.times,
        latents[:, first : first + plan.length],
        earlier.source,
        _info(earlier, plan.times[-1], len(latents)) | pairs_info(antithetic),
        earlier.flags,
        antithetic,
    )


def continued_background(plan: WindowPlan, earlier: EarlierStates, solver: Solver) -> Background:
    """Return an earlier analysis and its own forecast, with the errors that these have.

    Only the mean is cycled; members are drawn afresh around it, with the spread of past errors of
    such backgrounds.

    Arguments:
        plan: The states of the job, a blanket.
        earlier: The analysis that is continued.
        solver: Runs the model.
    """
    first = earlier.restart.times.index(plan.times[0])
    prior = solver.around(earlier.restart.latents[:, first:].mean(dim=0), plan.times)
    latents = solver.drawn_around(prior, plan.times)
    return Background(
        plan.times,
        latents,
        earlier.source,
        _info(earlier, plan.times[-1], len(latents)) | pairs_info(solver.settings.antithetic),
        ("continued", *earlier.flags),
        solver.settings.antithetic,
        prior,
    )


def tied_states(plan: WindowPlan, earlier: EarlierStates) -> Background:
    """Return the earlier states at the tied times of the plan; zeros elsewhere, never read."""
    restart = earlier.restart
    shape = (restart.latents.shape[0], plan.length, *restart.latents.shape[2:])
    latents = torch.zeros(shape)
    for i, (time, tied) in enumerate(zip(plan.times, plan.tied, strict=True)):
        if tied:
            latents[:, i] = restart.latents[:, restart.times.index(time)]
    info = _info(earlier, plan.times[sum(plan.tied) - 1], shape[0])
    antithetic = earlier.antithetic
    info |= pairs_info(antithetic)
    return Background(plan.times, latents, earlier.source, info, earlier.flags, antithetic)


def _info(earlier: EarlierStates, at: datetime, members: int) -> dict[str, object]:
    age = (at - earlier.restart.times[-1]) / HOUR
    return {
        **earlier.describe(),
        "valid_time": earlier.restart.times[-1].isoformat(),
        "age_hours": age,
        "members": members,
    }


def _hours_after(last: datetime, count: int) -> tuple[datetime, ...]:
    return tuple(last + (i + 1) * HOUR for i in range(count))


def load_background(
    plan: WindowPlan,
    spec: SpecBase,
    earlier: EarlierStates | None,
    solver: Solver,
    *,
    observed: bool,
) -> Background:
    """Return the first guess at `plan.times`: earlier states brought forward, or climatology.

    Arguments:
        plan: Times; which of them are tied.
        spec: The choice between a previous analysis and climatology.
        earlier: The uploaded first guess, or the newest result that can be continued, if any.
        solver: Runs the model where states must be computed.
        observed: Whether there are observations of these states.

    Raises:
        InvalidInput: If a previous analysis is needed and there is none.
    """
    if any(plan.tied):
        if earlier is None:
            raise InvalidInput(
                f"Expected a published analysis at {spec.reference_time.isoformat()} with a "
                "restart file of this model; there is none. Run a filtering job for that time.",
                field="valid_time",
            )
        return tied_states(plan, earlier)
    if spec.background != "climatology" and earlier is not None and covers(earlier, plan):
        return previous_analysis(plan, earlier, solver)
    if spec.background == "previous_analysis":
        raise InvalidInput(
            f"Expected a previous analysis at most {spec.background_max_age_hours} h before "
            f"{spec.reference_time.isoformat()} that reaches back to "
            f"{plan.times[0].isoformat()}; there is none. Use background 'auto' for a cold start.",
            field="background",
        )
    return climatology(plan, solver, observed=observed)
