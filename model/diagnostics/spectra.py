r"""Power spectra on the sphere.

With spherical harmonic coefficients :math:`a_{lm}` in orthonormal harmonics,

.. math:: P_l = \frac{1}{4\pi} \sum_{m=-l}^{l} |a_{lm}|^2

so that the sum over total wavenumbers l is the area mean of the field's square. The quadrature is
Gauss-Legendre on a Gaussian grid and Clenshaw-Curtis on a regular grid with pole rows; the Legendre
functions are SciPy's. (torch-harmonics has the transform too, but each of its wheels is built for
one release of torch, and none for the one used here.)
"""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.special import sph_legendre_p_all
from torch import Tensor

from model.domain.grids import Grid

__all__ = ["legendre_projection", "power_spectrum", "spectral_ratio"]


@lru_cache(maxsize=4)
def legendre_projection(grid: Grid) -> Tensor:
    """Legendre functions times quadrature weights, with shape (L, M, Y), float64.

    Multiplied with the zonal Fourier coefficients of a field and summed over rows it gives the
    coefficients of total wavenumber l and zonal wavenumber m.
    """
    # Degrees for which the quadrature of products of two harmonics is exact, or nearly so.
    rows = grid.nlat if grid.kind == "gaussian" else (grid.nlat + 1) // 2
    degrees = min(rows, grid.nlon // 2 + 1)
    colatitude = np.deg2rad(90.0 - grid.latitude)
    functions = sph_legendre_p_all(degrees - 1, degrees - 1, colatitude)[0][:, :degrees]
    return torch.from_numpy(functions * _quadrature(grid) * (2.0 * np.pi / grid.nlon))


def _quadrature(grid: Grid) -> np.ndarray:
    """Weights (Y,) of an integral over the sine of latitude; they add to 2."""
    if grid.kind == "gaussian":
        return 2.0 * grid.area_weights
    count = grid.nlat - 1
    angle = np.pi * np.arange(grid.nlat) / count
    k = np.arange(1, count // 2 + 1)
    factor = np.where(2 * k == count, 1.0, 2.0) / (4.0 * k**2 - 1.0)
    weights = 2.0 * (1.0 - (factor * np.cos(2.0 * np.outer(angle, k))).sum(axis=1)) / count
    weights[[0, -1]] /= 2.0
    return weights


def power_spectrum(fields: Tensor, grid: Grid) -> Tensor:
    """Power at each total wavenumber.

    Arguments:
        fields: With shape (*, Y, X).
        grid: The grid.

    Returns:
        With shape (*, L), float64, in the square of the fields' units.
    """
    projection = legendre_projection(grid)
    zonal = torch.fft.rfft(fields.detach().cpu().double(), dim=-1)[..., : projection.shape[1]]
    coefficients = torch.einsum("lmy,...ym->...lm", projection.to(zonal.dtype), zonal)
    power = coefficients.abs().square()
    # A real field has the same power at m and -m.
    return (2.0 * power.sum(dim=-1) - power[..., 0]) / (4.0 * math.pi)


def spectral_ratio(fields: Tensor, reference: Tensor, grid: Grid) -> Tensor:
    """Mean power of `fields` (N, *, Y, X) over that of `reference` (N, *, Y, X): (*, L)."""
    numerator = power_spectrum(fields, grid).mean(dim=0)
    denominator = power_spectrum(reference, grid).mean(dim=0)
    return numerator / denominator.clamp(min=torch.finfo(torch.float64).tiny)
