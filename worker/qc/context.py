"""What checks know besides the rows: parameters, model grid, orography, window."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.domain.grids import Grid
from worker.qc.parameters import load_parameters

__all__ = ["QCContext"]


@dataclass(frozen=True)
class QCContext:
    """The surroundings of a table; checks that lack what they need do nothing.

    Attributes:
        parameters: Effective parameters by check, from `load_parameters`.
        grid: The model's grid, for superobservations and thinning.
        levels: The model's levels in hPa.
        orography: Height of the model's surface in m on `grid`, with shape (nlat, nlon).
        cut_off: Last arrival accepted (UTC).
    """

    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=load_parameters)
    grid: Grid | None = None
    levels: tuple[int, ...] = ()
    orography: NDArray[np.floating] | None = None
    cut_off: datetime | None = None

    def of(self, check: str) -> Mapping[str, Any]:
        """The parameters of one check."""
        return self.parameters[check]
