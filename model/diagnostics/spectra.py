r"""Power spectra on the sphere.

With spherical harmonic coefficients :math:`a_{lm}` in orthonormal harmonics,

.. math:: P_l = \frac{1}{4\pi} \sum_{m=-l}^{l} |a_{lm}|^2

so that the sum over total wavenumbers l is the area mean of the field's square. The transform is
torch-harmonics' (https://github.com/NVIDIA/torch-harmonics): Gauss-Legendre quadrature on a
Gaussian grid, Clenshaw-Curtis on a regular grid with pole rows.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch_harmonics import RealSHT

from model.domain.grids import Grid

__all__ = ["power_spectrum", "spectral_ratio"]


@lru_cache(maxsize=4)
def _transform(grid: Grid) -> RealSHT:
    # Degrees for which the quadrature of products of two harmonics is exact, or nearly so.
    if grid.kind == "gaussian":
        degrees, quadrature = grid.nlat, "legendre-gauss"
    else:
        degrees, quadrature = (grid.nlat + 1) // 2, "equiangular"
    degrees = min(degrees, grid.nlon // 2 + 1)
    return RealSHT(grid.nlat, grid.nlon, lmax=degrees, mmax=degrees, grid=quadrature)


def power_spectrum(fields: Tensor, grid: Grid) -> Tensor:
    """Power at each total wavenumber.

    Arguments:
        fields: With shape (*, Y, X).
        grid: The grid.

    Returns:
        With shape (*, L), float64, in the square of the fields' units.
    """
    coefficients = _transform(grid)(fields.detach().cpu().double())
    power = coefficients.abs().square()
    # A real field has the same power at m and -m.
    return (2.0 * power.sum(dim=-1) - power[..., 0]) / (4.0 * math.pi)


def spectral_ratio(fields: Tensor, reference: Tensor, grid: Grid) -> Tensor:
    """Mean power of `fields` (N, *, Y, X) over that of `reference` (N, *, Y, X): (*, L)."""
    numerator = power_spectrum(fields, grid).mean(dim=0)
    denominator = power_spectrum(reference, grid).mean(dim=0)
    return numerator / denominator.clamp(min=torch.finfo(torch.float64).tiny)
