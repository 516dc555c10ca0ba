"""LatentModel: everything a task needs of a checkpoint, loaded once and used by all tasks.

Physical states -> standardised states -> latents -> standardised latents, in which the denoiser
works; and back.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from model.autoencoder import Autoencoder
from model.checkpoints.card import Card
from model.denoiser import BlanketDenoiser
from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import Channel
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import CovarianceFilter
from model.linear_decoder import LinearDecoder, fit_linear_decoder
from model.nn.precision import Precision, reduced_precision
from model.normalisation import LatentNormalisation, StateNormalisation
from model.operators.domain import ModelDomain, Statics
from model.schedule import SCHEDULES, NoiseSchedule
from model.tangent_decoder import TangentDecoder

__all__ = ["LatentModel"]

_WEIGHTING = "weighting_function."
_RESIDUAL = "reconstruction_residual"


class LatentModel(nn.Module):
    """Autoencoder, denoiser, statistics and grid of one checkpoint.

    Arguments:
        card: The description all of it follows.
        autoencoder: States to latents and back.
        denoise: The denoiser of blankets of standardised latents.
        state_normalisation: Statistics of the states.
        latent_normalisation: Statistics of the latents.
        static: Unchanging fields by name, each with shape (Y, X): `orography` in m above mean
            sea level, `land_sea_mask` as a fraction; and `weighting_function.<number>`, with
            shape (levels,), for brightness temperatures; and `reconstruction_residual`, with
            shape (C, Y), which observation errors then include.
        precision: Of the products inside the networks.
    """

    def __init__(
        self,
        card: Card,
        autoencoder: Autoencoder,
        denoise: BlanketDenoiser,
        state_normalisation: StateNormalisation,
        latent_normalisation: LatentNormalisation,
        static: Mapping[str, Tensor] | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.card = card
        self.autoencoder = autoencoder
        self.denoise = denoise
        self.state_normalisation = state_normalisation
        self.latent_normalisation = latent_normalisation
        self.static = dict(static or {})
        self.precision: Precision = precision
        self.denoise.precision = precision
        self._grid = card.grid.grid()
        self._channels = card.parsed_channels()
        self._check_static()

    @property
    def grid(self) -> Grid:
        """The horizontal grid of the states."""
        return self._grid

    @property
    def channels(self) -> tuple[Channel, ...]:
        """C channels, in order."""
        return self._channels

    @property
    def blanket_size(self) -> int:
        """K, states denoised together."""
        return self.card.blanket.size

    @property
    def blanket_stride(self) -> int:
        """Default number of states between the starts of neighbouring blankets."""
        return self.card.blanket.stride

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, Y, X)."""
        return len(self._channels), *self._grid.shape

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        return self.card.latent_shape

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of training."""
        chosen = self.card.schedule
        return SCHEDULES[chosen.name](chosen.sigma_min, chosen.sigma_max)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.autoencoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(self.autoencoder.parameters()).dtype

    @property
    def statics(self) -> Statics:
        """The unchanging fields, for observation operators."""
        fields = {k: v.double().cpu().numpy() for k, v in self.static.items()}
        weights = {
            int(k.removeprefix(_WEIGHTING)): v
            for k, v in fields.items()
            if k.startswith(_WEIGHTING)
        }
        return Statics(
            fields.get("orography"),
            fields.get("land_sea_mask"),
            weights,
            residual=fields.get(_RESIDUAL),
            typical=self.state_normalisation.mean.flatten().double().cpu().numpy(),
        )

    def domain(self, length: int) -> ModelDomain:
        """What observation operators of a trajectory of `length` hourly states are built from."""
        return ModelDomain(self.grid, self.channels, length, self.statics)

    def encode(self, states: Tensor) -> Tensor:
        """
        Arguments:
            states: Physical states in SI units, with shape (*, C, Y, X); NaN where undefined.

        Returns:
            Standardised latents, with shape (*, c, h, w).
        """
        standardised = self.state_normalisation.standardise(states.to(self.device, self.dtype))
        with reduced_precision(self.device, self.precision):
            latents = self.autoencoder.encode(standardised)
        return self.latent_normalisation.standardise(latents.to(self.dtype))

    def decode(self, latents: Tensor, *, mask: bool = True) -> Tensor:
        """
        Arguments:
            latents: Standardised latents, with shape (*, c, h, w).
            mask: Whether the sea surface temperature is NaN on land; off where gradients are
                wanted.

        Returns:
            Physical states in SI units, with shape (*, C, Y, X).
        """
        return self.state_normalisation.physical(self.decode_standardised(latents), mask=mask)

    def decode_standardised(self, latents: Tensor) -> Tensor:
        """Standardised latents (*, c, h, w) to standardised states (*, C, Y, X)."""
        restored = self.latent_normalisation.restore(latents)
        with reduced_precision(self.device, self.precision):
            states = self.autoencoder.decode(restored)
        return states.to(latents.dtype)

    @property
    def prior_covariance(self) -> CovarianceFilter | None:
        """Covariance of a blanket given its noisy version under the closed-form prior, if any."""
        base = self.denoise.base
        return base.conditional_filter if isinstance(base, ZonalGaussianPrior) else None

    @cached_property
    def decode_tangent(self) -> TangentDecoder:
        """Like `decode` without mask, by a linear map that is cheap to differentiate."""
        of_states = self.state_normalisation
        return TangentDecoder(lambda: self.tangent, of_states.mean, of_states.std)

    @cached_property
    @torch.no_grad()
    def tangent(self) -> LinearDecoder:
        """A linear map fitted to the decoder at first use, on latents drawn from the prior.

        It is derived from the weights, so it is no part of the checkpoint.
        """
        c, h, w = self.latent_shape
        states, rows, columns = self.state_shape
        decoder = LinearDecoder(c, states, (rows // h, columns // w), reach=1)
        generator = torch.Generator().manual_seed(0)
        base = self.denoise.base
        if isinstance(base, ZonalGaussianPrior):
            months = torch.tensor([[2001, month, 1, 0] for month in (1, 4, 7, 10)])
            date = months[:, None].expand(-1, self.blanket_size, -1).to(self.device)
            latents = base.sample(date, generator).flatten(0, 1)[::3]
        else:
            latents = torch.randn(32, c, h, w, generator=generator).to(self.device)
        pairs = ((z[None], self.decode_standardised(z[None])) for z in latents.to(self.dtype))
        return fit_linear_decoder(decoder, pairs).to(self.device)

    def _check_static(self) -> None:
        for name, field in self.static.items():
            wanted: tuple[int, ...] = self.grid.shape
            if name.startswith(_WEIGHTING):
                wanted = (len(self.card.levels),)
            elif name == _RESIDUAL:
                wanted = (len(self._channels), self.grid.nlat)
            if tuple(field.shape) != wanted or not np.isfinite(field.cpu().numpy()).all():
                raise InvalidInput(
                    f"Expected a finite static field '{name}' with shape {wanted}; got shape "
                    f"{tuple(field.shape)}."
                )
