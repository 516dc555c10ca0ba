"""What one start of an experiment gave: numbers only, so that they can be kept in a file."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

__all__ = ["CaseFields", "Method", "Ranks", "StartSkill"]

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
