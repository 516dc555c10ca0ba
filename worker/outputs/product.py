"""What an output format is given: the states of a finished job and all that is known about them."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.grids import Grid
from model.domain.variables import VARIABLES, Channel, Variable
from model.domain.windows import AssimilationWindow
from model.ensemble_spread import Twins
from worker.jobs.job import JobRecord

__all__ = ["Product"]

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Product:
    """A finished job, before it is written.

    Attributes:
        job: The job and what was asked.
        times: Valid times of the states (UTC); T of them.
        states: Analysis or forecast, SI units, NaN where undefined, with shape (M, T, C, Y, X).
        background: First guess at the same times, with shape (B, T, C, Y, X); None when the job
            has none (a forecast).
        grid: Rows north to south, columns eastward from 0.
        channels: C channels, in order.
        window: The observations' window; None without observations.
        feedback: Every observation of the window, a table of `FEEDBACK_SCHEMA`.
        counts: Values by outcome: `used` and the names of the checks.
        background_info: Source, age and members of the background.
        provenance: `checkpoint` (name), `checkpoint_sha256`, `code_version`, `seeds` (one for each
            member), `configuration`, `observations_sha256`; whatever else is there is written too.
        flags: `zero_observations`, `cold_start` and the like; `simulated` when the checkpoint was
            trained on a simulation, which every file then says.
        scores: For the manifest; see `docs/verification.md`.
        series: The same and more in long form, for the time series; None for a job that is not
            verified, such as a forecast.
        mirrored: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
    """

    job: JobRecord
    times: tuple[datetime, ...]
    states: Float
    background: Float | None
    grid: Grid
    channels: tuple[Channel, ...]
    window: AssimilationWindow | None
    feedback: pa.Table
    counts: dict[str, int] = field(default_factory=dict)
    background_info: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    scores: dict[str, Any] = field(default_factory=dict)
    series: pa.Table | None = None
    mirrored: bool = False

    @property
    def reference_time(self) -> datetime:
        """Analysis time, start of the forecast, first time of a reanalysis."""
        return self.job.spec.reference_time

    @property
    def simulated(self) -> bool:
        """Whether this is the weather of a simulation."""
        return "simulated" in self.flags

    @property
    def members(self) -> int:
        """M, the size of the ensemble."""
        return int(self.states.shape[0])

    @property
    def twins(self) -> Twins:
        """How the members depend on each other."""
        return Twins.of(range(self.members), self.mirrored)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The quantities of the states, in the order of the channels."""
        return tuple(VARIABLES[name] for name in dict.fromkeys(c.variable for c in self.channels))

    @property
    def levels(self) -> tuple[int, ...]:
        """Pressure levels in hPa, top down; none when all is at the surface."""
        return tuple(dict.fromkeys(c.level for c in self.channels if c.level is not None))


Written = list[tuple[Path, str]]
"""Files that a format wrote, each with its role: `data`, `feedback`, `quicklook`."""
