"""Cycle in a simulated world: each analysis continues from an earlier one, with new observations.

A chain begins with a cold window. From then on each analysis assimilates the observations since the
analysis that it continues (`model.background`). Where it continues from further back than the analysis
before it, windows overlap, and the analyses form several chains side by side: along each of them, every
observation is assimilated once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

import pyarrow as pa
from torch import Tensor

from lab.osse.cases import ReadTruth, observe_case, observe_hour
from lab.osse.network import Network
from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import AssimilationSettings
from model.background import Around, continued_ages
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
        age: Age in hours of the analysis that a cycle continues; younger ones, of at least half of it,
            serve while there is none. None for `step`.
        settings: How the checkpoint assimilates.
        network: The simulated observing network.
        seed: Of observation errors and members; the analysis time is added.
        withhold: Share of the stations that is left out.
        last: The newest trajectory's mean, with shape (K, c, h, w); set by `start`.
        end: Its last time (UTC).
    """

    model: LatentModel
    truth_at: ReadTruth
    around: Around | None
    members: int = 2
    step: int = 1
    age: int | None = None
    settings: AssimilationSettings | None = None
    network: Network = field(default_factory=Network)
    seed: int = 0
    withhold: float = 0.1
    last: Tensor | None = None
    end: datetime | None = None
    _earlier: dict[datetime, Tensor] = field(default_factory=dict)
    _reports: dict[datetime, pa.Table] = field(default_factory=dict)

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
        self._earlier = {}
        return done

    def cycles(self, count: int) -> Iterator[SimulatedCycle]:
        """Yield `count` cycles, each continued from the one before."""
        for _ in range(count):
            yield self._cycle()

    def observe(self) -> None:
        """Simulate the observations of the next cycle, where its time is measured without them."""
        self._rows(*self._span())

    def _cycle(self) -> SimulatedCycle:
        if self.around is None:
            raise RuntimeError("Expected a checkpoint that knows the errors of its backgrounds.")
        begin, end = self._span()
        hours = (end - begin) // HOUR
        plan = WindowPlan.filtering(end, self.model.blanket_size)
        prior = self.around(self._earlier[begin][hours:], date_rows(plan.times))
        seen, _ = observation_set(self._rows(begin, end), self.model, list(plan.times))
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
        self._earlier = {time: x for time, x in self._earlier.items() if time >= begin}
        self._reports = {time: rows for time, rows in self._reports.items() if time > begin}
        return SimulatedCycle(end, len(seen), prior.background, done)

    def _span(self) -> tuple[datetime, datetime]:
        """Return the ends of the analysis that the next cycle continues, and of the cycle.

        Jobs of the service choose in the same way; where they would continue none, the newest serves.
        """
        if self.last is None or self.end is None:
            raise RuntimeError("Expected a chain that was started.")
        self._earlier[self.end] = self.last
        end = self.end + self.step * HOUR
        for least, greatest in continued_ages(self.age or self.step):
            fits = [time for time in self._earlier if least <= end - time <= greatest]
            if fits:
                return max(fits), end
        return self.end, end

    def _rows(self, begin: datetime, end: datetime) -> pa.Table:
        """Return the reports after `begin` up to `end`, at stations that are not withheld."""
        times = [begin + k * HOUR for k in range(1, (end - begin) // HOUR + 1)]
        for time in times:
            if time not in self._reports:
                self._reports[time] = observe_hour(
                    self.model, self.truth_at, time, self.network, self.seed, self.withhold
                )
        return pa.concat_tables([self._reports[time] for time in times])
