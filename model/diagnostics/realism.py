r"""Measure how realistic states are: power spectra, geostrophic and hydrostatic balance.

With spherical harmonic coefficients :math:`a_{lm}` in orthonormal harmonics, the spectrum is

.. math:: P_l = \frac{1}{4\pi} \sum_{m=-l}^{l} |a_{lm}|^2

so that the sum over total wavenumbers l is the area mean of the field's square. The quadrature is
Gauss-Legendre on a Gaussian grid and Clenshaw-Curtis on a regular grid with pole rows; the
Legendre functions are SciPy's. (torch-harmonics has the transform too, but each of its wheels is
built for one release of torch, and none for the one used here.)

Balances that real states keep, and generated ones should:

* Geostrophic: outside the tropics the wind is close to
  :math:`u_g = -\frac{1}{f a} \partial_\varphi \Phi`,
  :math:`v_g = \frac{1}{f a \cos\varphi} \partial_\lambda \Phi`.
* Hydrostatic (hypsometric): the thickness between two levels is
  :math:`\Delta\Phi = R \overline{T_v} \ln(p_b / p_t)`, with the mean virtual temperature
  :math:`T_v = T (1 + (1/\varepsilon - 1) q)` taken linear in ln p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import sph_legendre_p_all
from torch import Tensor

from model.domain.grids import Grid
from model.domain.physics import (
    EARTH_RADIUS,
    EARTH_ROTATION,
    GAS_CONSTANT_DRY,
    virtual_temperature,
)

__all__ = [
    "GeostrophicBalance",
    "geostrophic_balance",
    "geostrophic_wind",
    "hydrostatic_residual",
    "legendre_projection",
    "power_spectrum",
    "spectral_ratio",
]


@lru_cache(maxsize=4)
def legendre_projection(grid: Grid) -> Tensor:
    """Return Legendre functions times quadrature weights, with shape (L, M, Y), float64.

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
    """Return weights (Y,) of an integral over the sine of latitude; they add to 2."""
    if grid.kind == "gaussian":
        return 2.0 * grid.area_weights
    count = grid.nlat - 1
    angle = np.pi * np.arange(grid.nlat) / count
    k = np.arange(1, count // 2 + 1)
    factor = np.where(2 * k == count, 1.0, 2.0) / (4.0 * k**2 - 1.0)
    weights: np.ndarray = (
        2.0 * (1.0 - (factor * np.cos(2.0 * np.outer(angle, k))).sum(axis=1)) / count
    )
    weights[[0, -1]] /= 2.0
    return weights


def power_spectrum(fields: Tensor, grid: Grid) -> Tensor:
    """Return the power at each total wavenumber.

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
    """Return the mean power of `fields` (N, *, Y, X) over that of `reference` (N, *, Y, X): (*, L)."""
    numerator = power_spectrum(fields, grid).mean(dim=0)
    denominator = power_spectrum(reference, grid).mean(dim=0)
    return numerator / denominator.clamp(min=torch.finfo(torch.float64).tiny)


def geostrophic_wind(geopotential: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the geostrophic wind by centred differences; meaningless close to the equator and the poles.

    Arguments:
        geopotential: m2 s-2, with shape (*, Y, X).
        grid: The grid.

    Returns:
        Eastward and northward component in m s-1, each with shape (*, Y, X).
    """
    latitude = torch.from_numpy(grid.latitude).to(geopotential).deg2rad()
    coriolis = 2.0 * EARTH_ROTATION * latitude.sin()[:, None]
    step = 2.0 * math.pi / grid.nlon
    eastward = (geopotential.roll(-1, -1) - geopotential.roll(1, -1)) / (2.0 * step)
    (northward,) = torch.gradient(geopotential, spacing=(latitude,), dim=-2, edge_order=2)
    u = -northward / (coriolis * EARTH_RADIUS)
    v = eastward / (coriolis * EARTH_RADIUS * latitude.cos()[:, None])
    return u, v


@dataclass(frozen=True)
class GeostrophicBalance:
    """Wind against geostrophic wind, area-weighted over the extratropics; each with shape (*).

    Attributes:
        ratio: Root mean square speed of the geostrophic wind over that of the wind.
        departure: Root mean square of wind minus geostrophic wind, over that of the wind.
    """

    ratio: Tensor
    departure: Tensor


def geostrophic_balance(
    geopotential: Tensor,
    u: Tensor,
    v: Tensor,
    grid: Grid,
    band: tuple[float, float] = (30.0, 70.0),
) -> GeostrophicBalance:
    """Return how close the wind is to geostrophy at absolute latitudes inside `band`, in degrees.

    Arguments:
        geopotential: m2 s-2, with shape (*, Y, X).
        u: Eastward wind in m s-1, with shape (*, Y, X).
        v: Northward wind in m s-1, with shape (*, Y, X).
        grid: The grid.
        band: Lowest and highest absolute latitude in degrees.
    """
    absolute = abs(torch.from_numpy(grid.latitude))
    inside = (absolute >= band[0]) & (absolute <= band[1])
    weights = (torch.from_numpy(grid.area_weights) * inside).to(geopotential)[:, None]
    u_g, v_g = (torch.nan_to_num(part) for part in geostrophic_wind(geopotential, grid))

    def size(a: Tensor, b: Tensor) -> Tensor:
        square = torch.where(weights > 0, a.square() + b.square(), 0.0)
        return (weights * square).sum(dim=(-2, -1)).sqrt()

    wind = size(u, v)
    return GeostrophicBalance(size(u_g, v_g) / wind, size(u - u_g, v - v_g) / wind)


def hydrostatic_residual(
    geopotential: Tensor, temperature: Tensor, humidity: Tensor, levels: Sequence[float]
) -> Tensor:
    """Return the virtual temperature of the thickness minus that of the profile, for each layer.

    Arguments:
        geopotential: m2 s-2, with shape (*, L, Y, X), from the top down.
        temperature: K, same shape.
        humidity: Specific humidity, same shape.
        levels: Pressure of the L levels, ascending, any unit.

    Returns:
        K, with shape (*, L - 1, Y, X).
    """
    pressure = torch.tensor(levels, dtype=geopotential.dtype, device=geopotential.device)
    depth = (pressure[1:] / pressure[:-1]).log()[:, None, None]
    virtual = virtual_temperature(temperature, humidity)
    mean = (virtual[..., 1:, :, :] + virtual[..., :-1, :, :]) / 2.0
    thickness = geopotential[..., :-1, :, :] - geopotential[..., 1:, :, :]
    residual: Tensor = thickness / (GAS_CONSTANT_DRY * depth) - mean
    return residual
