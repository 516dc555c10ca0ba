r"""Fit weighting functions: weights of the temperatures of a model's levels in a sounder's channel.

Oxygen is well mixed, and in the wings of its lines the absorption per volume grows with the square of
the pressure. From space down to the pressure p a channel with its peak at p_0 then transmits

.. math:: t(p) = \exp\left(-(p / p_0)^2\right),

and weights the temperature at p with -dt/d ln p, which is largest at p_0. With temperatures
linear in ln p between levels the integral over a layer has the closed form of the exponential integral
E_1. The part above the highest level is added to the weight of that level, and the part below the
lowest, the ground included, to that of the lowest. The weights of a channel sum to 1.

A peak is known from a sensor's description, or fitted to brightness temperatures collocated with profiles
of the model, for the least residual variance about a constant bias. A regression then adjusts the
individual weights, with a Gaussian prior around the closed form,

.. math:: J(w, b) = \frac{1}{\sigma^2} \sum_i (y_i - w^\top T_i - b)^2
          + \frac{1}{s^2} |w - w_0|^2, \qquad \sum_k w_k = 1.

Water vapour, clouds, emissivities below 1 and the slant of the view are not modelled; bias correction
removes their mean effect.

The peaks of known sensors are those with which the closed form comes nearest to weighting functions
computed line by line (`benchmarks/channel_peaks.py`): least squares in dt/d ln p, at nadir, for the US
standard atmosphere and the pass bands of the sensors. Those of MSU agree to 15 % with the 700, 300 and 90 hPa
that the NWP SAF gives for it.

References:
    | A First Course in Atmospheric Radiation, section 7.4 (G. W. Petty, 2006): weighting functions of
      a well-mixed absorber
    | PyRTlib: an educational Python-based library for non-scattering atmospheric microwave radiative
      transfer computations (S. Larosa et al., Geosci. Model Dev. 17, 2024), version 1.2, with the
      absorption model of P. W. Rosenkranz (2024)
    | NOAA, "KLM User's Guide", 2009, section 3.3: channels of AMSU-A
    | NWP SAF, "AAPP overview: MSU", nwpsaf.eu/site/software/aapp/aapp-overview/msu: its channels and the
      regions they sound
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import exp1

from model.domain.errors import InvalidInput

__all__ = [
    "LEAST_INSIDE",
    "PEAKS",
    "FittedChannel",
    "fit_channel",
    "level_weights",
    "share_inside",
]

Float = NDArray[np.float64]

_AMSU_A = {
    4: 990.0, 5: 650.0, 6: 410.0, 7: 268.0, 8: 176.0, 9: 88.0,
    10: 53.5, 11: 26.2, 12: 12.3, 13: 5.7, 14: 2.8,
}  # fmt: skip
PEAKS: Mapping[str, Mapping[int, float]] = {
    "amsu-a": _AMSU_A,
    # The same frequencies under other numbers.
    "atms": {channel + 1: peak for channel, peak in _AMSU_A.items()},
    "msu": {2: 605.0, 3: 281.0, 4: 86.5},
}
"""Peaks in hPa of the channels in the oxygen band that see more air than ground, by sensor."""
LEAST_INSIDE = 0.7
"""Share of a weighting function that must lie between the model's levels for a channel to be usable."""
SPREAD = 0.05
"""Standard deviation of the prior of the individual weights around the closed form."""
LEAST_PROFILES = 50
_REPETITIONS = 20
_LEAST_ERROR = 0.01
"""K; lower limit of the estimated measurement error."""
_LOWEST, _HIGHEST = 50.0, 150_000.0
"""Pa; bounds of the search for a peak."""


@dataclass(frozen=True, eq=False)
class FittedChannel:
    """The weights of one channel and the residual of their fit.

    Attributes:
        weights: Of the temperatures of the levels, with shape (levels,); they sum to 1.
        peak: Peak of the closed form that is the prior of the weights, Pa.
        bias: Mean residual, K.
        error: Standard deviation of the residual, K.
        count: Number of profiles.
    """

    weights: Float
    peak: float
    bias: float
    error: float
    count: int


def level_weights(levels: Float, peak: float) -> Float:
    """Return the weights (L,) of the temperatures of levels in a channel with a peak.

    Arguments:
        levels: Pa, ascending, with shape (L,).
        peak: Pa.
    """
    depth = (levels / peak) ** 2
    through = np.exp(-depth)
    # The mean transmission of a layer over ln p: d depth = 2 depth d ln p.
    mean = 0.5 * -np.diff(exp1(depth)) / np.diff(np.log(levels))
    weights = np.zeros(len(levels))
    weights[:-1] += through[:-1] - mean
    weights[1:] += mean - through[1:]
    weights[0] += 1.0 - through[0]
    weights[-1] += through[-1]
    return weights


def share_inside(levels: Float, peak: float) -> float:
    """Return the share of a weighting function that lies between the first and the last level."""
    first, last = np.exp(-((levels[[0, -1]] / peak) ** 2))
    return float(first - last)


def fit_channel(
    levels: Float, profiles: Float, brightness: Float, spread: float = SPREAD
) -> FittedChannel:
    """Fit the weights of one channel to its measurements over known temperature profiles.

    Arguments:
        levels: Pa, ascending, with shape (L,).
        profiles: Temperatures of the levels in K, with shape (N, L).
        brightness: Brightness temperatures in K, with shape (N,).
        spread: s above; 0 keeps the closed form.

    Raises:
        InvalidInput: If there are fewer than `LEAST_PROFILES` profiles, or other shapes.
    """
    if profiles.shape != (len(brightness), len(levels)) or len(brightness) < LEAST_PROFILES:
        raise InvalidInput(
            f"Expected at least {LEAST_PROFILES} profiles of {len(levels)} levels with a brightness "
            f"temperature each; got {profiles.shape} and {brightness.shape}."
        )

    def left(peak: float) -> Float:
        """Return the residual of the closed form, with shape (N,)."""
        return np.asarray(brightness - profiles @ level_weights(levels, peak))

    found = minimize_scalar(
        lambda log_peak: float(np.var(left(float(np.exp(log_peak))))),
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    peak = float(np.exp(found.x))
    weights, residual = level_weights(levels, peak), left(peak)
    if spread > 0.0:
        weights = weights + _regression(profiles, residual, spread)
        residual = brightness - profiles @ weights
    return FittedChannel(
        weights, peak, float(residual.mean()), float(residual.std()), len(brightness)
    )


def _regression(profiles: Float, residual: Float, spread: float) -> Float:
    """Return the changes of the weights (L,), which sum to 0.

    The measurement error is the residual of the fit itself, found by fixed-point iteration.
    """
    levels = profiles.shape[1]
    # An orthonormal basis of the changes that sum to 0: the constant is its missing member.
    basis = np.linalg.svd(np.ones((1, levels)))[2][1:].T
    centred = (profiles - profiles.mean(axis=0)) @ basis
    about = residual - residual.mean()
    square, product = centred.T @ centred, centred.T @ about
    moved = np.zeros(levels - 1)
    for _ in range(_REPETITIONS):
        error = float(np.mean((about - centred @ moved) ** 2))
        ridge = max(error, _LEAST_ERROR**2) / spread**2
        moved = np.linalg.solve(square + ridge * np.eye(levels - 1), product)
    return np.asarray(basis @ moved)
