r"""Analyse an ensemble by the local ensemble transform Kalman filter.

After B. R. Hunt, E. J. Kostelich and I. Szunyogh, "Efficient data assimilation for spatiotemporal
chaos", Physica D 230, 2007 (equations 20 to 25). With members :math:`x_b^{(i)}`, perturbations X of
them, those of their observation equivalents Y, and innovations d, both in units of the observation
errors, the analysis at one point is

.. math:: A = (M - 1) I + Y^\top \rho Y, \quad \bar w = A^{-1} Y^\top \rho d, \quad
          W = \sqrt{M - 1}\, A^{-1/2}, \quad x_a^{(i)} = \bar x_b + X (\bar w + W_i)

with :math:`\rho` the correlation of Gaspari and Cohn at the distance of each observation from the
point, horizontally and in the logarithm of pressure. Weights vary slowly: they are found on every few
rows and columns and interpolated (S.-C. Yang et al., QJRMS 135, 2009). Spread is relaxed to that of the
background (J. S. Whitaker and T. M. Hamill, Mon. Wea. Rev. 140, 2012, equation 2).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.diagnostics.ensembles import gaspari_cohn
from model.domain.grids import Grid, unit_vectors
from model.domain.physics import EARTH_RADIUS

__all__ = ["LETKF", "LocalObservations", "local_weights"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class LocalObservations:
    """Observations with their positions and the ensemble's equivalents.

    Attributes:
        equivalents: Of the members, with shape (M, N), in units of the observation errors.
        values: With shape (N,), in the same units.
        lat: Degrees north, with shape (N,).
        lon: Degrees east, with shape (N,).
        pressure: Pa, with shape (N,).
    """

    equivalents: Tensor
    values: Tensor
    lat: Float
    lon: Float
    pressure: Float


def local_weights(perturbations: Tensor, innovation: Tensor, share: Tensor) -> Tensor:
    """Return the weights of the members at P points, mean and deviations in one.

    Arguments:
        perturbations: Y, with shape (M, N).
        innovation: d, with shape (N,).
        share: Localisation weight of each observation at each point, with shape (P, N).

    Returns:
        With shape (P, M, M): column i holds the weights of analysis member i.
    """
    members = len(perturbations)
    rows, columns = torch.triu_indices(members, members)
    pairs = share @ (perturbations[rows] * perturbations[columns]).T
    precision = pairs.new_empty(len(share), members, members)
    precision[:, rows, columns] = pairs
    precision[:, columns, rows] = pairs
    precision.diagonal(dim1=-2, dim2=-1).add_(members - 1)
    values, vectors = torch.linalg.eigh(precision.double())
    pull = (share @ (perturbations * innovation).T).double()
    mean = torch.einsum("pik,pk,pjk,pj->pi", vectors, 1 / values, vectors, pull)
    root = torch.einsum("pik,pk,pjk->pij", vectors, ((members - 1) / values).sqrt(), vectors)
    return (root + mean[:, :, None]).to(perturbations)


@dataclass(frozen=True)
class LETKF:
    """The filter on a grid.

    Attributes:
        grid: Of the states.
        pressure: Pa of the levels of the states, with shape (L,).
        half_width: Half the horizontal radius of the localisation, m.
        half_depth: Half its vertical radius in the logarithm of pressure.
        relaxation: Factor of the relaxation to the background's spread, 0 to 1.
        stride: Rows and columns from one set of weights to the next; must divide both numbers.
    """

    grid: Grid
    pressure: Float
    half_width: float = 2.0e6
    half_depth: float = 1.0
    relaxation: float = 0.9
    stride: int = 2

    def analyse(self, states: Tensor, level: Tensor, seen: LocalObservations) -> Tensor:
        """Return the members of the analysis.

        Arguments:
            states: Members of the background, with shape (M, C, Y, X).
            level: Which of the levels each row of C lies on, with shape (C,).
            seen: Observations.

        Returns:
            With the shape of `states`.
        """
        mean = states.mean(0)
        deviations = states - mean
        equivalent = seen.equivalents.mean(0)
        perturbations, innovation = seen.equivalents - equivalent, seen.values - equivalent
        near = self._near(seen)
        analysed = torch.empty_like(states)
        for number, pressure in enumerate(self.pressure):
            deep = np.abs(np.log(seen.pressure / pressure)) / self.half_depth
            share = near * torch.from_numpy(gaspari_cohn(deep)).to(near)
            used = share.amax(0) > 0
            found = local_weights(perturbations[:, used], innovation[used], share[:, used])
            weights, here = self._spread_out(found), level == number
            analysed[:, here] = torch.einsum("mcyx,miyx->icyx", deviations[:, here], weights)
        return mean + self._relaxed(analysed, deviations)

    def _near(self, seen: LocalObservations) -> Tensor:
        """Return horizontal localisation weights of observations at the analysis points, (P, N)."""
        rows, columns = self._points()
        latitude, longitude = np.meshgrid(rows, columns, indexing="ij")
        points = torch.from_numpy(unit_vectors(latitude.ravel(), longitude.ravel())).float()
        places = torch.from_numpy(unit_vectors(seen.lat, seen.lon)).float()
        chord = (2.0 - 2.0 * (points @ places.T)).clamp(min=0.0).sqrt()
        return torch.from_numpy(gaspari_cohn((chord * (EARTH_RADIUS / self.half_width)).numpy()))

    def _points(self) -> tuple[Float, Float]:
        """Return latitudes and longitudes of the points with weights: middles of blocks of cells."""
        lat = np.asarray(self.grid.latitude).reshape(-1, self.stride).mean(1)
        lon = np.asarray(self.grid.longitude).reshape(-1, self.stride).mean(1)
        return lat, lon

    def _spread_out(self, weights: Tensor) -> Tensor:
        """Interpolate weights (P, M, M) to the grid, with shape (M, M, Y, X)."""
        rows, columns = (len(axis) for axis in self._points())
        found = weights.reshape(rows, columns, *weights.shape[1:]).permute(2, 3, 0, 1)
        if self.stride == 1:
            return found
        found = functional.pad(found, (1, 1, 0, 0), mode="circular")
        wide = functional.interpolate(
            found, scale_factor=float(self.stride), mode="bilinear", align_corners=False
        )
        return wide[..., self.stride : -self.stride]

    def _relaxed(self, analysed: Tensor, background: Tensor) -> Tensor:
        """Return the analysis about the background's mean, its spread relaxed to the background's."""
        shift = analysed.mean(0)
        deviations = analysed - shift
        before, after = background.std(0), deviations.std(0)
        factor = 1 + self.relaxation * (before - after) / after.clamp(min=1e-12)
        return shift + deviations * torch.where(after > 0, factor, 1.0)
