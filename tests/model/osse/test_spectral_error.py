"""Spectral deviations of fields with a harmonic of known power too much or too little."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from lab.osse.scores import SpectralError
from model.domain.grids import Grid
from model.domain.variables import Channel

GRID = Grid("t31", "gaussian", 48, 96)
CHANNELS = (
    Channel("2m_temperature"),
    Channel("sea_surface_temperature"),
    Channel("temperature", 500),
    Channel("temperature", 850),
)


def harmonic(degree):
    colatitude = np.deg2rad(90.0 - GRID.latitude)[:, None]
    field = sph_harm_y(degree, degree // 2, colatitude, np.deg2rad(GRID.longitude)).real
    return torch.from_numpy(field)


def reference(scale):
    """Power at every wavenumber, the same for all channels; the sea surface has a gap."""
    field = 280.0 + scale * sum(harmonic(degree) for degree in range(1, 31))
    states = field.repeat(len(CHANNELS), 1, 1)
    states[1, 10:20, 30:50] = torch.nan
    return states


def test_a_known_scaling_is_found_where_it_is():
    error = SpectralError(GRID)
    for scale in (1.0, 3.0):
        truth = reference(scale)
        state = truth.clone()
        state[0] += scale * (1.2**0.5 - 1.0) * harmonic(7)
        state[2] += scale * (0.95**0.5 - 1.0) * harmonic(3)
        state[3] += scale * (0.7**0.5 - 1.0) * harmonic(20)
        state[3] += scale * harmonic(25)
        error.add(state, truth)
    rows = {r.variable: r for r in error.by_variable(CHANNELS)}
    assert set(rows) == {"2m_temperature", "temperature"}
    surface, air = rows["2m_temperature"], rows["temperature"]
    assert (surface.level, surface.wavenumber) == (None, 7)
    assert surface.deviation == pytest.approx(0.2, rel=1e-6)
    assert surface.within == pytest.approx(19 / 20)
    assert (air.level, air.wavenumber) == (850, 20)
    assert air.deviation == pytest.approx(-0.3, rel=1e-6)
    assert air.within == pytest.approx(39 / 40)
    assert error.deviations()[2, 2] == pytest.approx(-0.05, rel=1e-6)


def test_states_without_error_have_no_deviation():
    error = SpectralError(GRID, largest=12)
    error.add(reference(1.0), reference(1.0))
    assert error.deviations().shape == (4, 12)
    assert all(r.deviation == 0.0 and r.within == 1.0 for r in error.by_variable(CHANNELS))
