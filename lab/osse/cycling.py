"""Cycle in a simulated world: each analysis continues from an earlier one, with new observations.

A chain begins with a cold window. From then on it sees each observation once: those of the hours
since the analysis that it continues (`model.background`). Hourly cycles that continue from several
hours before form that many independent chains, which differ only in their hours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lab.osse.cases import ReadTruth, observe_case
from lab.osse.network import Network, simulate_observations, withhold_stations
from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import AssimilationSettings
from model.background import Around
from model.diagnostics.equivalents import observation_set
from model.domain.windows import HOUR, WindowPlan
from model.latent_model import LatentModel
from model.nn.embedding import date_rows

__all__ = ["AnalysisChain", "SimulatedCycle", "mean_settings"]


@dataclass(frozen=True)
class SimulatedCycle:
    """One cycle of a simulated chain: its observations, background and analysis.

    Attributes:
        end: Analysis time (UTC).
        observations: Number assimilated.
        background: Background of the window, with shape (K, c, h, w).
        analysis: The members.
    """

    end: datetime
    observations: int
    background: Tensor
    analysis: Trajectory


def mean_settings(settings: AssimilationSettings) -> AssimilationSettings:
    """Return settings with a single iteration for members, for callers that need only the mean."""
    solve = replace(settings.prior_solve, member_iterations=1)
    return replace(settings, prior_solve=solve)


@dataclass
class AnalysisChain:
    """Analyses that continue from each other.

    Attributes:
        model: The checkpoint.
        truth_at: Reads the truth.
        around: Builds the prior of a cycle from the last analysis; None if the checkpoint cannot
            continue one.
        members: Size of the ensemble, even.
        step: Hours from one analysis to the next.
        settings: How the checkpoint assimilates.
        network: The simulated observing network.
        seed: Of observation errors and members; the analysis time is added.
        withhold: Share of the stations that is left out.
        last: The newest trajectory's mean, with shape (K, c, h, w); set by `start`.
        end: Its last time.
    """

    model: LatentModel
    truth_at: ReadTruth
    around: Around | None
    members: int = 2
    step: int = 1
    settings: AssimilationSettings | None = None
    network: Network = field(default_factory=Network)
    seed: int = 0
    withhold: float = 0.1
    last: Tensor | None = None
    end: datetime | None = None

    def start(self, end: datetime) -> Trajectory:
        """Analyse a cold window that ends at `end` (UTC)."""
        size = self.model.blanket_size
        case = observe_case(
            self.model, self.truth_at, end, size, 0, self.network, self.seed, self.withhold
        )
        done = assimilate(
            self.model,
            case.observations(),
            WindowPlan.filtering(end, size),
            self.members,
            self.seed,
            settings=self.settings,
        )
        self.last, self.end = done.latents.mean(0), end
        return done

    def cycles(self, count: int) -> Iterator[SimulatedCycle]:
        """Yield `count` cycles, each continued from the one before."""
        for _ in range(count):
            yield self._cycle()

    def _cycle(self) -> SimulatedCycle:
        if self.last is None or self.end is None or self.around is None:
            raise RuntimeError("Expected a chain that was started and can be continued.")
        end = self.end + self.step * HOUR
        plan = WindowPlan.filtering(end, self.model.blanket_size)
        prior = self.around(self.last[self.step :], date_rows(plan.times))
        seen, _ = observation_set(self._new_rows(end), self.model, list(plan.times))
        done = assimilate(
            self.model,
            seen,
            plan,
            self.members,
            self.seed + int(end.timestamp()) // 3600,
            settings=self.settings,
            prior=prior,
        )
        self.last, self.end = done.latents.mean(0), end
        return SimulatedCycle(end, len(seen), prior.background, done)

    def _new_rows(self, end: datetime) -> pa.Table:
        """Return what the network reports of the hours up to `end` since the last analysis."""
        states = torch.nan_to_num(self.truth_at(end - self.step * HOUR, self.step + 1), nan=273.0)
        table = simulate_observations(
            states,
            self.model.grid,
            self.model.channels,
            [end - hours * HOUR for hours in range(self.step, -1, -1)],
            self.seed + int(end.timestamp()) // 3600,
            statics=self.model.statics,
            network=self.network,
        )
        times = table["time"].to_numpy()
        last = np.datetime64(end.replace(tzinfo=None))
        new = (times > last - np.timedelta64(self.step, "h")) & (times <= last)
        return withhold_stations(table.filter(pa.array(new)), self.withhold, self.seed)
