r"""What the autoencoder's training minimises: squared error, and error relative to each wavelength.

With error coefficients :math:`e_{lm}` of channel c in spherical harmonics and the mean power
:math:`P_{cl}` of that channel's states at total wavenumber l,

.. math:: L = \overline{(\hat x - x)^2}
    + \lambda \, \overline{\frac{1}{4\pi P_{cl}} \sum_m |e_{lm}|^2}
    + \alpha \, \overline{\left( \frac{\hat p_{cl} - p_{cl}}{P_{cl}} \right)^2}

The first mean is over channels and where each is defined on the sphere, the others over channels
and wavenumbers; p are the powers of a batch, decoded and given. Squared error alone is spent where
the variance is: the short waves of stratospheric temperature and of geopotential carry a millionth
of it, so a code trained without the second term leaves them out, and the spectra of decoded states
fall short by half. Where something must be left out, the least squared error damps it (the double
penalty of Subich et al., arXiv 2501.19374); the third term asks for the right power instead.
"""

__all__ = ["ReconstructionLoss"]

import math

import torch
from torch import Tensor, nn

from model.diagnostics.spectra import legendre_projection, power_spectrum
from model.domain.grids import Grid

ROUNDING = 5e-7
"""Share of a channel's power below which a wavenumber is left out: what half precision, in which
states are kept, rounds away is 1e-7 of it."""


class ReconstructionLoss(nn.Module):
    """
    Arguments:
        grid: The grid.
        states: Some standardised states, whose mean power errors are compared with, with shape
            (N, C, Y, X).
        defined: Where each channel has values (not the sea surface temperature on land), with
            shape (C, Y, X). A channel with gaps has no spectrum and is not in the second term.
        spectral_weight: λ.
        largest: Last total wavenumber of the second and third terms; the mean (0) is not in them.
        amplitude_weight: α. With it and λ at 0 there is the squared error alone.
    """

    weights: Tensor
    projection: Tensor
    relative: Tensor

    def __init__(
        self,
        grid: Grid,
        states: Tensor,
        defined: Tensor,
        spectral_weight: float,
        largest: int,
        amplitude_weight: float = 0.0,
    ) -> None:
        super().__init__()
        area = torch.from_numpy(grid.area_weights)[:, None] * defined
        self.register_buffer("weights", (area / area.mean((1, 2), keepdim=True)).float())
        self.spectral_weight, self.amplitude_weight = spectral_weight, amplitude_weight
        wanted = slice(1, largest + 1)
        projection = legendre_projection(grid)[wanted, : largest + 1]
        self.register_buffer("projection", projection.float())
        spectrum = power_spectrum(states, grid).mean(0)
        power, total = spectrum[:, wanted], spectrum.sum(dim=1, keepdim=True)
        whole = defined.flatten(1).all(dim=1, keepdim=True)
        usable = whole & (power > ROUNDING * total)
        relative = torch.where(usable, 1.0 / power.clamp(min=1e-30), 0.0) / usable.sum().clamp(
            min=1
        )
        self.register_buffer("relative", relative.float())

    def squared(self, output: Tensor, target: Tensor) -> Tensor:
        """The first term, of states (N, C, Y, X)."""
        return ((output - target).float().square() * self.weights).mean()

    def spectral(self, output: Tensor, target: Tensor) -> Tensor:
        """The second term without λ: 1 for an error as large as the state at every wavelength."""
        return (self._power(output - target).mean(0) * self.relative).sum()

    def amplitude(self, output: Tensor, target: Tensor) -> Tensor:
        """The third term without α."""
        found, wanted = self._power(output).mean(0), self._power(target).mean(0)
        # Over the mean power of all states: that of a batch may be next to nothing.
        count = (self.relative > 0).sum().clamp(min=1)
        deviation = (found - wanted) * self.relative * count
        return deviation.square().sum() / count

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of reconstructed states against states, both standardised, (N, C, Y, X)."""
        loss = self.squared(output, target)
        with torch.autocast(output.device.type, enabled=False):
            if self.spectral_weight > 0:
                loss = loss + self.spectral_weight * self.spectral(output, target)
            if self.amplitude_weight > 0:
                loss = loss + self.amplitude_weight * self.amplitude(output, target)
        return loss

    def _power(self, fields: Tensor) -> Tensor:
        """Power of fields (N, C, Y, X) at the wavenumbers compared, with shape (N, C, L)."""
        zonal = torch.fft.rfft(fields.float(), dim=-1)[..., : self.projection.shape[1]]
        coefficients = torch.einsum("lmy,ncymr->nclmr", self.projection, torch.view_as_real(zonal))
        power = coefficients.square().sum(-1)
        # A real field has the same power at m and -m.
        return (2.0 * power.sum(-1) - power[..., 0]) / (4.0 * math.pi)
