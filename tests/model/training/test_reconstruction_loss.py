"""The two terms of the autoencoder's loss, on fields whose spectra are known by hand."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from lab.training.train_autoencoder import ReconstructionLoss
from model.domain.grids import Grid

GRID = Grid("small", "gaussian", 24, 48)
EVERYWHERE = torch.ones(2, *GRID.shape, dtype=torch.bool)


def harmonic(degree: int, order: int) -> torch.Tensor:
    """A real harmonic with an area mean square of 1, with shape (Y, X)."""
    colatitude = np.deg2rad(90.0 - GRID.latitude)[:, None]
    longitude = np.deg2rad(GRID.longitude)[None]
    value = sph_harm_y(degree, order, colatitude, longitude)
    factor = np.sqrt(4 * np.pi * (2.0 if order else 1.0))
    return torch.from_numpy((factor * value.real).astype(np.float32))


def states() -> torch.Tensor:
    """Two channels whose power is 4 and 9 at each of the wavenumbers 1 to 5."""
    field = sum(harmonic(degree, 0) for degree in range(1, 6))
    return torch.stack([2.0 * field, 3.0 * field])[None]


def test_the_squared_error_weighs_by_area():
    loss = ReconstructionLoss(GRID, states(), EVERYWHERE, 0.0, 5)
    error = 0.5 * harmonic(3, 2).expand(1, 2, -1, -1)
    assert float(loss(states() + error, states())) == pytest.approx(0.25, rel=1e-4)


def test_errors_count_relative_to_the_power_at_their_wavenumber():
    loss = ReconstructionLoss(GRID, states(), EVERYWHERE, 1.0, 5)
    error = torch.stack([harmonic(4, 3), torch.zeros(GRID.shape)])[None]
    # 1 / 4 in one of two channels at one of five wavenumbers.
    assert float(loss.spectral(states() + error, states())) == pytest.approx(0.25 / 10, rel=1e-3)


def test_errors_beyond_the_last_wavenumber_and_of_the_mean_are_left_to_the_first_term():
    loss = ReconstructionLoss(GRID, states(), EVERYWHERE, 1.0, 5)
    error = (harmonic(7, 1) + harmonic(0, 0)).expand(1, 2, -1, -1)
    assert float(loss.spectral(states() + error, states())) == pytest.approx(0.0, abs=1e-6)


def test_undefined_points_do_not_count():
    defined = EVERYWHERE.clone()
    defined[1, :, :24] = False
    loss = ReconstructionLoss(GRID, states(), defined, 1.0, 5)
    target = states()
    output = target.clone()
    output[:, 1, :, :24] += 100.0
    assert float(loss(output, target)) == pytest.approx(0.0, abs=1e-6)
    output = target + 1.0
    # Where a channel is defined on half the sphere, that half counts as much as a whole one.
    assert float(loss.squared(output, target)) == pytest.approx(1.0, rel=1e-5)


def test_the_third_term_is_of_the_power_and_not_of_the_error():
    loss = ReconstructionLoss(GRID, states(), EVERYWHERE, 0.0, 5, 1.0)
    # Half the amplitude at one of five wavenumbers in one of two channels: a quarter of the power.
    output = states()
    output[:, 0] -= harmonic(3, 0)
    assert float(loss.amplitude(output, states())) == pytest.approx(0.75**2 / 10, rel=1e-3)
    # The same power in the wrong place.
    moved = states()
    moved[:, 0] += 2.0 * (harmonic(3, 2) - harmonic(3, 0))
    assert float(loss.amplitude(moved, states())) == pytest.approx(0.0, abs=1e-5)
    assert float(loss(moved, states())) == pytest.approx(float(loss.squared(moved, states())))


def test_its_gradient_leads_downhill_through_the_transform():
    loss = ReconstructionLoss(GRID, states(), EVERYWHERE, 0.1, 5)
    output = (states() + harmonic(2, 1)).requires_grad_()
    before = loss(output, states())
    before.backward()
    step = output.detach() - 0.1 * output.grad * output[0, 0].numel()
    # The error is one harmonic of power 1: (1 + 0.1 x mean of 1/4 and 1/9 over 5) at first.
    assert before.item() == pytest.approx(1.0 + 0.1 * (1 / 4 + 1 / 9) / 10, rel=1e-3)
    assert loss(step, states()).item() < before.item()
