"""Hold everything a task needs of a checkpoint, loaded once and used by all tasks.

Physical states -> standardised states -> latents -> standardised latents, in which the denoiser
works; and back. Standardisation divides by fixed statistics of the training data, one number per
channel, so that all networks see values of order one.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from model.autoencoder import Autoencoder
from model.card import Card
from model.denoiser import BlanketDenoiser, Precision, reduced_precision
from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import Channel
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import CovarianceFilter
from model.linear_decoder import (
    LinearDecoder,
    TangentDecoder,
    fit_linear_decoder,
    linear_decoder_of,
)
from model.nn.embedding import date_rows
from model.operators.base import ModelDomain, Statics
from model.samplers.schedule import SCHEDULES, NoiseSchedule
from model.tiled_decoder import DecodedPoints, PartialDecoder

__all__ = ["LatentModel", "LatentNormalisation", "StateNormalisation", "climatological_states"]

_SST = "sea_surface_temperature"


class StateNormalisation(nn.Module):
    """Physical states in SI units to standardised ones and back.

    Arguments:
        mean: Mean of each channel in its unit, with shape (C,).
        std: Standard deviation of each channel, positive, with shape (C,).
        channels: Order of the channels.
        sea: Where the sea surface temperature is defined, bool with shape (Y, X), or None where
            unknown.

    Raises:
        InvalidInput: If the shapes do not match or a value is not finite and positive.
    """

    mean: Tensor
    std: Tensor
    missing: Tensor | None

    def __init__(
        self, mean: Tensor, std: Tensor, channels: Sequence[Channel], sea: Tensor | None = None
    ) -> None:
        super().__init__()
        _check(mean, std, len(channels), "state")
        self.register_buffer("mean", mean[:, None, None].detach().clone())
        self.register_buffer("std", std[:, None, None].detach().clone())
        missing = None
        if sea is not None and any(c.variable == _SST for c in channels):
            chosen = torch.tensor([c.variable == _SST for c in channels])
            missing = chosen[:, None, None] & ~sea.bool().cpu()
        self.register_buffer("missing", missing, persistent=False)

    def standardise(self, states: Tensor) -> Tensor:
        """Map physical states (*, C, Y, X), NaN where undefined, to standardised ones; NaN becomes 0."""
        return torch.nan_to_num((states - self.mean) / self.std, nan=0.0)

    def physical(self, standardised: Tensor, *, mask: bool = False) -> Tensor:
        """Map standardised states (*, C, Y, X) to SI units.

        Arguments:
            standardised: The states.
            mask: Whether the sea surface temperature becomes NaN on land (where the land is
                known). Off where gradients are wanted.
        """
        states = standardised * self.std + self.mean
        if mask and self.missing is not None:
            states = states.masked_fill(self.missing, float("nan"))
        return states


class LatentNormalisation(nn.Module):
    """Latents of the autoencoder to those the denoiser works in, and back.

    In the release those have mean 0 and variance 1; our own training scales channels by what they
    do to the decoded state (`lab.training.train_denoiser`), with a mean square of 1 over channels.

    Arguments:
        mean: Mean of each latent channel, with shape (c,).
        std: What each latent channel is divided by, positive, with shape (c,).
        noise: Standard deviation of the noise that the decoder was trained with; the square is added
            to the variance, as in the release.

    Raises:
        InvalidInput: If the shapes do not match or a value is not finite and positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        _check(mean, std, len(mean), "latent")
        self.register_buffer("mean", mean[:, None, None].detach().clone())
        self.register_buffer("std", (std.square() + noise**2).sqrt()[:, None, None].detach())

    def standardise(self, latents: Tensor) -> Tensor:
        """Map latents (*, c, h, w) to standardised ones."""
        return (latents - self.mean) / self.std

    def restore(self, standardised: Tensor) -> Tensor:
        """Map standardised latents (*, c, h, w) to those of the autoencoder."""
        return standardised * self.std + self.mean


def _check(mean: Tensor, std: Tensor, count: int, what: str) -> None:
    if mean.shape != (count,) or std.shape != (count,):
        raise InvalidInput(
            f"Expected a {what} mean and standard deviation with shape ({count},); got "
            f"{tuple(mean.shape)} and {tuple(std.shape)}."
        )
    bad = ~(mean.isfinite() & std.isfinite() & (std > 0))
    if bad.any():
        index = int(bad.nonzero()[0])
        raise InvalidInput(
            f"Expected finite {what} means and positive standard deviations; got "
            f"{float(mean[index])} and {float(std[index])} for channel {index}."
        )


_WEIGHTING = "weighting_function."
_RESIDUAL = "reconstruction_residual"

FEATURES_NEEDING: Mapping[str, tuple[str, ...]] = {
    "orography": (
        "reduction of surface observations to the height of the model's ground",
        "check of station heights against the model's ground",
    ),
    "land_sea_mask": ("sea surface temperature from sea cells only, and missing on land",),
    _RESIDUAL: ("representativeness in the observation errors",),
}
"""Features that are inactive without a static field, by the name of the field."""


def _channel(name: str) -> int | tuple[str, int]:
    """Return the channel whose weighting function a static field is."""
    sensor, _, number = name.removeprefix(_WEIGHTING).rpartition(".")
    return (sensor, int(number)) if sensor else int(number)


class LatentModel(nn.Module):
    """Autoencoder, denoiser, statistics and grid of one checkpoint.

    Arguments:
        card: The description all of it follows.
        autoencoder: States to latents and back.
        denoise: The denoiser of blankets of standardised latents.
        state_normalisation: Statistics of the states.
        latent_normalisation: Statistics of the latents.
        static: Static fields by name: `orography` in m above mean sea level and `land_sea_mask` as a
            fraction, with shape (Y, X); `weighting_function.<sensor>.<number>`
            (`weighting_function.<number>` for any sensor), with shape (levels,), for brightness
            temperatures; `reconstruction_residual`, with shape (C, Y), which observation errors then
            include.
        background_errors: Errors of the backgrounds of hourly cycles; None if not estimated.
        tangent: A linear map close to the decoder; None fits one at its first use, which takes seconds.
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
        background_errors: ZonalGaussianPrior | None = None,
        tangent: LinearDecoder | None = None,
        *,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.card = card
        self.autoencoder = autoencoder
        self.denoise = denoise
        self.state_normalisation = state_normalisation
        self.latent_normalisation = latent_normalisation
        self.static = dict(static or {})
        self.background_errors = background_errors
        self._tangent = tangent
        self.precision: Precision = precision
        self.denoise.precision = precision
        self._grid = card.grid.grid()
        self._channels = card.parsed_channels()
        self._views: dict[Precision, LatentModel] = {}
        self._check_static()

    def in_precision(self, precision: Precision) -> "LatentModel":
        """Return the same model with products in another precision; parameters are shared."""
        if precision == self.precision:
            return self
        known = self._views.get(precision)
        if known is None or known.denoise.backbone is not self.denoise.backbone:
            denoise = BlanketDenoiser(self.denoise.backbone, self.denoise.base, precision)
            view = LatentModel(
                self.card,
                self.autoencoder,
                denoise,
                self.state_normalisation,
                self.latent_normalisation,
                self.static,
                self.background_errors,
                self._tangent,
                precision=precision,
            )
            self._views[precision] = view.train(self.training)
        return self._views[precision]

    @property
    def grid(self) -> Grid:
        """The horizontal grid of the states."""
        return self._grid

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The C channels of a state, in order."""
        return self._channels

    @property
    def blanket_size(self) -> int:
        """The number of states denoised together, K."""
        return self.card.blanket.size

    @property
    def blanket_stride(self) -> int:
        """Default number of states between the starts of neighbouring blankets."""
        return self.card.blanket.stride

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape (C, Y, X) of one physical state."""
        return len(self._channels), *self._grid.shape

    @property
    def window_bytes(self) -> int:
        """Size of the physical states of a blanket in float32."""
        return 4 * self.blanket_size * math.prod(self.state_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one latent state."""
        return self.card.latent_shape

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the denoiser was trained with."""
        chosen = self.card.schedule
        return SCHEDULES[chosen.name](chosen.sigma_min, chosen.sigma_max)

    @property
    def device(self) -> torch.device:
        """The device that holds the parameters."""
        return next(self.autoencoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return next(self.autoencoder.parameters()).dtype

    @property
    def statics(self) -> Statics:
        """The static fields, for observation operators."""
        fields = {k: v.double().cpu().numpy() for k, v in self.static.items()}
        weights = {_channel(k): v for k, v in fields.items() if k.startswith(_WEIGHTING)}
        return Statics(
            fields.get("orography"),
            fields.get("land_sea_mask"),
            weights,
            residual=fields.get(_RESIDUAL),
            typical=self.state_normalisation.mean.flatten().double().cpu().numpy(),
        )

    @property
    def inactive_features(self) -> tuple[str, ...]:
        """Features inactive because the checkpoint lacks a static field; see `FEATURES_NEEDING`."""
        absent = [words for name, words in FEATURES_NEEDING.items() if name not in self.static]
        return tuple(word for words in absent for word in words)

    def domain(self, length: int) -> ModelDomain:
        """Return the domain of observation operators for a trajectory of `length` hourly states."""
        return ModelDomain(self.grid, self.channels, length, self.statics)

    def encode(self, states: Tensor) -> Tensor:
        """Arguments:
            states: Physical states in SI units, with shape (*, C, Y, X); NaN where undefined.

        Returns:
            Standardised latents, with shape (*, c, h, w).
        """
        standardised = self.state_normalisation.standardise(states.to(self.device, self.dtype))
        with reduced_precision(self.device, self.precision):
            latents = self.autoencoder.encode(standardised)
        return self.latent_normalisation.standardise(latents.to(self.dtype))

    def decode(self, latents: Tensor, *, mask: bool = True) -> Tensor:
        """Arguments:
            latents: Standardised latents, with shape (*, c, h, w).
            mask: Whether the sea surface temperature is NaN on land; off where gradients are
                wanted.

        Returns:
            Physical states in SI units, with shape (*, C, Y, X).
        """
        return self.state_normalisation.physical(self.decode_standardised(latents), mask=mask)

    def decode_standardised(self, latents: Tensor) -> Tensor:
        """Map standardised latents (*, c, h, w) to standardised states (*, C, Y, X)."""
        restored = self.latent_normalisation.restore(latents)
        with reduced_precision(self.device, self.precision):
            states = self.autoencoder.decode(restored)
        return states.to(latents.dtype)

    @cached_property
    def decode_partly(self) -> PartialDecoder:
        """Like `decode` without mask; it can also decode only the values that an operator reads."""
        return PartialDecoder(
            self.autoencoder, lambda z: self.decode(z, mask=False), self._decoded_points
        )

    def _decoded_points(self, points: DecodedPoints, latents: Tensor) -> Tensor:
        restored = self.latent_normalisation.restore(latents)
        with reduced_precision(self.device, self.precision):
            values = points(restored)
        channel = torch.from_numpy(points.channel).to(values.device)
        of_states = self.state_normalisation
        std, mean = of_states.std.flatten()[channel], of_states.mean.flatten()[channel]
        return values.to(latents.dtype) * std + mean

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

    @property
    def has_equal_patches(self) -> bool:
        """Whether latent columns cover the grid once, with equal patches, as a linear map needs."""
        (_, h, w), (_, rows, columns) = self.latent_shape, self.state_shape
        return rows % h == 0 and columns % w == 0

    @property
    def tangent(self) -> LinearDecoder:
        """A linear map close to the decoder, fitted on latents drawn from the prior if none was given."""
        if self._tangent is None:
            self._tangent = self._fit_tangent()
        return self._tangent

    @torch.no_grad()
    def _fit_tangent(self) -> LinearDecoder:
        generator = torch.Generator().manual_seed(0)
        base = self.denoise.base
        if isinstance(base, ZonalGaussianPrior):
            months = torch.tensor([[2001, month, 1, 0] for month in (1, 4, 7, 10)])
            date = months[:, None].expand(-1, self.blanket_size, -1).to(self.device)
            latents = base.sample(date, generator).flatten(0, 1)[::3]
        else:
            latents = torch.randn(32, *self.latent_shape, generator=generator).to(self.device)
        pairs = ((z[None], self.decode_standardised(z[None])) for z in latents.to(self.dtype))
        decoder = linear_decoder_of(self.latent_shape, self.state_shape)
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


@torch.no_grad()
def climatological_states(model: LatentModel, times: Sequence[datetime]) -> Tensor:
    """Return climatological mean states (T, C, Y, X), seasonal if there is a closed-form prior."""
    prior = model.denoise.base
    if isinstance(prior, ZonalGaussianPrior):
        return model.decode(prior.climatology(date_rows(times)[None])[0], mask=False)
    mean = model.state_normalisation.mean
    return mean.expand(len(times), *model.state_shape).clone()
