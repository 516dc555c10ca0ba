"""Air at 2 m and wind at 10 m from the lowest sigma levels, as SPEEDY's surface scheme sees them.

SPEEDY (F. Molteni, "Atmospheric simulations using a GCM with simplified physical
parametrizations", Clim. Dyn. 20, 2003; ``suflux.f90``) has no surface layer of its own. It carries
the lowest level's temperature down to sigma 0.99 with the lapse rate measured between sigma 0.835
and the lowest level where that layer is unstable, holds it in a stable layer, and takes 95 % of
the lowest level's wind. These are the values its surface fluxes use, so they are the model's own
screen-level diagnostics.
"""

from types import ModuleType

from model.domain.errors import InvalidInput
from model.training.pressure_levels import Array

__all__ = ["WIND_FACTOR", "temperature_2m"]

WIND_FACTOR = 0.95
"""Near-surface wind over lowest-level wind (SPEEDY ``fwind0``)."""

REFERENCE_SIGMA = 0.835
SURFACE_SIGMA = 0.99


def temperature_2m(xp: ModuleType, temperature: Array, sigma: Array) -> Array:
    """Screen temperature (...), K, of the profile ``temperature`` (level, ...) on ``sigma``.

    The last level but one must be SPEEDY's reference sigma (0.835), as on its 8 levels.
    """
    if abs(float(sigma[-2]) - REFERENCE_SIGMA) > 1e-3:
        raise InvalidInput(
            f"Expected the last level but one at sigma {REFERENCE_SIGMA}; got {float(sigma[-2])}. "
            "Use SPEEDY's 8 levels."
        )
    lowest, reference = temperature[-1], temperature[-2]
    slope = (lowest - reference) / (xp.log(sigma[-1]) - xp.log(sigma[-2]))
    extended = lowest + slope * (xp.log(xp.asarray(SURFACE_SIGMA)) - xp.log(sigma[-1]))
    return xp.where(lowest > reference, extended, lowest)
