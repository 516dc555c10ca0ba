"""One simulated window with its truth: what every method of an experiment may know."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet, build_observation_set
from model.osse.network import Network, simulate_observations
from model.osse.table import withhold_stations
from model.osse.withheld_ranks import withheld_rows

__all__ = ["ObservedCase", "ReadTruth", "observe_case"]

ReadTruth = Callable[[datetime, int], Tensor]
"""(first time UTC, count) -> physical states (count, C, Y, X), NaN where undefined."""

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class ObservedCase:
    """A window that ends at `end`, the hour after it, and the truth up to the lead time.

    Attributes:
        model: The checkpoint.
        end: Analysis time (UTC).
        window: W, hours of observations.
        truth: Physical states from the first of the window on, at least W + 1 of them, with shape
            (T, C, Y, X).
        table: Observations of W + 1 hours; those of withheld stations are rejected.
    """

    model: LatentModel
    end: datetime
    window: int
    truth: Tensor
    table: pa.Table

    @property
    def last(self) -> Tensor:
        """The true state (C, Y, X) at `end`."""
        return self.truth[self.window - 1]

    @property
    def middle(self) -> int:
        """Position of the mid-window state."""
        return self.window // 2

    def times(self, later: int = 0) -> list[datetime]:
        """Valid times of the window that ends `later` hours after `end`."""
        first = self.end - (self.window - 1 - later) * HOUR
        return [first + i * HOUR for i in range(self.window)]

    def known(self, later: int = 0) -> pa.Table:
        """Observations up to `later` hours after `end`: nothing comes from the future."""
        latest = np.datetime64((self.end + later * HOUR).astimezone(UTC).replace(tzinfo=None))
        return self.table.filter(pa.array(self.table["time"].to_numpy() <= latest))

    def observations(self, later: int = 0) -> ObservationSet:
        """What the window that ends `later` hours after `end` assimilates."""
        return self._set(self.known(later), later)[0]

    def withheld(self) -> tuple[ObservationSet, pa.Table]:
        """Observations of withheld stations in the window, and their rows of the table."""
        found, table = self._set(withheld_rows(self.known()), 0)
        return found, table.take(pa.array(found.rows))

    def _set(self, table: pa.Table, later: int) -> tuple[ObservationSet, pa.Table]:
        m = self.model
        return build_observation_set(table, m.grid, m.channels, self.times(later), m.statics)


def observe_case(
    model: LatentModel,
    truth_at: ReadTruth,
    end: datetime,
    window: int,
    lead: int,
    network: Network,
    seed: int,
    withhold: float,
) -> ObservedCase:
    """Observes the truth of a window and of the hour after it.

    Arguments:
        model: The checkpoint.
        truth_at: Reads the truth.
        end: Analysis time (UTC).
        window: Hours of observations.
        lead: Hours of truth after `end`, beyond the first.
        network: What observes.
        seed: Of the errors; the analysis time is added, so that each start has its own.
        withhold: Share of the surface stations and radiosondes that is left out: by their names,
            the same ones at every start.
    """
    first = end - (window - 1) * HOUR
    truth = truth_at(first, window + max(lead, 1))
    table = simulate_observations(
        torch.nan_to_num(truth[: window + 1], nan=273.0),
        model.grid,
        model.channels,
        [first + i * HOUR for i in range(window + 1)],
        seed + int(end.timestamp()) // 3600,
        statics=model.statics,
        network=network,
    )
    return ObservedCase(model, end, window, truth, withhold_stations(table, withhold, seed))
