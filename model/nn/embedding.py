"""Encode positions, noise levels and dates sinusoidally."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

__all__ = ["SineEncoding", "date_features", "date_rows", "local_time", "year_progress"]


class SineEncoding(nn.Module):
    r"""Encode numbers by sines, then cosines, of geometrically spaced frequencies.

    .. math:: e_k = \sin(x \, \omega^{-k / (D/2 - 1)}), \quad
        e_{D/2 + k} = \cos(x \, \omega^{-k / (D/2 - 1)}), \quad k = 0 \dots D/2 - 1

    azula's `SineEncoding` is the same function without the `freqs` buffer that the released
    state dicts list.

    Arguments:
        features: D, even.
        omega: The ratio of the highest to the lowest frequency.
    """

    freqs: Tensor

    def __init__(self, features: int, omega: float = 1e2) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(f"Expected an even number of features; got {features}.")
        exponents = torch.linspace(0, 1, features // 2, dtype=torch.float64, device="cpu")
        freqs = torch.exp(-math.log(omega) * exponents).to(torch.float32)
        self.register_buffer("freqs", freqs.to(torch.get_default_device()))

    def forward(self, x: Tensor) -> Tensor:
        """Map numbers (*) to features (*, D)."""
        angle = x[..., None] * self.freqs
        return torch.cat((torch.sin(angle), torch.cos(angle)), dim=-1)


def _leap(year: Tensor) -> Tensor:
    return (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))


def year_progress(date: Tensor) -> Tensor:
    """Return sine and cosine of the position in the year.

    Arguments:
        date: Year, month, day and hour (UTC) as integers, with shape (*, 4).

    Returns:
        Sine and cosine of 2 pi times the hour of the year over the hours in that year (leap
        years counted), in float32 with shape (*, 2).
    """
    year, month, day, hour = date.unbind(dim=-1)
    leap = _leap(year).long()
    # Days before the month in a common year: the 153-days-in-5-months rule, shifted to January.
    before = (367 * month - 362) // 12 + (month > 2).long() * (leap - 2)
    hours = (before + day - 1) * 24 + hour
    return _circle(hours.to(torch.float32) / ((365 + leap) * 24).to(torch.float32))


def local_time(date: Tensor, longitude: Tensor) -> Tensor:
    """Return sine and cosine of the local hour of day.

    Arguments:
        date: Year, month, day and hour (UTC) as integers, with shape (*, 4).
        longitude: Degrees east, with shape (X,).

    Returns:
        Sine and cosine of 2 pi times the local solar hour over 24, in float32 with shape
        (*, X, 2).
    """
    hour = date[..., 3, None].to(torch.float32)
    local = (hour + longitude.to(torch.float32) % 360 / 15) % 24
    return _circle(local / 24)


def date_features(date: Tensor) -> Tensor:
    """Return the conditioning of the denoiser on the dates of a blanket.

    Arguments:
        date: Year, month, day and hour (UTC) as integers, with shape (*, K, 4).

    Returns:
        The K sine-cosine pairs of the year progress, then the K pairs of the hour of day at
        Greenwich, in float32 with shape (*, 4 K).
    """
    greenwich = torch.zeros(1, device=date.device)
    day = local_time(date, greenwich).squeeze(-2)
    return torch.cat((year_progress(date).flatten(-2), day.flatten(-2)), dim=-1)


def _circle(fraction: Tensor) -> Tensor:
    angle = 2 * torch.pi * fraction
    return torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1)


def date_rows(times: Sequence[datetime]) -> Tensor:
    """Return year, month, day and hour (UTC) of times, int64 with shape (T, 4)."""
    utc = [t.astimezone(UTC) for t in times]
    return torch.tensor([[t.year, t.month, t.day, t.hour] for t in utc])
