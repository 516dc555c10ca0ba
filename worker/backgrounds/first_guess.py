"""Read an uploaded first guess in a sandboxed process, choose its hours, encode it with the model.

One file holds one state of each hour, so that all members of the background are alike: its spread
is zero, and the checks against it allow for the errors of the observations alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
from worker.loaded_models import LoadedModel
from worker.sandbox import Limits, run_limited

__all__ = ["FirstGuess", "consecutive", "read_first_guess"]

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
    """
    path = layout.raw_file(batch)
    if not path.is_file():
        raise InvalidInput(
            f"Expected the upload '{batch}' as it was received; it has been deleted. Send it again "
            "and name the new one.",
            field=FIELD,
        )
    model = loaded.model
    plan = spec.plan(model.blanket_size)
    period = _period(plan, spec, model.blanket_size)
    size = 4 * round((period[1] - period[0]) / HOUR + 1) * int(np.prod(model.state_shape))
    limits = Limits(address_space=Limits.address_space + 3 * size)
    try:
        table, times = run_limited(
            states_table, str(path), tuple(model.channels), model.grid, period, limits=limits
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
