"""Print where the closed form of a weighting function comes nearest to one computed line by line.

The table of `model.operators.weighting.PEAKS` and its counterpart with an older absorption model. Needs
PyRTlib, which is no part of the installation: `pip install pyrtlib`. Minutes.

    python -m benchmarks.channel_peaks
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Float = NDArray[np.float64]

_CENTRE = 57.290344
MEGAHERTZ = 1e-3
MSU_WIDTH = 200.0
BANDS: Mapping[str, tuple[tuple[float, ...], float]] = {
    "AMSU-A 4": ((52.8,), 400.0),
    "AMSU-A 5": ((53.596 - 0.115, 53.596 + 0.115), 170.0),
    "AMSU-A 6": ((54.4,), 400.0),
    "AMSU-A 7": ((54.94,), 400.0),
    "AMSU-A 8": ((55.5,), 330.0),
    "AMSU-A 9": ((_CENTRE,), 330.0),
    "AMSU-A 10": ((_CENTRE - 0.217, _CENTRE + 0.217), 78.0),
    **{
        f"AMSU-A {number}": (
            tuple(_CENTRE + s * 0.3222 + t * offset for s in (-1, 1) for t in (-1, 1)),
            width,
        )
        for number, offset, width in (
            (11, 0.048, 36.0),
            (12, 0.022, 16.0),
            (13, 0.010, 8.0),
            (14, 0.0045, 3.0),
        )
    },
    "MSU 2": ((53.74,), MSU_WIDTH),
    "MSU 3": ((54.96,), MSU_WIDTH),
    "MSU 4": ((57.95,), MSU_WIDTH),
}
"""Centres of the pass bands in GHz, and their width in MHz (NOAA KLM User's Guide, section 3.3; NWP SAF)."""
MODELS = ("R24", "R98")
POINTS_IN_BAND = 5
STEP_KM, TOP_KM = 0.1, 80.0


def standard_atmosphere() -> tuple[Float, Float, Float]:
    """Return pressure and vapour pressure in hPa and temperature in K at steps of height."""
    from pyrtlib.climatology import AtmosphericProfiles

    gases = AtmosphericProfiles
    z, p, _, t, mixed = gases.gl_atm(gases.US_STANDARD)
    height = np.arange(0.0, TOP_KM + STEP_KM / 2, STEP_KM)
    pressure = np.exp(np.interp(height, z, np.log(p)))
    share = np.exp(np.interp(height, z, np.log(mixed[:, gases.H2O]))) * 1e-6
    return pressure, share * pressure, np.interp(height, z, t)


def absorption(frequency: float, model: str, profile: tuple[Float, Float, Float]) -> Float:
    """Return the absorption by oxygen and water vapour in nepers per km at each height."""
    from pyrtlib.absorption_model import H2OAbsModel, O2AbsModel

    for kind in (O2AbsModel, H2OAbsModel):
        kind.model = model
        kind.set_ll()
    pressure, vapour, temperature = profile
    found = []
    for p, e, t in zip(pressure, vapour, temperature, strict=True):
        dry, theta = (p - e) / 10.0, 300.0 / t
        found.append(
            sum(O2AbsModel().o2_absorption(dry, theta, e / 10.0, frequency))
            + sum(H2OAbsModel().h2o_absorption(dry, theta, e / 10.0, frequency))
        )
    # From parts per million of the refractivity to nepers: 0.182 f dB per km.
    return np.array(found) * 0.182 * frequency * np.log(10.0) / 10.0


def transmission(
    bands: tuple[tuple[float, ...], float], model: str, profile: tuple[Float, Float, Float]
) -> Float:
    """Return the transmission from each height to space, the mean over the pass bands."""
    centres, width = bands
    offsets = np.linspace(-0.5, 0.5, POINTS_IN_BAND) * width * MEGAHERTZ
    found = []
    for frequency in (centre + offset for centre in centres for offset in offsets):
        strength = absorption(float(frequency), model, profile)
        layers = 0.5 * (strength[1:] + strength[:-1]) * STEP_KM
        found.append(np.exp(-np.concatenate([np.cumsum(layers[::-1])[::-1], [0.0]])))
    return np.asarray(np.mean(found, axis=0))


def nearest_peak(pressure: Float, through: Float) -> float:
    """Return the peak in hPa of the closed form that is nearest in least squares over ln p."""
    x = np.log(pressure)
    weight, width = -np.gradient(through, x), -np.gradient(x)

    def far(log_peak: float) -> float:
        depth = (pressure / np.exp(log_peak)) ** 2
        return float(((2.0 * depth * np.exp(-depth) - weight) ** 2 * width).sum())

    found = minimize_scalar(far, bounds=(np.log(0.5), np.log(1500.0)), method="bounded")
    return float(np.exp(found.x))


def main() -> None:
    profile = standard_atmosphere()
    print("channel    " + "".join(f"{model:>8}" for model in MODELS) + "  hPa")
    for name, bands in BANDS.items():
        peaks = [nearest_peak(profile[0], transmission(bands, m, profile)) for m in MODELS]
        print(f"{name:<11}" + "".join(f"{peak:8.1f}" for peak in peaks), flush=True)


if __name__ == "__main__":
    main()
