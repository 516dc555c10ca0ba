r"""Whether a series of errors rises: a straight line, and how sure its slope is.

Errors of neighbouring analyses resemble each other, as they share most of their observations. The
standard error of the slope therefore counts an effective number of values
:math:`n_e = n (1 - r_1) / (1 + r_1)`, with :math:`r_1` the lag-1 autocorrelation of the residuals
(Santer et al., "Statistical significance of trends and trend differences in layer-average
atmospheric temperature time series", J. Geophys. Res. 105, 2000, eqs. 3-6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

__all__ = ["Trend", "trend"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trend:
    """A straight line through a series.

    Attributes:
        mean: Of the values.
        slope: Per unit of the abscissa.
        error: Standard error of the slope.
        margin: The slope's one-sided 95 % margin.
    """

    mean: float
    slope: float
    error: float
    margin: float

    @property
    def rises(self) -> bool:
        """Whether chance alone would hardly give such a slope."""
        return self.slope > self.margin


def trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """The line through values (n,) at times (n,), in order of time; n of at least 4.

    Raises:
        ValueError: If there are fewer.
    """
    x, y = np.asarray(times, float), np.asarray(values, float)
    if len(x) < 4:
        raise ValueError(f"Expected at least 4 values for a trend; got {len(x)}.")
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    residual = y - y.mean() - slope * centred
    spread = float(residual @ residual)
    neighbours = float(residual[1:] @ residual[:-1]) / spread if spread > 0 else 0.0
    r1 = min(max(neighbours, 0.0), 0.99)
    freedom = max(len(x) * (1.0 - r1) / (1.0 + r1) - 2.0, 1.0)
    error = float(np.sqrt(spread / freedom / (centred @ centred)))
    return Trend(float(y.mean()), slope, error, error * float(student.ppf(CONFIDENCE, freedom)))
