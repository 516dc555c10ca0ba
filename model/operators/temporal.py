"""Interpolation between hourly states, linear in time.

Up to half an hour before the first and after the last state, the nearest state stands for the
observation's time; further out there is no model equivalent.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["linear_in_time"]

Float = NDArray[np.float64]

REACH = 0.5
"""Hours beyond the first and last state."""

FULL_HOUR = 1e-6
"""Hours; a time this close to a state belongs to it alone."""


def linear_in_time(hours: Float, length: int) -> tuple[NDArray[np.int64], Float, NDArray[np.bool_]]:
    """States and weights of times.

    Arguments:
        hours: Hours since the first state, with shape (n,).
        length: Number of hourly states.

    Returns:
        State numbers (n, 2), weights (n, 2) that sum to 1, and which times are in reach (n,).
    """
    known = np.isfinite(hours)
    hours = np.where(known, hours, 0.0)
    reached = known & (hours >= -REACH - FULL_HOUR) & (hours <= length - 1 + REACH + FULL_HOUR)
    position = np.clip(hours, 0.0, length - 1.0)
    nearest = np.rint(position)
    position = np.where(np.abs(position - nearest) < FULL_HOUR, nearest, position)
    first = np.floor(position).astype(np.int64)
    later = position - first
    second = np.minimum(first + 1, length - 1)
    return np.stack((first, second), 1), np.stack((1.0 - later, later), 1), reached
