r"""By how much the power spectra of one set of states depart from those of another.

With P_l the power at total wavenumber l (`model.diagnostics.spectra`), averaged over states,

.. math:: d_l = \frac{\sum P_l(\text{states})}{\sum P_l(\text{reference})} - 1
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from model.diagnostics.spectra import power_spectrum
from model.domain.grids import Grid
from model.domain.variables import Channel

__all__ = ["SpectralDeviation", "SpectralError"]


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
