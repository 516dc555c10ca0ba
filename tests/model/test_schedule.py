"""Noise schedules against their end points, high-precision values and inverses."""

import math
from fractions import Fraction

import pytest
import torch
from azula.noise import RectifiedSchedule as AzulaRectified

from model.domain.errors import UnknownName
from model.samplers.schedule import SCHEDULES, LogLogitSchedule, RectifiedSchedule


@pytest.mark.parametrize("name", ["rectified", "loglinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_end_points(name, dtype):
    schedule = SCHEDULES[name](2e-3, 500.0)
    alpha, sigma = schedule(torch.tensor([0.0, 1.0], dtype=dtype))
    assert sigma.dtype == dtype
    assert torch.equal(alpha, torch.ones_like(alpha))
    assert torch.allclose(sigma, torch.tensor([2e-3, 500.0], dtype=dtype), rtol=1e-6)


def test_log_logit_is_symmetric_about_the_geometric_mean():
    schedule = LogLogitSchedule(1e-2, 1e2)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = schedule.sigma(t)
    assert torch.allclose(sigma * sigma.flip(0), torch.ones_like(sigma))
    # eps = (1e-4)^(1/4) = 0.1, so sigma(1) = (0.9 / 0.1)^2 = 81.
    assert math.isclose(sigma[-1].item(), 81.0, rel_tol=1e-12)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_time_inverts_sigma_and_sigma_rises(name):
    schedule = SCHEDULES[name]()
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    sigma = schedule.sigma(t)
    assert (sigma.diff() > 0).all()
    assert torch.allclose(schedule.time(sigma), t, atol=1e-12)


def test_rectified_has_the_signal_to_noise_ratio_of_azulas():
    t = torch.linspace(0, 1, 17, dtype=torch.float64)
    alpha, sigma = AzulaRectified(alpha_min=1e-3, sigma_min=1e-2)(t)
    assert torch.allclose(RectifiedSchedule(1e-2, 1e3).sigma(t), sigma / alpha)


def test_float32_near_one_is_exact_to_float32():
    # In rational arithmetic, at the largest float32 times below 1.
    steps = torch.arange(6)
    t = torch.tensor(1.0) - steps * 2.0**-24
    low, high = Fraction(1, 1000), Fraction(1000)
    for value, sigma in zip(t, RectifiedSchedule(1e-3, 1e3).sigma(t), strict=True):
        time = Fraction(float(value))
        exact = (time + (1 - time) * low) / ((1 - time) + time / high)
        assert math.isclose(sigma.item(), float(exact), rel_tol=1e-7)


def test_unknown_names_are_listed():
    with pytest.raises(UnknownName, match="rectified"):
        SCHEDULES["cosine"]
