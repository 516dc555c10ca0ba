r"""Score the methods of one start: standardised errors, spectra, wall clock and memory.

Results are numbers only, so that they can be kept in a file. The spectral deviation says by how
much the power spectra of one set of states depart from those of another: with P_l the power at
total wavenumber l (`model.diagnostics.realism`), averaged over states,

.. math:: d_l = \frac{\sum P_l(\text{states})}{\sum P_l(\text{reference})} - 1

How much of a state the autoencoder keeps is scored by the same errors and spectra.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from model.diagnostics.realism import power_spectrum
from model.diagnostics.scores import rmse
from model.domain.grids import Grid
from model.domain.variables import Channel
from model.execution import OnStep, no_progress
from model.latent_model import LatentModel

__all__ = [
    "AutoencoderSkill",
    "CaseFields",
    "Method",
    "Ranks",
    "SpectralDeviation",
    "SpectralError",
    "StartScorer",
    "StartSkill",
    "peak_memory",
    "score_autoencoder",
    "standardised_rmse",
]

Ranks = dict[str, dict[str, list[float]]]
"""`network variable` to the name of a station to how often each rank occurred there.

Each has as many numbers as there are independent members, and one more; a value that is ranked twice
counts half each time.
"""


class Method(StrEnum):
    """Everything that is scored, by the name it has in tables."""

    RECONSTRUCTION = "autoencoder"
    FILTERING = "filtering"
    WARM = "filtering, warm-started an hour later"
    REANALYSIS = "reanalysis, mid-window"
    CLIMATOLOGY = "climatology"
    PERSISTENCE_6 = "6-hour persistence of the truth"
    PERSISTENCE_24 = "24-hour persistence of the truth"
    OPTIMAL_INTERPOLATION = "optimal interpolation, 1 hour"
    WINDOWED = "windowed OI"
    WINDOWED_MIDDLE = "windowed OI, mid-window"
    FORECAST = "forecast"
    PERSISTENCE = "persistence of the analysis"
    CLIMATOLOGY_AHEAD = "climatology at the lead time"


class StartSkill(BaseModel):
    """Standardised RMSE by method and channel for one analysis time.

    Attributes:
        end: Analysis time (UTC).
        observations: Number assimilated.
        withheld: Number of values at withheld stations.
        errors: Method to C numbers.
        spread_ratio: Spread over error of the filtering ensemble, C numbers.
        seconds: Wall clock by method.
        processor: Processor seconds over all cores by method: what a busy machine leaves alike.
        memory: GiB the process had held at most after the cold `cycle`, and in the `end`.
        chi: Root mean square post-fit innovation by noise level, in units of the error.
        ranks: Of withheld observations among independent members.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    end: datetime
    observations: int
    withheld: int
    errors: dict[Method, tuple[float, ...]]
    spread_ratio: tuple[float, ...]
    seconds: dict[Method, float]
    processor: dict[Method, float]
    memory: dict[str, float]
    chi: tuple[tuple[float, float], ...]
    ranks: Ranks


@dataclass(frozen=True)
class CaseFields:
    """Maps of one analysis in SI units, each array with shape (n, Y, X).

    Attributes:
        end: Analysis time (UTC).
        channels: Names of the n channels.
        truth, analysis, spread: Of the ensemble's mean and standard deviation.
    """

    end: datetime
    channels: tuple[str, ...]
    truth: NDArray[np.float32]
    analysis: NDArray[np.float32]
    spread: NDArray[np.float32]


Result = TypeVar("Result")


def standardised_rmse(model: LatentModel, states: Tensor, truth: Tensor) -> Tensor:
    """Area-weighted RMSE over the channel's standard deviation.

    Arguments:
        model: The checkpoint, whose statistics standardise.
        states: Physical, with shape (C, Y, X).
        truth: Likewise; where it is NaN (sea surface temperature on land), cells are left out.

    Returns:
        With shape (C,), float64.
    """
    states = torch.where(torch.isnan(truth), torch.nan, states.cpu())
    return rmse(states, truth, model.grid) / model.state_normalisation.std.flatten().double().cpu()


def peak_memory() -> float:
    """The most memory this process has held so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class StartScorer:
    """Collects errors and times of methods."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.errors: dict[Method, tuple[float, ...]] = {}
        self.seconds: dict[Method, float] = {}
        self.processor: dict[Method, float] = {}

    def score(self, method: Method, states: Tensor, truth: Tensor) -> None:
        """States and truth with shape (C, Y, X)."""
        self.errors[method] = tuple(standardised_rmse(self.model, states, truth).tolist())

    def timed(self, method: Method, work: Callable[[], Result]) -> Result:
        """Does the work and notes its wall clock, and its processor time over all cores."""
        begin, used = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[method] = time.perf_counter() - begin
        self.processor[method] = time.process_time() - used
        return result


class SpectralDeviation(BaseModel):
    """The largest deviation of one variable.

    Attributes:
        variable: Its id.
        deviation: Ratio of the spectra minus 1, signed.
        level: Where it is, hPa; None at the surface.
        wavenumber: Where it is, total wavenumber.
        within: Share of levels and wavenumbers with a deviation of at most `TOLERANCE`.
    """

    model_config = ConfigDict(frozen=True)

    variable: str
    deviation: float
    level: int | None
    wavenumber: int
    within: float


TOLERANCE = 0.10


class SpectralError:
    """Sums spectra state by state.

    Arguments:
        grid: The grid.
        largest: Last total wavenumber compared, where the grid resolves it; the mean (0) is not.
    """

    def __init__(self, grid: Grid, largest: int = 20) -> None:
        self.grid, self.largest = grid, largest
        self._power: Tensor | None = None
        self._reference: Tensor | None = None

    def add(self, state: Tensor, reference: Tensor) -> None:
        """One state and what it should be, with shape (C, Y, X); NaN where undefined."""
        # A field with gaps has no spectrum: its channel becomes NaN.
        state = torch.where(torch.isnan(reference), torch.nan, state)
        power, wanted = (power_spectrum(x, self.grid) for x in (state, reference))
        self._power = power if self._power is None else self._power + power
        self._reference = wanted if self._reference is None else self._reference + wanted

    def deviations(self) -> Tensor:
        """d_l of wavenumbers 1 to `largest`, with shape (C, L); NaN for channels with gaps."""
        if self._power is None or self._reference is None:
            raise ValueError("Expected at least one state to compare spectra of; got none.")
        tiny = torch.finfo(torch.float64).tiny
        ratio = self._power / self._reference.clamp(min=tiny)
        return ratio[:, 1 : self.largest + 1] - 1.0

    def by_variable(self, channels: Sequence[Channel]) -> tuple[SpectralDeviation, ...]:
        """The largest deviation of each variable, in the order of the channels."""
        deviations = self.deviations()
        rows = []
        for variable in dict.fromkeys(c.variable for c in channels):
            chosen = [
                i
                for i, c in enumerate(channels)
                if c.variable == variable and bool(torch.isfinite(deviations[i]).all())
            ]
            if not chosen:
                continue
            part = deviations[chosen]
            row, column = divmod(int(part.abs().argmax()), part.shape[1])
            rows.append(
                SpectralDeviation(
                    variable=variable,
                    deviation=float(part[row, column]),
                    level=channels[chosen[row]].level,
                    wavenumber=column + 1,
                    within=float((part.abs() <= TOLERANCE).double().mean()),
                )
            )
        return tuple(rows)


class AutoencoderSkill(BaseModel):
    """Of reconstructed states against the states themselves.

    Attributes:
        times: Valid times of the states (UTC).
        errors: Standardised RMSE by channel, mean over states, with C entries.
        spectra: Largest spectral deviation of each variable.
        largest_wavenumber: Last total wavenumber compared.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    times: tuple[datetime, ...]
    errors: tuple[float, ...]
    spectra: tuple[SpectralDeviation, ...]
    largest_wavenumber: int

    @property
    def mean(self) -> float:
        """Over channels."""
        return sum(self.errors) / len(self.errors)


@torch.no_grad()
def score_autoencoder(
    model: LatentModel,
    truth_at: Callable[[datetime, int], Tensor],
    times: Sequence[datetime],
    *,
    largest: int = 20,
    on_step: OnStep = no_progress,
) -> AutoencoderSkill:
    """Encodes and decodes the states of `times`.

    Arguments:
        model: A checkpoint.
        truth_at: (first time UTC, count) to physical states (count, C, Y, X).
        times: Of the states.
        largest: Last total wavenumber of the spectra.
        on_step: Called before every state.
    """
    spectra, total = SpectralError(model.grid, largest), torch.zeros(len(model.channels)).double()
    for number, valid_time in enumerate(times):
        on_step(number, len(times))
        state = truth_at(valid_time, 1)
        again = model.decode(model.encode(state))[0].float().cpu()
        total += standardised_rmse(model, again, state[0])
        spectra.add(again, state[0])
    return AutoencoderSkill(
        times=tuple(times),
        errors=tuple((total / len(times)).tolist()),
        spectra=spectra.by_variable(model.channels),
        largest_wavenumber=min(largest, spectra.deviations().shape[1]),
    )
