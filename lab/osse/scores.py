r"""Score the methods of one start: standardised errors, spectra, wall clock and memory.

Results are numbers only, so that they can be kept in a file. The spectral deviation is the relative
difference of the power spectra of one set of states from those of another: with P_l the power at
total wavenumber l (`model.diagnostics.realism`), averaged over states,

.. math:: d_l = \frac{\sum P_l(\text{states})}{\sum P_l(\text{reference})} - 1

How much of a state the autoencoder keeps is scored by the same errors and spectra. Ranks of withheld
observations are counted by kind of observation and station, and pooled over starts.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from model.diagnostics.ensembles import RankShape, rank_shape
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
    "NETWORKS",
    "Ranks",
    "SpectralDeviation",
    "SpectralError",
    "StartScorer",
    "StartSkill",
    "observation_kinds",
    "peak_memory",
    "pooled_counts",
    "rank_shapes",
    "score_autoencoder",
    "standardised_rmse",
    "station_ranks",
]

Ranks = dict[str, dict[str, list[float]]]
"""`network variable` to the name of a station to how often each rank occurred there.

Each has as many numbers as there are independent members, and one more; a value that is ranked twice
counts half each time.
"""


NETWORKS = {"synop": "surface", "ship": "surface", "temp": "sondes"}
"""Report type to the network it is counted in; others are not ranked."""


def observation_kinds(table: pa.Table) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Return `network variable` and station of each row; the first is empty for other networks."""
    types, variables, stations = (
        table[name].cast(pa.string()).to_pylist()
        for name in ("report_type", "variable", "station_id")
    )
    kinds = [
        f"{NETWORKS[t]} {v}" if t in NETWORKS else "" for t, v in zip(types, variables, strict=True)
    ]
    return np.array(kinds, dtype=np.str_), np.array(stations, dtype=np.str_)


def station_ranks(
    ranks: NDArray[np.int64],
    members: int,
    kinds: NDArray[np.str_],
    stations: NDArray[np.str_],
    weight: float,
) -> Ranks:
    """Count ranks from 0 to `members` (N,) by kind (N,) and station (N,), each with a weight."""
    counted: Ranks = {}
    for kind in np.unique(kinds[kinds != ""]):
        chosen = kinds == kind
        names, number = np.unique(stations[chosen], return_inverse=True)
        counts = np.zeros((len(names), members + 1))
        np.add.at(counts, (number, ranks[chosen]), weight)
        counted[str(kind)] = {str(n): c.tolist() for n, c in zip(names, counts, strict=True)}
    return counted


def pooled_counts(starts: Iterable[Ranks], prefix: str) -> NDArray[np.float64] | None:
    """Return counts (S, M + 1) of all kinds of observations whose name begins with `prefix`.

    The kinds of one station are added up; the same station at another start counts anew. None
    where there is none.
    """
    rows: list[NDArray[np.float64]] = []
    for ranks in starts:
        stations: dict[str, NDArray[np.float64]] = {}
        for name, by_station in ranks.items():
            if name.startswith(prefix):
                for station, counts in by_station.items():
                    values = np.asarray(counts, dtype=np.float64)
                    stations[station] = stations.get(station, np.zeros_like(values)) + values
        rows += stations.values()
    return np.stack(rows) if rows else None


def rank_shapes(starts: Iterable[Ranks]) -> tuple[RankShape, ...]:
    """Summarise all withheld observations, each network, and each variable of each."""
    ranks = list(starts)
    kinds = sorted({name for start in ranks for name in start})
    networks = sorted({name.split()[0] for name in kinds}, reverse=True)
    shapes = []
    prefixes = [("all", ""), *((network, f"{network} ") for network in networks)]
    for name, prefix in [*prefixes, *((kind, kind) for kind in kinds)]:
        counts = pooled_counts(ranks, prefix)
        if counts is not None:
            shapes.append(rank_shape(name, counts))
    return tuple(shapes)


class Method(StrEnum):
    """Everything that is scored, by the name it has in tables."""

    RECONSTRUCTION = "autoencoder"
    FILTERING = "filtering"
    ABLATION = "filtering without the network"
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
        processor: Processor seconds over all cores by method, hardly affected by other load.
        memory: Peak memory of the process in GiB, after the cold `cycle` and at the `end`.
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
    """Return the area-weighted RMSE over the channel's standard deviation.

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
    """Return the most memory this process has held so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class StartScorer:
    """Collect errors and times of methods."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.errors: dict[Method, tuple[float, ...]] = {}
        self.seconds: dict[Method, float] = {}
        self.processor: dict[Method, float] = {}

    def score(self, method: Method, states: Tensor, truth: Tensor) -> None:
        """Record the errors of states against the truth, both with shape (C, Y, X)."""
        self.errors[method] = tuple(standardised_rmse(self.model, states, truth).tolist())

    def timed(self, method: Method, work: Callable[[], Result]) -> Result:
        """Do the work; record its wall clock, and its processor time over all cores."""
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
    """Sum spectra state by state, and compare them.

    Arguments:
        grid: The grid.
        largest: Last total wavenumber compared, where the grid resolves it; the mean (0) is not.
    """

    def __init__(self, grid: Grid, largest: int = 20) -> None:
        self.grid, self.largest = grid, largest
        self._power: Tensor | None = None
        self._reference: Tensor | None = None

    def add(self, state: Tensor, reference: Tensor) -> None:
        """Add one state and its reference, both with shape (C, Y, X); NaN where undefined."""
        # A field with gaps has no spectrum: its channel becomes NaN.
        state = torch.where(torch.isnan(reference), torch.nan, state)
        power, wanted = (power_spectrum(x, self.grid) for x in (state, reference))
        self._power = power if self._power is None else self._power + power
        self._reference = wanted if self._reference is None else self._reference + wanted

    def deviations(self) -> Tensor:
        """Return d_l of wavenumbers 1 to `largest`, with shape (C, L); NaN for channels with gaps."""
        if self._power is None or self._reference is None:
            raise ValueError("Expected at least one state to compare spectra of; got none.")
        tiny = torch.finfo(torch.float64).tiny
        ratio = self._power / self._reference.clamp(min=tiny)
        return ratio[:, 1 : self.largest + 1] - 1.0

    def by_variable(self, channels: Sequence[Channel]) -> tuple[SpectralDeviation, ...]:
        """Return the largest deviation of each variable, in the order of the channels."""
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
    """Errors and spectra of reconstructed states against the originals.

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
        """Return the standardised RMSE averaged over channels."""
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
    """Encode and decode the states of `times`.

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
